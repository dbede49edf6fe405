//! Rankings of canned events.

use crossterm::event::{Event, KeyEvent, KeyModifiers};

use super::*;
use crate::client::{columns::Who, stream::Printer as _};
use dinle_proto::v1::event::Detail;
use subjects::Subject as _;

pub(super) fn who(pod: &str) -> Who {
    Who {
        node: "n1".to_owned(),
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        container: "app".to_owned(),
        container_id: "0123".to_owned(),
    }
}

pub(super) fn event(detail: Detail) -> v1::Event {
    v1::Event {
        cgroup_id: 7,
        detail: Some(detail),
        ..Default::default()
    }
}

pub(super) fn latency(operation: v1::BlockOperation, bytes: u64, buckets: &[u64]) -> v1::Event {
    let count = buckets.iter().sum::<u64>();
    event(Detail::BlockLatency(v1::BlockLatency {
        disk: "vda".to_owned(),
        operation: operation.into(),
        count,
        bytes,
        device_ns: count * 1_500_000,
        queued_ns: count * 250_000,
        buckets: buckets.to_vec(),
        ..Default::default()
    }))
}

pub(super) fn snapshot(seconds: i64) -> v1::Snapshot {
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    v1::Snapshot {
        start: at(100),
        end: at(100 + seconds),
        ..Default::default()
    }
}

fn lines(subject: Box<dyn Subject>, sort: Option<&str>) -> Ranking {
    Ranking::new(subject, sort, 20).expect("a column")
}

fn squeezed(out: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(out)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

const DISK_NAMES: &str =
    "NODE NAMESPACE POD CONTAINER DISK OPERATION BYTES/s REQ/s AVG(ms) P99(ms) QUE(ms)";

#[test]
fn disks_are_ranked_by_bytes_in_a_second() {
    let mut ranking = lines(Box::new(Disk), None);
    let mut out = Vec::new();
    let mut buckets = vec![0; 12];
    buckets[3] = 99;
    buckets[11] = 1;
    for (event, pod) in [
        (latency(v1::BlockOperation::Read, 4096, &[0, 1]), "web"),
        (latency(v1::BlockOperation::Write, 409_600, &buckets), "db"),
        (latency(v1::BlockOperation::Read, 4096, &[0, 3]), "web"),
    ] {
        ranking
            .event(&event, &who(pod), &mut out)
            .expect("a Vec takes all");
    }
    assert!(out.is_empty(), "the interval goes on");
    ranking
        .snapshot_end(&snapshot(2), &mut out)
        .expect("a Vec takes all");
    assert_eq!(
        squeezed(&out),
        [
            DISK_NAMES,
            "n1 shop db app vda write 200K 50 1.50 0.02 0.25",
            "n1 shop web app vda read 4.0K 2.0 1.50 0.00 0.25",
            ""
        ]
    );
    // Each interval has its own.
    out.clear();
    ranking
        .snapshot_end(&snapshot(2), &mut out)
        .expect("a Vec takes all");
    assert_eq!(squeezed(&out), [DISK_NAMES, ""]);
}

#[test]
fn a_percentile_is_the_bound_of_its_bucket() {
    let disk = Disk;
    let p99 = |buckets: &[u64]| {
        let sums = [&[0, 0, 0], buckets].concat();
        disk.show(&sums, 1.0)[3]
    };
    assert_eq!(p99(&[1]), 0.002);
    assert_eq!(p99(&[99, 0, 1]), 0.002);
    assert_eq!(p99(&[98, 0, 2]), 0.008);
    assert!(p99(&[]).is_nan());
}

#[test]
fn keys_come_as_they_are_and_some_mean_the_same_everywhere() {
    let pressed = |code, modifiers| {
        let event = Event::Key(KeyEvent::new(code, modifiers));
        terminal::meaning(&event)
    };
    let q = KeyCode::Char('q');
    let table = [
        (
            KeyCode::Left,
            KeyModifiers::NONE,
            vec![Poke::Key(KeyCode::Left)],
        ),
        (q, KeyModifiers::NONE, vec![Poke::Key(q)]),
        (q, KeyModifiers::CONTROL, vec![]),
        (
            q,
            KeyModifiers::ALT,
            vec![Poke::Key(KeyCode::Esc), Poke::Key(q)],
        ),
        (
            KeyCode::Char('S'),
            KeyModifiers::SHIFT,
            vec![Poke::Key(KeyCode::Char('S'))],
        ),
        (KeyCode::Char('c'), KeyModifiers::CONTROL, vec![Poke::Quit]),
        (KeyCode::Char('d'), KeyModifiers::CONTROL, vec![Poke::Quit]),
        (
            KeyCode::Char('l'),
            KeyModifiers::CONTROL,
            vec![Poke::Resized],
        ),
    ];
    for (code, modifiers, pokes) in table {
        assert_eq!(pressed(code, modifiers), pokes, "{code:?} {modifiers:?}");
    }
    assert_eq!(terminal::meaning(&Event::Resize(80, 24)), [Poke::Resized]);
    assert_eq!(terminal::meaning(&Event::FocusGained), []);
}

pub(super) fn end(address: &str, port: u32) -> Option<v1::Endpoint> {
    Some(v1::Endpoint {
        address: address.to_owned(),
        port,
        ..Default::default()
    })
}

pub(super) fn session(
    direction: v1::TcpDirection,
    port: u32,
    sent: u64,
    open: bool,
) -> v1::TcpSession {
    let (local, remote) = match direction {
        v1::TcpDirection::Accept => (end("10.0.0.1", 80), end("10.0.0.2", port)),
        v1::TcpDirection::Connect | v1::TcpDirection::Unspecified => {
            (end("10.0.0.1", port), end("10.0.0.9", 5432))
        }
    };
    v1::TcpSession {
        local,
        remote,
        direction: direction.into(),
        bytes_sent: sent,
        bytes_received: sent / 2,
        retransmits: u32::try_from(sent / 1000).unwrap_or(u32::MAX),
        srtt_us: 2000,
        open,
        ..Default::default()
    }
}

#[test]
fn what_came_after_the_last_interval_is_printed_at_the_end() {
    let mut ranking = lines(Box::new(Files), None);
    let mut out = Vec::new();
    _ = ranking.poke(Poke::Tick, &mut out).expect("a Vec takes all");
    out.clear();
    let open = event(Detail::FileOpen(v1::FileOpen {
        path: "/var/log/app.log".to_owned(),
        ..Default::default()
    }));
    ranking
        .event(&open, &who("web"), &mut out)
        .expect("a Vec takes all");
    assert!(out.is_empty(), "the interval goes on");
    ranking.end(&mut out).expect("a Vec takes all");
    let printed = squeezed(&out);
    assert!(
        printed[1].contains("web app /var/log/app.log"),
        "{printed:?}"
    );
    out.clear();
    ranking.end(&mut out).expect("a Vec takes all");
    assert!(out.is_empty(), "nothing came since then");
}

#[test]
fn sessions_count_once_and_what_they_did_since_the_last_report() {
    use v1::TcpDirection::{Accept, Connect};
    let mut tcp = Tcp::default();
    let mut take = |session: v1::TcpSession| {
        let (cells, sums) = tcp
            .take(&event(Detail::TcpSession(session)), "n1")
            .expect("a session");
        (cells.join(" "), sums[..6].to_vec())
    };
    let own = "- 10.0.0.9:5432".to_owned();
    assert_eq!(
        take(session(Connect, 4001, 4000, true)),
        (own.clone(), vec![4000, 2000, 4, 1, 2000, 1])
    );
    assert_eq!(
        take(session(Connect, 4001, 5000, true)),
        (own.clone(), vec![1000, 500, 1, 0, 2000, 1])
    );
    assert_eq!(
        take(session(Connect, 4001, 5000, false)),
        (own.clone(), vec![0, 0, 0, 0, 2000, 1])
    );
    // The same ends again are another session.
    assert_eq!(
        take(session(Connect, 4001, 100, false)),
        (own, vec![100, 50, 0, 1, 2000, 1])
    );
    // Sessions of one peer are together, whatever port it came from.
    let peer = "80 10.0.0.2".to_owned();
    assert_eq!(
        take(session(Accept, 5001, 10, false)),
        (peer.clone(), vec![10, 5, 0, 1, 2000, 1])
    );
    // What it did before anyone listened was not in this interval.
    let before = v1::TcpSession {
        began_before: true,
        srtt_us: 0,
        ..session(Accept, 5002, 9000, true)
    };
    assert_eq!(take(before), (peer.clone(), vec![0, 0, 0, 1, 0, 0]));
    assert_eq!(
        take(session(Accept, 5002, 9500, false)),
        (peer.clone(), vec![500, 250, 0, 0, 2000, 1])
    );
    // Others listened to it before.
    let older = v1::TcpSession {
        duration: Some(prost_types::Duration {
            seconds: 3600,
            nanos: 0,
        }),
        ..session(Accept, 5003, 9000, true)
    };
    assert_eq!(take(older), (peer, vec![0, 0, 0, 1, 2000, 1]));
    assert!(
        tcp.take(&latency(v1::BlockOperation::Read, 1, &[1]), "n1")
            .is_none()
    );
    // 2000 µs is in the bucket of 1024 to 2048.
    let (_, sums) = tcp
        .take(
            &event(Detail::TcpSession(session(Connect, 1, 0, false))),
            "n1",
        )
        .expect("a session");
    assert_eq!(sums[6..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn sessions_are_ranked() {
    let mut ranking = lines(Box::<Tcp>::default(), Some("sessions"));
    let mut out = Vec::new();
    for port in [1, 2, 3] {
        let one = session(v1::TcpDirection::Accept, port, 2048, false);
        let event = event(Detail::TcpSession(one));
        ranking
            .event(&event, &who("web"), &mut out)
            .expect("a Vec takes all");
    }
    ranking
        .poke(Poke::Tick, &mut out)
        .map(|_| ())
        .expect("a Vec takes all");
    let shown = squeezed(&out);
    assert_eq!(
        shown[0],
        "NODE NAMESPACE POD CONTAINER LPORT PEER BYTES/s SENT/s RECV/s SESSIONS RETRANS RTT(ms)"
    );
    assert!(
        shown[1].starts_with("n1 shop web app 80 10.0.0.2 "),
        "{shown:?}"
    );
    assert!(shown[1].ends_with(" 3 6 2.00"), "{shown:?}");
}

#[test]
fn files_count_opens_and_deletions() {
    let mut files = Files;
    let open = |path: &str, filename: &str, flags, error| {
        event(Detail::FileOpen(v1::FileOpen {
            path: path.to_owned(),
            filename: filename.to_owned(),
            flags,
            error,
            ..Default::default()
        }))
    };
    let delete = |error| {
        event(Detail::FileDelete(v1::FileDelete {
            path: "/a".to_owned(),
            error,
            ..Default::default()
        }))
    };
    let table = [
        (open("/a", "a", 0, 0), "/a", [1, 0, 0, 0]),
        (open("/a", "a", 0o101, 0), "/a", [1, 1, 0, 0]),
        (open("", "b", 2, 13), "b", [1, 1, 1, 0]),
        (delete(0), "/a", [0, 0, 0, 1]),
        (delete(2), "/a", [0, 0, 1, 0]),
    ];
    for (event, path, sums) in table {
        let expected = Some((vec![path.to_owned()], sums.to_vec()));
        assert_eq!(files.take(&event, "n1"), expected, "{event:?}");
    }
    assert_eq!(files.show(&[10, 4, 0, 1], 2.0), [5.0, 2.0, 0.0, 0.5]);
}

#[test]
fn rows_beyond_the_bound_are_together() {
    let mut ranking = lines(Box::new(Files), Some("opens/s"));
    let mut out = Vec::new();
    for number in 0..10_023 {
        let open = v1::FileOpen {
            path: format!("/{number:05}"),
            ..Default::default()
        };
        let event = event(Detail::FileOpen(open));
        ranking
            .event(&event, &who("web"), &mut out)
            .expect("a Vec takes all");
    }
    ranking
        .snapshot_end(&snapshot(1), &mut out)
        .expect("a Vec takes all");
    assert!(out.is_empty(), "files do not come in snapshots");
    ranking
        .poke(Poke::Tick, &mut out)
        .map(|_| ())
        .expect("a Vec takes all");
    let shown = squeezed(&out);
    assert_eq!(shown.len(), 22, "names, 20 rows, and an empty line");
    assert!(shown[1].starts_with("- - - - (others) "), "{}", shown[1]);
}

#[test]
fn a_column_that_is_not_there_is_refused() {
    let refused = Ranking::new(Box::new(Files), Some("size"), 1);
    assert_eq!(
        refused.err().as_deref(),
        Some(
            "--sort size: there is no such column; there are node, namespace, pod, container, path, opens/s, writes/s, failed/s, deleted/s"
        )
    );
}

#[test]
fn processes_count_executions_ends_and_how_long_they_lived() {
    let mut process = Process;
    let of = |detail| v1::Event {
        process: Some(v1::Process {
            comm: "sh".to_owned(),
            ..Default::default()
        }),
        ..event(detail)
    };
    let exit = |code, signal, millis: i32| {
        of(Detail::Exit(v1::Exit {
            code,
            signal,
            duration: Some(prost_types::Duration {
                seconds: 0,
                nanos: millis * 1_000_000,
            }),
            ..Default::default()
        }))
    };
    let mut rows = sums::Rows::new();
    for event in [
        of(Detail::Exec(v1::Exec::default())),
        of(Detail::Exec(v1::Exec::default())),
        exit(0, 0, 1),
        exit(3, 0, 1),
        exit(0, 9, 10),
        exit(0, 0, 0),
    ] {
        let (cells, sums) = process.take(&event, "n1").expect("it counts");
        assert_eq!(cells, ["sh"]);
        sums::add(&mut rows, sums::key(&who("web"), cells), &sums);
    }
    let row = rows.values().next().expect("a row");
    // The 99th of a hundred of them would have lived up to 16.384 ms.
    assert_eq!(process.show(row, 2.0), [1.0, 2.0, 1.0, 3.0, 16.384]);
    let mut buckets = vec![0; 14];
    (buckets[0], buckets[9], buckets[13]) = (1, 2, 1);
    assert_eq!(
        process.drawing(&rows, &|_| true),
        subjects::Drawing::Spans(buckets)
    );
    assert_eq!(
        process.drawing(&rows, &|_| false),
        subjects::Drawing::Spans(Vec::new())
    );
    let fork = of(Detail::Fork(v1::Fork::default()));
    assert_eq!(process.take(&fork, "n1"), None);
}

#[test]
fn drops_are_ranked_by_packets() {
    let mut ranking = lines(Box::new(Drops), None);
    let mut out = Vec::new();
    for (reason, port, count) in [
        ("NO_SOCKET", 80, 4),
        ("NETFILTER_DROP", 443, 9),
        ("NO_SOCKET", 81, 2),
    ] {
        let count = v1::DropCount {
            reason: reason.to_owned(),
            protocol: 6,
            ether_type: 0x0800,
            port,
            count,
            bytes: 60 * count,
            ..Default::default()
        };
        ranking
            .event(&event(Detail::DropCount(count)), &who("web"), &mut out)
            .expect("a Vec takes all");
    }
    ranking
        .snapshot_end(&snapshot(1), &mut out)
        .expect("a Vec takes all");
    assert_eq!(
        squeezed(&out),
        [
            "NODE NAMESPACE POD CONTAINER REASON PROTO PORT PACKETS/s BYTES/s",
            "n1 shop web app NETFILTER_DROP TCP 443 9.0 540",
            "n1 shop web app NO_SOCKET TCP 80 4.0 240",
            "n1 shop web app NO_SOCKET TCP 81 2.0 120",
            "",
        ]
    );
}

#[test]
fn notes_keep_their_end() {
    use std::io::Write as _;
    let mut notes = Notes::default();
    for number in 0..10_000 {
        writeln!(notes, "ünote {number}").expect("notes take all");
    }
    assert_eq!(notes.last().as_deref(), Some("ünote 9999"));
    assert!(notes.all().len() <= Notes::MAX);
}
