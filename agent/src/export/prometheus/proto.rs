//! `io.prometheus.client` of <https://github.com/prometheus/client_model>, as far as it is sent here. A histogram has both forms, and whoever
//! scrapes takes the one that it knows.

use prost::Message;
use prost_types::Timestamp;

use super::{PREFIX, bounds};
use crate::export::series::{Definition, Exemplar, Series};

#[derive(Clone, PartialEq, Message)]
pub(super) struct LabelPair {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) value: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ProtoExemplar {
    #[prost(message, repeated, tag = "1")]
    pub(super) label: Vec<LabelPair>,
    #[prost(double, optional, tag = "2")]
    pub(super) value: Option<f64>,
    #[prost(message, optional, tag = "3")]
    pub(super) timestamp: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Counter {
    #[prost(double, optional, tag = "1")]
    pub(super) value: Option<f64>,
    #[prost(message, optional, tag = "2")]
    pub(super) exemplar: Option<ProtoExemplar>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    pub(super) cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) upper_bound: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct BucketSpan {
    #[prost(sint32, optional, tag = "1")]
    pub(super) offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    pub(super) length: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    pub(super) sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    pub(super) schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    pub(super) zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    pub(super) zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    pub(super) positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "13")]
    pub(super) positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metric {
    #[prost(message, repeated, tag = "1")]
    pub(super) label: Vec<LabelPair>,
    #[prost(message, optional, tag = "3")]
    pub(super) counter: Option<Counter>,
    #[prost(message, optional, tag = "7")]
    pub(super) histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricFamily {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) help: Option<String>,
    #[prost(int32, optional, tag = "3")]
    pub(super) r#type: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    pub(super) metric: Vec<Metric>,
}

/// `MetricType`
const COUNTER: i32 = 0;
const HISTOGRAM: i32 = 4;

/// Schema 0: bucket n of a native histogram ends at 2^n seconds.
const SCHEMA: i32 = 0;
/// Number of the native bucket that has most of the contract's first one, below 2 µs; the next ones follow each other in both. Each of the
/// contract's ends 5 % beyond that of the native one (2 µs are 2^-18.93 s).
const FIRST: i32 = -19;

pub(super) fn encode(families: &[(&'static Definition, Vec<Series>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (definition, series) in families {
        let Definition {
            name,
            help,
            histogram,
            ..
        } = definition;
        let total = if *histogram { "" } else { "_total" };
        let family = MetricFamily {
            name: Some(format!("{PREFIX}{name}{total}")),
            help: Some((*help).to_owned()),
            r#type: Some(if *histogram { HISTOGRAM } else { COUNTER }),
            metric: series
                .iter()
                .map(|series| metric(definition, series))
                .collect(),
        };
        out.extend(family.encode_length_delimited_to_vec());
    }
    out
}

fn metric(definition: &Definition, series: &Series) -> Metric {
    let Series {
        namespace,
        pod,
        values,
        point,
        since: _,
    } = series;
    let pair = |(name, value): (&str, &str)| LabelPair {
        name: Some(name.to_owned()),
        value: Some(value.to_owned()),
    };
    let own = definition
        .labels
        .iter()
        .zip(values)
        .map(|(name, value)| (*name, &**value));
    let labels = [("namespace", &**namespace), ("pod", &**pod)]
        .into_iter()
        .chain(own);
    let sum = point.sum as f64 * definition.scale;
    let histogram = point
        .buckets
        .as_ref()
        .filter(|_| definition.histogram)
        .map(|buckets| {
            let mut count = 0;
            let classic = buckets.iter().zip(bounds()).map(|(own, bound)| {
                count += own;
                Bucket {
                    cumulative_count: Some(count),
                    upper_bound: Some(bound),
                }
            });
            let classic = classic.collect();
            let used = || buckets.iter().enumerate().filter(|(_, count)| **count > 0);
            let first = used().next().map_or(0, |(at, _)| at);
            let last = used().next_back().map_or(0, |(at, _)| at + 1);
            let mut before = 0;
            let deltas = buckets[first..last].iter().map(|count| {
                let count = *count as i64;
                count - std::mem::replace(&mut before, count)
            });
            Histogram {
                sample_count: Some(point.count()),
                sample_sum: Some(sum),
                bucket: classic,
                schema: Some(SCHEMA),
                zero_threshold: Some(0.0),
                zero_count: Some(0),
                positive_delta: deltas.collect(),
                positive_span: vec![BucketSpan {
                    offset: Some(FIRST + first as i32),
                    length: Some((last - first) as u32),
                }],
            }
        });
    let exemplar = point
        .exemplar
        .as_ref()
        .map(|Exemplar { labels, time }| ProtoExemplar {
            label: labels
                .iter()
                .map(|(name, value)| pair((name, value)))
                .collect(),
            value: Some(1.0),
            timestamp: Some((*time).into()),
        });
    Metric {
        label: labels.map(pair).collect(),
        counter: histogram.is_none().then_some(Counter {
            value: Some(sum),
            exemplar,
        }),
        histogram,
    }
}
