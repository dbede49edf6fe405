//! TCP sessions.

use std::time::{Duration, Instant};

use dinle_proto::v1::{self, event::Detail};

use super::{Drawing, Number, Subject, Unit, in_bucket, mean, number, spans};
use crate::{
    client::{
        text::{self, NONE},
        top::sums::Rows,
    },
    sessions::{News, Sessions},
};

/// TCP sessions.
pub(in super::super) struct Tcp {
    sessions: Sessions,
    began: Instant,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            sessions: Sessions::default(),
            began: Instant::now(),
        }
    }
}

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

    fn take(&mut self, event: &v1::Event, node: &str) -> Option<(Vec<String>, Vec<u64>)> {
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
        // How much of it happened in this interval is not known.
        let before = session.began_before || lasted(session) > self.began.elapsed();
        let News { first, sums, .. } = self.sessions.news(node, event.cgroup_id, session, before);
        let srtt_us = u64::from(session.srtt_us);
        let sums = vec![
            sums.sent,
            sums.received,
            sums.retransmits,
            first.into(),
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
        "reports by round trip time"
    }

    fn drawing(&self, rows: &Rows, chosen: &dyn Fn(&[String]) -> bool) -> Drawing {
        spans(rows, chosen, Self::BUCKETS_AT)
    }
}

impl Tcp {
    /// Amounts before the buckets.
    const BUCKETS_AT: usize = 6;
}

fn lasted(session: &v1::TcpSession) -> Duration {
    let lasted = session.duration;
    let lasted = lasted.and_then(|lasted| Duration::try_from(lasted).ok());
    lasted.unwrap_or_default()
}

/// An end without its port.
fn host(end: &v1::Endpoint) -> String {
    match &end.workload {
        Some(workload) => format!("{}/{}", workload.namespace, workload.pod),
        None => end.address.clone(),
    }
}
