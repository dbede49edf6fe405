//! Exporters without a kernel: a publisher on one side, files on the other.

mod permissions;

use std::time::{Duration, Instant};

use dinle_proto::v1;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use super::{run::run, series::Store, *};
use crate::hub::{self, Publisher, Targets, encode_name};

/// How long something may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Stage {
    context: Context,
    publisher: Publisher,
    directory: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let (hub, publisher) = Hub::new(hub::Limits::default(), || ());
        let (settle, mut asked) = Settle::new();
        // The controller is always done at once.
        tokio::spawn(async move {
            while let Some(done) = asked.recv().await {
                _ = done.send(());
            }
        });
        Self {
            context: Context {
                hub,
                admission: Admission {
                    auth: None,
                    grace: Duration::ZERO,
                    index: Index::new("n"),
                },
                settle,
                limits: Limits::default(),
                index: Index::new("n"),
                state: Arc::default(),
                node: "n".to_owned(),
            },
            publisher,
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    /// Begins the exporter of a file, and waits until it listens.
    async fn begin(&mut self, path: &Path) -> (Arc<Counters>, watch::Sender<bool>, JoinHandle<()>) {
        let path = path.display();
        self.begin_with(&format!("queue_bytes: 64KiB\n  file: {{path: {path}}}"))
            .await
    }

    async fn begin_with(
        &mut self,
        receiver: &str,
    ) -> (Arc<Counters>, watch::Sender<bool>, JoinHandle<()>) {
        let begun = self.spawn(receiver);
        let hub = self.context.hub.clone();
        until(|| hub.board().listeners().count() == 1).await;
        self.publisher.refresh();
        begun
    }

    /// Begins an exporter, which may not be given a stream.
    fn spawn(&self, receiver: &str) -> (Arc<Counters>, watch::Sender<bool>, JoinHandle<()>) {
        let text = format!("exporters:\n- name: audit\n  kinds: [exec]\n  {receiver}\n");
        let specs = parse(&text, &self.context.limits).expect("a good file");
        let counters = Arc::new(Counters::new("audit", specs[0].receiver.name()));
        let store = match &specs[0].receiver {
            Receiver::Otlp(otlp) if specs[0].receiver.adds_up() => Some(Arc::new(Store::new(
                otlp.series.clone(),
                self.context.index.clone(),
            ))),
            _ => None,
        };
        let stop = watch::Sender::new(false);
        let task = tokio::spawn(run(
            specs[0].clone(),
            self.context.clone(),
            counters.clone(),
            store,
            stop.subscribe(),
        ));
        (counters, stop, task)
    }

    fn publish(&mut self, times: usize) {
        self.publish_in("shop", times);
    }

    fn publish_in(&mut self, namespace: &str, times: usize) {
        let web = Arc::new(v1::Workload {
            cgroup_id: 7,
            state: v1::IdentityState::Pod.into(),
            namespace: namespace.into(),
            pod: "web".into(),
            ..v1::Workload::default()
        });
        let event = v1::Event {
            kind: v1::Kind::Exec.into(),
            cgroup_id: 7,
            detail: Some(v1::event::Detail::Exec(v1::Exec {
                filename: "/bin/true".into(),
                args: vec!["x".repeat(500)],
                ..v1::Exec::default()
            })),
            ..v1::Event::default()
        };
        let mut hidden = event.clone();
        crate::event::redact(&mut hidden);
        for _ in 0..times {
            let Targets { whole, redacted } = self.publisher.targets(v1::Kind::Exec, &web);
            for (event, targets) in [(&event, whole), (&hidden, redacted)] {
                let name = encode_name(&web);
                self.publisher
                    .publish(event, v1::Kind::Exec, &web, &name, targets);
            }
        }
        self.publisher.flush();
    }

    /// What is published is given up when an exporter ends whose receiver takes nothing.
    async fn ends_without(
        &mut self,
        counters: Arc<Counters>,
        stop: watch::Sender<bool>,
        task: JoinHandle<()>,
    ) {
        self.publish(10);
        until(|| !counters.up()).await;
        self.end(&stop, task).await;
        assert_eq!((counters.events(), counters.waiting()), (0, 0));
        assert_eq!(dropped(&counters, Cause::Ended), 10);
    }

    /// Tells the exporter to stop, and does what the reader does for it.
    async fn end(&mut self, stop: &watch::Sender<bool>, task: JoinHandle<()>) {
        stop.send_replace(true);
        let began = Instant::now();
        while !task.is_finished() && began.elapsed() < PATIENCE {
            for command in self.publisher.commands() {
                if let hub::Command::Finish(id, reason) = command {
                    self.publisher.finish(id, reason);
                }
            }
            sleep(Duration::from_millis(1)).await;
        }
        assert!(task.is_finished(), "the exporter ends");
        task.await.expect("it ends well");
    }
}

async fn until(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < PATIENCE,
            "the condition does not come true"
        );
        sleep(Duration::from_millis(10)).await;
    }
}

fn lines(path: &Path) -> u64 {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count() as u64)
}

fn failed(counters: &Counters, cause: Cause) -> u64 {
    let found = counters.failures().find(|(own, _)| *own == cause);
    found.map_or(0, |(_, count)| count)
}

fn dropped(counters: &Counters, cause: Cause) -> u64 {
    let found = counters.drops().find(|(own, _)| *own == cause);
    found.map_or(0, |(_, count)| count)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_when_an_exporter_is_told_to_stop_is_brought_first() {
    let mut stage = Stage::new();
    let path = stage.directory.path().join("new/audit.jsonl");
    let (counters, stop, task) = stage.begin(&path).await;
    stage.publish(23);
    stage.end(&stop, task).await;
    assert_eq!((lines(&path), counters.events()), (23, 23));
    assert_eq!(
        counters.bytes(),
        std::fs::metadata(&path).expect("a file").len()
    );
    assert_eq!(counters.waiting(), 0);
    assert_eq!(stage.context.hub.board().listeners().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_queue_is_brought_also_when_no_reader_says_that_it_is_all() {
    let mut stage = Stage::new();
    let path = stage.directory.path().join("audit.jsonl");
    let (counters, stop, task) = stage.begin(&path).await;
    stage.publish(23);
    stop.send_replace(true);
    task.await.expect("it ends");
    assert_eq!((lines(&path), counters.events()), (23, 23));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_while_a_receiver_is_away_is_counted_with_its_cause() {
    let mut stage = Stage::new();
    // A file is in the place of the directory.
    let place = stage.directory.path().join("place");
    std::fs::write(&place, "").expect("a file");
    let path = place.join("audit.jsonl");
    let (counters, stop, task) = stage.begin(&path).await;
    stage.publish(10);
    until(|| !counters.up()).await;
    // 64 KiB hold some 100 of them.
    stage.publish(1000);
    until(|| dropped(&counters, Cause::Io) > 0).await;
    assert_eq!(counters.events(), 0);
    let told = counters.told();
    assert!(told.problem.contains("cannot be opened"), "{told:?}");
    assert_eq!(
        (told.exported, told.last_success, told.lost),
        (0, None, vec![])
    );
    assert_eq!(told.dropped[0].cause, "io");
    std::fs::remove_file(&place).expect("removed");
    until(|| counters.up()).await;
    stage.publish(3);
    let all = || counters.events() + counters.drops().map(|(_, count)| count).sum::<u64>();
    until(|| all() == 1013).await;
    stage.end(&stop, task).await;
    assert_eq!(lines(&path), counters.events());
    assert!(counters.events() >= 13 && dropped(&counters, Cause::Slow) == 0);
    assert_eq!(counters.losses(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exporter_whose_receiver_never_comes_back_ends_all_the_same() {
    let mut stage = Stage::new();
    let place = stage.directory.path().join("place");
    std::fs::write(&place, "").expect("a file");
    let (counters, stop, task) = stage.begin(&place.join("audit.jsonl")).await;
    stage.ends_without(counters, stop, task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_receiver_fails_at_once_ends_all_the_same() {
    let mut stage = Stage::new();
    let (counters, stop, task) = stage
        .begin_with("otlp: {endpoint: 'http://localhost:1', headers_file: /none}")
        .await;
    stage.ends_without(counters, stop, task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_had_that_was_cut_is_counted() {
    let mut stage = Stage::new();
    let place = stage.directory.path().join("place");
    std::fs::write(&place, "").expect("a file");
    let (counters, _stop, task) = stage.begin(&place.join("audit.jsonl")).await;
    stage.publish(10);
    until(|| !counters.up()).await;
    // These stay in the queue, and of those some find no room there.
    stage.publish(1000);
    task.abort();
    _ = task.await;
    counters.closed(Cause::Ended);
    assert_eq!((counters.events(), counters.waiting()), (0, 0));
    let all: u64 = counters.drops().map(|(_, count)| count).sum();
    assert_eq!(all, 1010);
}

/// Answers each request of HTTP with the next of the statuses, and then with the last one.
async fn collector(statuses: &'static [&'static str]) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut statuses = statuses.iter();
        let mut status = "200 OK";
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let (mut line, mut length) = (String::new(), 0);
            while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.trim().parse().expect("a length");
                }
                if line == "\r\n" {
                    let mut body = vec![0; length];
                    stream.read_exact(&mut body).await.expect("a body");
                    status = statuses.next().copied().unwrap_or(status);
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.expect("sent");
                }
                line.clear();
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_a_collector_refuses_costs_itself_alone() {
    let mut stage = Stage::new();
    let address = collector(&["400 Bad Request", "200 OK"]).await;
    let (counters, stop, task) = stage
        .begin_with(&format!(
            "otlp: {{endpoint: 'http://{address}', protocol: http}}"
        ))
        .await;
    stage.publish(600);
    let refused = || dropped(&counters, Cause::Refused);
    until(|| refused() + counters.events() == 600).await;
    stage.end(&stop, task).await;
    // What lingers too long on a slow machine is sent before a request is full.
    assert!((1..=512).contains(&refused()), "{}", refused());
    assert_eq!(
        (refused() + counters.events(), counters.waiting()),
        (600, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_are_sent_once_more_at_the_end_and_what_they_do_not_bring_is_counted() {
    let collector = collector(&["200 OK"]).await;
    for (address, events) in [(collector.to_string(), 23), ("127.0.0.1:1".to_owned(), 0)] {
        let mut stage = Stage::new();
        let (counters, stop, task) = stage
            .begin_with(&format!(
                "otlp: {{endpoint: 'http://{address}', protocol: http, signal: metrics, interval: 1h}}"
            ))
            .await;
        stage.publish(23);
        stage.end(&stop, task).await;
        assert_eq!((counters.events(), counters.waiting()), (events, 0));
        assert_eq!(dropped(&counters, Cause::Ended), 23 - events);
        assert_eq!(counters.bytes() > 0, events > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_finds_no_place_among_the_streams_waits_for_one() {
    let mut stage = Stage::new();
    let limits = hub::Limits {
        streams: 1,
        ..hub::Limits::default()
    };
    let (hub, publisher) = Hub::new(limits, || ());
    (stage.context.hub, stage.publisher) = (hub, publisher);
    let asked = v1::SubscribeRequest {
        kinds: vec![v1::Kind::Exit.into()],
        ..v1::SubscribeRequest::default()
    };
    let request = crate::filter::Request::parse(&asked, &stage.context.limits).expect("a request");
    let other = stage.context.hub.subscribe(
        asked,
        request,
        v1::Caller::default(),
        crate::filter::Grant::all(),
    );
    let path = stage.directory.path().join("audit.jsonl");
    let (counters, stop, task) = stage.begin(&path).await;
    until(|| !counters.up()).await;
    drop(other.expect("the first one"));
    let hub = stage.context.hub.clone();
    until(|| {
        hub.board()
            .listeners()
            .any(|(_, listener)| listener.caller.user == "dinle:exporter:audit")
    })
    .await;
    stage.publisher.refresh();
    stage.publish(3);
    stage.end(&stop, task).await;
    assert_eq!(lines(&path), 3);
}
