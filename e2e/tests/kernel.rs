//! The agent on a real kernel: what happens in cgroups, and what subscribers are told of it. Needs root, cgroup2 and BTF.
//!
//! The tests run next to each other, and next to whatever else the machine does. So each has its own agent, its own tree of
//! cgroups and pods that only its agent knows, and asks for those.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "kernel/block.rs"]
mod block;
#[path = "kernel/budget.rs"]
mod budget;
#[path = "kernel/clock.rs"]
mod clock;
#[path = "kernel/drop.rs"]
mod drop;
#[path = "kernel/exec.rs"]
mod exec;
#[path = "kernel/exit.rs"]
mod exit;
#[path = "kernel/file.rs"]
mod file;
#[path = "kernel/filters.rs"]
mod filters;
#[path = "kernel/flags.rs"]
mod flags;
#[path = "kernel/fork.rs"]
mod fork;
#[path = "kernel/identity.rs"]
mod identity;
#[path = "kernel/life.rs"]
mod life;
#[path = "kernel/loss.rs"]
mod loss;
#[path = "kernel/rates.rs"]
mod rates;
#[path = "kernel/scope.rs"]
mod scope;
#[path = "kernel/tcp.rs"]
mod tcp;

use std::{os::unix::fs::symlink, path::PathBuf, time::Duration};

use dinle_e2e::{
    act::{act, act_path},
    agent::{Agent, temporary},
    cgroup::{Cgroup, Tree},
    pods::Pod,
    stream::{Book, Stream},
};
use dinle_proto::v1::{Kind, Selector, SubscribeRequest};
use tempfile::TempDir;

/// One pod `web` with one container `app`, and an agent that knows it.
struct Lab {
    agent: Agent,
    app: Cgroup,
    pod: Pod,
    tree: Tree,
}

impl Lab {
    fn new() -> Self {
        Self::with(&[])
    }

    /// With these sensors alone: programs take long to load in a machine that is emulated.
    fn of(sensors: &str) -> Self {
        Self::with(&["--sensors", sensors])
    }

    fn with(flags: &[&str]) -> Self {
        let tree = Tree::new();
        let (pod, app) = tree.app("web");
        let agent = Agent::with_pods(&[&pod], flags);
        Self {
            agent,
            app,
            pod,
            tree,
        }
    }

    /// Both kinds of the pod.
    fn listen(&self) -> Stream {
        self.agent.subscribe(shop())
    }
}

/// Both kinds of the pods of the namespace `shop`, with frequent heartbeats.
fn shop() -> SubscribeRequest {
    SubscribeRequest {
        selector: Some(Selector {
            namespaces: vec!["shop".into()],
            ..Selector::default()
        }),
        ..every_pod()
    }
}

/// Both kinds of every pod, those of other tests included, whose names the agent does not know.
fn every_pod() -> SubscribeRequest {
    SubscribeRequest {
        kinds: vec![Kind::Exec.into(), Kind::Exit.into()],
        heartbeat_interval: Some(span(Duration::from_millis(100))),
        ..SubscribeRequest::default()
    }
}

fn only(kind: Kind, request: SubscribeRequest) -> SubscribeRequest {
    SubscribeRequest {
        kinds: vec![kind.into()],
        ..request
    }
}

fn span(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap()
}

/// A command name that no other test uses: a link to `act`.
struct Named {
    dir: TempDir,
    name: String,
}

impl Named {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("n{}-{number}", std::process::id());
        let dir = temporary();
        symlink(act_path(), dir.path().join(&name)).unwrap();
        Self { dir, name }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }
}

/// The stream got that many execs and exits of what ran in its scope, and nothing was lost.
fn assert_complete(stream: &Stream, processes: u64) {
    assert_eq!(stream.execs().count() as u64, processes, "execs");
    assert_eq!(stream.exits().count() as u64, processes, "exits");
    for kind in [Kind::Exec, Kind::Exit] {
        assert_eq!(stream.book(kind), Book::complete(processes), "{kind:?}");
    }
    assert_eq!((stream.losses.len(), stream.skipped), (0, 0));
}

/// Runs `act exit 0` that often, and gives the id of the last process.
fn run_some(cgroup: &Cgroup, times: usize) -> u32 {
    let pids: Vec<u32> = (0..times)
        .map(|_| cgroup.succeed(act(["exit", "0"])).pid)
        .collect();
    *pids.last().expect("at least one")
}
