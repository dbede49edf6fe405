//! The release binary, as a DaemonSet would run it, and one subscriber to it.

use std::{
    collections::HashSet,
    net::TcpListener,
    path::Path,
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use dinle_proto::v1::{self, observer_client::ObserverClient, subscribe_response::Message};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

use crate::{MEASURED, WARM_UP, scenario::Scenario, signal};

/// Far more than it takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Holds all events of a measurement: of opens, which follow each other in a microsecond or two, those are 6 MB. What is lost would cost less.
const ROOM: u32 = 16 << 20;

/// The agent. It ends when this is dropped.
pub(crate) struct Agent {
    child: Child,
    address: String,
    /// When it was started.
    pub(crate) begun: Instant,
}

impl Agent {
    /// Starts it, with room for a measurement in the ring.
    pub(crate) fn roomy(pods: &Path) -> anyhow::Result<Self> {
        Self::start(pods, &["--ring-bytes", &ROOM.to_string()])
    }

    /// Starts it.
    pub(crate) fn start(pods: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let (listen, http) = (free_address()?, free_address()?);
        let begun = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_dinle"))
            .args(["agent", "--node-name", "bench"])
            .args(["--listen", &listen, "--http", &http])
            .args(flags)
            .arg(format!("--pods=file:{}", pods.display()))
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("the agent")?;
        Ok(Self {
            child,
            address: format!("http://{listen}"),
            begun,
        })
    }

    /// Connects as soon as it listens.
    pub(crate) async fn client(&mut self) -> anyhow::Result<ObserverClient<Channel>> {
        let begin = Instant::now();
        loop {
            match ObserverClient::connect(self.address.clone()).await {
                Ok(client) => return Ok(client),
                Err(error) if begin.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => {}
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended with {status}");
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Subscribes to the operations of one pod. Everything is attached when this comes back.
    pub(crate) async fn subscribe(
        &mut self,
        scenario: Scenario,
        pod: &str,
    ) -> anyhow::Result<Subscriber> {
        let request = v1::SubscribeRequest {
            kinds: scenario.kinds().iter().map(|&kind| kind.into()).collect(),
            selector: Some(v1::Selector {
                pods: vec![pod.to_owned()],
                ..Default::default()
            }),
            queue_bytes: ROOM.into(),
            ..Default::default()
        };
        let mut client = self.client().await?;
        // Its file of pods is read a moment after it listens.
        while !client
            .get_status(v1::GetStatusRequest {})
            .await?
            .into_inner()
            .pod_source
            .is_some_and(|source| source.synced)
        {
            sleep(Duration::from_millis(1)).await;
        }
        let mut stream = client.subscribe(request).await?.into_inner();
        match stream.message().await?.and_then(|first| first.message) {
            Some(Message::Plan(plan)) if plan.workloads_total > 0 => {}
            other => bail!("the stream does not begin with a plan of {pod}: {other:?}"),
        }
        let (tally, seen) = watch::channel(Tally::of(scenario));
        let reading = tokio::spawn(async move {
            while let Some(response) = stream.message().await? {
                tally.send_modify(|tally| tally.add(response));
            }
            Ok(())
        });
        Ok(Subscriber { seen, reading })
    }

    /// Ends it.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        signal(&self.child, libc::SIGTERM);
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .context("the agent does not end on SIGTERM")??;
        anyhow::ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }

    /// What it costs while it has nothing to do.
    pub(crate) async fn cost(&self, time: Duration) -> anyhow::Result<Cost> {
        let pid = self.child.id().context("the agent ended")?;
        let before = cpu_ns(pid)?;
        let begin = Instant::now();
        sleep(time).await;
        let cpu = (cpu_ns(pid)? - before) as f64 / begin.elapsed().as_nanos() as f64;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |name: &str| {
            let kib: Option<f64> = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
            kib.map(|kib| kib / 1024.0)
                .with_context(|| format!("/proc/{pid}/status has no {name}"))
        };
        Ok(Cost {
            cpu_percent: cpu * 100.0,
            rss: mib("VmRSS")?,
            anonymous: mib("RssAnon")?,
            peak: mib("VmHWM")?,
        })
    }
}

/// Memory in MiB, CPU in percent of one.
pub(crate) struct Cost {
    pub(crate) cpu_percent: f64,
    pub(crate) rss: f64,
    pub(crate) anonymous: f64,
    pub(crate) peak: f64,
}

/// Time on a CPU of all threads.
fn cpu_ns(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let ns: u64 = text.split(' ').next().unwrap_or_default().parse()?;
        sum += ns;
    }
    Ok(sum)
}

fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// What a stream brought.
#[derive(Debug)]
pub(crate) struct Tally {
    scenario: Scenario,
    /// Events of operations that are not measured.
    pub(crate) warm: u64,
    /// Events of measured operations.
    pub(crate) measured: u64,
    /// Events that the stream said were lost.
    pub(crate) lost: u64,
    /// How many at a time, and where.
    pub(crate) losses: Vec<String>,
    /// Nanoseconds from each measured event to its arrival here.
    pub(crate) delays: Vec<f64>,
    /// Processes that were executed with the marker: their exits do not show it.
    pids: HashSet<u32>,
}

impl Tally {
    fn of(scenario: Scenario) -> Self {
        Self {
            scenario,
            warm: 0,
            measured: 0,
            lost: 0,
            losses: Vec::new(),
            delays: Vec::new(),
            pids: HashSet::new(),
        }
    }

    fn add(&mut self, response: v1::SubscribeResponse) {
        match response.message {
            Some(Message::Batch(batch)) => {
                let now = SystemTime::now();
                batch.events.iter().for_each(|event| self.event(event, now));
            }
            Some(Message::Loss(loss)) => {
                self.lost += loss.count;
                let place = loss.stage().as_str_name();
                self.losses.push(format!("{} at {place}", loss.count));
            }
            Some(
                Message::Plan(_)
                | Message::Snapshot(_)
                | Message::Workload(_)
                | Message::Heartbeat(_),
            )
            | None => {}
        }
    }

    fn event(&mut self, event: &v1::Event, now: SystemTime) {
        let pid = event.process.as_ref().map_or(0, |process| process.pid);
        if event.kind() == v1::Kind::Exit {
            self.measured += u64::from(self.pids.contains(&pid));
            return;
        }
        match self.scenario.marker(event) {
            Some(MEASURED) => {
                self.measured += 1;
                if event.kind() == v1::Kind::Exec {
                    self.pids.insert(pid);
                }
                let time = event.time.and_then(|time| SystemTime::try_from(time).ok());
                if let Some(delay) = time.and_then(|time| now.duration_since(time).ok()) {
                    self.delays.push(delay.as_nanos() as f64);
                }
            }
            Some(WARM_UP) => self.warm += 1,
            _ => {}
        }
    }
}

/// A stream that is read.
pub(crate) struct Subscriber {
    seen: watch::Receiver<Tally>,
    reading: JoinHandle<Result<(), tonic::Status>>,
}

impl Subscriber {
    /// Waits until the stream has brought so much.
    pub(crate) async fn wait_for(
        &mut self,
        enough: impl FnMut(&Tally) -> bool,
    ) -> anyhow::Result<()> {
        let waited = timeout(PATIENCE, self.seen.wait_for(enough)).await;
        if waited.is_ok_and(|seen| seen.is_ok()) {
            return Ok(());
        }
        let Tally { measured, lost, .. } = &*self.seen.borrow();
        bail!(
            "after {} s a stream has brought only {measured} events, and told of {lost} losses",
            PATIENCE.as_secs()
        )
    }

    /// What the stream brought so far.
    pub(crate) fn tally(&self) -> watch::Ref<'_, Tally> {
        self.seen.borrow()
    }

    /// The stream goes on.
    pub(crate) fn is_open(&self) -> bool {
        !self.reading.is_finished()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.reading.abort();
    }
}
