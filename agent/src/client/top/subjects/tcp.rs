//! TCP sessions.

use std::collections::HashMap;

use dinle_proto::v1::{self, event::Detail};

use super::{Drawing, Number, Subject, Unit, in_bucket, mean, number, spans};
use crate::client::{
    text::{self, NONE},
    top::sums::Rows,
};

/// TCP sessions.
#[derive(Default)]
pub(in super::super) struct Tcp {
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
            number("BYTES/s", Unit::Bytes),
            number("SENT/s", Unit::Bytes),
            number("RECV/s", Unit::Bytes),
            number("SESSIONS", Unit::Whole),
            number("RETRANS", Unit::Whole),
            number("RTT(ms)", Unit::Milliseconds),
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
        let srtt_us = u64::from(session.srtt_us);
        let sums = vec![
            sent,
            received,
            retransmits,
            1,
            srtt_us,
            u64::from(srtt_us != 0),
        ];
        let sums = match srtt_us {
            0 => sums,
            _ => in_bucket(sums, srtt_us),
        };
        Some((cells, sums))
    }

    fn show(&self, sums: &[u64], seconds: f64) -> Vec<f64> {
        let &[sent, received, retransmits, sessions, rtt_us, rtts, ..] = sums else {
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

    fn height(&self, sums: &[u64]) -> u64 {
        sums.iter().take(2).sum()
    }

    fn drawing_title(&self) -> &'static str {
        "sessions by round trip time"
    }

    fn drawing(&self, rows: &Rows, chosen: &dyn Fn(&[String]) -> bool) -> Drawing {
        spans(rows, chosen, Self::BUCKETS_AT)
    }
}

impl Tcp {
    /// Amounts before the buckets.
    const BUCKETS_AT: usize = 6;

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
