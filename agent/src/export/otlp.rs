//! OTLP: events as log records, or sums as metrics, to a collector, over gRPC or HTTP.
//!
//! The messages are those of the crate `opentelemetry-proto`. The processors of `opentelemetry_sdk` are not used: they drop silently where this
//! must count, and give up where this must wait.

mod attributes;
mod client;
mod http1;
mod logs;
mod metrics;

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::InstrumentationScope;

pub(super) use logs::Logs;
pub(super) use metrics::push;

/// The semantic conventions that attributes follow.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "dinle".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
