//! Packets that are dropped, why, and whose they were.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::LazyLock,
};

use dinle_e2e::{
    act::{act, act_path},
    cgroup::Cgroup,
    skipped::skipped,
    stream::{Book, Stream, assert_invalid},
};
use dinle_proto::v1::{
    Attribution, Drop, DropCount, Event, Filter, Kind, LossStage, SubscribeRequest, event::Detail,
};

use crate::{Lab, shop};

/// Nobody listens there, in no network namespace.
const PORT: u32 = 4499;
const UDP: u32 = 17;
const TCP: u32 = 6;
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;

/// Whether the kernel's types have a name.
fn kernel_has(name: &str) -> bool {
    let types = fs::read("/sys/kernel/btf/vmlinux").expect("the kernel's types");
    let names = types.split(|&byte| byte == 0);
    names.into_iter().any(|known| known == name.as_bytes())
}

/// Whether this kernel gives a reason (5.17).
static REASONS: LazyLock<bool> = LazyLock::new(|| kernel_has("skb_drop_reason"));

/// Whether this kernel gives the socket (6.11).
static SOCKETS: LazyLock<bool> = LazyLock::new(|| kernel_has("rx_sk"));

/// What a reason is called here.
fn reason(name: &str) -> &str {
    if *REASONS { name } else { "" }
}

fn drops(kinds: &[Kind]) -> SubscribeRequest {
    SubscribeRequest {
        kinds: kinds.iter().map(|&kind| kind.into()).collect(),
        filter: Some(Filter {
            ports: vec![PORT],
            ..Filter::default()
        }),
        ..shop()
    }
}

fn counts() -> SubscribeRequest {
    drops(&[Kind::DropCount])
}

/// `act` in a network namespace of its own.
fn newnet(args: &[&str]) -> std::process::Command {
    let act_path = act_path();
    let mut all = vec!["newnet", act_path.to_str().expect("UTF-8")];
    all.extend(args);
    act(all)
}

fn rows(stream: &Stream) -> impl Iterator<Item = (&Event, &DropCount)> {
    stream.rows(|detail| match detail {
        Detail::DropCount(count) => Some(count),
        _ => None,
    })
}

fn samples(stream: &Stream) -> impl Iterator<Item = (&Event, &Drop)> {
    stream.details(|detail| match detail {
        Detail::Drop(drop) => Some(drop),
        _ => None,
    })
}

/// Packets for that reason and of that protocol.
fn sum(stream: &Stream, name: &str, protocol: u32) -> u64 {
    rows(stream)
        .filter(|(_, row)| row.reason == reason(name) && row.protocol == protocol)
        .map(|(_, row)| row.count)
        .sum()
}

fn until(stream: &mut Stream, name: &str, protocol: u32, packets: u64) {
    stream.until(&format!("{packets} packets: {name}"), |stream| {
        sum(stream, name, protocol) >= packets
    });
    stream.heartbeat();
    assert_eq!(sum(stream, name, protocol), packets, "{name}");
}

/// A process that stays in a network namespace of its own.
struct Held(Child);

impl Held {
    fn new(cgroup: &Cgroup, mut command: std::process::Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cgroup.spawn(command);
        let mut line = String::new();
        let out = child.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// Sends datagrams from another cgroup, within its network namespace.
    fn visit(&self, cgroup: &Cgroup, times: &str) {
        let (pid, path) = (self.0.id().to_string(), act_path());
        let path = path.to_str().expect("UTF-8");
        cgroup.succeed(act(["joinnet", &pid, path, "udp", times, "4499"]));
    }
}

impl std::ops::Drop for Held {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn every_drop_in_scope_is_counted_with_its_reason() {
    let lab = Lab::of("drop");
    let outside = lab.tree.host("outside");
    let mut stream = lab.agent.subscribe(counts());
    lab.app.succeed(newnet(&["udp", "20", "4499"]));
    outside.succeed(newnet(&["udp", "29", "4499"]));
    lab.app.succeed(newnet(&["udp", "3", "4499"]));
    until(&mut stream, "NO_SOCKET", UDP, 23);
    let mut bytes = 0;
    for (event, row) in rows(&stream) {
        assert_eq!(row.ether_type, IPV4, "{row:?}");
        assert_eq!(row.port, PORT, "{row:?}");
        assert_eq!(row.attribution(), Attribution::NetworkNamespace, "{row:?}");
        assert_eq!(event.process, None);
        // Containers of a pod share its network namespace: it is the pod's.
        let workload = event.workload.as_ref().expect("a name");
        assert_eq!((&*workload.namespace, &*workload.pod), ("shop", "web"));
        assert_eq!(workload.container, "");
        bytes += row.bytes;
    }
    // A header of IP, one of UDP, and 10 bytes.
    assert_eq!(bytes, 23 * (20 + 8 + 10));
    let book = stream.book(Kind::DropCount);
    assert_eq!(book, Book::complete(rows(&stream).count() as u64));
}

#[test]
fn samples_tell_each_packet_and_agree_with_the_counts() {
    let lab = Lab::of("drop");
    let mut stream = lab.agent.subscribe(drops(&[Kind::Drop, Kind::DropCount]));
    lab.app.succeed(newnet(&["udp", "23", "4499"]));
    until(&mut stream, "NO_SOCKET", UDP, 23);
    assert_eq!(samples(&stream).count(), 23);
    assert_eq!(stream.book(Kind::Drop), Book::complete(23));
    for (event, drop) in samples(&stream) {
        let Drop {
            reason: why,
            protocol,
            ether_type,
            source,
            destination,
            interface,
            location,
            bytes,
            attribution: _,
        } = drop;
        assert_eq!(why, reason("NO_SOCKET"));
        assert_eq!((*protocol, *ether_type, *bytes), (UDP, IPV4, 38));
        let (source, destination) = (source.as_ref().unwrap(), destination.as_ref().unwrap());
        assert_eq!(source.address, "127.0.0.1");
        assert_ne!(source.port, 0);
        assert_eq!(destination.address, "127.0.0.1");
        assert_eq!(destination.port, PORT);
        assert_eq!(interface, "lo");
        assert_eq!(drop.attribution(), Attribution::NetworkNamespace);
        assert_eq!(event.workload.as_ref().expect("a name").pod, "web");
        if fs::read_to_string("/proc/kallsyms")
            .is_ok_and(|text| !text.starts_with("0000000000000000 T"))
        {
            let (function, offset) = location.split_once('+').expect("a function");
            assert!(
                function.contains("udp") && offset.starts_with("0x"),
                "{location}"
            );
        }
    }
}

#[test]
fn protocols_and_reasons_are_told_apart() {
    let lab = Lab::of("drop");
    let mut stream = lab.agent.subscribe(counts());
    lab.app.succeed(newnet(&["refused", "23", "4499"]));
    until(&mut stream, "NO_SOCKET", TCP, 23);
    lab.app.succeed(newnet(&["udp6", "7", "4499"]));
    until(&mut stream, "NO_SOCKET", UDP, 7);
    let six = rows(&stream).filter(|(_, row)| row.ether_type == IPV6);
    assert_eq!(six.map(|(_, row)| row.count).sum::<u64>(), 7);
    if *REASONS {
        lab.app.succeed(newnet(&["udpsum", "11", "4499"]));
        until(&mut stream, "UDP_CSUM", UDP, 11);
    }
}

#[test]
fn a_full_socket_drops_what_it_cannot_take() {
    let lab = Lab::of("drop");
    let mut stream = lab.agent.subscribe(counts());
    let ran = lab.app.run(newnet(&["udpfull", "100", "4499"]));
    let dropped = ran.status.code().expect("a code");
    assert!((1..100).contains(&dropped), "{dropped}");
    until(&mut stream, "SOCKET_RCVBUFF", UDP, dropped as u64);
    if !*SOCKETS {
        return;
    }
    // The socket says which container it is of.
    for (event, row) in rows(&stream) {
        assert_eq!(row.attribution(), Attribution::Socket, "{row:?}");
        assert_eq!(event.cgroup_id, lab.app.id());
        assert_eq!(event.workload.as_ref().expect("a name").container, "app");
    }
    // It does so too where the network namespace is the node's.
    let ran = lab.app.run(act(["udpfull", "100", "4499"]));
    let more = ran.status.code().expect("a code");
    until(&mut stream, "SOCKET_RCVBUFF", UDP, (dropped + more) as u64);
}

#[test]
fn a_rule_of_the_pods_own_firewall_drops() {
    let rules = "iptables -A INPUT -p udp --dport 4499 -j DROP";
    let works = act(["newnet", "/bin/sh", "-c", rules]).output();
    if !works.is_ok_and(|output| output.status.success()) {
        skipped("this machine has no iptables");
        return;
    }
    let lab = Lab::of("drop");
    let mut stream = lab.agent.subscribe(counts());
    let path = act_path();
    let script = format!("{rules} && exec {} udp 23 4499", path.display());
    lab.app.succeed(act(["newnet", "/bin/sh", "-c", &script]));
    until(&mut stream, "NETFILTER_DROP", UDP, 23);
    assert_eq!(sum(&stream, "NO_SOCKET", UDP), 0);
}

#[test]
fn what_finds_no_room_in_the_table_is_told_as_lost() {
    const PORTS: u64 = 20_000;
    let lab = Lab::of("drop");
    let mut stream = lab.agent.subscribe(SubscribeRequest {
        filter: None,
        ..counts()
    });
    // Nobody makes room meanwhile.
    lab.agent.signal(libc::SIGSTOP);
    lab.app.succeed(newnet(&["udpports", &PORTS.to_string()]));
    lab.agent.signal(libc::SIGCONT);
    let lost = |stream: &Stream| stream.told_lost(Kind::DropCount, LossStage::KernelTable);
    stream.until("everything is told or lost", |stream| {
        sum(stream, "NO_SOCKET", UDP) + lost(stream) >= PORTS
    });
    stream.heartbeat();
    let told = sum(&stream, "NO_SOCKET", UDP);
    assert!(told > 0 && told < PORTS, "{told}");
    assert_eq!(told + lost(&stream), PORTS);
    // Rows go with the turn after theirs: then there is room again.
    let snapshots = stream.snapshots.len();
    stream.until("three more snapshots", |stream| {
        stream.snapshots.len() >= snapshots + 3
    });
    lab.app.succeed(newnet(&["udpports", "100"]));
    stream.until("what came after", |stream| {
        sum(stream, "NO_SOCKET", UDP) >= told + 100
    });
    assert_eq!(told + lost(&stream), PORTS);
}

#[test]
fn a_network_namespace_is_its_pods_whoever_causes_the_drop() {
    let lab = Lab::of("drop");
    let outside = lab.tree.host("outside");
    // It was there before anyone listened, and has executed nothing since.
    let early = Held::new(&lab.app, act(["holdnet"]));
    let strange = Held::new(&outside, act(["holdnet"]));
    let mut stream = lab.agent.subscribe(counts());
    early.visit(&outside, "20");
    strange.visit(&outside, "29");
    // It came later, and the agent had no time to look.
    let late = Held::new(&lab.app, newnet(&["hold"]));
    late.visit(&outside, "3");
    until(&mut stream, "NO_SOCKET", UDP, 23);
}

#[test]
fn the_nodes_own_network_is_no_pods() {
    let lab = Lab::of("drop");
    // In the node's network another test listens at the usual one.
    let mut stream = lab.agent.subscribe(SubscribeRequest {
        filter: Some(Filter {
            ports: vec![4498],
            ..Filter::default()
        }),
        ..counts()
    });
    // As a pod with `hostNetwork` does.
    lab.app.succeed(act(["udp", "29", "4498"]));
    lab.app.succeed(newnet(&["udp", "23", "4498"]));
    until(&mut stream, "NO_SOCKET", UDP, 23);
}

#[test]
fn counts_go_on_over_snapshots_and_start_from_nothing() {
    let lab = Lab::of("drop");
    let mut first = lab.agent.subscribe(counts());
    for round in 1..=4 {
        lab.app.succeed(newnet(&["udp", "5", "4499"]));
        until(&mut first, "NO_SOCKET", UDP, round * 5);
        // Rows of a turn that is over go, and what they counted stays told.
        let snapshots = first.snapshots.len();
        first.until("two more snapshots", |first| {
            first.snapshots.len() >= snapshots + 2
        });
    }
    let mut second = lab.agent.subscribe(counts());
    lab.app.succeed(newnet(&["udp", "2", "4499"]));
    until(&mut second, "NO_SOCKET", UDP, 2);
    until(&mut first, "NO_SOCKET", UDP, 22);
}

#[test]
fn drops_have_no_process_to_ask_for() {
    let lab = Lab::of("drop");
    for kind in [Kind::Drop, Kind::DropCount] {
        let request = SubscribeRequest {
            kinds: vec![kind.into()],
            filter: Some(Filter {
                uids: vec![0],
                ..Filter::default()
            }),
            ..shop()
        };
        let refused = lab.agent.explain(request);
        assert_invalid(refused, "request.filter");
    }
}
