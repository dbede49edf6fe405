//! The exporters that run are those of the file. When that changes, those that it has otherwise now are ended and begun anew, and the others go on.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use dinle_proto::v1;
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use super::{
    Context, Spec, Unusable,
    config::{Receiver, Signal},
    counters::{Cause, Counters},
    prometheus::{Scraped, Scrapes},
    read,
    run::{self, LAST},
    series::Store,
};

/// How often the file is looked at: the kubelet changes those of a ConfigMap within a minute or so.
const LOOK: Duration = Duration::from_secs(2);

/// One that ended without being told is begun again, but not sooner after it began.
const AGAIN: Duration = Duration::from_secs(30);

/// An exporter that runs.
struct Running {
    spec: Spec,
    counters: Arc<Counters>,
    series: Option<Arc<Shown>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    began: Instant,
    /// It ended, and that was counted.
    noted: bool,
}

/// Series that whoever asks is shown.
struct Shown {
    name: String,
    store: Arc<Store>,
    scrapes: Scrapes,
}

impl Running {
    async fn end(mut self) -> Arc<Counters> {
        self.stop.send_replace(true);
        // Its last try may be under way.
        if timeout(2 * LAST, &mut self.task).await.is_err() {
            self.task.abort();
            // Until it is gone it counts.
            _ = timeout(LAST, &mut self.task).await;
        }
        self.counters.closed(Cause::Ended);
        self.counters
    }
}

/// How it went with the file.
#[derive(Debug, Default)]
pub struct Reloads {
    failures: AtomicU64,
    wrong: AtomicBool,
    applied: AtomicU64,
}

impl Reloads {
    /// How often the file had changed and could not be used.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The file as it is now is the one in use.
    pub fn is_current(&self) -> bool {
        !self.wrong.load(Ordering::Relaxed)
    }

    /// When the one in use was taken, in seconds since 1970.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    fn done(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.applied
            .store(now.map_or(0, |since| since.as_secs()), Ordering::Relaxed);
        self.wrong.store(false, Ordering::Relaxed);
    }
}

/// The exporters of the agent.
pub struct Exporters {
    path: PathBuf,
    text: Mutex<Result<String, String>>,
    begin: Mutex<Vec<Spec>>,
    counters: ArcSwap<Vec<Arc<Counters>>>,
    shown: ArcSwap<Vec<Arc<Shown>>>,
    reloads: Reloads,
    stop: watch::Sender<bool>,
}

impl Exporters {
    /// Reads the file. Nothing runs yet.
    pub fn open(path: PathBuf, limits: &crate::filter::Limits) -> Result<Arc<Self>, Unusable> {
        let (text, specs) = read(&path, limits)?;
        Ok(Arc::new(Self {
            path,
            text: Mutex::new(Ok(text)),
            begin: Mutex::new(specs),
            counters: ArcSwap::default(),
            shown: ArcSwap::default(),
            reloads: Reloads::default(),
            stop: watch::Sender::new(false),
        }))
    }

    /// How those are that run, in the order of their names.
    pub fn told(&self) -> Vec<v1::Exporter> {
        let running = self.counters.load();
        let mut told: Vec<_> = running.iter().map(|one| one.told()).collect();
        told.sort_by(|one, other| one.name.cmp(&other.name));
        told
    }

    /// Those that run.
    pub fn counters(&self) -> Arc<Vec<Arc<Counters>>> {
        self.counters.load_full()
    }

    /// The series of an exporter `prometheus` in the format that the header `Accept` asks for. `None` if there is none of that name.
    pub fn scrape(&self, name: &str, accept: &str) -> Option<Scraped> {
        let shown = self.shown.load();
        let shown = shown.iter().find(|shown| shown.name == name)?;
        Some(shown.scrapes.scrape(&shown.store, accept))
    }

    /// How it went with the file.
    pub fn reloads(&self) -> &Reloads {
        &self.reloads
    }

    /// Ends [`Self::run`], and all exporters with it.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Runs the exporters, and looks at the file, until the agent ends.
    pub async fn run(self: Arc<Self>, context: Context) {
        let mut running = Vec::new();
        let specs = std::mem::take(&mut *self.begin.lock().unwrap_or_else(PoisonError::into_inner));
        self.apply(&mut running, specs, &context).await;
        self.reloads.done();
        let mut stop = self.stop.subscribe();
        loop {
            tokio::select! {
                () = sleep(LOOK) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            let (own, limits) = (self.clone(), context.limits);
            // A file may be slow.
            let looked = spawn_blocking(move || own.look(&limits)).await;
            if let Ok(Some(specs)) = looked {
                self.apply(&mut running, specs, &context).await;
                self.reloads.done();
            } else if !context.hub.is_shut_down()
                && let Some(specs) = dead(&mut running)
            {
                self.apply(&mut running, specs, &context).await;
            }
        }
        futures::future::join_all(running.into_iter().map(Running::end)).await;
    }

    /// What the file says, if it says something new that is right. What is wrong is told once.
    fn look(&self, limits: &crate::filter::Limits) -> Option<Vec<Spec>> {
        let mut before = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        match read(&self.path, limits) {
            Ok((text, specs)) => {
                if before.as_ref() == Ok(&text) {
                    return None;
                }
                *before = Ok(text);
                Some(specs)
            }
            Err(error) => {
                let error = error.to_string();
                if before.as_ref() != Err(&error) {
                    self.reloads.failures.fetch_add(1, Ordering::Relaxed);
                    self.reloads.wrong.store(true, Ordering::Relaxed);
                    tracing::error!(
                        "the exporters stay as they are, since the file that has changed cannot be used:\n{error}"
                    );
                    *before = Err(error);
                }
                None
            }
        }
    }

    async fn apply(&self, running: &mut Vec<Running>, mut specs: Vec<Spec>, context: &Context) {
        let (stay, end): (Vec<Running>, Vec<Running>) = running
            .drain(..)
            .partition(|running| specs.contains(&running.spec) && !running.task.is_finished());
        specs.retain(|spec| stay.iter().all(|running| running.spec != *spec));
        let ended = futures::future::join_all(end.into_iter().map(Running::end)).await;
        *running = stay;
        for spec in specs {
            // It goes on to count if it goes on to send to the same kind of receiver.
            let same = ended.iter().find(|counters| {
                counters.name == spec.name && counters.receiver == spec.receiver.name()
            });
            let counters = match same {
                Some(counters) => counters.clone(),
                None => Arc::new(Counters::new(&spec.name, spec.receiver.name())),
            };
            tracing::info!(
                exporter = spec.name,
                receiver = spec.receiver.name(),
                "exporter begins"
            );
            let store = match &spec.receiver {
                Receiver::Prometheus(series) => Some(series),
                Receiver::Otlp(otlp) if otlp.signal == Signal::Metrics => Some(&otlp.series),
                Receiver::Stdout(_) | Receiver::File(_) | Receiver::Otlp(_) | Receiver::Nats(_) => {
                    None
                }
            };
            let store =
                store.map(|series| Arc::new(Store::new(series.clone(), context.index.clone())));
            let is_shown = matches!(spec.receiver, Receiver::Prometheus(_));
            let series = store.clone().filter(|_| is_shown).map(|store| {
                Arc::new(Shown {
                    name: spec.name.clone(),
                    store,
                    scrapes: Scrapes::default(),
                })
            });
            let stop = watch::Sender::new(false);
            let task = tokio::spawn(run::run(
                spec.clone(),
                context.clone(),
                counters.clone(),
                store,
                stop.subscribe(),
            ));
            running.push(Running {
                spec,
                counters,
                series,
                stop,
                task,
                began: Instant::now(),
                noted: false,
            });
        }
        self.counters.store(Arc::new(
            running
                .iter()
                .map(|running| running.counters.clone())
                .collect(),
        ));
        self.shown.store(Arc::new(
            running
                .iter()
                .filter_map(|running| running.series.clone())
                .collect(),
        ));
    }
}

/// Counts those that ended without being told, which is a defect. Gives what is to run, if one of them is to be begun again.
fn dead(running: &mut [Running]) -> Option<Vec<Spec>> {
    let mut again = false;
    for Running {
        spec,
        counters,
        began,
        noted,
        ..
    } in running.iter_mut().filter(|one| one.task.is_finished())
    {
        if !std::mem::replace(noted, true) {
            let problem = "it ended by itself, and will be begun again";
            tracing::error!(exporter = spec.name, problem, "an exporter ended");
            counters.closed(Cause::Ended);
            counters.failed(Cause::Ended, problem);
        }
        again |= began.elapsed() >= AGAIN;
    }
    again.then(|| running.iter().map(|one| one.spec.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_ended_by_itself_is_counted_once_and_begun_again_after_a_while() {
        let text = "exporters:\n- name: a\n  kinds: [exec]\n  stdout: {}\n";
        let specs = super::super::parse(text, &crate::filter::Limits::default());
        let specs = specs.expect("a good file");
        let task = tokio::spawn(async {});
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
        let mut running = [Running {
            spec: specs[0].clone(),
            counters: Arc::new(Counters::new("a", "stdout")),
            series: None,
            stop: watch::Sender::new(false),
            task,
            began: Instant::now(),
            noted: false,
        }];
        assert_eq!(dead(&mut running), None);
        running[0].began -= AGAIN;
        assert_eq!(dead(&mut running), Some(specs));
        let counters = &running[0].counters;
        let failures: Vec<_> = counters
            .failures()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(failures, [(Cause::Ended, 1)]);
        assert!(!counters.up());
    }
}
