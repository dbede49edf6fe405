//! Sums as metrics, sent at an interval. They are cumulative: what a collector misses is in the next one that it takes.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use dinle_proto::v1;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{
        AggregationTemporality, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point::Value,
    },
    resource::v1::Resource,
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{
    SCHEMA,
    attributes::{self, Attributes},
    client::Client,
    nanos, scope,
};
use crate::export::{
    config::OtlpSink,
    counters::Counters,
    prometheus::bounds,
    series::{Definition, Series, Store},
};

/// Pods in one request: some 200 KiB, far below the 4 MiB that collectors take.
const RESOURCES: usize = 64;

/// Sends the sums again and again, and when it is told to stop once more.
pub(crate) async fn push(
    name: String,
    sink: OtlpSink,
    store: Arc<Store>,
    counters: Arc<Counters>,
    node: String,
    mut stop: watch::Receiver<bool>,
) {
    let mut ticks = interval(sink.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client = Client::new(sink);
    let mut failing = false;
    let mut last = false;
    // Events in the sums that were taken.
    let mut told = 0;
    while !last {
        last = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => true,
            _ = ticks.tick() => false,
        };
        let events = store.taken();
        let mut sent = Ok(None);
        let mut left = resources(&store, &node);
        while !left.is_empty() && sent.is_ok() {
            let resource_metrics = left.drain(..left.len().min(RESOURCES)).collect();
            let request = ExportMetricsServiceRequest { resource_metrics };
            let bytes = prost::Message::encoded_len(&request) as u64;
            sent = client.metrics(request).await;
            if let Ok(refused) = &sent {
                counters.sent(bytes);
                if let Some((points, problem)) = refused {
                    tracing::error!(
                        exporter = name,
                        points,
                        problem,
                        "the receiver throws points away"
                    );
                }
            }
        }
        match sent {
            Ok(_) => {
                counters.counted(events - told);
                told = events;
                if std::mem::take(&mut failing) {
                    tracing::info!(exporter = name, "sums are taken again");
                }
            }
            Err(failure) => {
                counters.failed(failure.cause, &failure.problem);
                if !std::mem::replace(&mut failing, true) {
                    let (cause, problem) = (failure.cause.name(), failure.problem);
                    tracing::error!(
                        exporter = name,
                        cause,
                        problem,
                        "sums are not taken; what they tell is in the next ones"
                    );
                }
            }
        }
    }
}

/// A resource for each pod.
fn resources(store: &Store, node: &str) -> Vec<ResourceMetrics> {
    let now = nanos(SystemTime::now());
    let mut pods: BTreeMap<(String, String), Vec<Metric>> = BTreeMap::new();
    for (definition, series) in store.families() {
        let mut of_pods: BTreeMap<(String, String), Vec<Series>> = BTreeMap::new();
        for series in series {
            let pod = (series.namespace.clone(), series.pod.clone());
            of_pods.entry(pod).or_default().push(series);
        }
        for (pod, series) in of_pods {
            pods.entry(pod)
                .or_default()
                .push(metric(definition, &series, now));
        }
    }
    let resource_metrics = pods
        .into_iter()
        .map(|((namespace, pod), metrics)| ResourceMetrics {
            resource: Some(Resource {
                attributes: resource(node, namespace, pod).0,
                ..Resource::default()
            }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope()),
                metrics,
                schema_url: SCHEMA.to_owned(),
            }],
            schema_url: SCHEMA.to_owned(),
        });
    resource_metrics.collect()
}

fn resource(node: &str, namespace: String, pod: String) -> Attributes {
    // Those that are no pods: the host, the rest.
    if namespace.is_empty() {
        let mut own = attributes::resource(node, &v1::WorkloadName::default(), None);
        own.text("dinle.pods", pod.trim_matches(['(', ')']));
        return own;
    }
    let name = v1::WorkloadName {
        namespace,
        pod,
        ..v1::WorkloadName::default()
    };
    attributes::resource(node, &name, None)
}

fn metric(definition: &Definition, series: &[Series], now: u64) -> Metric {
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    let labels = |series: &Series| {
        let mut own = Attributes::default();
        for (label, value) in definition.labels.iter().zip(&series.values) {
            let (label, value) = convention(definition, label, value);
            own.text(label, value);
        }
        own.0
    };
    let sum = |series: &Series| series.point.sum as f64 * definition.scale;
    let data = match definition.histogram {
        true => {
            let point = |series: &Series| HistogramDataPoint {
                attributes: labels(series),
                start_time_unix_nano: nanos(series.since),
                time_unix_nano: now,
                count: series.point.count(),
                sum: Some(sum(series)),
                bucket_counts: series
                    .point
                    .buckets
                    .iter()
                    .flat_map(|buckets| buckets.iter().copied())
                    .collect(),
                explicit_bounds: bounds().collect(),
                ..HistogramDataPoint::default()
            };
            let points = series
                .iter()
                .filter(|series| series.point.buckets.is_some());
            Data::Histogram(Histogram {
                data_points: points.map(point).collect(),
                aggregation_temporality,
            })
        }
        false => {
            let value = |series: &Series| match definition.scale {
                1.0 => Value::AsInt(i64::try_from(series.point.sum).unwrap_or(i64::MAX)),
                _ => Value::AsDouble(sum(series)),
            };
            let point = |series: &Series| NumberDataPoint {
                attributes: labels(series),
                start_time_unix_nano: nanos(series.since),
                time_unix_nano: now,
                value: Some(value(series)),
                ..NumberDataPoint::default()
            };
            Data::Sum(Sum {
                data_points: series.iter().map(point).collect(),
                aggregation_temporality,
                is_monotonic: true,
            })
        }
    };
    Metric {
        name: definition.otel.to_owned(),
        description: definition.help.to_owned(),
        unit: definition.unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

/// A label and its value as the semantic conventions name them.
fn convention(definition: &Definition, label: &str, value: &str) -> (String, String) {
    let network = definition.otel.starts_with("dinle.tcp");
    match (label, value) {
        ("direction", "sent") if network => {
            ("network.io.direction".to_owned(), "transmit".to_owned())
        }
        ("direction", "received") if network => {
            ("network.io.direction".to_owned(), "receive".to_owned())
        }
        ("operation", "read" | "write") => ("disk.io.direction".to_owned(), value.to_owned()),
        ("error", value) => ("error.type".to_owned(), value.to_owned()),
        (label, value) => (format!("dinle.{label}"), value.to_owned()),
    }
}
