//! Requests to disks.

use dinle_proto::v1::{self, event::Detail};

use super::{Drawing, Number, Subject, Unit, mean, number, percentile_ms, spans};
use crate::client::{tools::block, top::sums::Rows};

/// Requests to disks.
pub(in super::super) struct Disk;

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
            number("BYTES/s", Unit::Bytes),
            number("REQ/s", Unit::Count),
            number("AVG(ms)", Unit::Milliseconds),
            number("P99(ms)", Unit::Milliseconds),
            number("QUE(ms)", Unit::Milliseconds),
        ];
        NUMBERS
    }

    fn take(&mut self, event: &v1::Event, _: &str) -> Option<(Vec<String>, Vec<u64>)> {
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

    fn drawing_title(&self) -> &'static str {
        "requests by time in the device"
    }

    fn drawing(&self, rows: &Rows, chosen: &dyn Fn(&[String]) -> bool) -> Drawing {
        spans(rows, chosen, Self::BUCKETS_AT)
    }
}
