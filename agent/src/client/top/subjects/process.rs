//! Processes that begin and end.

use std::time::Duration;

use dinle_proto::v1::{self, event::Detail};

use super::{Drawing, Number, Subject, Unit, in_bucket, mean, number, percentile_ms, spans};
use crate::client::{text, top::sums::Rows};

/// Processes that begin and end.
pub(in super::super) struct Process;

impl Process {
    /// Amounts before the buckets.
    const BUCKETS_AT: usize = 4;
}

impl Subject for Process {
    fn name(&self) -> &'static str {
        "process"
    }

    fn kinds(&self) -> &'static [v1::Kind] {
        &[v1::Kind::Exec, v1::Kind::Exit]
    }

    fn texts(&self) -> &'static [&'static str] {
        &["COMM"]
    }

    fn numbers(&self) -> &'static [Number] {
        const NUMBERS: &[Number] = &[
            number("EXECS/s", Unit::Count),
            number("EXITS/s", Unit::Count),
            number("FAILED/s", Unit::Count),
            number("AVG(ms)", Unit::Milliseconds),
            number("P99(ms)", Unit::Milliseconds),
        ];
        NUMBERS
    }

    fn take(&mut self, event: &v1::Event, _: &str) -> Option<(Vec<String>, Vec<u64>)> {
        let comm = event.process.as_ref().map(|process| process.comm.as_str());
        let cells = vec![text::or_none(comm.unwrap_or_default()).to_owned()];
        if let Some(Detail::Exec(_)) = event.detail {
            return Some((cells, vec![1]));
        }
        let Some(Detail::Exit(exit)) = &event.detail else {
            return None;
        };
        let failed = exit.code != 0 || exit.signal != 0;
        let lived = exit.duration.and_then(|span| Duration::try_from(span).ok());
        let micros = u64::try_from(lived.unwrap_or_default().as_micros());
        let micros = micros.unwrap_or(u64::MAX);
        let sums = in_bucket(vec![0, 1, failed.into(), micros], micros);
        Some((cells, sums))
    }

    fn show(&self, sums: &[u64], seconds: f64) -> Vec<f64> {
        let at = |index: usize| sums.get(index).copied().unwrap_or(0);
        let buckets = sums.get(Self::BUCKETS_AT..).unwrap_or_default();
        vec![
            at(0) as f64 / seconds,
            at(1) as f64 / seconds,
            at(2) as f64 / seconds,
            mean(at(3), at(1)) / 1e3,
            percentile_ms(buckets, 0.99),
        ]
    }

    fn drawing_title(&self) -> &'static str {
        "processes that ended, by how long they lived"
    }

    fn drawing(&self, rows: &Rows, chosen: &dyn Fn(&[String]) -> bool) -> Drawing {
        spans(rows, chosen, Self::BUCKETS_AT)
    }
}
