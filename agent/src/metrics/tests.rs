use dinle_proto::v1;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;
use crate::{
    filter::{Grant, Limits, Request},
    workload::fake::runs,
};

#[tokio::test]
async fn how_full_it_is_is_told() {
    let limits = crate::hub::Limits {
        streams: 5,
        queue_bytes: 8 << 20,
        ..crate::hub::Limits::default()
    };
    let (hub, _publisher) = Hub::new(limits, || ());
    let index = Index::new("n1");
    for number in 0..3 {
        runs(&index, number, "shop");
    }
    index.cgroup_created(20, 1, "/system.slice", false);
    let asked = v1::SubscribeRequest {
        kinds: vec![v1::Kind::Exec.into()],
        queue_bytes: 1 << 20,
        ..Default::default()
    };
    let request = Request::parse(&asked, &Limits::default()).expect("a good request");
    let caller = v1::Caller::default();
    let stream = hub.subscribe(asked, request, caller, Grant::all());
    let _stream = stream.expect("room");
    let node = Node {
        watched: 2,
        ..Node::default()
    };
    let health = Health {
        node: Arc::new(ArcSwap::from_pointee(node)),
        index,
        ..health(hub)
    };
    let text = told(&health).await;
    for (what, used, most) in [
        ("streams", 1, 5),
        ("queue_bytes", 1 << 20, 8 << 20),
        ("cgroups", 4, 65_536),
        ("pods", 3, 8192),
        ("cgroups_watched", 2, 16_384),
        ("pods_watched", 0, 1023),
    ] {
        let names = ["capacity_used", "capacity"];
        let told = names.map(|name| value(&text, &format!("dinle_{name}{{what=\"{what}\"}}")));
        assert_eq!(told, [Some(used), Some(most)], "{what} in\n{text}");
    }
}

/// What `/metrics` says.
async fn told(health: &Health) -> String {
    let answer = metrics(State(health.clone())).await.into_response();
    let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await;
    String::from_utf8(body.expect("a body").to_vec()).expect("text")
}

fn value(text: &str, name: &str) -> Option<u64> {
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    found.map(|value| value.trim().parse().expect("a number"))
}

#[tokio::test(start_paused = true)]
async fn whether_the_api_server_answers_is_told() {
    let (service, mut server) = tower_test::mock::pair::<
        http::Request<kube::client::Body>,
        http::Response<axum::body::Body>,
    >();
    let (hub, _publisher) = Hub::new(crate::hub::Limits::default(), || ());
    let health = health(hub);
    let index = health.index.clone();
    tokio::spawn(async move {
        let client = kube::Client::new(service, "default");
        crate::workload::follow(client, &index, "n1").await;
    });
    let until = async |expected: [u64; 3]| loop {
        let text = told(&health).await;
        let names = ["source_up", "synced", ""].map(|name| match name {
            "" => "dinle_pods ".to_owned(),
            name => format!("dinle_pods_{name} "),
        });
        if names.map(|name| value(&text, &name)) == expected.map(Some) {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    };
    let mut next = async || server.next_request().await.expect("it asks").1;
    let refusal = || {
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "message": "etcd has no leader", "reason": "InternalError", "code": 500,
        });
        let answer = http::Response::builder().status(500);
        answer.body(status.to_string().into()).expect("an answer")
    };
    let list = || {
        let pod = serde_json::json!({
            "metadata": { "name": "web-0", "namespace": "shop", "uid": "a" },
            "spec": { "nodeName": "n1", "containers": [] },
        });
        let list = serde_json::json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": [pod],
        });
        http::Response::new(axum::body::Body::from(list.to_string()))
    };
    // It does not list them at first, then does, then breaks off, and answers again in the end.
    next().await.send_response(refusal());
    until([0, 0, 0]).await;
    next().await.send_response(list());
    until([1, 1, 1]).await;
    next().await.send_response(refusal());
    until([0, 1, 1]).await;
    let gone = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": "too old", "reason": "Expired", "code": 410,
    });
    let gone = http::Response::builder()
        .status(410)
        .body(gone.to_string().into());
    next().await.send_response(gone.expect("an answer"));
    next().await.send_response(list());
    until([1, 1, 1]).await;
}

fn health(hub: Hub) -> Health {
    Health {
        hub,
        index: Index::new("n1"),
        stats: Arc::default(),
        node: Arc::default(),
        watchdog: Arc::default(),
        connections: Arc::default(),
        tls: None,
        auth: None,
        exporters: None,
    }
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for_and_keeps_nobody_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (hub, _publisher) = Hub::new(crate::hub::Limits::default(), || ());
    let serving = tokio::spawn(serve(listener, health(hub)));
    let ask = async || {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await?;
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    assert_eq!(&ask().await.expect("an answer"), b"HTTP/1.1 200 OK");
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS + 10 {
        silent.push(TcpStream::connect(address).await.expect("connected"));
    }
    let answer = timeout(SILENCE / 2, ask()).await.expect("at once");
    assert_eq!(&answer.expect("an answer"), b"HTTP/1.1 200 OK");
    // The first of them made room, and the last go in the end.
    let mut first = silent.remove(0);
    let closed = timeout(SILENCE / 2, first.read(&mut [0])).await;
    assert_eq!(closed.expect("it is gone already").unwrap_or(0), 0);
    let mut last = silent.pop().expect("there are more");
    let closed = timeout(3 * SILENCE, last.read(&mut [0])).await;
    assert_eq!(closed.expect("it is gone in the end").unwrap_or(0), 0);
    serving.abort();
}
