//! Series for whoever scrapes: in the text formats of Prometheus and OpenMetrics, and in its protobuf format, which alone has native histograms.

mod proto;
mod text;

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::series::{BUCKETS, Store};

/// What all names begin with.
const PREFIX: &str = "dinle_pod_";
/// An answer is given again for so long: who asks more often, or many who ask at once, cost no more.
const FRESH: Duration = Duration::from_secs(1);

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    OpenMetrics,
    Protobuf,
}

impl Format {
    /// What a header `Accept` asks for.
    fn of(accept: &str) -> Self {
        let accept = accept.to_ascii_lowercase();
        let protobuf = |part: &str| {
            part.contains("application/vnd.google.protobuf")
                && part.contains("io.prometheus.client.metricfamily")
                && part.contains("delimited")
        };
        // Prometheus names first what it likes best.
        for part in accept.split(',') {
            if protobuf(part) {
                return Self::Protobuf;
            }
            if part.contains("application/openmetrics-text") {
                return Self::OpenMetrics;
            }
        }
        Self::Text
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// An answer: its content type and itself.
pub type Scraped = (&'static str, Bytes);

/// Answers those who scrape.
#[derive(Default)]
pub(super) struct Scrapes(Mutex<[Option<(Instant, Bytes)>; 3]>);

impl Scrapes {
    pub(super) fn scrape(&self, store: &Store, accept: &str) -> Scraped {
        let format = Format::of(accept);
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = &mut answers[format as usize];
        if let Some((made, bytes)) = answer
            && made.elapsed() < FRESH
        {
            return (format.content_type(), bytes.clone());
        }
        let families = store.families();
        let bytes: Bytes = match format {
            Format::Text => text::encode(&families, false).into(),
            Format::OpenMetrics => text::encode(&families, true).into(),
            Format::Protobuf => proto::encode(&families).into(),
        };
        *answer = Some((Instant::now(), bytes.clone()));
        (format.content_type(), bytes)
    }
}

/// Upper bounds of the contract's buckets in seconds, but for the last one, which has none.
pub(super) fn bounds() -> impl Iterator<Item = f64> {
    (1..BUCKETS as u32).map(|power| f64::from(1_u32 << power) / 1e6)
}

#[cfg(test)]
mod tests;
