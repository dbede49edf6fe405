//! What each kind can see on this node and what it cannot, with the reasons that users are told.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    sync::LazyLock,
};

use dinle_ebpf::Kind;
use dinle_proto::v1;

use super::{BY_NAMESPACE, Costs, KALLSYMS};
use crate::{
    event::{Symbols, proto_kind},
    kernel::{HookStatus, Way, WayStatus},
};

/// What the kernel half looks like to the outside.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// For each kind, how it attaches.
    pub capabilities: Vec<v1::Capability>,
    /// Every program.
    pub programs: Vec<v1::Program>,
    /// Cgroups that the kernel reports on.
    pub watched: usize,
    /// What all that costs.
    pub costs: Costs,
}

/// Hooks as the contract shows them, and what the kinds make of them whose bits are among those offered.
pub fn node(hooks: &[HookStatus], offered: u64) -> Node {
    let programs = hooks.iter().filter_map(|hook| {
        let chosen = hook.ways.iter().find(|way| Some(way.way) == hook.chosen)?;
        Some(v1::Program {
            name: chosen.program.clone(),
            hook: hook.hook.clone(),
            way: chosen.way.to_string(),
            attached: hook.attached,
            verified_instructions: *chosen.verified.as_ref().ok()?,
            recursion_misses: hook.runs.skipped,
            cost: None,
        })
    });
    let find = |name: &str| hooks.iter().find(|status| status.hook == name);
    let refusal = |name: &&str| match find(name) {
        Some(status) => status.reason(),
        None => Some(format!("this build has no program for {name}")),
    };
    let capability = |&kind: &Kind| {
        if offered & kind.bit() == 0 {
            return v1::Capability {
                kind: proto_kind(kind).into(),
                reason: format!("the sensor {} is left out by --sensors", kind.sensor()),
                ..v1::Capability::default()
            };
        }
        let mut refused: Vec<Vec<String>> = Vec::new();
        let mut chosen = None;
        for route in kind.routes() {
            let reasons: Vec<String> = route.iter().filter_map(refusal).collect();
            if reasons.is_empty() {
                chosen = Some(*route);
                break;
            }
            refused.push(reasons);
        }
        let mut limits: Vec<String> = limits(kind, chosen.unwrap_or_default())
            .iter()
            .map(|limit| limit.to_string())
            .collect();
        if chosen.is_some() {
            // Why something better is not used. The first reason stands for its route: they are much the same.
            let mut better: Vec<&String> = refused.iter().map(|reasons| &reasons[0]).collect();
            better.dedup();
            limits.extend(
                better
                    .iter()
                    .map(|reason| format!("a better way is not open: {reason}")),
            );
        }
        limits.extend(surroundings(kind).into_iter().flatten().map(str::to_owned));
        let by_return = |hook: &&str| {
            let way = find(hook).and_then(|status| status.chosen);
            way == Some(Way::Kretprobe)
        };
        if let Some(hook) = chosen
            .unwrap_or_default()
            .iter()
            .find(|hook| by_return(hook))
        {
            limits.push(format!(
                "{hook} is heard by a kretprobe: of more calls at a time than the kernel follows (twice its CPUs, ten at least; once where it \
                 does not preempt), those beyond are not seen, nor counted"
            ));
        }
        for hook in kind.also() {
            // Hooks that work together lack the same: the first reason stands for it.
            if let Some(reason) = refusal(hook)
                && !limits.iter().any(|told| told.starts_with(without(hook)))
            {
                limits.push(format!("{}: {reason}", without(hook)));
            }
        }
        let shown = chosen.or(kind.routes().last().copied()).unwrap_or_default();
        let used = shown
            .iter()
            .chain(kind.also().iter().filter(|hook| refusal(hook).is_none()));
        v1::Capability {
            kind: proto_kind(kind).into(),
            available: chosen.is_some(),
            reason: match chosen {
                Some(_) => String::new(),
                None => refused.concat().join("; "),
            },
            hooks: used.filter_map(|name| find(name)).map(hook).collect(),
            limits,
        }
    };
    Node {
        capabilities: Kind::ALL.iter().map(capability).collect(),
        programs: programs.collect(),
        ..Node::default()
    }
}

fn hook(status: &HookStatus) -> v1::Hook {
    let way = |WayStatus { way, verified, .. }: &WayStatus| v1::Way {
        name: way.to_string(),
        reason: verified.as_ref().err().cloned().unwrap_or_default(),
    };
    v1::Hook {
        name: status.hook.clone(),
        chosen: status.chosen.map(|way| way.to_string()).unwrap_or_default(),
        ways: status.ways.iter().map(way).collect(),
    }
}

/// What a kind leaves out for where the agent runs and what it may do.
fn surroundings(kind: Kind) -> [Option<&'static str>; 2] {
    /// Of the PID namespace of the node itself: PROC_PID_INIT_INO of include/linux/proc_ns.h.
    const NODE_PIDS: u64 = 0xEFFF_FFFC;
    static OTHER_PIDS: LazyLock<bool> = LazyLock::new(|| {
        let namespace = std::fs::metadata("/proc/self/ns/pid");
        namespace.is_ok_and(|namespace| namespace.ino() != NODE_PIDS)
    });
    static HIDDEN: LazyLock<bool> = LazyLock::new(|| {
        let mut line = String::new();
        let first = std::fs::File::open(KALLSYMS).and_then(|file| {
            // The first symbols may be at 0 in truth; text is never.
            for read in BufReader::new(file).lines() {
                line = read?;
                if line.contains(" T ") {
                    break;
                }
            }
            Ok(())
        });
        first.is_err() || Symbols::parse(&line).is_empty()
    });
    let pids = *OTHER_PIDS && BY_NAMESPACE & kind.bit() != 0;
    let hidden = kind == Kind::Drop && *HIDDEN;
    [
        pids.then_some(
            "the agent is not in the node's PID namespace (hostPID): of pods that run already, the network namespace is known when a \
             program starts in them, or a packet with a socket is dropped",
        ),
        hidden.then_some(
            "the kernel hides the addresses of its functions (kernel.kptr_restrict; CAP_SYSLOG lifts it): places are addresses",
        ),
    ]
}

/// What is missing without a hook that is not necessary.
fn without(hook: &str) -> &'static str {
    match hook {
        "inet_csk_accept:return" => {
            "the process of an accepted session is known only if it does something with the session later"
        }
        "sched_process_exec" => "network namespaces of new pods are known a second later",
        "inet_sock_set_state__again" => "more is skipped",
        "inet_sock_set_state" => "the process is not known",
        "tcp_v4_connect" | "tcp_v4_connect:return" | "tcp_v6_connect" | "tcp_v6_connect:return" => {
            "connects that fail at once are not seen for lack of a route, and told without an error for lack of a port"
        }
        "block_rq_merge" => "of what became part of another request, a note is kept in vain",
        _ => "something is not seen",
    }
}

/// What a kind leaves out on this route.
fn limits(kind: Kind, route: &[&str]) -> &'static [&'static str] {
    let syscalls = route == ["sys_exit"];
    match kind {
        Kind::Exec => &[
            "only successful executions are seen; arguments beyond 2047 bytes are cut and flagged",
        ],
        Kind::Exit => &["one event for a process, when its last thread exits"],
        Kind::Fork => &["new processes, not new threads"],
        Kind::FileOpen if syscalls => &[
            "system calls are heard: opens through io_uring and of 32-bit programs are not seen",
            "the path of an open that failed is joined from the name that the process gave, symbolic links not followed",
        ],
        Kind::FileOpen => &[
            "opens that the kernel makes for itself, as for execve, are left out",
            "of more than 8,192 opens under way at a time (on old kernels, of more than 128 that began on one CPU), those that wait longest are not told",
        ],
        Kind::FileDelete if syscalls => &[
            "system calls are heard: what io_uring and 32-bit programs do is not seen",
            "inode and size before are not known",
            "the path is joined from the name that the process gave, symbolic links not followed",
            "a rename is told whether or not it replaced a file",
        ],
        Kind::FileDelete => &[
            "what fails before the file is found, as for lack of permission on the way, is not seen",
            "of more than 1,024 deletions under way at a time (on old kernels with more than 16 CPUs, of less), those that wait longest are not told",
        ],
        Kind::TcpSession => &[
            "32,768 sessions are remembered at a time: what begins beyond is told when it ends, as one that was there before",
            "sessions that were open before are reported on at intervals only in network namespaces without a hash table of their own \
             (net.ipv4.tcp_child_ehash_entries); told when they end they are everywhere",
        ],
        Kind::TcpConnect => &[],
        Kind::TcpReset => &[
            "resets without a socket of the pod are not seen: the answer to a connect to a closed port is, where it arrives",
        ],
        Kind::TcpRetransmit => &["SYN-ACKs that are sent again are not seen"],
        Kind::BlockIo | Kind::BlockLatency => &[
            "what is under way when listening begins, commands of drivers (as of smartctl), and the time that io.max holds something back are not seen",
            "of disks that are made of others, as of dm, md and zram, what those others do is seen",
            "of some hundred thousand requests one may have an end that the kernel runs no program for: it is counted as skipped when the next request \
             takes its place in the disk's queue",
        ],
        Kind::Drop | Kind::DropCount => &[
            "what the node drops outside of a pod's own network namespace is told only if the packet still has the pod's socket",
            "kernels before 5.17 give no reason, and free some packets in this way that were not dropped",
        ],
    }
}
