//! Frames as the kernel half writes them, and the pods that they come from.

use dinle::workload::{Container, Index, Pod};
use dinle_ebpf::{Exec, Exit, Fork, Header, Kind, Task};
use zerocopy::IntoBytes as _;

/// Pods that run something, each with one container.
pub(crate) const PODS: u64 = 8;

/// Different frames of each pod: together with the pods far more than the CPU's first cache holds, as it is with a ring.
const FRAMES_PER_POD: u64 = 64;

/// The first pod's cgroup.
const FIRST_CGROUP: u64 = 10_000;

/// Two hours, in nanoseconds.
const BOOTED_FOR_NS: u64 = 7_200_000_000_000;

/// A pod's name.
pub(crate) fn pod_name(pod: u64) -> String {
    format!("checkout-6d4cf56db6-x{pod}k2p")
}

/// An index that knows the pods and their cgroups.
pub(crate) fn index() -> Index {
    let index = Index::new("worker-3.example");
    for pod in 0..PODS {
        let uid = format!("2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e{pod:02x}");
        let id = format!("{pod:064x}");
        index.pod_applied(Pod {
            uid: uid.clone(),
            namespace: "shop".into(),
            name: pod_name(pod),
            labels: [("app", "checkout"), ("tier", "web")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            containers: vec![Container {
                name: "server".into(),
                id: Some(id.clone()),
                image: "registry.example/checkout:1.4.2".into(),
                ..Container::default()
            }],
            ..Pod::default()
        });
        index.cgroup_created(
            FIRST_CGROUP + pod,
            1,
            &format!("/kubepods/burstable/pod{uid}/{id}"),
            false,
        );
    }
    index
}

/// Frames of one kind, from all pods in turn.
pub(crate) fn frames(kind: Kind) -> Vec<Vec<u8>> {
    (0..PODS * FRAMES_PER_POD)
        .map(|number| {
            let header = Header {
                boot_ns: BOOTED_FOR_NS + number * 1000,
                cgroup_id: FIRST_CGROUP + number % PODS,
                slot: 1 + (number % PODS) as u32,
                kind: kind as u16,
                reserved: 0,
            };
            let body = match kind {
                Kind::Exec => exec(number),
                Kind::Exit => exit(number),
                Kind::Fork => fork(number),
                other => unreachable!("{other:?} is not measured here"),
            };
            [header.as_bytes(), &body].concat()
        })
        .collect()
}

fn exec(number: u64) -> Vec<u8> {
    let (filename, args, cwd) = (
        b"/usr/bin/curl",
        b"curl\0--silent\0--max-time\x005\0http://payments.shop:8080/healthz\0",
        b"checkout\0srv\0",
    );
    let exec = Exec {
        task: task(number),
        args_bytes: args.len() as u32,
        filename_len: filename.len() as u16,
        args_len: args.len() as u16,
        cwd_len: cwd.len() as u16,
        flags: Exec::CWD_KNOWN,
        reserved: 0,
    };
    [exec.as_bytes(), filename, args, cwd].concat()
}

fn fork(number: u64) -> Vec<u8> {
    let fork = Fork {
        task: task(number),
        child_start_boot_ns: BOOTED_FOR_NS + number * 1000,
        child_pid: 1000 + number as u32,
        child_pod_pid: 10,
    };
    fork.as_bytes().to_vec()
}

fn exit(number: u64) -> Vec<u8> {
    let exit = Exit {
        task: task(number),
        status: 0,
        reserved: 0,
    };
    exit.as_bytes().to_vec()
}

fn task(number: u64) -> Task {
    let pid = 210_000 + number as u32;
    let mut task = Task {
        start_boot_ns: BOOTED_FOR_NS - 3_000_000,
        pid,
        tid: pid,
        pod_pid: 300 + number as u32,
        pod_tid: 300 + number as u32,
        ppid: 200_001,
        uid: 1000,
        gid: 1000,
        ancestors_len: 4,
        comm: [0; 16],
        parent_comm: [0; 16],
        ancestors: [0; 16],
    };
    task.comm[..4].copy_from_slice(b"curl");
    task.parent_comm[..2].copy_from_slice(b"sh");
    task.ancestors[..4].copy_from_slice(&[200_001, 200_000, 1800, 1]);
    task
}
