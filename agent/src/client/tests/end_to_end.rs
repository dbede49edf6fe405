//! Commands against a small agent that says what a script tells it to.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use dinle_proto::{
    Encoded,
    server::observer_server::{Observer, ObserverServer},
    v1::{self, event::Detail, subscribe_response::Message},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

use super::{
    super::{
        columns::EventTable,
        connect::{Place, client_on},
        lasting::Lasting,
        pages::tests::{a_plan, both_capabilities},
        stream::{Ending, Format, View, follow},
    },
    *,
};

/// An agent that answers every Subscribe with the same script, and then ends the stream.
#[derive(Clone, Default)]
struct Fake {
    script: Vec<Result<Message, Status>>,
    /// What comes when a stream is resumed.
    rest: Vec<Result<Message, Status>>,
    /// So often it is not there any more.
    gone: usize,
    asked: Arc<Mutex<Vec<v1::SubscribeRequest>>>,
    left: Arc<Mutex<Vec<v1::LeaveRequest>>>,
}

#[tonic::async_trait]
impl Observer for Fake {
    type SubscribeStream = tokio_stream::Iter<std::vec::IntoIter<Result<Encoded, Status>>>;

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let request = request.into_inner();
        if request.queue_bytes == 1 {
            return Err(Status::invalid_argument("queue_bytes: is 1"));
        }
        let resumed = request.resume.is_some();
        let mut asked = self.asked.lock().expect("not poisoned");
        asked.push(request);
        let resumes = asked.iter().filter(|asked| asked.resume.is_some());
        if resumed && resumes.count() <= self.gone {
            return Err(Status::not_found("stream 7 is not here any more"));
        }
        let script = if resumed { &self.rest } else { &self.script };
        let script: Vec<_> = script
            .iter()
            .cloned()
            .map(|message| message.map(|message| Encoded::new(&response(message))))
            .collect();
        Ok(Response::new(tokio_stream::iter(script)))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveResponse>, Status> {
        let mut left = self.left.lock().expect("not poisoned");
        left.push(request.into_inner());
        Ok(Response::new(v1::LeaveResponse {}))
    }

    async fn explain(
        &self,
        _: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        Ok(Response::new(v1::ExplainResponse {
            plan: Some(a_plan()),
        }))
    }

    async fn list_workloads(
        &self,
        request: Request<v1::ListWorkloadsRequest>,
    ) -> Result<Response<v1::ListWorkloadsResponse>, Status> {
        let wanted = request.into_inner().selector.unwrap_or_default().namespaces;
        let workloads = a_plan()
            .workloads
            .into_iter()
            .filter(|workload| wanted.is_empty() || wanted.contains(&workload.namespace))
            .collect();
        Ok(Response::new(v1::ListWorkloadsResponse { workloads }))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(v1::GetStatusResponse {
            node: "node-1".to_owned(),
            ..Default::default()
        }))
    }

    async fn list_subscriptions(
        &self,
        _: Request<v1::ListSubscriptionsRequest>,
    ) -> Result<Response<v1::ListSubscriptionsResponse>, Status> {
        Ok(Response::new(v1::ListSubscriptionsResponse {
            subscriptions: vec![v1::Subscription {
                stream_id: 7,
                ..Default::default()
            }],
            own_only: true,
            node: "node-1".to_owned(),
        }))
    }

    async fn list_capabilities(
        &self,
        _: Request<v1::ListCapabilitiesRequest>,
    ) -> Result<Response<v1::ListCapabilitiesResponse>, Status> {
        Ok(Response::new(v1::ListCapabilitiesResponse {
            capabilities: both_capabilities(),
        }))
    }
}

async fn serve(fake: Fake) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    let server = tonic::transport::Server::builder()
        .add_service(ObserverServer::new(fake))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

/// What a command printed, and how it ended.
struct Printed {
    out: String,
    err: String,
    result: anyhow::Result<ExitCode>,
}

async fn run(fake: &Fake, line: &str) -> Printed {
    let address = serve(fake.clone()).await.to_string();
    let mut arguments: Vec<_> = line.split(' ').collect();
    arguments.extend(["--address", &address]);
    let command = parse(&arguments).expect(line);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut screen = Screen {
        out: &mut out,
        err: &mut err,
        look: Look::default(),
        err_colored: false,
    };
    let result = run_on(command, &mut screen).await;
    Printed {
        out: String::from_utf8(out).expect("UTF-8"),
        err: String::from_utf8(err).expect("UTF-8"),
        result: result.map_err(|error| {
            // Ports differ from run to run.
            anyhow::anyhow!(error.to_string().replace(&address, "AGENT"))
        }),
    }
}

fn squeezed(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn response(message: Message) -> v1::SubscribeResponse {
    v1::SubscribeResponse {
        message: Some(message),
    }
}

fn workload(container: &str) -> v1::Workload {
    v1::Workload {
        cgroup_id: 71,
        state: v1::IdentityState::Container.into(),
        namespace: "shop".to_owned(),
        pod: "db-0".to_owned(),
        container: container.to_owned(),
        ..Default::default()
    }
}

fn update(container: &str) -> Message {
    Message::Workload(v1::WorkloadUpdate {
        workload: Some(workload(container)),
    })
}

fn exec(cgroup_id: u64, pid: u32) -> v1::Event {
    v1::Event {
        time: Some(prost_types::Timestamp {
            seconds: 0,
            nanos: 0,
        }),
        kind: v1::Kind::Exec.into(),
        cgroup_id,
        process: Some(v1::Process {
            pid,
            comm: "ls".to_owned(),
            ..Default::default()
        }),
        detail: Some(Detail::Exec(v1::Exec {
            filename: "/bin/ls".to_owned(),
            args: vec!["ls".to_owned()],
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn batch(first_sequence: u64, events: Vec<v1::Event>) -> Message {
    Message::Batch(v1::EventBatch {
        first_sequence,
        events,
    })
}

fn loss(count: u64) -> Message {
    Message::Loss(v1::Loss {
        kind: v1::Kind::Exec.into(),
        stage: v1::LossStage::ClientQueue.into(),
        count,
        first_sequence: 3,
        last_sequence: 2 + count,
    })
}

fn heartbeat(delivered: u64, lost: u64, end: v1::EndReason) -> Message {
    let lost_stage = v1::StageLoss {
        stage: v1::LossStage::ClientQueue.into(),
        count: lost,
    };
    Message::Heartbeat(v1::Heartbeat {
        books: vec![v1::KindBooks {
            kind: v1::Kind::Exec.into(),
            matched: delivered + lost,
            delivered,
            queued: 0,
            lost: vec![lost_stage],
            ..Default::default()
        }],
        end: end.into(),
        ..Default::default()
    })
}

/// Three execs, of which the pods are told before and during the stream, and a loss of four.
fn a_stream() -> Vec<Result<Message, Status>> {
    [
        Message::Plan(a_plan()),
        batch(1, vec![exec(70, 1)]),
        update(""),
        batch(2, vec![exec(71, 2)]),
        heartbeat(2, 0, v1::EndReason::Unspecified),
        loss(4),
        update("postgres"),
        batch(7, vec![exec(71, 3), exec(99, 4)]),
        heartbeat(4, 4, v1::EndReason::MaxEvents),
    ]
    .map(Ok)
    .to_vec()
}

fn scripted(script: Vec<Result<Message, Status>>) -> Fake {
    Fake {
        script,
        ..Default::default()
    }
}

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

#[tokio::test]
async fn books_that_do_not_balance_are_a_failure() {
    let script = vec![
        Ok(Message::Plan(v1::Plan::default())),
        Ok(batch(1, vec![exec(70, 1)])),
        Ok(heartbeat(2, 0, v1::EndReason::MaxEvents)),
    ];
    let Printed { err, result, .. } = run(&scripted(script), "watch").await;
    let wrong = "THE BOOKS DO NOT BALANCE: exec: the agent's books say delivered 2, but this client counted 1";
    assert_eq!(
        err,
        format!("{wrong}\nbooks: exec matched 2 = delivered 2 + lost 0\n{wrong}\n")
    );
    assert_eq!(result.expect("told"), ExitCode::FAILURE);
}

#[tokio::test]
async fn an_ending_that_nobody_asked_for_is_a_failure() {
    let plan = || Ok(Message::Plan(v1::Plan::default()));
    let table = [
        (
            vec![plan(), Ok(heartbeat(0, 0, v1::EndReason::Shutdown))],
            "the agent at http://AGENT shuts down",
        ),
        (
            vec![plan(), Ok(heartbeat(0, 0, v1::EndReason::Unspecified))],
            "the stream from the agent at http://AGENT ended without its last books; was the agent killed?",
        ),
        (
            vec![plan(), Err(Status::permission_denied("not any more"))],
            "the agent at http://AGENT refused: not any more (PermissionDenied)",
        ),
    ];
    for (script, expected) in table {
        let Printed { err, result, .. } = run(&scripted(script), "watch --reconnect 0s").await;
        assert!(err.starts_with("books: "), "the books come first: {err}");
        assert_eq!(result.expect_err(expected).to_string(), expected);
    }
}

fn resumable(resumed: bool) -> Result<Message, Status> {
    Ok(Message::Plan(v1::Plan {
        stream_id: 7,
        resume_token: b"secret".to_vec(),
        resumed,
        ..Default::default()
    }))
}

#[tokio::test]
async fn a_connection_that_breaks_is_taken_up_again() {
    let fake = Fake {
        script: vec![
            resumable(false),
            Ok(batch(1, vec![exec(70, 1)])),
            Err(Status::unavailable("broken")),
        ],
        rest: vec![
            resumable(true),
            Ok(batch(2, vec![exec(70, 2), exec(70, 3)])),
            Ok(heartbeat(3, 0, v1::EndReason::MaxEvents)),
        ],
        ..Fake::default()
    };
    let Printed { out, err, result } = run(&fake, "watch").await;
    assert_eq!(out.lines().count(), 4, "a header and three events: {out}");
    let lines: Vec<&str> = err.lines().collect();
    assert!(
        lines[0].ends_with("broken (Unavailable); trying again"),
        "{err}"
    );
    assert!(lines[1].starts_with("connected again after "), "{err}");
    assert_eq!(lines[2..], ["books: exec matched 3 = delivered 3 + lost 0"]);
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
    let asked = fake.asked.lock().expect("not poisoned").clone();
    let resume = v1::Resume {
        stream_id: 7,
        token: b"secret".to_vec(),
        // The plan and the batch.
        received: 2,
    };
    assert_eq!(asked.len(), 2);
    assert_eq!(
        asked[0].resume_window.map(|window| window.seconds),
        Some(30)
    );
    let expected = v1::SubscribeRequest {
        resume: Some(resume),
        ..Default::default()
    };
    assert_eq!(asked[1], expected);
    let left = fake.left.lock().expect("not poisoned").clone();
    assert_eq!(
        (left.len(), left[0].stream_id),
        (1, 7),
        "nobody comes again"
    );
}

#[tokio::test]
async fn a_stream_is_left_also_before_anything_of_it_was_read() {
    let fake = scripted(vec![resumable(false)]);
    let address = format!("http://{}", serve(fake.clone()).await);
    let channel = tonic::transport::Endpoint::from_shared(address).expect("an address");
    let mut client = client_on(channel.connect_lazy(), None).expect("no token");
    let place = Place::On("node-1".to_owned());
    let asked = v1::SubscribeRequest::default;
    let lasting = || Lasting::new(asked(), std::time::Duration::from_secs(30));
    let left = || fake.left.lock().expect("not poisoned").len();

    let mut one = lasting();
    let begun = one
        .begin(asked(), &mut client, &place, std::future::pending())
        .await;
    let mut messages = begun.expect("it begins").expect("nobody stops it");
    one.leave(&mut client, &mut messages).await;
    assert_eq!(left(), 1);

    // Stopped before the answer came.
    let begun = lasting()
        .begin(asked(), &mut client, &place, std::future::ready(()))
        .await;
    if let Some(mut messages) = begun.expect("no error") {
        // Or just behind it.
        one = lasting();
        one.leave(&mut client, &mut messages).await;
    }
    assert_eq!(left(), 2);
}

#[tokio::test]
async fn who_has_all_that_was_asked_for_begins_nothing_anew() {
    let script = vec![
        resumable(false),
        Ok(batch(1, vec![exec(70, 1), exec(70, 2)])),
        Err(Status::unavailable("broken")),
    ];
    let fake = scripted(script);
    let Printed { out, err, result } = run(&fake, "watch --count 2").await;
    assert_eq!(out.lines().count(), 3, "a header and two events: {out}");
    assert_eq!(fake.asked.lock().expect("not poisoned").len(), 1, "{err}");
    // Without the last books nobody can say that nothing was lost.
    assert!(result.expect_err("no books").to_string().contains("broken"));
}

#[tokio::test]
async fn an_agent_that_is_back_too_late_is_told_as_that() {
    let fake = Fake {
        script: vec![resumable(false), Err(Status::unavailable("broken"))],
        gone: 1,
        ..Fake::default()
    };
    // It is over before another connection is tried.
    let Printed { result, .. } = run(&fake, "watch --duration 199ms").await;
    let error = result.expect_err("no books").to_string();
    assert!(
        error.contains("does not have the stream any more"),
        "{error}"
    );
}

#[tokio::test]
async fn where_the_stream_is_gone_another_one_begins_with_books_of_its_own() {
    let fake = Fake {
        script: vec![
            resumable(false),
            Ok(batch(1, vec![exec(70, 1), exec(70, 2)])),
            Ok(heartbeat(2, 0, v1::EndReason::Shutdown)),
        ],
        // The agent that comes next has none of these, and then one of them all the same.
        gone: 1,
        rest: vec![
            resumable(true),
            Ok(heartbeat(2, 0, v1::EndReason::MaxEvents)),
        ],
        ..Fake::default()
    };
    let Printed { err, result, .. } = run(&fake, "watch --count 5").await;
    let asked = fake.asked.lock().expect("not poisoned").clone();
    // A stream; it is not there any more; another one, of what is left; and that goes on.
    let asked: Vec<(bool, u64)> = asked
        .iter()
        .map(|asked| (asked.resume.is_some(), asked.max_events))
        .collect();
    assert_eq!(asked, [(false, 5), (true, 0), (false, 3), (true, 0)]);
    assert!(err.contains("shuts down; trying again"), "{err}");
    assert!(err.contains("what happened meanwhile is not told"), "{err}");
    let books = "books: exec matched 2 = delivered 2 + lost 0";
    assert_eq!(
        err.lines().filter(|line| *line == books).count(),
        2,
        "{err}"
    );
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
}

#[tokio::test]
async fn a_request_that_the_agent_refuses_is_a_usage_error() {
    let Printed { out, err, result } = run(&Fake::default(), "watch --queue-bytes 1").await;
    assert_eq!((out.as_str(), err.as_str()), ("", "queue_bytes: is 1\n"));
    assert_eq!(result.expect("told"), ExitCode::from(EXIT_USAGE));
}

#[tokio::test]
async fn explain_prints_the_plan_and_asks_for_no_stream() {
    let fake = scripted(a_stream());
    let Printed { out, result, .. } = run(&fake, "watch --explain").await;
    assert!(
        out.starts_with("node        node-1\nboot id     b00t\n"),
        "{out}"
    );
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
    let Printed { out, .. } = run(&fake, "execsnoop --explain -o json").await;
    assert!(
        out.starts_with(r#"{"node":"node-1","bootId":"b00t""#),
        "{out}"
    );
    assert_eq!(out.lines().count(), 1);
    assert!(fake.asked.lock().expect("not poisoned").is_empty());
}

#[tokio::test]
async fn workloads_are_listed() {
    let fake = Fake::default();
    let Printed { out, .. } = run(&fake, "workloads").await;
    assert_eq!(
        out,
        "NODE   NAMESPACE POD   CONTAINER OWNER           STATE     CGROUP\n\
         node-1 shop      web-0 app       statefulset/web container /kubepods/a\n"
    );
    let Printed { out, .. } = run(&fake, "workloads -o wide").await;
    let names = "NODE NAMESPACE POD CONTAINER OWNER STATE CONTAINER-ID IMAGE CGROUP";
    assert_eq!(squeezed(&out)[0], names);
    let Printed { out, .. } = run(&fake, "workloads -o json").await;
    assert_eq!(
        out,
        concat!(
            r#"{"cgroupId":"70","cgroupPath":"/kubepods/a","state":"IDENTITY_STATE_CONTAINER","node":"node-1","#,
            r#""namespace":"shop","pod":"web-0","owner":{"kind":"StatefulSet","name":"web"},"container":"app"}"#,
            "\n"
        )
    );
    let Printed { out, err, .. } = run(&fake, "workloads -n other -o json").await;
    assert_eq!((out.as_str(), err.as_str()), ("", "no workload matches\n"));
}

#[tokio::test]
async fn status_is_a_page_or_json() {
    let Printed { out, .. } = run(&Fake::default(), "status").await;
    assert!(
        out.contains("\nnode     node-1\n") && out.contains("\nexec yes "),
        "{out}"
    );
    let Printed { out, .. } = run(&Fake::default(), "status -o json").await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["status"]["node"], "node-1");
    assert_eq!(
        value["capabilities"]["capabilities"][1]["kind"],
        "KIND_EXIT"
    );
}

/// Takes nothing, as a pipe whose reader is gone.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    for line in ["watch", "watch -o json", "workloads", "status"] {
        let address = serve(scripted(a_stream())).await.to_string();
        let mut arguments: Vec<_> = line.split(' ').collect();
        arguments.extend(["--address", &address]);
        let mut err = Vec::new();
        let mut screen = Screen {
            out: &mut Closed,
            err: &mut err,
            look: Look::default(),
            err_colored: false,
        };
        let result = run_on(parse(&arguments).expect(line), &mut screen).await;
        assert_eq!(result.expect(line), ExitCode::SUCCESS, "{line}");
        let err = String::from_utf8(err).expect("UTF-8");
        assert!(!err.contains("books"), "quietly: {err}");
    }
}

/// Follows messages that come without a network, so that the clock may be paused.
async fn followed(
    messages: impl Stream<Item = Result<v1::SubscribeResponse, Status>>,
    stop: impl Future<Output = ()>,
) -> Printed {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut screen = Screen {
        out: &mut out,
        err: &mut err,
        look: Look::default(),
        err_colored: false,
    };
    let table = EventTable::watch(&[v1::Kind::Exec], false, Look::default(), false);
    let mut view = View::new(Format::Table(table));
    let ending: Ending = follow(
        messages,
        stop,
        tokio_stream::pending(),
        &mut view,
        &mut screen,
    )
    .await
    .expect("a Vec takes all");
    let result = view.finish(ending, &Place::On("node-1".to_owned()), &mut screen);
    Printed {
        out: String::from_utf8(out).expect("UTF-8"),
        err: String::from_utf8(err).expect("UTF-8"),
        result,
    }
}

fn three_messages() -> impl Stream<Item = Result<v1::SubscribeResponse, Status>> {
    let messages = [
        batch(1, vec![exec(70, 1)]),
        heartbeat(1, 0, v1::EndReason::Unspecified),
        batch(2, vec![exec(70, 2), exec(70, 3)]),
    ];
    tokio_stream::iter(messages.map(response).map(Ok))
}

#[tokio::test]
async fn an_interruption_prints_the_books_and_what_came_since() {
    let (interrupt, interrupted) = tokio::sync::oneshot::channel();
    let mut interrupt = Some(interrupt);
    // Interrupts once all messages were taken, and then stays silent.
    let messages = three_messages().chain(futures::stream::poll_fn(move |_| {
        if let Some(interrupt) = interrupt.take() {
            interrupt.send(()).expect("somebody waits");
        }
        std::task::Poll::Pending
    }));
    let stop = async { interrupted.await.expect("sent") };
    let Printed { out, err, result } = followed(messages, stop).await;
    assert_eq!(out.lines().count(), 3);
    assert_eq!(
        err,
        "books: exec matched 1 = delivered 1 + lost 0\n\
         not in these books yet: delivered exec 2\n"
    );
    assert_eq!(result.expect("fine"), ExitCode::SUCCESS);
}

#[tokio::test(start_paused = true)]
async fn silence_is_noticed() {
    let began = tokio::time::Instant::now();
    let messages = three_messages().chain(futures::stream::pending());
    let Printed { result, err, .. } = followed(messages, std::future::pending()).await;
    assert_eq!(began.elapsed().as_secs(), 10);
    assert!(
        err.starts_with("books: exec matched 1 = delivered 1"),
        "{err}"
    );
    assert_eq!(
        result.expect_err("silence").to_string(),
        "no sign of life from the agent for 10 s (3 heartbeats missed)"
    );
}
