//! CONTROL: carries demand from the hub to the kernel, and the kernel's answers back. Off the event path: it may take its time.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use dinle_ebpf::{Kind, SLOTS};
use dinle_proto::v1;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    event::proto_kind,
    hub::{Hub, Stage},
    kernel::{HookStatus, Programs, Scope, Wanted, WayStatus},
    pipeline::Stats,
    workload::Index,
};

/// How often skipped runs are read, lingering programs detached and forgotten workloads dropped.
const TICK: Duration = Duration::from_secs(1);

/// What the kernel half looks like to the outside.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// For each kind, how it attaches.
    pub capabilities: Vec<v1::Capability>,
    /// Every program.
    pub programs: Vec<v1::Program>,
    /// Cgroups that the kernel reports on.
    pub watched: usize,
}

/// The controller. Dropping it takes everything out of the kernel.
pub struct Control {
    /// Who listens.
    pub hub: Hub,
    /// Who runs.
    pub index: Index,
    /// What attaches.
    pub programs: Programs,
    /// What the kernel reports.
    pub scope: Scope,
    /// What the reader tells.
    pub stats: Arc<Stats>,
    /// What others see of all this.
    pub node: Arc<ArcSwap<Node>>,
    /// The cgroup2 tree.
    pub cgroup_root: PathBuf,
    /// How long programs outlive their last listener.
    pub linger: Duration,
    /// Calls of [`Settle`].
    pub settle: mpsc::Receiver<oneshot::Sender<()>>,
}

/// Asks the controller to bring the kernel in line with who listens now.
#[derive(Clone)]
pub struct Settle(mpsc::Sender<oneshot::Sender<()>>);

impl Settle {
    /// Both ends.
    pub fn new() -> (Self, mpsc::Receiver<oneshot::Sender<()>>) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), receiver)
    }

    /// Comes back when everything that is wanted now is attached and in scope, cgroups that were made meanwhile included.
    /// `false` if the agent is ending.
    pub async fn settle(&self) -> bool {
        let (done, wait) = oneshot::channel();
        self.0.send(done).await.is_ok() && wait.await.is_ok()
    }
}

impl Control {
    /// Runs until nobody holds a [`Settle`] any more.
    pub async fn run(mut self) {
        let mut listeners = self.hub.changes();
        let mut workloads = self.index.changes();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lingering: HashMap<&'static str, Instant> = HashMap::new();
        let mut skipped: HashMap<String, u64> = HashMap::new();
        let mut scope_full = 0;
        loop {
            tokio::select! {
                asked = self.settle.recv() => {
                    let Some(done) = asked else { return };
                    self.reconcile(&mut lingering).await;
                    // Children that were made before their parent came into scope are in the tracker's ring by now.
                    let epoch = self.index.epoch();
                    self.hub.sync().await;
                    if self.index.epoch() != epoch {
                        self.reconcile(&mut lingering).await;
                    }
                    // Whoever asked may have left.
                    _ = done.send(());
                }
                changed = listeners.changed() => {
                    if changed.is_err() { return }
                    self.reconcile(&mut lingering).await;
                }
                changed = workloads.changed() => {
                    if changed.is_err() { return }
                    self.reconcile(&mut lingering).await;
                }
                _ = ticks.tick() => {
                    self.index.expire(Instant::now());
                    if self.stats.rescan.swap(false, Ordering::Relaxed) {
                        self.rescan();
                    }
                    // Cgroups that found no room may find some now, and streams are told.
                    let missed = self.stats.scope_full.load(Ordering::Relaxed);
                    if std::mem::replace(&mut scope_full, missed) != missed {
                        self.reconcile(&mut lingering).await;
                    }
                    self.tell_skipped(&mut skipped);
                    self.detach_lingering(&mut lingering);
                    self.show();
                }
            }
        }
    }

    /// Brings the kernel in line with demand: first what attaches, then what is in scope, so that nothing is in scope unheard.
    async fn reconcile(&mut self, lingering: &mut HashMap<&'static str, Instant>) {
        let live = self.index.live();
        let demand = self
            .hub
            .demand(live.iter().map(|live| (live.id, &live.workload)), SLOTS);
        for &kind in Kind::ALL {
            for hook in kind.hooks() {
                if demand.kinds & kind.bit() == 0 {
                    continue;
                }
                lingering.remove(hook);
                // Shown by `capabilities` with its reason; the other kinds go on.
                if let Err(error) = self.programs.attach(hook) {
                    tracing::debug!(hook, error, "not attached");
                }
            }
        }
        if demand.moved {
            self.hub.sync().await;
        }
        let now = Instant::now();
        for hook in Kind::ALL.iter().flat_map(|kind| kind.hooks()) {
            if !wanted(hook, demand.kinds) {
                lingering.entry(hook).or_insert(now);
            }
        }
        let wanted: Vec<Wanted> = demand
            .cgroups
            .iter()
            .map(|want| Wanted {
                cgroup_id: want.cgroup_id,
                kinds: want.kinds,
                slot: want.slot,
            })
            .collect();
        let mut notes = Vec::new();
        if let Err(error) = self.scope.apply(&wanted) {
            tracing::error!("{error}");
            notes.push(error.to_string());
        }
        let missed = self.stats.scope_full.load(Ordering::Relaxed);
        if missed > 0 {
            notes.push(format!(
                "{missed} new cgroups could not be watched at once, because the kernel's table was full: what ran in them until it had \
                 room was not seen"
            ));
        }
        self.hub.set_notes(notes);
        self.show();
    }

    fn detach_lingering(&mut self, lingering: &mut HashMap<&'static str, Instant>) {
        let Self {
            programs, linger, ..
        } = self;
        lingering.retain(|hook, since| {
            let over = since.elapsed() >= *linger;
            if over {
                programs.detach(hook);
            }
            !over
        });
    }

    /// What the kernel skipped is told to all who listen to the hook's kinds: it cannot say whose events they were.
    fn tell_skipped(&mut self, before: &mut HashMap<String, u64>) {
        for status in self.programs.status() {
            let old = before
                .insert(status.hook.clone(), status.skipped)
                .unwrap_or(0);
            if status.skipped <= old {
                continue;
            }
            for &kind in Kind::ALL
                .iter()
                .filter(|kind| kind.hooks().contains(&&*status.hook))
            {
                self.hub.lose_everywhere(
                    proto_kind(kind),
                    Stage::KernelSkipped,
                    status.skipped - old,
                );
            }
        }
    }

    /// The tracker lost records, or an event came from a cgroup that nobody told of.
    fn rescan(&mut self) {
        match self.index.walk(&self.cgroup_root) {
            Ok(found) => tracing::warn!(
                found,
                "the tree of cgroups was walked anew: the tracker had lost records"
            ),
            Err(error) => {
                tracing::error!(%error, root = %self.cgroup_root.display(), "the tree of cgroups cannot be walked")
            }
        }
    }

    fn show(&mut self) {
        let hooks = self.programs.status();
        self.node.store(Arc::new(Node {
            watched: self.scope.watched(),
            ..node(&hooks)
        }));
    }
}

fn wanted(hook: &str, kinds: u64) -> bool {
    let mut wanting = Kind::ALL.iter().filter(|kind| kinds & kind.bit() != 0);
    wanting.any(|kind| kind.hooks().contains(&hook))
}

/// Hooks as the contract shows them.
pub fn node(hooks: &[HookStatus]) -> Node {
    let programs = hooks.iter().filter_map(|hook| {
        let chosen = hook.ways.iter().find(|way| Some(way.way) == hook.chosen)?;
        Some(v1::Program {
            name: chosen.program.clone(),
            hook: hook.hook.clone(),
            way: chosen.way.to_string(),
            attached: hook.attached,
            verified_instructions: *chosen.verified.as_ref().ok()?,
            recursion_misses: hook.skipped,
        })
    });
    let capability = |&kind: &Kind| {
        let needed: Vec<&HookStatus> = hooks
            .iter()
            .filter(|hook| kind.hooks().contains(&&*hook.hook))
            .collect();
        let mut reasons: Vec<String> = needed.iter().filter_map(|hook| hook.reason()).collect();
        for hook in kind.hooks() {
            if !needed.iter().any(|status| status.hook == *hook) {
                reasons.push(format!("this build has no program for {hook}"));
            }
        }
        v1::Capability {
            kind: proto_kind(kind).into(),
            available: reasons.is_empty(),
            reason: reasons.join("; "),
            hooks: needed.into_iter().map(hook).collect(),
            limits: limits(kind).iter().map(|limit| limit.to_string()).collect(),
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

/// What a kind leaves out, whatever the kernel.
fn limits(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Exec => &[
            "only successful executions are seen; arguments beyond 2047 bytes are cut and flagged",
        ],
        Kind::Exit => &["one event for a process, when its last thread exits"],
        Kind::Fork => &["new processes, not new threads"],
    }
}
