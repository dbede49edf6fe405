//! TCP: each session once, to the byte, however it ends; connects that fail; resets; what is sent again.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use dinle_e2e::{act::act, cgroup::Cgroup, patience::eventually, pods::Pod, stream::Stream};
use dinle_proto::v1::{
    Direction, Endpoint, Event, Filter, Kind, SubscribeRequest, TcpConnect, TcpDirection, TcpEnd,
    TcpReset, TcpRetransmit, TcpSession, TcpState, event::Detail,
};

use crate::{Lab, shop, span};

const KINDS: [Kind; 4] = [
    Kind::TcpSession,
    Kind::TcpConnect,
    Kind::TcpReset,
    Kind::TcpRetransmit,
];

fn request() -> SubscribeRequest {
    SubscribeRequest {
        kinds: KINDS.map(Into::into).to_vec(),
        ..shop()
    }
}

fn sessions(stream: &Stream) -> Vec<(&Event, &TcpSession)> {
    fn pick(detail: &Detail) -> Option<&TcpSession> {
        match detail {
            Detail::TcpSession(session) => Some(session),
            _ => None,
        }
    }
    stream.details(pick).collect()
}

/// All but segments that were sent again: on a machine that is slow, TCP takes some for lost.
fn but_segments(stream: &Stream) -> Vec<&Event> {
    let again = |event: &&Event| matches!(event.detail, Some(Detail::TcpRetransmit(_)));
    stream.events.iter().filter(|event| !again(event)).collect()
}

fn connects(stream: &Stream) -> Vec<(&Event, &TcpConnect)> {
    fn pick(detail: &Detail) -> Option<&TcpConnect> {
        match detail {
            Detail::TcpConnect(connect) => Some(connect),
            _ => None,
        }
    }
    stream.details(pick).collect()
}

fn resets(stream: &Stream) -> Vec<(&Event, &TcpReset)> {
    fn pick(detail: &Detail) -> Option<&TcpReset> {
        match detail {
            Detail::TcpReset(reset) => Some(reset),
            _ => None,
        }
    }
    stream.details(pick).collect()
}

fn retransmits(stream: &Stream) -> Vec<(&Event, &TcpRetransmit)> {
    fn pick(detail: &Detail) -> Option<&TcpRetransmit> {
        match detail {
            Detail::TcpRetransmit(segment) => Some(segment),
            _ => None,
        }
    }
    stream.details(pick).collect()
}

/// Which way a session began; exactly one did.
fn session_of(stream: &Stream, direction: TcpDirection) -> (&Event, &TcpSession) {
    let found: Vec<_> = sessions(stream)
        .into_iter()
        .filter(|(_, session)| session.direction() == direction)
        .collect();
    assert_eq!(found.len(), 1, "{direction:?}: {found:?}");
    found[0]
}

/// A process of a pod, and what it says.
struct Talker {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Talker {
    fn start(cgroup: &Cgroup, words: &[&str]) -> Self {
        let mut command = act([&["tcp"], words].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cgroup.spawn(command);
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends its standard input, and waits for it.
    fn finish(&mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

/// Pods whose processes talk to each other: `web` serves, `cart` connects.
struct Shop {
    lab: Lab,
    cart: Cgroup,
}

/// Tells the agent of other pods than the one that it knows, and waits until it has read them.
fn knows(lab: &Lab, pods: &[&Pod]) {
    lab.agent.set_pods(pods);
    eventually("the pods are known", || {
        let source = lab.agent.status().pod_source;
        source.is_some_and(|source| source.pods as usize == pods.len())
    });
}

impl Shop {
    fn new() -> Self {
        let lab = Lab::of("tcp");
        let (cart_pod, cart) = lab.tree.app("cart");
        knows(&lab, &[&lab.pod, &cart_pod]);
        Self { lab, cart }
    }
}

/// What both ends tell of one connection: bytes to the byte, who closed first, who began, which process.
fn a_connection_is_told(address: &str) {
    const UP: &str = "12345";
    const DOWN: &str = "777001";
    let shop = Shop::new();
    let mut stream = shop.lab.agent.subscribe(request());
    let mut server = Talker::start(&shop.lab.app, &["listen", address, "1", UP, DOWN, "wait"]);
    let port = server.line();
    let target = match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    };
    let mut client = Talker::start(&shop.cart, &["connect", &target, "1", UP, DOWN, "close"]);
    client.finish();
    server.finish();
    stream.until("both ends", |stream| sessions(stream).len() >= 2);
    stream.heartbeat();

    let (event, session) = session_of(&stream, TcpDirection::Connect);
    assert_eq!(event.workload.as_ref().unwrap().pod, "cart");
    assert_eq!(event.cgroup_id, shop.cart.id());
    let process = event.process.as_ref().unwrap();
    assert_eq!((process.pid, process.comm.as_str()), (client.pid(), "act"));
    assert_eq!(process.ppid, std::process::id());
    assert_eq!(
        (session.bytes_sent, session.bytes_received),
        (12_345, 777_001)
    );
    assert_eq!(session.end(), TcpEnd::FinSent);
    assert!(
        [TcpState::FinWait2, TcpState::FinWait1].contains(&session.state()),
        "{session:?}"
    );
    assert_eq!(session.error, 0);
    assert!(!session.began_before && !session.open);
    assert!(session.duration.is_some());
    let (near, far) = (
        session.local.clone().unwrap(),
        session.remote.clone().unwrap(),
    );
    assert_eq!(
        (far.address.as_str(), far.port.to_string()),
        (address, port)
    );
    assert_ne!(near.port, 0);

    let (event, session) = session_of(&stream, TcpDirection::Accept);
    assert_eq!(event.workload.as_ref().unwrap().pod, "web");
    assert_eq!(event.process.as_ref().unwrap().pid, server.pid());
    assert_eq!(
        (session.bytes_sent, session.bytes_received),
        (777_001, 12_345)
    );
    assert_eq!(session.end(), TcpEnd::FinReceived);
    assert_eq!(session.state(), TcpState::LastAck);
    assert_eq!(session.error, 0);
    let ends = (
        session.remote.clone().unwrap(),
        session.local.clone().unwrap(),
    );
    assert_eq!(ends, (near, far), "the other way round");
    assert_eq!(but_segments(&stream).len(), 2, "{:?}", stream.events);
    assert!(stream.losses.is_empty());
}

#[test]
fn a_connection_of_ipv4_is_told_by_both_ends_to_the_byte() {
    a_connection_is_told("127.0.0.1");
}

#[test]
fn a_connection_of_ipv6_is_told_by_both_ends_to_the_byte() {
    a_connection_is_told("::1");
}

#[test]
fn the_other_end_has_the_name_of_the_pod_that_has_its_address() {
    const SERVER: &str = "127.77.0.1";
    let lab = Lab::of("tcp");
    let web = lab.pod.clone().address(SERVER).address("fd00::77");
    knows(&lab, &[&web, &Pod::new("other")]);
    let mut stream = lab.agent.subscribe(request());
    let mut server = Talker::start(&lab.app, &["listen", SERVER, "1", "1", "1", "wait"]);
    let target = format!("{SERVER}:{}", server.line());
    lab.app
        .succeed(act(["tcp", "connect", &target, "1", "1", "1", "close"]));
    server.finish();
    stream.until("both ends", |stream| sessions(stream).len() >= 2);
    let (_, session) = session_of(&stream, TcpDirection::Connect);
    let remote = session.remote.as_ref().unwrap();
    let name = remote.workload.as_ref().unwrap();
    assert_eq!(
        (
            name.node.as_str(),
            name.namespace.as_str(),
            name.pod.as_str()
        ),
        ("test-node", "shop", "web")
    );
    assert_eq!(session.local.as_ref().unwrap().workload, None);
    // Nobody has the address that the client connects from.
    let (_, session) = session_of(&stream, TcpDirection::Accept);
    assert_eq!(session.local.as_ref().unwrap().address, SERVER);
    assert_eq!(session.local.as_ref().unwrap().workload, None);
    assert_eq!(session.remote.as_ref().unwrap().workload, None);
}

#[test]
fn only_sessions_of_the_pod_are_heard() {
    let lab = Lab::of("tcp");
    let (_, elsewhere) = lab.tree.app("unknown");
    let mut stream = lab.agent.subscribe(request());
    let mut server = Talker::start(
        &lab.tree.host("server.service"),
        &["listen", "127.0.0.1", "52", "3", "4", "wait"],
    );
    let target = format!("127.0.0.1:{}", server.line());
    let talk = |cgroup: &Cgroup, times: &str| {
        cgroup.succeed(act(["tcp", "connect", &target, times, "3", "4", "close"]));
    };
    talk(&elsewhere, "20");
    talk(&lab.app, "23");
    talk(&elsewhere, "9");
    server.finish();
    stream.until("each session", |stream| sessions(stream).len() >= 23);
    stream.heartbeat();
    assert_eq!(sessions(&stream).len(), 23);
    assert_eq!(stream.book(Kind::TcpSession).matched, 23);
    assert!(stream.losses.is_empty());
    for (event, session) in sessions(&stream) {
        assert_eq!(event.cgroup_id, lab.app.id());
        assert_eq!((session.bytes_sent, session.bytes_received), (3, 4));
        assert_eq!(session.end(), TcpEnd::FinSent);
    }
}

#[test]
fn a_filter_of_ports_tells_one_server_from_another() {
    let lab = Lab::of("tcp");
    let server = || {
        let mut server = Talker::start(
            &lab.tree.host("server.service"),
            &["listen", "127.0.0.1", "5", "1", "1", "wait"],
        );
        let port: u32 = server.line().parse().unwrap();
        (server, port)
    };
    let ((mut one, port), (mut other, other_port)) = (server(), server());
    let ports = |ports: Vec<u32>| SubscribeRequest {
        filter: Some(Filter {
            ports,
            ..Filter::default()
        }),
        ..request()
    };
    let mut narrow = lab.agent.subscribe(ports(vec![port]));
    let mut both = lab.agent.subscribe(ports(vec![port, other_port]));
    for port in [port, other_port] {
        let target = format!("127.0.0.1:{port}");
        lab.app
            .succeed(act(["tcp", "connect", &target, "5", "1", "1", "close"]));
    }
    one.finish();
    other.finish();
    both.until("each session", |stream| sessions(stream).len() >= 10);
    narrow.heartbeat();
    both.heartbeat();
    assert_eq!(sessions(&both).len(), 10);
    assert_eq!(sessions(&narrow).len(), 5);
    for (_, session) in sessions(&narrow) {
        assert_eq!(session.remote.as_ref().unwrap().port, port);
    }
}

#[test]
fn a_reset_is_told_by_who_sends_and_by_who_gets_it() {
    for who in ["client", "server"] {
        let shop = Shop::new();
        let mut stream = shop.lab.agent.subscribe(request());
        let (server_end, client_end) = match who {
            "client" => ("wait", "reset"),
            _ => ("reset", "wait"),
        };
        let mut server = Talker::start(
            &shop.lab.app,
            &["listen", "127.0.0.1", "1", "10", "20", server_end],
        );
        let target = format!("127.0.0.1:{}", server.line());
        let mut client = Talker::start(
            &shop.cart,
            &["connect", &target, "1", "10", "20", client_end],
        );
        client.finish();
        server.finish();
        stream.until("all four", |stream| but_segments(stream).len() >= 4);
        stream.heartbeat();
        assert_eq!(but_segments(&stream).len(), 4, "{:?}", stream.events);

        let (_, connected) = session_of(&stream, TcpDirection::Connect);
        let (_, accepted) = session_of(&stream, TcpDirection::Accept);
        let (sender, receiver, sender_pod, sender_pid) = match who {
            "client" => (connected, accepted, "cart", client.pid()),
            _ => (accepted, connected, "web", server.pid()),
        };
        assert_eq!(sender.end(), TcpEnd::RstSent, "{who}");
        assert_eq!(sender.error, 0);
        assert_eq!(receiver.end(), TcpEnd::RstReceived, "{who}");
        assert_eq!(receiver.error, libc::ECONNRESET as u32);
        assert_eq!(sender.state(), TcpState::Established);
        assert_eq!((connected.bytes_sent, connected.bytes_received), (10, 20));
        assert_eq!((accepted.bytes_sent, accepted.bytes_received), (20, 10));

        for (event, reset) in resets(&stream) {
            let sent = event.workload.as_ref().unwrap().pod == sender_pod;
            let expected = match sent {
                true => Direction::Sent,
                false => Direction::Received,
            };
            assert_eq!(reset.direction(), expected, "{who}");
            assert_eq!(reset.state(), TcpState::Established);
            let session = if sent { sender } else { receiver };
            assert_eq!(
                (&reset.local, &reset.remote),
                (&session.local, &session.remote)
            );
            if sent {
                assert_eq!(event.process.as_ref().unwrap().pid, sender_pid);
            } else {
                assert_eq!(reset.reason, "");
            }
        }
        assert_eq!(resets(&stream).len(), 2);
    }
}

#[test]
fn closing_with_unread_bytes_is_a_reset() {
    let lab = Lab::of("tcp");
    let mut stream = lab.agent.subscribe(request());
    let ran = lab.app.succeed(act(["tcp", "unread"]));
    stream.until("both ends, and both resets", |stream| {
        but_segments(stream).len() >= 4
    });
    stream.heartbeat();
    assert_eq!(but_segments(&stream).len(), 4, "{:?}", stream.events);
    let (_, accepted) = session_of(&stream, TcpDirection::Accept);
    assert_eq!(accepted.end(), TcpEnd::RstSent);
    assert_eq!(accepted.bytes_received, 5);
    let (event, connected) = session_of(&stream, TcpDirection::Connect);
    assert_eq!(connected.end(), TcpEnd::RstReceived);
    assert_eq!(event.process.as_ref().unwrap().pid, ran.pid);
}

#[test]
fn a_listener_that_has_no_room_resets_whom_it_names() {
    let lab = Lab::of("tcp");
    let mut stream = lab.agent.subscribe(SubscribeRequest {
        kinds: vec![Kind::TcpReset.into()],
        ..request()
    });
    let mut talker = Talker::start(&lab.app, &["overflow"]);
    let port: u32 = talker.line().parse().unwrap();
    talker.finish();
    // The listener's, and its arrival. What was never accepted is reset at the end.
    let of_port = |stream: &Stream| {
        let resets = resets(stream).into_iter();
        let about = |end: &Option<Endpoint>| end.as_ref().unwrap().port == port;
        let ours = resets.filter(|(_, reset)| about(&reset.local) || about(&reset.remote));
        ours.map(|(_, reset)| reset.clone()).collect::<Vec<_>>()
    };
    stream.until("both", |stream| of_port(stream).len() >= 2);
    stream.heartbeat();
    let told = of_port(&stream);
    assert_eq!(told.len(), 2, "{told:?}");
    let one = |direction: Direction| {
        told.iter()
            .find(|reset| reset.direction() == direction)
            .unwrap()
    };
    let (sent, received) = (one(Direction::Sent), one(Direction::Received));
    assert_eq!(sent.state(), TcpState::Listen);
    assert_eq!(sent.remote.as_ref().unwrap().address, "127.0.0.1");
    assert_eq!(
        (&sent.local, &sent.remote),
        (&received.remote, &received.local)
    );
}

#[test]
fn a_session_that_is_closed_one_way_first_counts_both_ways() {
    let lab = Lab::of("tcp");
    let mut stream = lab.agent.subscribe(request());
    lab.app.succeed(act(["tcp", "halfclosed"]));
    stream.until("both ends", |stream| sessions(stream).len() >= 2);
    stream.heartbeat();
    assert_eq!(but_segments(&stream).len(), 2, "{:?}", stream.events);
    let (_, connected) = session_of(&stream, TcpDirection::Connect);
    assert_eq!(connected.end(), TcpEnd::FinSent);
    assert_eq!((connected.bytes_sent, connected.bytes_received), (11, 1300));
    let (_, accepted) = session_of(&stream, TcpDirection::Accept);
    assert_eq!(accepted.end(), TcpEnd::FinReceived);
    assert_eq!((accepted.bytes_sent, accepted.bytes_received), (1300, 11));
}

#[test]
fn connects_that_fail_say_why_and_how_long_it_took() {
    let lab = Lab::of("tcp");
    let mut stream = lab.agent.subscribe(request());
    let began = Instant::now();
    let mut refused = Talker::start(&lab.app, &["refused", "127.0.0.1"]);
    let port: u32 = refused.line().parse().unwrap();
    refused.finish();
    let refused_within = began.elapsed();
    let timed_out = lab.app.succeed(act(["tcp", "blackhole"]));
    let given_up = lab.app.succeed(act(["tcp", "giveup"]));
    stream.until("each failure", |stream| connects(stream).len() >= 3);
    stream.heartbeat();

    let told = connects(&stream);
    assert_eq!(told.len(), 3, "{told:?}");
    let took = |connect: &TcpConnect| Duration::try_from(connect.duration.unwrap()).unwrap();
    let (event, connect) = told[0];
    assert_eq!(connect.error, libc::ECONNREFUSED as u32);
    assert_eq!(event.process.as_ref().unwrap().pid, refused.pid());
    let end = |address: &str, port| Endpoint {
        address: address.into(),
        port,
        workload: None,
    };
    assert_eq!(connect.remote, Some(end("127.0.0.1", port)));
    assert_ne!(connect.local.as_ref().unwrap().port, 0);
    assert!(took(connect) <= refused_within, "{connect:?}");

    let (event, connect) = told[1];
    assert_eq!(connect.error, libc::ETIMEDOUT as u32);
    assert_eq!(event.process.as_ref().unwrap().pid, timed_out.pid);
    assert_eq!(connect.remote, Some(end("192.0.2.1", 9)));
    // The first try, and the second, which waits twice as long.
    assert!(took(connect) >= Duration::from_millis(2500), "{connect:?}");

    let (event, connect) = told[2];
    assert_eq!(connect.error, 0, "the process gave up, the kernel did not");
    assert_eq!(event.process.as_ref().unwrap().pid, given_up.pid);

    // The refusal came as a RST, and the SYN to nobody was sent twice.
    let told = resets(&stream);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].1.direction(), Direction::Received);
    assert_eq!(told[0].1.state(), TcpState::SynSent);
    let mut told = retransmits(&stream);
    // The one that gave up may be too slow to do it before its SYN is sent again, too.
    let of_timed_out = |event: &Event| {
        let process = event.process.as_ref();
        process.is_some_and(|process| process.pid == timed_out.pid)
    };
    told.retain(|(event, _)| of_timed_out(event));
    assert_eq!(told.len(), 1, "{told:?}");
    let (_, segment) = told[0];
    assert_eq!((segment.state(), segment.bytes), (TcpState::SynSent, 0));
    assert_eq!(segment.tcp_flags & 2, 2, "SYN");
    assert!(sessions(&stream).is_empty(), "there was never a session");
}

/// Whether the agent says that it sees connects that fail before anything is sent.
fn sees_immediate_failures(lab: &Lab) -> bool {
    let capabilities = lab.agent.capabilities();
    let connect = capabilities
        .iter()
        .find(|capability| capability.kind() == Kind::TcpConnect)
        .unwrap();
    !connect
        .limits
        .iter()
        .any(|limit| limit.starts_with("connects that fail at once"))
}

#[test]
fn a_connect_without_a_way_is_told_where_the_kernel_lets_it_be_seen() {
    let lab = Lab::of("tcp");
    let seen = sees_immediate_failures(&lab);
    let mut stream = lab.agent.subscribe(request());
    let ran = lab.app.succeed(act(["tcp", "unroutable"]));
    // What is known to be told comes behind it.
    lab.app.succeed(act(["tcp", "giveup"]));
    stream.until("the one that was given up", |stream| {
        connects(stream)
            .iter()
            .any(|(_, connect)| connect.error == 0)
    });
    let told = connects(&stream);
    assert_eq!(told.len(), if seen { 2 } else { 1 }, "{told:?}");
    if seen {
        let (event, connect) = told[0];
        assert_eq!(connect.error, libc::ENETUNREACH as u32);
        let remote = connect.remote.as_ref().unwrap();
        assert_eq!((remote.address.as_str(), remote.port), ("192.0.2.1", 9));
        assert_eq!(event.process.as_ref().unwrap().pid, ran.pid);
    }
}

#[test]
fn each_segment_that_is_sent_again_is_told() {
    let lab = Lab::of("tcp");
    let mut stream = lab.agent.subscribe(request());
    let mut talker = Talker::start(&lab.app, &["lossy", "700"]);
    let line = talker.line();
    let (port, segments) = line.split_once(' ').unwrap();
    let segments: usize = segments.parse().unwrap();
    talker.finish();
    stream.until("both ends", |stream| sessions(stream).len() >= 2);
    stream.heartbeat();

    let told = retransmits(&stream);
    assert!(segments >= 2);
    assert_eq!(told.len(), segments);
    let first = told[0].1.sequence;
    for (event, segment) in &told {
        assert_eq!(event.process.as_ref().unwrap().pid, talker.pid());
        assert_eq!((segment.sequence, segment.bytes), (first, 700));
        assert_eq!(segment.state(), TcpState::Established);
        let local = segment.local.as_ref().unwrap();
        assert_eq!(local.port.to_string(), port);
    }
    let (_, session) = session_of(&stream, TcpDirection::Connect);
    assert_eq!(session.retransmits as usize, segments);
    assert_eq!(session.bytes_sent, 700, "each byte once");
    let (_, session) = session_of(&stream, TcpDirection::Accept);
    assert_eq!(session.bytes_received, 700);
}

#[test]
fn a_session_whose_peer_falls_silent_times_out() {
    let lab = Lab::of("tcp");
    let mut stream = lab.agent.subscribe(request());
    let ran = lab.app.succeed(act(["tcp", "stuck"]));
    stream.until("the end of one", |stream| {
        sessions(stream)
            .iter()
            .any(|(_, session)| session.direction() == TcpDirection::Connect)
    });
    let (event, session) = session_of(&stream, TcpDirection::Connect);
    assert_eq!(session.end(), TcpEnd::Timeout, "{session:?}");
    assert_eq!(session.error, libc::ETIMEDOUT as u32);
    assert_eq!(session.state(), TcpState::Established);
    assert_eq!(event.process.as_ref().unwrap().pid, ran.pid);
}

#[test]
fn a_session_that_was_open_before_is_flagged_and_one_that_goes_on_is_reported() {
    let shop = Shop::new();
    let mut server = Talker::start(
        &shop.lab.app,
        &["listen", "127.0.0.1", "2", "100", "200", "wait"],
    );
    let target = format!("127.0.0.1:{}", server.line());
    let mut client = Talker::start(&shop.cart, &["connect", &target, "1", "100", "200", "hold"]);
    assert_eq!(client.line(), "open");
    let mut stream = shop.lab.agent.subscribe(SubscribeRequest {
        interval: Some(span(Duration::from_secs(1))),
        ..request()
    });
    stream.until("two reports of each end", |stream| {
        let of = |pod: &str| {
            let reports = sessions(stream).into_iter();
            reports
                .filter(|(event, _)| event.workload.as_ref().unwrap().pod == pod)
                .count()
        };
        of("cart") >= 2 && of("web") >= 2
    });
    for (event, session) in sessions(&stream) {
        assert!(session.open && session.began_before, "{session:?}");
        assert_eq!(session.end(), TcpEnd::Unspecified);
        assert_eq!(session.state(), TcpState::Established);
        assert_eq!(session.duration, None);
        let bytes = (session.bytes_sent, session.bytes_received);
        let expected = match event.workload.as_ref().unwrap().pod.as_str() {
            "cart" => (100, 200),
            _ => (200, 100),
        };
        assert_eq!(bytes, expected, "since it began");
        assert_ne!(session.local.as_ref().unwrap().port, 0);
    }
    client.finish();
    let over = |stream: &Stream| {
        sessions(stream)
            .iter()
            .filter(|(_, session)| !session.open)
            .count()
    };
    stream.until("both ends", |stream| over(stream) >= 2);
    for (event, session) in sessions(&stream) {
        if session.open {
            continue;
        }
        assert!(session.began_before, "{session:?}");
        assert_eq!(session.direction(), TcpDirection::Unspecified);
        // It is known who closes it.
        let (pid, end) = match event.workload.as_ref().unwrap().pod.as_str() {
            "cart" => (client.pid(), TcpEnd::FinSent),
            _ => (server.pid(), TcpEnd::FinReceived),
        };
        assert_eq!(event.process.as_ref().unwrap().pid, pid);
        assert_eq!(session.end(), end);
    }

    // One that begins now is reported on too, and not before its time.
    let told = stream.events.len();
    let mut client = Talker::start(&shop.cart, &["connect", &target, "1", "100", "200", "hold"]);
    assert_eq!(client.line(), "open");
    stream.until("a report", |stream| {
        sessions(stream)
            .iter()
            .any(|(_, session)| session.open && session.direction() == TcpDirection::Connect)
    });
    let report = sessions(&stream)
        .into_iter()
        .find(|(_, session)| session.direction() == TcpDirection::Connect);
    let (event, session) = report.unwrap();
    assert!(!session.began_before);
    let lasted = Duration::try_from(session.duration.unwrap()).unwrap();
    assert!(lasted >= Duration::from_secs(1), "{lasted:?}");
    assert_eq!(event.process.as_ref().unwrap().pid, client.pid());
    client.finish();
    server.finish();
    stream.until("its end", |stream| over(stream) >= 4);
    stream.heartbeat();
    assert_eq!(over(&stream), 4);
    assert!(stream.events.len() > told);
    assert!(stream.losses.is_empty());
}
