//! The API server is a mock at the client's transport: every byte and every fault is the test's.

use std::io;

use axum::body::Body;
use dinle_proto::v1::IdentityState;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use http::{Request, Response};
use kube::client::Body as RequestBody;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt as _;
use tower_test::mock::{Handle, SendResponse, pair};

use super::*;
use crate::workload::GRACE;

const UID: &str = "2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e11";
const OTHER_UID: &str = "77aa01cf-7f5c-4f0e-9b0b-0d5c3a9d8e11";

/// Cgroups of the two pods.
const POD: u64 = 10;
const OTHER: u64 = 20;

struct Server {
    handle: Handle<Request<RequestBody>, Response<Body>>,
    index: Index,
}

/// A request that waits for its answer.
struct Asked {
    query: String,
    answer: SendResponse<Response<Body>>,
}

/// An open watch.
struct Watch(UnboundedSender<io::Result<String>>);

impl Server {
    /// Starts to follow the pods of `n1`.
    fn start() -> Self {
        let (service, handle) = pair();
        let index = Index::new("n1");
        for (id, uid) in [(POD, UID), (OTHER, OTHER_UID)] {
            index.cgroup_created(id, 3, &format!("/kubepods/pod{uid}"), false);
        }
        tokio::spawn({
            let index = index.clone();
            async move {
                let service = service.map_response(apiserver::bounded);
                follow(Client::new(service, "default"), &index, "n1").await
            }
        });
        Self { handle, index }
    }

    /// The next request. Paused, the clock leaps over the delays before it.
    async fn asked(&mut self) -> Asked {
        let (request, answer) = self.handle.next_request().await.expect("it asks");
        assert_eq!(request.uri().path(), "/api/v1/pods");
        let query = request.uri().query().unwrap_or_default().to_owned();
        assert!(
            query.contains("fieldSelector=spec.nodeName%3Dn1"),
            "{query}"
        );
        Asked { query, answer }
    }

    async fn list(&mut self) -> Asked {
        let asked = self.asked().await;
        assert!(!asked.query.contains("watch=true"), "{}", asked.query);
        asked
    }

    /// A watch from this version on.
    async fn watch(&mut self, version: u32) -> Asked {
        let asked = self.asked().await;
        assert!(asked.query.contains("watch=true"), "{}", asked.query);
        let from = format!("resourceVersion={version}");
        assert!(
            asked.query.split('&').any(|part| part == from),
            "{} of {from}",
            asked.query
        );
        asked
    }

    /// Lists the pod with this version, and opens the watch.
    async fn synced(&mut self, version: u32) -> Watch {
        self.list().await.pods(version, &[pod(UID, "web-0")]);
        let watch = self.watch(version).await.open();
        self.until(|server| server.pod(POD) == "web-0").await;
        watch
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Name of the pod of a cgroup; empty while it is not known.
    fn pod(&self, cgroup: u64) -> String {
        let workload = self.index.get(cgroup).expect("the cgroup is known");
        assert_eq!(
            workload.pod.is_empty(),
            workload.state() == IdentityState::Pending
        );
        workload.pod.clone()
    }

    /// What a cgroup that is new now would be, with every deleted pod past its grace.
    fn pod_after_grace(&self, uid: &str) -> String {
        self.index.expire(Instant::now() + GRACE);
        self.index
            .cgroup_created(99, 3, &format!("/kubepods/pod{uid}/x"), false);
        self.pod(99)
    }

    fn error(&self) -> String {
        self.index.status().error
    }

    async fn until_error(&self, part: &str) {
        self.until(|server| server.error().contains(part)).await;
        assert!(self.error().contains("node n1"), "{}", self.error());
    }
}

impl Asked {
    fn pods(self, version: u32, pods: &[Value]) {
        self.json(
            200,
            &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}, "items": pods}),
        );
    }

    fn json(self, code: u16, body: &Value) {
        self.text(code, body.to_string());
    }

    fn text(self, code: u16, body: impl Into<Body>) {
        let response = Response::builder().status(code).body(body.into());
        self.answer.send_response(response.expect("a response"));
    }

    fn open(self) -> Watch {
        let (sender, lines) = unbounded();
        self.text(200, Body::from_stream(lines));
        Watch(sender)
    }

    fn reset(self) {
        self.answer
            .send_error(io::Error::from(io::ErrorKind::ConnectionReset));
    }
}

impl Watch {
    fn line(&self, line: &str) {
        self.0
            .unbounded_send(Ok(format!("{line}\n")))
            .expect("it listens");
    }

    fn event(&self, kind: &str, version: u32, mut object: Value) {
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.line(&json!({"type": kind, "object": object}).to_string());
    }

    fn reset(self) {
        self.0
            .unbounded_send(Err(io::ErrorKind::ConnectionReset.into()))
            .expect("it listens");
    }
}

fn pod(uid: &str, name: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"uid": uid, "name": name, "namespace": "shop", "resourceVersion": "1"},
        "spec": {"nodeName": "n1", "containers": [{"name": "app"}]}
    })
}

fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason, "message": message})
}

#[tokio::test(start_paused = true)]
async fn pods_come_change_and_go() {
    let mut server = Server::start();
    let list = server.list().await;
    assert!(list.query.contains("resourceVersion=0"), "{}", list.query);
    assert!(!server.index.status().synced);
    list.pods(5, &[]);
    let watch = server.watch(5).await.open();
    server.until(|server| server.index.status().synced).await;
    assert_eq!(server.pod(POD), "");

    watch.event("ADDED", 6, pod(UID, "web-0"));
    server.until(|server| server.pod(POD) == "web-0").await;
    // Bound to another node, or gone.
    watch.event("DELETED", 7, pod(UID, "web-0"));
    server.until(|server| server.index.status().pods == 0).await;
    assert_eq!(server.pod_after_grace(UID), "");
    assert_eq!(server.pod(POD), "web-0");

    // The API server ends a watch; the next goes on where it ended, with the version of a bookmark.
    watch.line(r#"{"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}}}"#);
    drop(watch);
    server.watch(9).await.open();
    assert_eq!(server.error(), "");
}

#[tokio::test(start_paused = true)]
async fn the_same_name_with_a_new_uid_is_another_pod() {
    let mut server = Server::start();
    let watch = server.synced(5).await;
    watch.event("DELETED", 6, pod(UID, "web-0"));
    watch.event("ADDED", 7, pod(OTHER_UID, "web-0"));
    server.until(|server| server.pod(OTHER) == "web-0").await;
    assert_eq!(server.index.status().pods, 1);
    let uid = |cgroup| server.index.get(cgroup).expect("known").pod_uid.clone();
    assert_eq!(uid(POD), UID);
    assert_eq!(uid(OTHER), OTHER_UID);
}

#[tokio::test(start_paused = true)]
async fn gone_as_an_event_lists_again() {
    let mut server = Server::start();
    let watch = server.synced(5).await;
    let gone = failure(410, "Expired", "too old resource version: 5 (448)");
    watch.line(&json!({"type": "ERROR", "object": gone}).to_string());
    server.until_error("too old resource version").await;

    // The first pod vanished meanwhile, and no event tells of it.
    server.list().await.pods(448, &[pod(OTHER_UID, "web-1")]);
    server.watch(448).await.open();
    server.until(|server| server.pod(OTHER) == "web-1").await;
    assert_eq!(server.index.status().pods, 1);
    assert_eq!(server.error(), "");
    assert_eq!(server.pod(POD), "web-0", "still resolved");
    assert_eq!(server.pod_after_grace(UID), "");
}

#[tokio::test(start_paused = true)]
async fn gone_as_an_answer_lists_again() {
    let mut server = Server::start();
    let watch = server.synced(5).await;
    drop(watch);
    let gone = failure(410, "Expired", "too old resource version");
    server.watch(5).await.json(410, &gone);
    server.until_error("too old resource version").await;

    server.list().await.pods(448, &[pod(OTHER_UID, "web-1")]);
    let watch = server.watch(448).await.open();
    server.until(|server| server.pod(OTHER) == "web-1").await;
    assert_eq!(server.pod_after_grace(UID), "");
    watch.event("ADDED", 449, pod(UID, "web-0"));
    server.until(|server| server.index.status().pods == 2).await;
}

#[tokio::test(start_paused = true)]
async fn too_many_requests_are_answered_with_patience() {
    let mut server = Server::start();
    let mut busy = failure(429, "TooManyRequests", "try again later");
    busy["details"] = json!({"retryAfterSeconds": 40});
    server.list().await.json(429, &busy);
    let refused = Instant::now();
    server.until_error("try again later").await;
    let list = server.list().await;
    assert!(refused.elapsed() >= Duration::from_secs(40));
    list.pods(5, &[pod(UID, "web-0")]);
    server.watch(5).await.json(429, &busy);
    server.watch(5).await.open();
    assert_eq!(server.pod(POD), "web-0");
}

#[tokio::test(start_paused = true)]
async fn server_errors_are_tried_again_with_growing_delays() {
    let mut server = Server::start();
    let mut last = Instant::now();
    // Jitter adds up to as much again.
    for least_ms in [0, 800, 1_600, 3_200] {
        let list = server.list().await;
        assert!(last.elapsed() >= Duration::from_millis(least_ms));
        last = Instant::now();
        list.text(500, "etcd has no leader");
        server.until_error("etcd has no leader").await;
    }
    assert!(!server.index.status().synced);
    let watch = server.synced(5).await;
    assert_eq!(server.error(), "");
    drop(watch);
    server.watch(5).await.text(503, "shutting down");
    server.until_error("shutting down").await;
    let watch = server.watch(5).await.open();
    watch.event("ADDED", 6, pod(OTHER_UID, "web-1"));
    server.until(|server| server.pod(OTHER) == "web-1").await;
    assert_eq!(server.error(), "");
}

#[tokio::test(start_paused = true)]
async fn an_error_ends_when_the_watch_is_quiet() {
    let mut server = Server::start();
    let watch = server.synced(5).await;
    drop(watch);
    server.watch(5).await.text(500, "etcd has no leader");
    server.until_error("etcd has no leader").await;
    let _watch = server.watch(5).await.open();
    let opened = Instant::now();
    assert_ne!(server.error(), "");
    server.until(|server| server.error().is_empty()).await;
    assert!(opened.elapsed() <= READ_TIMEOUT + Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn what_is_forbidden_says_what_to_grant() {
    let mut server = Server::start();
    let forbidden = failure(403, "Forbidden", "pods is forbidden");
    server.list().await.json(403, &forbidden);
    server.until_error("`list` and `watch` on pods").await;
    let unauthorized = failure(401, "Unauthorized", "Unauthorized");
    server.list().await.json(401, &unauthorized);
    server.until_error("is the token").await;
    server.synced(5).await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_watch_goes_on_where_it_was() {
    let mut server = Server::start();
    let watch = server.synced(5).await;
    watch.event("MODIFIED", 6, pod(UID, "web-0"));
    // In the middle of a line.
    watch
        .0
        .unbounded_send(Ok(r#"{"type": "ADDED", "obj"#.to_owned()))
        .expect("it listens");
    watch.reset();
    server.until_error("watch the pods").await;

    server.watch(6).await.reset();
    server.until_error("connection reset").await;
    let watch = server.watch(6).await.open();
    watch.event("ADDED", 7, pod(OTHER_UID, "web-1"));
    server.until(|server| server.pod(OTHER) == "web-1").await;
    assert_eq!(server.index.status().pods, 2);
    assert_eq!(server.error(), "");
}

#[tokio::test(start_paused = true)]
async fn a_reset_list_is_asked_for_again() {
    let mut server = Server::start();
    server.list().await.reset();
    server.until_error("connection reset").await;
    server.synced(5).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_hangs_is_started_again() {
    let mut server = Server::start();
    // No end, no reset: the other side is gone.
    let _dead = server.synced(5).await;
    let silent = Instant::now();
    let watch = server.watch(5).await.open();
    let waited = silent.elapsed();
    assert!(waited >= Duration::from_secs(WATCH_SECONDS.into()));
    assert!(waited < READ_TIMEOUT, "{waited:?}");
    watch.event("ADDED", 6, pod(OTHER_UID, "web-1"));
    server.until(|server| server.pod(OTHER) == "web-1").await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_hangs_is_asked_for_again() {
    let mut server = Server::start();
    let asked = Instant::now();
    let _never_answered = server.list().await;
    server.until_error("did not list them within 60 s").await;
    server.synced(5).await;
    assert!(asked.elapsed() >= LIST_TIMEOUT);
    assert_eq!(server.error(), "");
}

#[tokio::test(start_paused = true)]
async fn a_line_of_garbage_lists_again() {
    let mut server = Server::start();
    let watch = server.synced(5).await;
    // It may have been the news of a pod, which the version of the next event would hide for good.
    watch.line("<html>Bad Gateway</html>");
    watch.event("MODIFIED", 7, pod(UID, "web-0"));
    server.until_error("watch stream failed").await;
    server
        .list()
        .await
        .pods(8, &[pod(UID, "web-0"), pod(OTHER_UID, "web-1")]);
    server.watch(8).await.open();
    server.until(|server| server.pod(OTHER) == "web-1").await;
    assert_eq!(server.index.status().pods, 2);
    assert_eq!(server.error(), "");
}

const HTML: &str = "<!DOCTYPE html><html><body>502 Bad Gateway</body></html>";

#[tokio::test(start_paused = true)]
async fn a_list_that_is_none_is_asked_for_again() {
    let mut server = Server::start();
    let whole = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "5"}, "items": [pod(UID, "web-0")]}).to_string();
    let (cut, _) = whole.split_at(whole.len() / 2);
    let typeless = r#"{"items": {"kind": "Pod"}}"#;
    for (code, body) in [
        (200, cut),
        (200, HTML),
        (200, ""),
        (200, "[]"),
        (200, typeless),
    ] {
        server.list().await.text(code, body.to_owned());
        server.until_error("watch the pods").await;
        assert!(!server.index.status().synced, "{body}");
        assert_eq!(server.pod(POD), "", "{body}");
    }
    // A proxy that is too busy speaks no JSON.
    let response = Response::builder()
        .status(429)
        .header("Retry-After", "1")
        .header("Content-Type", "text/html")
        .body(Body::from(HTML));
    server
        .list()
        .await
        .answer
        .send_response(response.expect("a response"));
    server.until_error("watch the pods").await;
    server.synced(5).await;
    assert_eq!(server.error(), "");
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_end_is_given_up() {
    let mut server = Server::start();
    let endless = || {
        let chunk = "x".repeat(1 << 20);
        Body::from_stream(futures::stream::repeat_with(move || {
            Ok::<_, io::Error>(chunk.clone())
        }))
    };
    server.list().await.text(200, endless());
    server.until_error("length limit exceeded").await;
    let watch = server.synced(5).await;
    drop(watch);
    server.watch(5).await.text(200, endless());
    server.until_error("length limit exceeded").await;
    assert_eq!(server.pod(POD), "web-0", "still resolved");
    let watch = server.watch(5).await.open();
    watch.event("ADDED", 6, pod(OTHER_UID, "web-1"));
    server.until(|server| server.pod(OTHER) == "web-1").await;
    assert_eq!(server.error(), "");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_refused_says_why_and_is_tried_again() {
    let mut server = Server::start();
    drop(server.synced(5).await);
    let answers = [
        (401, "Unauthorized", "is the token"),
        (403, "Forbidden", "`list` and `watch` on pods"),
        (404, "NotFound", "not found"),
        (500, "InternalError", "etcd"),
        (503, "ServiceUnavailable", "not ready"),
    ];
    for (code, reason, says) in answers {
        let message = format!("pods: {says}");
        server
            .watch(5)
            .await
            .json(code, &failure(code, reason, &message));
        server.until_error(says).await;
        assert_eq!(server.pod(POD), "web-0", "still resolved");
    }
    let watch = server.watch(5).await.open();
    watch.event("ADDED", 6, pod(OTHER_UID, "web-1"));
    server.until(|server| server.pod(OTHER) == "web-1").await;
    assert_eq!(server.error(), "");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_answered_with_a_page_lists_again() {
    let mut server = Server::start();
    drop(server.synced(5).await);
    server.watch(5).await.text(200, HTML);
    server.until_error("watch stream failed").await;
    server.list().await.pods(8, &[pod(OTHER_UID, "web-1")]);
    server.watch(8).await.open();
    server.until(|server| server.pod(OTHER) == "web-1").await;
    assert_eq!(server.index.status().pods, 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_within_a_watch_is_told_and_the_watch_goes_on() {
    let mut server = Server::start();
    let watch = server.synced(5).await;
    let broken = failure(500, "InternalError", "the cache is not ready");
    watch.line(&json!({"type": "ERROR", "object": broken}).to_string());
    server.until_error("the cache is not ready").await;
    drop(watch);
    let watch = server.watch(5).await.open();
    watch.event("ADDED", 6, pod(OTHER_UID, "web-1"));
    server.until(|server| server.pod(OTHER) == "web-1").await;
    assert_eq!(server.index.status().pods, 2);
    assert_eq!(server.error(), "");
}

#[tokio::test(start_paused = true)]
async fn what_is_told_twice_or_out_of_order_does_no_harm() {
    let mut server = Server::start();
    let watch = server.synced(50).await;
    for version in [51, 51, 52] {
        watch.event("ADDED", version, pod(OTHER_UID, "web-1"));
        watch.event("MODIFIED", version, pod(UID, "web-0"));
    }
    server.until(|server| server.pod(OTHER) == "web-1").await;
    assert_eq!(server.index.status().pods, 2);
    for version in [53, 53] {
        watch.event("DELETED", version, pod(OTHER_UID, "web-1"));
    }
    // A pod that nobody told of, and a version that goes back, as after etcd was restored.
    watch.event(
        "DELETED",
        7,
        pod("00000000-0000-4000-8000-000000000000", "web-9"),
    );
    server.until(|server| server.index.status().pods == 1).await;
    assert_eq!(server.pod(OTHER), "web-1", "a name is never taken back");
    drop(watch);
    // The API server knows best which version it can go on from.
    let gone = failure(410, "Expired", "too large resource version");
    server.watch(7).await.json(410, &gone);
    server.list().await.pods(3, &[pod(OTHER_UID, "web-1")]);
    server.watch(3).await.open();
    server.until(|server| server.index.status().pods == 1).await;
    assert_eq!(server.pod_after_grace(UID), "");
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_bookmarks_alone_is_a_watch() {
    let mut server = Server::start();
    let watch = server.synced(5).await;
    for version in 6..10 {
        watch.line(&format!(r#"{{"type": "BOOKMARK", "object": {{"kind": "Pod", "apiVersion": "v1", "metadata": {{"resourceVersion": "{version}"}}}}}}"#));
    }
    drop(watch);
    let _watch = server.watch(9).await.open();
    assert_eq!(
        (server.error(), server.index.status().pods),
        (String::new(), 1)
    );
}

#[tokio::test(start_paused = true)]
async fn pods_of_other_nodes_are_passed_over() {
    let mut server = Server::start();
    let elsewhere = |uid, name| {
        let mut pod = pod(uid, name);
        pod["spec"]["nodeName"] = "n2".into();
        pod["status"]["podIPs"] = json!([{"ip": "10.9.9.9"}]);
        pod
    };
    let pods = [pod(UID, "web-0"), elsewhere(OTHER_UID, "web-1")];
    server.list().await.pods(5, &pods);
    let watch = server.watch(5).await.open();
    server.until(|server| server.pod(POD) == "web-0").await;
    watch.event("ADDED", 6, elsewhere(OTHER_UID, "web-1"));
    watch.event("MODIFIED", 7, pod(UID, "web-0-again"));
    server
        .until(|server| server.pod(POD) == "web-0-again")
        .await;
    assert_eq!(server.index.status().pods, 1);
    assert_eq!(server.pod(OTHER), "");
    let address = "10.9.9.9".parse().expect("an address");
    assert_eq!(server.index.pod_of_address(address), None);
}
