//! What is printed of a stream.

use super::*;

const WARNINGS: &str = "\
note: the pod source is not synced yet
exit is not available on this node: no way to attach
";

#[tokio::test]
async fn watch_prints_events_and_then_the_books() {
    let fake = scripted(a_stream());
    let Printed { out, err, result } = run(&fake, "watch --kinds exec --count 4").await;
    assert_eq!(
        squeezed(&out),
        [
            "TIME NODE NAMESPACE POD CONTAINER KIND PID PPID UID COMM CODE DURATION ARGS",
            "00:00:00.000 node-1 shop web-0 app exec 1 0 0 ls - - ls",
            "00:00:00.000 node-1 shop db-0 - exec 2 0 0 ls - - ls",
            "00:00:00.000 node-1 shop db-0 postgres exec 3 0 0 ls - - ls",
            "00:00:00.000 node-1 - - - exec 4 0 0 ls - - ls",
        ]
    );
    assert_eq!(
        err,
        format!(
            "{WARNINGS}\
             lost 4 exec events: this client read too slowly (CLIENT_QUEUE)\n\
             books: exec matched 8 = delivered 4 + lost 4 (CLIENT_QUEUE 4)\n"
        )
    );
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
    let asked = fake.asked.lock().expect("not poisoned");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].max_events, 4);
    assert_eq!(asked[0].kinds, [v1::Kind::Exec as i32]);
}

#[tokio::test]
async fn execsnoop_has_its_own_columns() {
    let Printed { out, result, .. } = run(&scripted(a_stream()), "execsnoop --time=off").await;
    assert_eq!(
        squeezed(&out)[..2],
        [
            "NODE NAMESPACE POD CONTAINER PCOMM PID PPID RET ARGS",
            "node-1 shop web-0 app ls 1 0 0 /bin/ls",
        ]
    );
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
}

/// Two snapshots of two seconds each: the pod's reads in both, a write of somebody unknown in the second.
fn snapshots() -> Vec<Result<Message, Status>> {
    let row = |cgroup_id, operation: v1::BlockOperation, count: u64| v1::Event {
        kind: v1::Kind::BlockLatency.into(),
        cgroup_id,
        detail: Some(Detail::BlockLatency(v1::BlockLatency {
            disk: "sda".to_owned(),
            operation: operation.into(),
            count,
            bytes: count * 4096,
            device_ns: count * 1_000_000,
            queued_ns: 0,
            buckets: vec![0, count],
            ..Default::default()
        })),
        ..Default::default()
    };
    let snapshot = |start: i64, events: Vec<v1::Event>| {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        Message::Snapshot(v1::Snapshot {
            start: at(start),
            end: at(start + 2),
            events,
        })
    };
    let books = v1::KindBooks {
        kind: v1::Kind::BlockLatency.into(),
        matched: 3,
        delivered: 3,
        ..Default::default()
    };
    let read = |count| row(70, v1::BlockOperation::Read, count);
    [
        Message::Plan(a_plan()),
        snapshot(10, vec![read(2)]),
        snapshot(12, vec![read(4), row(99, v1::BlockOperation::Write, 1)]),
        Message::Heartbeat(v1::Heartbeat {
            books: vec![books],
            end: v1::EndReason::MaxDuration.into(),
            ..Default::default()
        }),
    ]
    .map(Ok)
    .to_vec()
}

#[tokio::test]
async fn latencies_are_drawn_with_their_pod() {
    let Printed { out, err, result } = run(&scripted(snapshots()), "biolatency").await;
    let lines = squeezed(&out);
    let headings: Vec<_> = lines
        .iter()
        .filter(|line| line.contains(" request"))
        .collect();
    assert_eq!(
        headings,
        [
            "00:00:14.000 node-1 - - - sda write: 1 request, 4.0K, 1.00 ms in the device and 0.00 ms queued on average",
            "00:00:14.000 node-1 shop web-0 app sda read: 6 requests, 24.0K, 1.00 ms in the device and 0.00 ms queued on average",
        ]
    );
    assert!(lines[3].starts_with("2 -> 3 : 1 |****"), "{lines:?}");
    assert_eq!(
        err,
        format!("{WARNINGS}books: block_latency matched 3 = delivered 3 + lost 0\n")
    );
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);

    let Printed { out, .. } = run(&scripted(snapshots()), "biolatency -o json").await;
    assert_eq!(out.lines().count(), 3, "a row is a line: {out}");
}

#[tokio::test]
async fn a_ranking_that_nobody_watches_is_a_table_for_each_interval() {
    let Printed { out, result, .. } = run(&scripted(snapshots()), "top disk --sort req/s").await;
    let names = "NODE NAMESPACE POD CONTAINER DISK OPERATION BYTES/s REQ/s AVG(ms) P99(ms) QUE(ms)";
    assert_eq!(
        squeezed(&out),
        [
            names,
            "node-1 shop web-0 app sda read 4.0K 1.0 1.00 0.00 0.00",
            "",
            names,
            "node-1 shop web-0 app sda read 8.0K 2.0 1.00 0.00 0.00",
            "node-1 - - - sda write 2.0K 0.5 1.00 0.00 0.00",
            "",
        ]
    );
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
}

#[tokio::test]
async fn lines_rank_one_thing_and_it_must_be_named() {
    let Printed { err, result, .. } = run(&scripted(snapshots()), "top").await;
    assert!(
        err.starts_with("only a terminal has room for all: name one, such as `dinle top files`"),
        "{err}"
    );
    assert_eq!(result.expect("it is told"), ExitCode::from(EXIT_USAGE));
}

#[tokio::test]
async fn a_header_comes_without_events_and_can_be_left_out() {
    let quiet = || {
        scripted(vec![
            Ok(Message::Plan(v1::Plan::default())),
            Ok(heartbeat(0, 0, v1::EndReason::MaxDuration)),
        ])
    };
    let Printed { out, err, .. } = run(&quiet(), "watch").await;
    assert_eq!(out.lines().count(), 1);
    assert_eq!(err, "books: exec matched 0 = delivered 0 + lost 0\n");
    let Printed { out, .. } = run(&quiet(), "watch --no-header").await;
    assert_eq!(out, "");
}

#[tokio::test]
async fn json_has_a_line_for_each_event_and_nothing_else() {
    let Printed { out, err, result } = run(&scripted(a_stream()), "watch -o json").await;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(
        lines[0],
        concat!(
            r#"{"time":"1970-01-01T00:00:00Z","kind":"KIND_EXEC","cgroupId":"70","#,
            r#""process":{"pid":1,"comm":"ls"},"exec":{"filename":"/bin/ls","args":["ls"]}}"#
        )
    );
    assert!(err.starts_with(WARNINGS), "{err}");
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
}

#[tokio::test]
async fn a_template_says_what_is_printed_of_each_event() {
    let line = r#"watch -o jsonpath={.exec.filename}:{.process.pid}{"\n"}"#;
    let Printed { out, err, result } = run(&scripted(a_stream()), line).await;
    assert_eq!(out, "/bin/ls:1\n/bin/ls:2\n/bin/ls:3\n/bin/ls:4\n");
    assert!(err.starts_with(WARNINGS), "{err}");
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
    let Printed { out, .. } = run(
        &Fake::default(),
        "workloads -o jsonpath={.pod}/{.container}",
    )
    .await;
    assert_eq!(out, "web-0/app");
    let Printed { out, .. } = run(&Fake::default(), "status -o jsonpath={.status.node}").await;
    assert_eq!(out, "node-1");
}

#[tokio::test]
async fn a_template_of_what_no_event_has_is_refused_before_anything_is_asked() {
    for line in [
        "watch -o jsonpath={.exec.filname}",
        "execsnoop -o jsonpath={.exec.filname}",
        "opensnoop -o jsonpath={.exec.filname}",
    ] {
        let fake = scripted(a_stream());
        let Printed { out, err, result } = run(&fake, line).await;
        let refusal = "-o jsonpath: Exec has no field `filname`; it has filename, ";
        assert!(out.is_empty() && err.starts_with(refusal), "{line}: {err}");
        assert_eq!(result.expect("told"), ExitCode::from(EXIT_USAGE));
        assert!(fake.asked.lock().expect("not poisoned").is_empty());
    }
}

#[tokio::test]
async fn raw_json_has_a_line_for_each_message() {
    let Printed { out, .. } = run(&scripted(a_stream()), "watch -o json --raw").await;
    let kinds: Vec<_> = out
        .lines()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let object = value.as_object().expect("an object");
            object.keys().cloned().collect::<Vec<_>>().join(" ")
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "plan",
            "batch",
            "workload",
            "batch",
            "heartbeat",
            "loss",
            "workload",
            "batch",
            "heartbeat"
        ]
    );
    let Printed { err, result, .. } = run(&scripted(a_stream()), "watch --raw").await;
    assert_eq!(err, "--raw prints messages as they are; add `-o json`\n");
    assert_eq!(result.expect("told"), ExitCode::from(EXIT_USAGE));
}
