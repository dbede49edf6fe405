use std::time::Duration;

use dinle_proto::v1;
use prost::Message as _;

use super::{proto::MetricFamily, *};
use crate::{export::config::SeriesSink, workload::Index};

fn event(kind: v1::Kind, pod: &str, detail: v1::event::Detail) -> v1::Event {
    v1::Event {
        kind: kind.into(),
        time: Some(prost_types::Timestamp {
            seconds: 2_000_000_000,
            nanos: 5_000_000,
        }),
        workload: Some(v1::WorkloadName {
            namespace: "shop".into(),
            pod: pod.into(),
            state: v1::IdentityState::Container.into(),
            ..v1::WorkloadName::default()
        }),
        process: Some(v1::Process {
            comm: "a\"b".into(),
            pid: 7,
            ..v1::Process::default()
        }),
        detail: Some(detail),
        ..v1::Event::default()
    }
}

fn store() -> Store {
    let config = SeriesSink {
        top: 5,
        grace: Duration::ZERO,
    };
    let store = Store::new(config, Index::new("n"));
    let block = v1::BlockLatency {
        operation: v1::BlockOperation::Read.into(),
        count: 4,
        bytes: 4096,
        device_ns: 40_000,
        buckets: vec![1, 0, 3],
        ..v1::BlockLatency::default()
    };
    store.take(&[
        event(
            v1::Kind::Exec,
            "web",
            v1::event::Detail::Exec(v1::Exec::default()),
        ),
        event(
            v1::Kind::Exec,
            "web",
            v1::event::Detail::Exec(v1::Exec::default()),
        ),
        event(
            v1::Kind::BlockLatency,
            "web",
            v1::event::Detail::BlockLatency(block),
        ),
    ]);
    store
}

fn scraped(accept: &str) -> (&'static str, Bytes) {
    Scrapes::default().scrape(&store(), accept)
}

#[test]
fn text_is_what_prometheus_reads() {
    let (kind, text) = scraped("text/plain");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let text = std::str::from_utf8(&text).expect("text");
    assert!(text.starts_with(
        "# HELP dinle_pod_execs_total Programs that were executed\n# TYPE dinle_pod_execs_total counter\n\
         dinle_pod_execs_total{namespace=\"shop\",pod=\"web\"} 2\n"
    ), "{text}");
    for line in [
        r#"dinle_pod_io_bytes_total{namespace="shop",pod="web",operation="read"} 4096"#,
        r#"dinle_pod_io_device_seconds_bucket{namespace="shop",pod="web",operation="read",le="0.000002"} 1"#,
        r#"dinle_pod_io_device_seconds_bucket{namespace="shop",pod="web",operation="read",le="0.000008"} 4"#,
        r#"dinle_pod_io_device_seconds_bucket{namespace="shop",pod="web",operation="read",le="+Inf"} 4"#,
        r#"dinle_pod_io_device_seconds_count{namespace="shop",pod="web",operation="read"} 4"#,
    ] {
        assert!(text.lines().any(|own| own == line), "{line}\n{text}");
    }
    assert!(!text.contains("EOF"));
}

#[test]
fn openmetrics_has_exemplars_and_an_end() {
    let (kind, text) =
        scraped("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5");
    assert_eq!(
        kind,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let text = std::str::from_utf8(&text).expect("text");
    assert!(text.contains(
        "# TYPE dinle_pod_execs counter\n\
         dinle_pod_execs_total{namespace=\"shop\",pod=\"web\"} 2 # {comm=\"a\\\"b\",pid=\"7\"} 1 2000000000.005\n"
    ), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn protobuf_has_native_histograms_beside_classic_ones() {
    let accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;q=0.8";
    let (_, mut bytes) = scraped(accept);
    let mut families = Vec::new();
    while !bytes.is_empty() {
        families.push(MetricFamily::decode_length_delimited(&mut bytes).expect("a family"));
    }
    let find = |name: &str| {
        let found = families
            .iter()
            .find(|family| family.name.as_deref() == Some(name));
        found.expect(name).metric[0].clone()
    };
    assert_eq!(
        find("dinle_pod_execs_total")
            .counter
            .and_then(|counter| counter.value),
        Some(2.0)
    );
    let histogram = find("dinle_pod_io_device_seconds")
        .histogram
        .expect("a histogram");
    assert_eq!(
        (histogram.sample_count, histogram.sample_sum),
        (Some(4), Some(40_000.0 * 1e-9))
    );
    assert_eq!(histogram.bucket.len(), 26);
    assert_eq!(histogram.bucket[2].cumulative_count, Some(4));
    // 1, 0, 3
    assert_eq!(histogram.positive_delta, [1, -1, 3]);
    let span = &histogram.positive_span[0];
    assert_eq!(
        (span.offset, span.length, histogram.schema),
        (Some(-19), Some(3), Some(0))
    );
}

#[test]
fn who_asks_again_at_once_gets_the_same() {
    let (scrapes, store) = (Scrapes::default(), store());
    let (_, first) = scrapes.scrape(&store, "");
    store.take(&[event(
        v1::Kind::Exec,
        "web",
        v1::event::Detail::Exec(v1::Exec::default()),
    )]);
    assert_eq!(scrapes.scrape(&store, "").1, first);
}
