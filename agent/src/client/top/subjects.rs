//! What can be ranked, and what is counted of it.

use std::collections::HashMap;

use dinle_proto::v1::{self, event::Detail};

use crate::client::{
    text::{self, NONE},
    tools::block,
};

/// A column of numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    pub(super) name: &'static str,
    pub(super) print: fn(f64) -> String,
}

const fn number(name: &'static str, print: fn(f64) -> String) -> Number {
    Number { name, print }
}

/// What is ranked. Sums are added up by the cells of its columns of text, and shown as numbers.
pub(super) trait Subject {
    fn name(&self) -> &'static str;
    fn kinds(&self) -> &'static [v1::Kind];
    /// Its columns of text, behind those of the pod.
    fn texts(&self) -> &'static [&'static str];
    /// Its columns of numbers.
    fn numbers(&self) -> &'static [Number];
    /// The cells and the amounts of an event; `None` for one that says nothing.
    fn take(&mut self, event: &v1::Event) -> Option<(Vec<String>, Vec<u64>)>;
    /// Numbers for the columns, of what was added up in so many seconds.
    fn show(&self, sums: &[u64], seconds: f64) -> Vec<f64>;
    /// It comes in snapshots, each of which is an interval.
    fn in_snapshots(&self) -> bool {
        false
    }
}

fn count(value: f64) -> String {
    if value == 0.0 || value >= 10.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

fn bytes(value: f64) -> String {
    text::size(value.round() as u64)
}

fn milliseconds(value: f64) -> String {
    if value.is_nan() {
        NONE.to_owned()
    } else {
        format!("{value:.2}")
    }
}

/// A mean, or nothing of nothing.
fn mean(sum: u64, count: u64) -> f64 {
    if count == 0 {
        f64::NAN
    } else {
        sum as f64 / count as f64
    }
}

/// Requests to disks.
pub(super) struct Disk;

impl Disk {
    /// Amounts before the buckets.
    const BUCKETS_AT: usize = 3;
}

impl Subject for Disk {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn kinds(&self) -> &'static [v1::Kind] {
        &[v1::Kind::BlockLatency]
    }

    fn texts(&self) -> &'static [&'static str] {
        &["DISK", "OPERATION"]
    }

    fn numbers(&self) -> &'static [Number] {
        const NUMBERS: &[Number] = &[
            number("BYTES/s", bytes),
            number("REQ/s", count),
            number("AVG(ms)", milliseconds),
            number("P99(ms)", milliseconds),
            number("QUE(ms)", milliseconds),
        ];
        NUMBERS
    }

    fn take(&mut self, event: &v1::Event) -> Option<(Vec<String>, Vec<u64>)> {
        let Some(Detail::BlockLatency(latency)) = &event.detail else {
            return None;
        };
        let cells = vec![
            latency.disk.clone(),
            block::operation_name(latency.operation),
        ];
        let mut sums = vec![latency.bytes, latency.device_ns, latency.queued_ns];
        sums.extend(&latency.buckets);
        Some((cells, sums))
    }

    fn show(&self, sums: &[u64], seconds: f64) -> Vec<f64> {
        let (amounts, buckets) = sums.split_at(Self::BUCKETS_AT.min(sums.len()));
        let requests: u64 = buckets.iter().sum();
        let [bytes, device_ns, queued_ns] = *amounts else {
            return vec![0.0; self.numbers().len()];
        };
        vec![
            bytes as f64 / seconds,
            requests as f64 / seconds,
            mean(device_ns, requests) / 1e6,
            percentile_ms(buckets, 0.99),
            mean(queued_ns, requests) / 1e6,
        ]
    }

    fn in_snapshots(&self) -> bool {
        true
    }
}

/// The upper bound of the bucket in which such a part of all requests is reached. Buckets are those of the contract.
fn percentile_ms(buckets: &[u64], part: f64) -> f64 {
    let all: u64 = buckets.iter().sum();
    let wanted = (all as f64 * part).ceil().max(1.0) as u64;
    let mut seen = 0;
    for (index, count) in buckets.iter().enumerate() {
        seen += count;
        if seen >= wanted {
            return (2u64 << index) as f64 / 1e3;
        }
    }
    f64::NAN
}

/// TCP sessions.
#[derive(Default)]
pub(super) struct Tcp {
    /// What sessions that go on had done at the last report: these count from their beginning.
    sessions: HashMap<(u64, String, String), [u64; 3]>,
}

/// Sessions that are remembered: some 10 MiB. Those beyond are counted when they end.
const SESSIONS_MAX: usize = 65_536;

impl Subject for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn kinds(&self) -> &'static [v1::Kind] {
        &[v1::Kind::TcpSession]
    }

    fn texts(&self) -> &'static [&'static str] {
        &["LPORT", "PEER"]
    }

    fn numbers(&self) -> &'static [Number] {
        const NUMBERS: &[Number] = &[
            number("BYTES/s", bytes),
            number("SENT/s", bytes),
            number("RECV/s", bytes),
            number("SESSIONS", whole),
            number("RETRANS", whole),
            number("RTT(ms)", milliseconds),
        ];
        NUMBERS
    }

    fn take(&mut self, event: &v1::Event) -> Option<(Vec<String>, Vec<u64>)> {
        let Some(Detail::TcpSession(session)) = &event.detail else {
            return None;
        };
        let (local, remote) = (session.local.as_ref()?, session.remote.as_ref()?);
        // A peer connects from another port each time.
        let accepted = match session.direction() {
            v1::TcpDirection::Accept => true,
            v1::TcpDirection::Connect => false,
            v1::TcpDirection::Unspecified => local.port < remote.port,
        };
        let cells = if accepted {
            vec![local.port.to_string(), host(remote)]
        } else {
            vec![NONE.to_owned(), text::endpoint(Some(remote))]
        };
        let [sent, received, retransmits] = self.since_last(event.cgroup_id, session);
        let rtt_known = u64::from(session.srtt_us != 0);
        let sums = vec![
            sent,
            received,
            retransmits,
            1,
            session.srtt_us.into(),
            rtt_known,
        ];
        Some((cells, sums))
    }

    fn show(&self, sums: &[u64], seconds: f64) -> Vec<f64> {
        let &[sent, received, retransmits, sessions, rtt_us, rtts] = sums else {
            return vec![0.0; self.numbers().len()];
        };
        vec![
            (sent + received) as f64 / seconds,
            sent as f64 / seconds,
            received as f64 / seconds,
            sessions as f64,
            retransmits as f64,
            mean(rtt_us, rtts) / 1e3,
        ]
    }
}

impl Tcp {
    /// What a session sent, received and sent again since the last report on it.
    fn since_last(&mut self, cgroup_id: u64, session: &v1::TcpSession) -> [u64; 3] {
        let key = (
            cgroup_id,
            text::endpoint(session.local.as_ref()),
            text::endpoint(session.remote.as_ref()),
        );
        let now = [
            session.bytes_sent,
            session.bytes_received,
            session.retransmits.into(),
        ];
        let Self { sessions } = self;
        let before =
            if session.open && (sessions.contains_key(&key) || sessions.len() < SESSIONS_MAX) {
                sessions.insert(key, now)
            } else {
                sessions.remove(&key)
            };
        let before = match before {
            Some(before) => before,
            // How much of it happened in this interval is not known.
            None if session.began_before => now,
            // There was no room to remember it: it counts when it ends.
            None if session.open && sessions.len() >= SESSIONS_MAX => now,
            None => [0; 3],
        };
        std::array::from_fn(|at| now[at].saturating_sub(before[at]))
    }
}

/// An end without its port.
fn host(end: &v1::Endpoint) -> String {
    match &end.workload {
        Some(workload) => format!("{}/{}", workload.namespace, workload.pod),
        None => end.address.clone(),
    }
}

/// Opens and deletions of files.
pub(super) struct Files;

impl Subject for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn kinds(&self) -> &'static [v1::Kind] {
        &[v1::Kind::FileOpen, v1::Kind::FileDelete]
    }

    fn texts(&self) -> &'static [&'static str] {
        &["PATH"]
    }

    fn numbers(&self) -> &'static [Number] {
        const NUMBERS: &[Number] = &[
            number("OPENS/s", count),
            number("WRITES/s", count),
            number("FAILED/s", count),
            number("DELETED/s", count),
        ];
        NUMBERS
    }

    fn take(&mut self, event: &v1::Event) -> Option<(Vec<String>, Vec<u64>)> {
        /// include/uapi/asm-generic/fcntl.h
        const O_ACCMODE: u32 = 3;
        let path = |path: &str, filename: &str| {
            let shown = if path.is_empty() { filename } else { path };
            vec![text::or_none(shown).to_owned()]
        };
        match event.detail.as_ref()? {
            Detail::FileOpen(open) => {
                let write = open.flags & O_ACCMODE != 0;
                let sums = [1, write.into(), (open.error != 0).into(), 0];
                Some((path(&open.path, &open.filename), sums.to_vec()))
            }
            Detail::FileDelete(delete) => {
                let failed = delete.error != 0;
                let sums = [0, 0, failed.into(), (!failed).into()];
                Some((path(&delete.path, &delete.filename), sums.to_vec()))
            }
            Detail::Exec(_)
            | Detail::Exit(_)
            | Detail::Fork(_)
            | Detail::TcpSession(_)
            | Detail::TcpConnect(_)
            | Detail::TcpReset(_)
            | Detail::TcpRetransmit(_)
            | Detail::BlockIo(_)
            | Detail::BlockLatency(_)
            | Detail::Drop(_)
            | Detail::DropCount(_) => None,
        }
    }

    fn show(&self, sums: &[u64], seconds: f64) -> Vec<f64> {
        sums.iter().map(|sum| *sum as f64 / seconds).collect()
    }
}
