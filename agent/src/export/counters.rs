//! What became of the events of one exporter. What its stream matched = what was exported + waits + was dropped + was lost.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dinle_proto::v1;

use crate::hub::Listener;

/// Why an exporter gave events up, or let its queue run over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The receiver takes less than there is.
    Slow,
    /// The receiver cannot be reached, or says that it cannot just now.
    Unavailable,
    /// It did not answer in time.
    Timeout,
    /// It will never take them, or the exporter may not bring them.
    Refused,
    /// One event is larger than what it takes.
    TooLarge,
    /// The disk is full.
    NoSpace,
    /// The file cannot be written for another reason.
    Io,
    /// It may not be told what it asks for.
    Denied,
    /// The exporter or the agent ended before they were taken.
    Ended,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Slow,
        Self::Unavailable,
        Self::Timeout,
        Self::Refused,
        Self::TooLarge,
        Self::NoSpace,
        Self::Io,
        Self::Denied,
        Self::Ended,
    ];

    /// What metrics call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::NoSpace => "no_space",
            Self::Io => "io",
            Self::Denied => "denied",
            Self::Ended => "ended",
        }
    }
}

/// A receiver may say anything, of any length: of what it says, so many characters are kept for who asks.
const PROBLEM_MAX: usize = 1000;

/// Events lost by kind and stage.
type Lost = BTreeMap<(v1::Kind, v1::LossStage), u64>;

/// What became of the events of one exporter, over all its streams.
#[derive(Debug)]
pub struct Counters {
    /// Its name.
    pub name: String,
    /// Where it sends to.
    pub receiver: &'static str,
    exported: AtomicU64,
    bytes: AtomicU64,
    waiting: AtomicU64,
    dropped: [AtomicU64; Cause::ALL.len()],
    failures: [AtomicU64; Cause::ALL.len()],
    up: AtomicBool,
    /// What was wrong last.
    problem: Mutex<String>,
    /// It has no stream, since it is given none.
    refused: AtomicBool,
    last_success: AtomicU64,
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    open: Option<Arc<Listener>>,
    /// Of those that are closed.
    lost: Lost,
    /// Of the open one, what ran over its queue and has a cause by now.
    told: u64,
}

impl Counters {
    pub(super) fn new(name: &str, receiver: &'static str) -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            name: name.to_owned(),
            receiver,
            exported: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            dropped: zeros(),
            failures: zeros(),
            up: AtomicBool::new(true),
            problem: Mutex::default(),
            refused: AtomicBool::new(false),
            last_success: AtomicU64::new(0),
            streams: Mutex::default(),
        }
    }

    /// Its stream begins. One before it that did not end by itself ends here.
    pub(super) fn opened(&self, listener: &Arc<Listener>) {
        self.left(Cause::Ended);
        let mut streams = self.streams();
        streams.open = Some(listener.clone());
        streams.told = 0;
        self.up.store(true, Ordering::Relaxed);
        self.refused.store(false, Ordering::Relaxed);
    }

    /// It ends, and its stream with it. What it still holds is given up.
    pub(super) fn closed(&self, cause: Cause) {
        self.left(cause);
        let held = self.waiting.swap(0, Ordering::Relaxed);
        self.dropped[Cause::Ended as usize].fetch_add(held, Ordering::Relaxed);
    }

    /// Its stream ends; what ran over its queue lately has this cause. What nobody took out of its queue is given up.
    pub(super) fn left(&self, cause: Cause) {
        self.overflowed(cause);
        let mut streams = self.streams();
        let Some(listener) = streams.open.take() else {
            return;
        };
        add(&mut streams.lost, &listener);
        drop(streams);
        let queued = listener.books().iter().map(|books| books.queued).sum();
        self.dropped[Cause::Ended as usize].fetch_add(queued, Ordering::Relaxed);
    }

    /// It is given no stream, or has lost the one that it had.
    pub(super) fn refused(&self, cause: Cause, why: &str) {
        self.failed(cause, why);
        self.refused.store(true, Ordering::Relaxed);
    }

    /// What ran over its queue since the last call has this cause. Returns how many those are.
    pub(super) fn overflowed(&self, cause: Cause) -> u64 {
        let mut streams = self.streams();
        let Some(listener) = &streams.open else {
            return 0;
        };
        let mut lost = Lost::new();
        add(&mut lost, listener);
        let all: u64 = of_queue(&lost).sum();
        let new = all.saturating_sub(streams.told);
        streams.told = all;
        drop(streams);
        self.dropped[cause as usize].fetch_add(new, Ordering::Relaxed);
        new
    }

    pub(super) fn took(&self, events: u64) {
        self.waiting.fetch_add(events, Ordering::Relaxed);
    }

    /// The receiver has these.
    pub(super) fn exported(&self, events: u64, bytes: u64) {
        self.counted(events);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Events that are in sums now.
    pub(super) fn counted(&self, events: u64) {
        self.waiting.fetch_sub(events, Ordering::Relaxed);
        self.exported.fetch_add(events, Ordering::Relaxed);
    }

    /// Sums were sent.
    pub(super) fn sent(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.succeeded();
    }

    /// The last attempt was well.
    pub(super) fn succeeded(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        self.last_success.store(now, Ordering::Relaxed);
        self.up.store(true, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, cause: Cause, events: u64) {
        self.waiting.fetch_sub(events, Ordering::Relaxed);
        self.dropped[cause as usize].fetch_add(events, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, cause: Cause, problem: &str) {
        self.failures[cause as usize].fetch_add(1, Ordering::Relaxed);
        *locked(&self.problem) = match problem.char_indices().nth(PROBLEM_MAX) {
            Some((end, _)) => format!("{}…", &problem[..end]),
            None => problem.to_owned(),
        };
        self.up.store(false, Ordering::Relaxed);
    }

    /// Events that the receiver has.
    pub fn events(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Bytes of them, as they were sent.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Events that the exporter holds, beside those in its queue.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Events that were given up, by cause, with those that ran over the queue.
    pub fn drops(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL
            .map(|cause| (cause, self.dropped[cause as usize].load(Ordering::Relaxed)))
            .into_iter()
    }

    /// Attempts that failed, by cause.
    pub fn failures(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL
            .map(|cause| (cause, self.failures[cause as usize].load(Ordering::Relaxed)))
            .into_iter()
    }

    /// Events that were lost before they came to the queue, by kind and stage.
    pub fn losses(&self) -> Vec<(v1::Kind, v1::LossStage, u64)> {
        let streams = self.streams();
        let mut lost = streams.lost.clone();
        if let Some(listener) = &streams.open {
            add(&mut lost, listener);
        }
        // Those have causes of their own.
        lost.retain(|(_, stage), _| *stage != v1::LossStage::ClientQueue);
        lost.into_iter()
            .map(|((kind, stage), count)| (kind, stage, count))
            .collect()
    }

    /// It has its stream, and the last attempt to send was well.
    pub fn up(&self) -> bool {
        self.up.load(Ordering::Relaxed) && !self.refused.load(Ordering::Relaxed)
    }

    /// When that was, in seconds since 1970; 0: never.
    pub fn last_success(&self) -> u64 {
        self.last_success.load(Ordering::Relaxed)
    }

    /// All of it, for those who ask how it is.
    pub fn told(&self) -> v1::Exporter {
        let up = self.up();
        let problem = if up {
            String::new()
        } else {
            locked(&self.problem).clone()
        };
        let dropped = self.drops().filter(|(_, count)| *count > 0);
        let mut lost = BTreeMap::<_, u64>::new();
        for (_, stage, count) in self.losses() {
            *lost.entry(stage).or_default() += count;
        }
        let seconds = self.last_success();
        v1::Exporter {
            name: self.name.clone(),
            receiver: self.receiver.to_owned(),
            up,
            problem,
            exported: self.events(),
            waiting: self.waiting(),
            dropped: dropped
                .map(|(cause, count)| v1::ExporterDrop {
                    cause: cause.name().to_owned(),
                    count,
                })
                .collect(),
            lost: lost
                .into_iter()
                .map(|(stage, count)| v1::StageLoss {
                    stage: stage.into(),
                    count,
                })
                .collect(),
            last_success: (seconds > 0).then(|| (UNIX_EPOCH + Duration::from_secs(seconds)).into()),
        }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        locked(&self.streams)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(lost: &mut Lost, listener: &Listener) {
    for books in listener.books() {
        for loss in &books.lost {
            *lost.entry((books.kind(), loss.stage())).or_default() += loss.count;
        }
    }
}

fn of_queue(lost: &Lost) -> impl Iterator<Item = u64> {
    let of_queue = |((_, stage), count): (&(v1::Kind, v1::LossStage), &u64)| {
        (*stage == v1::LossStage::ClientQueue).then_some(*count)
    };
    lost.iter().filter_map(of_queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_that_says_much_is_not_told_whole() {
        let counters = Counters::new("audit", "otlp");
        counters.failed(Cause::Refused, &"ü".repeat(PROBLEM_MAX));
        assert_eq!(counters.told().problem, "ü".repeat(PROBLEM_MAX));
        counters.failed(Cause::Refused, &"ü".repeat(PROBLEM_MAX + 1));
        let told = counters.told();
        assert_eq!(told.problem, format!("{}…", "ü".repeat(PROBLEM_MAX)));
        assert!(!told.up && told.last_success.is_none());
        counters.succeeded();
        let told = counters.told();
        assert!(told.up && told.problem.is_empty() && told.last_success.is_some());
    }
}
