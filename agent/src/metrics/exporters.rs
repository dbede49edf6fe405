//! What became of what exporters should bring.

use std::{fmt::Error, sync::Arc};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use crate::export::{Counters, Exporters};

/// Writes everything that is known of the exporters.
pub(super) fn encode(exporters: &Exporters, out: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let running = exporters.counters();
    let counter = ConstCounter::new(0u64).metric_type();
    let gauge = ConstGauge::new(0i64).metric_type();
    let labels = |exporter: &Arc<Counters>| {
        [
            ("exporter", exporter.name.clone()),
            ("receiver", exporter.receiver.to_owned()),
        ]
    };
    let mut one = |name, help, value: &dyn Fn(&Counters) -> u64| {
        let mut family = out.encode_descriptor(name, help, None, counter)?;
        for exporter in running.iter() {
            ConstCounter::new(value(exporter)).encode(family.encode_family(&labels(exporter))?)?;
        }
        Ok::<_, Error>(())
    };
    one(
        "exporter_events",
        "Events that the receiver took",
        &Counters::events,
    )?;
    one(
        "exporter_bytes",
        "What of them was sent, in bytes",
        &Counters::bytes,
    )?;
    let mut family = out.encode_descriptor(
        "exporter_events_lost",
        "Events lost before they came to the exporter's queue, by stage",
        None,
        counter,
    )?;
    for exporter in running.iter() {
        for (kind, stage, count) in exporter.losses() {
            let stage = stage.as_str_name();
            let stage = stage
                .strip_prefix("LOSS_STAGE_")
                .unwrap_or(stage)
                .to_lowercase();
            let labels = [
                ("exporter", exporter.name.clone()),
                ("kind", kind.name()),
                ("stage", stage),
            ];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    let mut family = out.encode_descriptor(
        "exporter_events_dropped",
        "Events that the exporter gave up, or that found no room in its queue, by cause",
        None,
        counter,
    )?;
    for exporter in running.iter() {
        for (cause, count) in exporter.drops() {
            let labels = [("exporter", &*exporter.name), ("cause", cause.name())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    let mut family = out.encode_descriptor(
        "exporter_failures",
        "Attempts to listen or to send that failed, by cause",
        None,
        counter,
    )?;
    for exporter in running.iter() {
        for (cause, count) in exporter.failures() {
            let labels = [("exporter", &*exporter.name), ("cause", cause.name())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    let mut one = |name, help, value: &dyn Fn(&Counters) -> u64| {
        let mut family = out.encode_descriptor(name, help, None, gauge)?;
        for exporter in running.iter() {
            let value = i64::try_from(value(exporter)).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(family.encode_family(&labels(exporter))?)?;
        }
        Ok::<_, Error>(())
    };
    one(
        "exporter_up",
        "1 while it listens and the last attempt to send was well",
        &|exporter| exporter.up().into(),
    )?;
    one(
        "exporter_waiting_events",
        "Events that the exporter holds, beside those in its queue",
        &Counters::waiting,
    )?;
    one(
        "exporter_last_success_timestamp_seconds",
        "When the receiver took something last, in seconds since 1970",
        &Counters::last_success,
    )?;
    let reloads = exporters.reloads();
    ConstCounter::new(reloads.failures()).encode(out.encode_descriptor(
        "exporters_reload_failures",
        "Times that the file of exporters had changed and could not be used; the exporters stayed as they were",
        None,
        counter,
    )?)?;
    let mut one = |name, help, value: u64| {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(out.encode_descriptor(name, help, None, gauge)?)
    };
    one(
        "exporters_file_current",
        "1 while the exporters are those of the file as it is now",
        reloads.is_current().into(),
    )?;
    one(
        "exporters_file_applied_timestamp_seconds",
        "When the exporters became those of the file, in seconds since 1970",
        reloads.applied(),
    )
}
