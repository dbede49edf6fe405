//! Sums for each pod, of which there are never too many: in each family some pods have series of their own, and the others are added up.
//!
//! Who has them is decided by how much happened lately. A pod that gets its own begins at 0, and what was counted before stays with the rest; one
//! that loses them goes on in the rest. So no series ever falls, and the sum of all rates is right at any time.

mod count;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use dinle_proto::v1;

use super::config::SeriesSink;
use crate::{sessions::Sessions, workload::Index};

/// Pods without series of their own of which it is remembered how much they did, in each family.
const CANDIDATES_MAX: usize = 4096;
/// Series of one pod in one family; the kernel has about 100 reasons to drop a packet.
const POINTS_MAX: usize = 64;
/// Time between two looks at who is gone and who does more than others.
const SWEEP: Duration = Duration::from_secs(10);
/// What is left of a pod's weight after each sweep: half of it after a minute.
const FADE: f64 = 0.89;
/// Who takes a place does so much more than who loses it: else two that do about the same would take turns.
const AHEAD: f64 = 2.0;
/// Buckets of latencies: those of the contract.
pub(super) const BUCKETS: usize = 27;

/// Those without a series of their own.
pub(super) const REST: &str = "(rest)";
/// Processes outside pods.
const HOST: &str = "(host)";
/// Pods whose name is not known.
const UNKNOWN: &str = "(unknown)";

/// What a family is.
#[derive(Debug)]
pub(super) struct Definition {
    /// For Prometheus: without `dinle_pod_` before and `_total` behind.
    pub(super) name: &'static str,
    /// For OpenTelemetry.
    pub(super) otel: &'static str,
    /// In OpenTelemetry's notation.
    pub(super) unit: &'static str,
    pub(super) help: &'static str,
    pub(super) labels: &'static [&'static str],
    /// What one of its points counts, in the unit of the family.
    pub(super) scale: f64,
    pub(super) histogram: bool,
}

macro_rules! families {
    ($($variant:ident $name:literal $otel:literal $unit:literal [$($label:literal),*] $scale:literal $histogram:literal $help:literal;)*) => {
        /// A family of series.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Of { $($variant),* }

        /// All of them, at their numbers.
        pub(super) const FAMILIES: &[Definition] = &[$(Definition {
            name: $name, otel: $otel, unit: $unit, help: $help, labels: &[$($label),*], scale: $scale, histogram: $histogram,
        }),*];
    };
}

families! {
    Execs "execs" "dinle.process.execs" "{exec}" [] 1.0 false "Programs that were executed";
    Exits "exits" "dinle.process.exits" "{exit}" ["result"] 1.0 false "Processes that ended: ok, with an exit code other than 0 (failed), or by a signal";
    Forks "forks" "dinle.process.forks" "{fork}" [] 1.0 false "Processes that were made";
    Opens "file_opens" "dinle.file.opens" "{open}" ["result"] 1.0 false "Files that were opened, or failed to be";
    Deletes "file_deletes" "dinle.file.deletes" "{delete}" ["method", "result"] 1.0 false "Files whose content went, or failed to go";
    Connections "tcp_connections" "dinle.tcp.connections" "{connection}" ["direction"] 1.0 false "TCP sessions that began";
    ConnectFailures "tcp_connect_failures" "dinle.tcp.connect_failures" "{failure}" ["error"] 1.0 false "TCP connects that failed";
    TcpBytes "tcp_bytes" "dinle.tcp.io" "By" ["direction"] 1.0 false "Payload of TCP sessions in bytes, each counted once";
    Retransmits "tcp_retransmits" "dinle.tcp.retransmits" "{segment}" [] 1.0 false "TCP segments that were sent again";
    Resets "tcp_resets" "dinle.tcp.resets" "{reset}" ["direction"] 1.0 false "TCP RSTs";
    IoBytes "io_bytes" "dinle.disk.io" "By" ["operation"] 1.0 false "Bytes of requests to disks";
    IoDevice "io_device_seconds" "dinle.disk.device_time" "s" ["operation"] 1e-9 true "Time that requests spent in disks; the kernel adds up in powers of two of a microsecond";
    IoQueued "io_queued_seconds" "dinle.disk.queued_time" "s" ["operation"] 1e-9 false "Time that requests waited for disks in seconds";
    Drops "drops" "dinle.packet.drops" "{packet}" ["reason"] 1.0 false "Packets that the kernel dropped";
}

/// What an exemplar tells: names and values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exemplar {
    pub(super) labels: Vec<(&'static str, String)>,
    pub(super) time: SystemTime,
}

/// What is counted under one set of labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Point {
    /// The count; of a histogram, the sum.
    pub(super) sum: u64,
    /// Of a histogram.
    pub(super) buckets: Option<Box<[u64; BUCKETS]>>,
    pub(super) exemplar: Option<Exemplar>,
}

impl Point {
    /// How many a histogram counts.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().flat_map(|buckets| buckets.iter()).sum()
    }
}

/// Values of a family's labels.
pub(super) type Values = Vec<Cow<'static, str>>;

#[derive(Debug)]
struct Points {
    all: Vec<(Values, Point)>,
    /// When they were 0.
    since: SystemTime,
}

impl Default for Points {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            since: SystemTime::now(),
        }
    }
}

impl Points {
    fn at(&mut self, values: Values) -> &mut Point {
        let found = self.all.iter().position(|(own, _)| *own == values);
        let at = found.unwrap_or_else(|| {
            let rest = || values.iter().map(|_| Cow::Borrowed(REST)).collect();
            let values: Values = if self.all.len() >= POINTS_MAX {
                rest()
            } else {
                values.clone()
            };
            if let Some(at) = self.all.iter().position(|(own, _)| *own == values) {
                return at;
            }
            self.all.push((values, Point::default()));
            self.all.len() - 1
        });
        &mut self.all[at].1
    }
}

/// A pod's name: `namespace/pod`.
type Pod = Arc<str>;

#[derive(Debug, Default)]
struct Family {
    pods: HashMap<Pod, (f64, Points)>,
    candidates: HashMap<Pod, f64>,
    rest: Points,
}

impl Family {
    fn at(&mut self, pod: &str, values: Values, weight: f64, top: usize) -> &mut Point {
        // Those that are no pods are few, and take no pod's place.
        let is_pod = !pod.starts_with('/');
        if !self.pods.contains_key(pod) && is_pod && self.own() >= top {
            if let Some(own) = self.candidates.get_mut(pod) {
                *own += weight;
            } else if self.candidates.len() < CANDIDATES_MAX {
                self.candidates.insert(pod.into(), weight);
            }
            return self.rest.at(values);
        }
        if !self.pods.contains_key(pod) {
            self.pods.insert(pod.into(), Default::default());
        }
        let (own, points) = self.pods.entry(pod.into()).or_default();
        *own += weight;
        points.at(values)
    }

    /// How many pods have series of their own.
    fn own(&self) -> usize {
        self.pods.keys().filter(|pod| !pod.starts_with('/')).count()
    }

    fn sweep(&mut self, gone: &dyn Fn(&Pod) -> bool, top: usize) {
        self.pods.retain(|pod, _| !gone(pod));
        self.candidates.retain(|pod, weight| {
            *weight *= FADE;
            *weight >= 0.5 && !gone(pod)
        });
        for (weight, _) in self.pods.values_mut() {
            *weight *= FADE;
        }
        loop {
            let best = self.candidates.iter().max_by(|a, b| a.1.total_cmp(b.1));
            let Some((best, weight)) = best.map(|(pod, weight)| (pod.clone(), *weight)) else {
                return;
            };
            if self.own() >= top {
                let own = self.pods.iter().filter(|(pod, _)| !pod.starts_with('/'));
                let worst = own.min_by(|a, b| a.1.0.total_cmp(&b.1.0));
                match worst.map(|(pod, (own, _))| (pod.clone(), *own)) {
                    Some((worst, own)) if weight > AHEAD * own => {
                        self.pods.remove(&worst);
                    }
                    _ => return,
                }
            }
            self.candidates.remove(&best);
            self.pods.insert(best, (weight, Points::default()));
        }
    }
}

struct Inner {
    families: Vec<Family>,
    sessions: Sessions,
    /// Pods that are gone, and since when.
    gone: HashMap<Pod, Instant>,
    swept: Instant,
}

/// The series of an exporter.
pub(super) struct Store {
    config: SeriesSink,
    index: Index,
    began: SystemTime,
    /// Events that were counted.
    taken: AtomicU64,
    inner: Mutex<Inner>,
}

/// Series of one pod with one set of labels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) values: Values,
    pub(super) point: Point,
    /// When that was 0: a pod may lose its series and get others.
    pub(super) since: SystemTime,
}

impl Store {
    pub(super) fn new(config: SeriesSink, index: Index) -> Self {
        Self {
            config,
            index,
            began: SystemTime::now(),
            taken: AtomicU64::new(0),
            inner: Mutex::new(Inner {
                families: FAMILIES.iter().map(|_| Family::default()).collect(),
                sessions: Sessions::default(),
                gone: HashMap::new(),
                swept: Instant::now(),
            }),
        }
    }

    /// Counts events.
    pub(super) fn take(&self, events: &[v1::Event]) {
        let mut inner = self.inner();
        for event in events {
            count::event(&mut inner, event, &self.config, self.began);
        }
        self.taken.fetch_add(events.len() as u64, Ordering::Relaxed);
    }

    /// How many events were counted.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// With every heartbeat.
    pub(super) fn tick(&self) {
        let due = self.inner().swept.elapsed() >= SWEEP;
        if due {
            self.sweep(Instant::now());
        }
    }

    fn sweep(&self, now: Instant) {
        let live: HashSet<String> = self
            .index
            .live()
            .iter()
            .filter(|live| !live.workload.pod.is_empty())
            .map(|live| format!("{}/{}", live.workload.namespace, live.workload.pod))
            .collect();
        let mut inner = self.inner();
        inner.swept = now;
        let Inner { families, gone, .. } = &mut *inner;
        let counted = families
            .iter()
            .flat_map(|family| family.pods.keys().chain(family.candidates.keys()));
        let missing: HashSet<Pod> = counted
            .filter(|pod| !pod.starts_with('/') && !live.contains(&***pod))
            .cloned()
            .collect();
        gone.retain(|pod, _| missing.contains(pod));
        for pod in missing {
            gone.entry(pod).or_insert(now);
        }
        let over = |pod: &Pod| {
            gone.get(pod)
                .is_some_and(|since| now.duration_since(*since) >= self.config.grace)
        };
        for family in families {
            family.sweep(&over, self.config.top);
        }
    }

    /// Everything that there is, in order.
    pub(super) fn families(&self) -> Vec<(&'static Definition, Vec<Series>)> {
        let inner = self.inner();
        let series = |(pod, points): (&str, &Points)| {
            let (namespace, pod) = pod.split_once('/').unwrap_or(("", pod));
            let (namespace, pod) = (namespace.to_owned(), pod.to_owned());
            let since = points.since;
            let points = points.all.iter().cloned();
            let series = points.map(move |(values, point)| Series {
                namespace: namespace.clone(),
                pod: pod.clone(),
                values,
                point,
                since,
            });
            series.collect::<Vec<_>>()
        };
        let family = |(definition, family): (&'static Definition, &Family)| {
            let pods = family
                .pods
                .iter()
                .map(|(pod, (_, points))| (&**pod, points));
            let rest = std::iter::once((REST, &family.rest));
            let mut all: Vec<Series> = pods.chain(rest).flat_map(series).collect();
            all.sort_by(|a, b| {
                (&a.namespace, &a.pod, &a.values).cmp(&(&b.namespace, &b.pod, &b.values))
            });
            (definition, all)
        };
        let families = FAMILIES.iter().zip(&inner.families).map(family);
        families.filter(|(_, series)| !series.is_empty()).collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
