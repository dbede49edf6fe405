//! What a stream's next Snapshot will tell: rows that the kernel added up, added up further until the client can take them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use dinle_proto::v1::{self, event::Detail};
use prost::Message as _;

/// Between two snapshots, unless a stream asks for another time.
const INTERVAL: Duration = Duration::from_secs(1);

/// Rows that are kept at most: more than the kernel's tables hold. More come together only where cgroups come and go while a client asks
/// for long intervals, or does not read.
const ROWS_MAX: u64 = 12_288;
/// A row takes some 500 bytes. All of them together take no more than the stream's queue may…
const ROW_BYTES: u64 = 512;
/// …but for so many, of 1 MiB: a busy node has them at once.
const ROWS_MIN: u64 = 2048;

/// One stream's.
#[derive(Debug)]
pub(super) struct Sums {
    /// By cgroup and by what is counted apart, so that a snapshot is in order.
    rows: BTreeMap<(u64, Vec<u8>), Row>,
    start: SystemTime,
    due: Instant,
    interval: Duration,
    rows_max: usize,
}

/// What happened to one subject.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) event: v1::Event,
    pub(super) workload: Arc<v1::Workload>,
}

impl Sums {
    /// For a stream whose queue takes so many bytes.
    pub(super) fn new(interval: Option<Duration>, queue_bytes: u64) -> Self {
        let interval = interval.unwrap_or(INTERVAL);
        Self {
            rows: BTreeMap::new(),
            start: SystemTime::now(),
            due: Instant::now() + interval,
            interval,
            rows_max: (queue_bytes / ROW_BYTES).clamp(ROWS_MIN, ROWS_MAX) as usize,
        }
    }

    /// Adds a row; `false` if there is no room for another one. Of an event that is none, nothing is kept.
    #[must_use]
    pub(super) fn add(&mut self, event: &v1::Event, workload: &Arc<v1::Workload>) -> bool {
        let Some(subject) = event.detail.as_ref().and_then(subject) else {
            return true;
        };
        let Self { rows, rows_max, .. } = self;
        let key = (event.cgroup_id, subject);
        if let Some(row) = rows.get_mut(&key) {
            merge(&mut row.event, event);
            // More may be known of it by now.
            row.workload = workload.clone();
            return true;
        }
        if rows.len() == *rows_max {
            return false;
        }
        let row = Row {
            event: event.clone(),
            workload: workload.clone(),
        };
        rows.insert(key, row);
        true
    }

    /// Whether it is time for a snapshot.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// Since when, and what.
    pub(super) fn rows(&self) -> (SystemTime, impl Iterator<Item = &Row>) {
        (self.start, self.rows.values())
    }

    /// It was told up to `end`, which is `now`.
    pub(super) fn begin_next(&mut self, end: SystemTime, now: Instant) {
        let Self {
            rows,
            start,
            due,
            interval,
            rows_max: _,
        } = self;
        rows.clear();
        *start = end;
        // Without drift, unless a whole interval was missed.
        *due += *interval;
        if *due <= now {
            *due = now + *interval;
        }
    }
}

/// What a row is about: the detail without its amounts, as bytes. `None` for an event that is no row.
fn subject(detail: &Detail) -> Option<Vec<u8>> {
    match detail {
        Detail::BlockLatency(latency) => {
            let subject = v1::BlockLatency {
                count: 0,
                bytes: 0,
                device_ns: 0,
                queued_ns: 0,
                buckets: Vec::new(),
                ..latency.clone()
            };
            Some(subject.encode_to_vec())
        }
        Detail::DropCount(count) => {
            let subject = v1::DropCount {
                count: 0,
                bytes: 0,
                ..count.clone()
            };
            Some(subject.encode_to_vec())
        }
        Detail::Exec(_)
        | Detail::Exit(_)
        | Detail::Fork(_)
        | Detail::FileOpen(_)
        | Detail::FileDelete(_)
        | Detail::TcpSession(_)
        | Detail::TcpConnect(_)
        | Detail::TcpReset(_)
        | Detail::TcpRetransmit(_)
        | Detail::BlockIo(_)
        | Detail::Drop(_) => None,
    }
}

/// Adds a row to another one of the same subject. What the kernel's table says is not believed so far that a sum could end the reader.
fn merge(sum: &mut v1::Event, more: &v1::Event) {
    let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
    sum.time = more.time;
    match (&mut sum.detail, &more.detail) {
        (Some(Detail::BlockLatency(sum)), Some(Detail::BlockLatency(more))) => {
            add(&mut sum.count, more.count);
            add(&mut sum.bytes, more.bytes);
            add(&mut sum.device_ns, more.device_ns);
            add(&mut sum.queued_ns, more.queued_ns);
            let len = sum.buckets.len().max(more.buckets.len());
            sum.buckets.resize(len, 0);
            for (sum, more) in sum.buckets.iter_mut().zip(&more.buckets) {
                add(sum, *more);
            }
        }
        (Some(Detail::DropCount(sum)), Some(Detail::DropCount(more))) => {
            add(&mut sum.count, more.count);
            add(&mut sum.bytes, more.bytes);
        }
        // Rows of one subject are of one kind.
        _ => {}
    }
}
