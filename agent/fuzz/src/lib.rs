//! What several targets and the seeds need: frames of every kind, as the kernel half writes them, and workloads.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use dinle::event;
use dinle_ebpf::{
    BlockIo, BlockLatency, Drop, DropCount, Exec, Exit, FileDelete, FileOpen, Fork, Header, Kind,
    Payload, Task, TcpConnect, TcpReset, TcpRetransmit, TcpSession, file::flags,
};
use dinle_proto::v1;
use zerocopy::IntoBytes as _;

/// The cgroup of [`frames`].
pub const CGROUP: u64 = 7;

/// The node that pods are of.
pub const NODE: &str = "demo-node";

/// A frame of every kind.
pub fn frames() -> Vec<(Kind, Vec<u8>)> {
    Kind::ALL
        .iter()
        .map(|&kind| (kind, of_kind(kind)))
        .collect()
}

/// No `_`: a new kind does not compile until it is fuzzed.
fn of_kind(kind: Kind) -> Vec<u8> {
    match kind {
        Kind::Exec => exec(),
        Kind::Exit => plain::<Exit>(),
        Kind::Fork => plain::<Fork>(),
        Kind::FileOpen => file_open(),
        Kind::FileDelete => file_delete(),
        Kind::TcpSession => plain::<TcpSession>(),
        Kind::TcpConnect => plain::<TcpConnect>(),
        Kind::TcpReset => plain::<TcpReset>(),
        Kind::TcpRetransmit => plain::<TcpRetransmit>(),
        Kind::BlockIo => plain::<BlockIo>(),
        Kind::BlockLatency => plain::<BlockLatency>(),
        Kind::Drop => plain::<Drop>(),
        Kind::DropCount => plain::<DropCount>(),
    }
}

fn frame<P: Payload>(payload: &P, tail: &[&[u8]]) -> Vec<u8> {
    let header = Header {
        boot_ns: 5_000_000_000,
        cgroup_id: CGROUP,
        slot: 0,
        kind: P::KIND as u16,
        reserved: 0,
    };
    let parts = [header.as_bytes(), payload.as_bytes()];
    [&parts[..], tail].concat().concat()
}

/// A payload without a tail: small numbers everywhere, so that they mean something where they stand for something.
fn plain<P: Payload>() -> Vec<u8> {
    let bytes: Vec<u8> = (0..size_of::<P>())
        .map(|at| u8::from(at % 2 == 0) * 2)
        .collect();
    let payload = P::read_from_bytes(&bytes).expect("as many bytes as it has");
    frame(&payload, &[])
}

fn task() -> Task {
    let mut task = Task {
        start_boot_ns: 4_500_000_000,
        pid: 100,
        tid: 101,
        pod_pid: 10,
        pod_tid: 11,
        ppid: 99,
        uid: 1000,
        gid: 1001,
        ancestors_len: 2,
        comm: [0; 16],
        parent_comm: [0; 16],
        ancestors: [0; 16],
    };
    task.comm[..3].copy_from_slice(b"cat");
    task.parent_comm[..2].copy_from_slice(b"sh");
    task.ancestors[..2].copy_from_slice(&[99, 1]);
    task
}

fn len(part: &[u8]) -> u16 {
    u16::try_from(part.len()).expect("a short text")
}

fn exec() -> Vec<u8> {
    let (filename, args, cwd) = (
        b"/bin/cat",
        b"cat\0/etc/hostname\0three words\0",
        b"lib\0var\0",
    );
    let exec = Exec {
        task: task(),
        args_bytes: len(args).into(),
        filename_len: len(filename),
        args_len: len(args),
        cwd_len: len(cwd),
        flags: Exec::CWD_KNOWN,
        reserved: 0,
    };
    frame(&exec, &[filename, args, cwd])
}

fn file_open() -> Vec<u8> {
    let (filename, path) = (b"hostname", b"hostname\0etc\0");
    let open = FileOpen {
        task: task(),
        inode: 4711,
        device: 8 << 20 | 1,
        // O_WRONLY | O_CREAT
        open_flags: 0o101,
        mode: 0o644,
        result: 3,
        filename_len: len(filename),
        path_len: len(path),
        flags: flags::PATH_KNOWN | flags::INODE_KNOWN,
        reserved: 0,
    };
    frame(&open, &[filename, path])
}

fn file_delete() -> Vec<u8> {
    let (filename, source, args, path) = (b"new", b"old", b"mv\0old\0new\0", b"new\0tmp\0");
    let delete = FileDelete {
        task: task(),
        inode: 4711,
        size_before: 42,
        device: 8 << 20 | 1,
        result: 0,
        args_bytes: len(args).into(),
        how: FileDelete::RENAME,
        filename_len: len(filename),
        source_len: len(source),
        args_len: len(args),
        path_len: len(path),
        flags: flags::PATH_KNOWN | flags::INODE_KNOWN | flags::SIZE_KNOWN,
    };
    frame(&delete, &[filename, source, args, path])
}

/// What is needed to decode them.
pub fn context() -> event::Context {
    event::Context::new(1_700_000_000_900_000_000, Arc::default())
}

/// The events of [`frames`].
pub fn events() -> &'static [v1::Event] {
    static EVENTS: LazyLock<Vec<v1::Event>> = LazyLock::new(|| {
        let context = context();
        let decoded = |(kind, frame): (Kind, Vec<u8>)| {
            let envelope = event::open(&frame).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
            event::decode(&envelope, &context).unwrap_or_else(|error| panic!("{kind:?}: {error}"))
        };
        frames().into_iter().map(decoded).collect()
    });
    &EVENTS
}

/// One workload in each state, and a container with these labels.
pub fn workloads(labels: HashMap<String, String>) -> Vec<v1::Workload> {
    use v1::IdentityState::{Container, Host, Pending, Pod, Sandbox, Unknown, Unspecified};
    let state = |state: v1::IdentityState| v1::Workload {
        cgroup_id: CGROUP,
        state: state.into(),
        ..Default::default()
    };
    let named = |of: v1::IdentityState, container: &str| v1::Workload {
        namespace: "shop".into(),
        pod: "checkout-6d4cf56db6-x7k2p".into(),
        container: container.into(),
        labels: labels.clone(),
        owner: Some(v1::Owner {
            kind: "Deployment".into(),
            name: "checkout".into(),
        }),
        ..state(of)
    };
    let nameless = [Host, Pending, Unknown, Unspecified].map(state);
    let mut workloads = vec![
        named(Container, "server"),
        named(Pod, ""),
        named(Sandbox, ""),
    ];
    workloads.extend(nameless);
    workloads
}

/// What a person is told: one line, with nothing in it that a terminal would take for an order.
pub fn assert_is_a_sentence(told: &str) {
    assert!(!told.is_empty(), "an error says nothing");
    assert!(
        !told.contains(char::is_control),
        "an error has control characters: {told:?}"
    );
}
