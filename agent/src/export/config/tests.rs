use std::time::Duration;

use super::*;

fn mistakes(text: &str) -> Vec<String> {
    let wrong = parse(text, &Limits::default()).expect_err(text);
    wrong.iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_says_what_is_exported_and_where() {
    let text = "\
exporters:
- name: audit
  kinds: [exec, file_delete]
  selector: {namespaces: [shop], labels: 'app=checkout', host: include}
  filter:
    comm: [{exact: sh}]
    uids: [0]
  max_events_per_second: 1000
  queue_bytes: 1MiB
  file: {path: /var/log/dinle/audit.jsonl, max_bytes: 100MiB, max_age: 24h, keep: 7, compress: none}
- name: sum
  kinds: [block_latency]
  prometheus: {}
";
    let specs = parse(text, &Limits::default()).expect("a good file");
    let [audit, sum] = &specs[..] else {
        panic!("{specs:?}")
    };
    let asked = v1::SubscribeRequest {
        kinds: vec![v1::Kind::Exec.into(), v1::Kind::FileDelete.into()],
        selector: Some(v1::Selector {
            namespaces: vec!["shop".into()],
            label_selector: "app=checkout".into(),
            host_processes: v1::HostProcesses::Include.into(),
            ..v1::Selector::default()
        }),
        filter: Some(v1::Filter {
            comm: vec![v1::StringMatch {
                pattern: Some(v1::string_match::Pattern::Exact("sh".into())),
            }],
            uids: vec![0],
            ..v1::Filter::default()
        }),
        max_events_per_second: 1000,
        queue_bytes: 1 << 20,
        ..v1::SubscribeRequest::default()
    };
    assert_eq!((&*audit.name, &audit.asked), ("audit", &asked));
    let file = FileSink {
        path: "/var/log/dinle/audit.jsonl".into(),
        raw: false,
        max_bytes: 100 << 20,
        max_age: Some(Duration::from_secs(86400)),
        keep: 7,
        compress: Compression::None,
    };
    assert_eq!(audit.receiver, Receiver::File(file));
    // Who adds up is told so often.
    assert_eq!(
        sum.asked.interval.map(|interval| interval.seconds),
        Some(10)
    );
    assert_eq!(parse("exporters: []", &Limits::default()), Ok(Vec::new()));
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let text = "\
exporters:
- name: Audit
  kinds: [exec, fille_open]
  file: {path: audit.jsonl}
- name: lake
  kinds: [exec]
  filter: {path: [{prefix: /etc}]}
  stdout: {}
- name: lake
  kinds: [exec]
  stdout: {}
  file: {path: /a}
- name: none
  kinds: [exec]
- name: few
  kinds: [exec]
  queue_bytes: 1KiB
  selector: {labels: 'app in'}
  stdout: {}
- name: series
  kinds: [block_io]
  prometheus: {top: 5}
";
    let told = mistakes(text);
    let expected = [
        "2:9: exporters[0].name: `Audit` is no name",
        "3:17: exporters[0].kinds[1]: there is no kind `fille_open`; there are exec, exit, fork, file_open",
        "4:9: exporters[0].file.path: `audit.jsonl` is no absolute path",
        "7:11: exporters[1].filter.path: ",
        "9:3: exporters[2]: has stdout and file",
        "9:9: exporters[2].name: `lake` is the name of an exporter above",
        "13:3: exporters[3]: says nowhere to send to",
        "18:13: exporters[4].selector.labels",
        "21:10: exporters[5].kinds: series are not made of block_io: use block_latency",
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told}\n{expected}");
    }
}

#[test]
fn what_is_no_such_file_is_told_with_its_place() {
    for (text, expected) in [
        (
            "exporters:\n- name: a\n  kind: [exec]\n  stdout: {}\n",
            ["3:3: ", "unknown field `kind`", "kinds"],
        ),
        (
            "exporters:\n- name: a\n  kinds: [exec]\n  stdout: {}\n  filter: {com: []}\n",
            ["5:", "com", ""],
        ),
        (
            "exporters:\n- name: a\n  kinds: [exec]\n  file: {path: /a, max_age: soon}\n",
            ["4:", "`soon` is no time", "24h"],
        ),
        (
            "exporters:\n- name: a\n  kinds: [exec]\n  file: {path: /a, max_bytes: 3MB}\n",
            ["4:", "3MB", "100MiB"],
        ),
        ("exporters:\n- name: a\n  kinds: [exec\n", ["", "", ""]),
        ("exporter: []\n", ["1:1: ", "exporter", "exporters"]),
        ("", ["", "exporters", ""]),
    ] {
        let told = mistakes(text);
        assert_eq!(told.len(), 1, "{told:?}");
        for part in expected {
            assert!(told[0].contains(part), "{text}: {told:?} lacks {part}");
        }
        // The place is there once.
        assert!(told[0].matches(" line ").count() == 0, "{told:?}");
    }
}

#[test]
fn receivers_have_their_bounds() {
    for (receiver, expected) in [
        (
            "file: {path: /a, max_bytes: 1KiB}",
            "file.max_bytes: is 1024; use 65536 or more",
        ),
        ("file: {path: /a, max_age: 1ms}", "file.max_age"),
        ("file: {path: /a.gz}", "file.path: ends in .gz"),
        ("file: {path: /a.part}", "file.path: ends in .part"),
        (
            "otlp: {endpoint: 'https://me:secret@c:4317'}",
            "otlp.endpoint: has a user in it",
        ),
        (
            "nats: {url: 'nats://a:4222,nats://me:secret@b:4222', subject: x}",
            "nats.url: has a user in it",
        ),
        (
            "nats: {url: 'tls://a:4222', subject: x, tls: {server_name: b}}",
            "nats.tls.server_name: is not for NATS",
        ),
        ("file: {path: /a, keep: 5000}", "file.keep"),
        ("otlp: {endpoint: 'collector:4317'}", "otlp.endpoint"),
        (
            "otlp: {endpoint: 'http://c:4317', tls: {ca_file: /a}}",
            "otlp.tls: is set, but the address is without TLS",
        ),
        (
            "otlp: {endpoint: 'https://c:4317', tls: {key_file: /a}}",
            "otlp.tls: has one of cert_file and key_file",
        ),
        ("otlp: {endpoint: 'http://c:4317', top: 3}", "otlp.signal"),
        (
            "otlp: {endpoint: 'http://c:4317', timeout: 5m}",
            "otlp.timeout",
        ),
        ("prometheus: {top: 0}", "prometheus.top: is 0; use 1 to 500"),
        ("nats: {url: 'localhost:4222', subject: x}", "nats.url"),
        (
            "nats: {url: 'nats://localhost:4222', subject: 'x.*'}",
            "nats.subject",
        ),
    ] {
        let told = mistakes(&format!(
            "exporters:\n- name: a\n  kinds: [exec]\n  {receiver}\n"
        ));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].contains(&format!("exporters[0].{expected}")),
            "{told:?}"
        );
        assert!(!told[0].contains("secret"), "{told:?}");
    }
}
