//! CONTROL: carries demand from the hub to the kernel, and the kernel's answers back. Off the event path: it may take its time.

mod budget;
mod capabilities;
mod sessions;

pub use budget::Costs;
pub use capabilities::{Node, node};

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use dinle_ebpf::{Kind, Narrowing, SLOTS, drop::NETNS_MAX};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    event::{Symbols, proto_kind},
    filter::Narrow,
    hub::{Demand, Fidelity, Hub, Stage},
    kernel::{AGAIN, HookStatus, Namespaces, Narrowings, Pace, Programs, Rates, Scope, Wanted},
    pipeline::Stats,
    workload::Index,
};
use budget::Budget;
use sessions::Sessions;

/// How often skipped runs and costs are read, lingering programs detached and forgotten workloads dropped.
const TICK: Duration = Duration::from_secs(1);

/// Kinds that know pods by their network namespaces.
const BY_NAMESPACE: u64 = Kind::Drop.bit() | Kind::DropCount.bit();

/// Where the kernel shows its functions.
const KALLSYMS: &str = "/proc/kallsyms";

/// When to look at the network namespaces of all tasks. Most are learnt when a program starts; a process can enter another one later.
#[derive(Debug, Default)]
struct Look {
    wanted: bool,
    /// In ticks.
    since_change: u32,
}

impl Look {
    /// Whether to do it at this tick: each time while pods come and go, and seldom afterwards.
    fn is_due(&mut self) -> bool {
        const OFTEN: u32 = 30;
        const SELDOM: u32 = 5;
        self.since_change = self.since_change.saturating_add(1);
        self.wanted && (self.since_change <= OFTEN || self.since_change.is_multiple_of(SELDOM))
    }
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
    /// What of it the kernel leaves out.
    pub narrowing: Narrowings,
    /// How much of it the kernel lets through.
    pub rates: Rates,
    /// Whose the network namespaces are.
    pub namespaces: Namespaces,
    /// Names of places in the kernel's code, while somebody asks for them.
    pub symbols: Arc<ArcSwapOption<Symbols>>,
    /// What the reader tells.
    pub stats: Arc<Stats>,
    /// What others see of all this.
    pub node: Arc<ArcSwap<Node>>,
    /// The cgroup2 tree.
    pub cgroup_root: PathBuf,
    /// How long programs outlive their last listener.
    pub linger: Duration,
    /// Events of each kind that one pod may have told in a second.
    pub pod_rate: Option<u32>,
    /// What programs and the agent may cost, in per cent of one CPU.
    pub budget: Option<f64>,
    /// What they cost as of the last look; nothing at first.
    pub costs: Costs,
    /// Why the budget is not for programs, if it is not.
    pub unmeasured: Option<String>,
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
        let mut sessions = Sessions::default();
        let mut look = Look::default();
        let mut budget = Budget::new(self.budget);
        loop {
            tokio::select! {
                asked = self.settle.recv() => {
                    let Some(done) = asked else { return };
                    self.reconcile(&mut lingering, &mut sessions, &mut look).await;
                    // Children that were made before their parent came into scope are in the tracker's ring by now.
                    let epoch = self.index.epoch();
                    self.hub.sync().await;
                    if self.index.epoch() != epoch {
                        self.reconcile(&mut lingering, &mut sessions, &mut look).await;
                    }
                    // Whoever asked may have left.
                    _ = done.send(());
                }
                changed = listeners.changed() => {
                    if changed.is_err() { return }
                    self.reconcile(&mut lingering, &mut sessions, &mut look).await;
                }
                changed = workloads.changed() => {
                    if changed.is_err() { return }
                    self.reconcile(&mut lingering, &mut sessions, &mut look).await;
                }
                _ = ticks.tick() => {
                    self.index.expire(Instant::now());
                    if self.stats.rescan.swap(false, Ordering::Relaxed) {
                        self.rescan();
                    }
                    // Cgroups that found no room may find some now, and streams are told.
                    let missed = self.stats.scope_full.load(Ordering::Relaxed);
                    if std::mem::replace(&mut scope_full, missed) != missed {
                        self.reconcile(&mut lingering, &mut sessions, &mut look).await;
                    }
                    if look.is_due() && let Err(error) = self.look_at_namespaces() {
                        tracing::debug!(error, "network namespaces are learnt only from what happens");
                    }
                    self.detach_lingering(&mut lingering);
                    let hooks = self.programs.status();
                    self.tell_skipped(&hooks, &mut skipped);
                    budget.tick(&hooks, &self.hub);
                    // There is something new about them, and streams are told.
                    let unmeasured = budget.note();
                    let news = self.unmeasured != unmeasured;
                    self.unmeasured = unmeasured;
                    if sessions.tick(&mut self.programs) | news {
                        self.reconcile(&mut lingering, &mut sessions, &mut look).await;
                    }
                    self.costs = budget.costs().clone();
                    self.show(&hooks);
                }
            }
        }
    }

    /// Brings the kernel in line with demand: first what attaches, then what is in scope, so that nothing is in scope unheard.
    async fn reconcile(
        &mut self,
        lingering: &mut HashMap<&'static str, Instant>,
        sessions: &mut Sessions,
        look: &mut Look,
    ) {
        let live = self.index.live();
        let mut demand = self
            .hub
            .demand(live.iter().map(|live| (live.id, &live.workload)), SLOTS);
        // A hook of another sensor could tell of one that is left out.
        let offered = self.programs.kinds();
        demand.kinds &= offered;
        let mut notes = Vec::new();
        // What the kernel leaves out is set before anyone counts on it, and taken back before anyone misses it.
        for &kind in Kind::ALL {
            let narrow = demand.narrow.iter().find(|(of, _)| *of == proto_kind(kind));
            let narrow = narrow.map(|(_, narrow)| narrowing(narrow));
            if let Err(error) = self.narrowing.set(kind, narrow.unwrap_or_default()) {
                tracing::error!(%error, ?kind, "the kernel's filter cannot be set");
                notes.push(format!(
                    "the kernel's filter of {kind:?} cannot be set ({error})"
                ));
            }
        }
        self.name_places(demand.kinds).await;
        let wanted = self.attach(demand.kinds);
        if demand.moved {
            self.hub.sync().await;
        }
        let now = Instant::now();
        for hook in every_hook() {
            if wanted.contains(hook) {
                lingering.remove(hook);
            } else {
                lingering.entry(hook).or_insert(now);
            }
        }
        let wanted: Vec<Wanted> = demand
            .cgroups
            .iter()
            .map(|want| Wanted {
                cgroup_id: want.cgroup_id,
                kinds: want.kinds & offered,
                slot: want.slot,
            })
            .collect();
        if let Err(error) = self.rates.apply(&paces(&demand, self.pod_rate)) {
            tracing::error!(%error, "the kernel's rates cannot be set");
            notes.push(format!("the kernel's rates cannot be set ({error})"));
        }
        if let Err(error) = self.scope.apply(&wanted) {
            tracing::error!("{error}");
            notes.push(error.to_string());
        }
        sessions.follow(&mut self.programs, demand.interval, &wanted);
        notes.extend(sessions.notes());
        notes.extend(self.unmeasured.clone());
        look.wanted = demand.kinds & BY_NAMESPACE != 0;
        if look.wanted {
            look.since_change = 0;
            notes.extend(self.look_at_namespaces().err());
        }
        let missed = self.stats.scope_full.load(Ordering::Relaxed);
        if missed > 0 {
            notes.push(format!(
                "{missed} new cgroups could not be watched at once, because the kernel's table was full: what ran in them until it had \
                 room was not seen"
            ));
        }
        self.hub.set_notes(notes);
        let hooks = self.programs.status();
        self.show(&hooks);
    }

    /// Has the kernel's functions at hand while somebody asks for drops one by one: reading them takes some 100 ms, and 5 MB.
    async fn name_places(&self, kinds: u64) {
        if kinds & Kind::Drop.bit() == 0 {
            return self.symbols.store(None);
        }
        if self.symbols.load().is_some() {
            return;
        }
        let read = tokio::task::spawn_blocking(|| {
            let bytes = std::fs::read(KALLSYMS).unwrap_or_default();
            Symbols::parse(&String::from_utf8_lossy(&bytes))
        });
        // Without names there are addresses, and a limit of the kind says so.
        self.symbols.store(read.await.ok().map(Arc::new));
    }

    /// Learns which network namespaces the tasks of pods are in, and forgets those of pods that are gone. The error is what to tell users.
    fn look_at_namespaces(&mut self) -> Result<(), String> {
        let Self {
            programs,
            namespaces,
            index,
            ..
        } = self;
        namespaces
            .tidy(|cgroup_id| index.get(cgroup_id).is_some())
            .map_err(|error| format!("the table of network namespaces cannot be read ({error})"))?;
        programs.iterate("task").map_err(|reason| {
            format!(
                "network namespaces of pods that run already are not known, so that drops without a socket are not told: {reason}"
            )
        })?;
        if namespaces.have_room() {
            return Ok(());
        }
        Err(format!(
            "more than {NETNS_MAX} network namespaces: drops in some of them are told only if they have a socket; narrow the selectors"
        ))
    }

    /// Attaches what these kinds need. Returns the hooks that are to stay.
    fn attach(&mut self, kinds: u64) -> HashSet<&'static str> {
        let Self { programs, .. } = self;
        let mut wanted = HashSet::new();
        let attach = |programs: &mut Programs, hook: &'static str| {
            let attached = programs.attach(hook);
            // Shown by `capabilities` with its reason; the other kinds go on.
            if let Err(error) = &attached {
                tracing::debug!(hook, error, "not attached");
            }
            attached.is_ok()
        };
        for kind in Kind::ALL.iter().filter(|kind| kinds & kind.bit() != 0) {
            // A route that loads but does not attach makes place for the next one. What is attached of it would tell events twice.
            for route in kind.routes() {
                if route.iter().all(|hook| attach(programs, hook)) {
                    wanted.extend(*route);
                    break;
                }
                for hook in route.iter().filter(|hook| !wanted.contains(*hook)) {
                    programs.detach(hook);
                }
            }
            for hook in kind.also() {
                attach(programs, hook);
                wanted.insert(*hook);
            }
        }
        wanted
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
    fn tell_skipped(&self, hooks: &[HookStatus], before: &mut HashMap<String, u64>) {
        for (hook, skipped) in skipped_for_good(hooks) {
            let old = before.insert(hook.to_owned(), skipped).unwrap_or(0);
            if skipped <= old {
                continue;
            }
            for &kind in Kind::ALL.iter().filter(|kind| kind.uses(hook)) {
                self.hub
                    .lose_everywhere(proto_kind(kind), Stage::KernelSkipped, skipped - old);
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

    fn show(&self, hooks: &[HookStatus]) {
        let mut node = node(hooks, self.programs.kinds());
        for program in &mut node.programs {
            program.cost = self.costs.programs.get(&program.hook).copied();
        }
        self.node.store(Arc::new(Node {
            watched: self.scope.watched(),
            costs: self.costs.clone(),
            ..node
        }));
    }
}

/// How often each hook was missed: where a second program makes up for the first, at most as often as either.
fn skipped_for_good(hooks: &[HookStatus]) -> Vec<(&str, u64)> {
    let firsts = hooks.iter().filter(|first| !first.hook.ends_with(AGAIN));
    let missed = firsts.map(|first| {
        let second = hooks.iter().find(|second| {
            second.chosen.is_some() && second.hook.strip_suffix(AGAIN) == Some(&first.hook)
        });
        let skipped = second.map_or(first.runs.skipped, |second| {
            first.runs.skipped.min(second.runs.skipped)
        });
        (first.hook.as_str(), skipped)
    });
    missed.collect()
}

/// Every hook that some kind may need.
fn every_hook() -> impl Iterator<Item = &'static str> {
    let hooks = |kind: &Kind| kind.routes().iter().copied().flatten().chain(kind.also());
    Kind::ALL.iter().flat_map(hooks).copied()
}

/// How much of each pod's events the kernel lets through: as many as the operator allows, and no more than those are told who listen.
fn paces(demand: &Demand, pod_rate: Option<u32>) -> HashMap<(u32, Kind), Pace> {
    let mut paces = HashMap::new();
    let events = || Kind::ALL.iter().filter(|kind| !kind.is_snapshot());
    if let Some(rate) = pod_rate {
        for want in &demand.cgroups {
            for &kind in events().filter(|kind| want.kinds & kind.bit() != 0) {
                paces.insert((want.slot, kind), Pace::PerSecond(rate));
            }
        }
    }
    for &kind in events() {
        let told = demand.fidelity.iter();
        for ((slot, _), fidelity) in told.filter(|((_, of), _)| *of == proto_kind(kind)) {
            let pace = match fidelity {
                Fidelity::Whole => continue,
                Fidelity::Sampled => {
                    let most = pod_rate.unwrap_or(u32::MAX);
                    Pace::PerSecond(most.min(Fidelity::SAMPLES_PER_SECOND))
                }
                Fidelity::Counted | Fidelity::Detached => Pace::Counted,
            };
            paces.insert((*slot, kind), pace);
        }
    }
    paces
}

/// The kernel's view of what a filter leaves out.
fn narrowing(narrow: &Narrow) -> Narrowing {
    let Narrow {
        failed,
        write,
        create,
        min_duration,
        prefix,
    } = narrow;
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let mut bytes = [0; Narrowing::PREFIX_MAX];
    // The beginning of a long prefix leaves out less than all of it.
    let len = prefix.len().min(bytes.len());
    bytes[..len].copy_from_slice(&prefix.as_bytes()[..len]);
    Narrowing {
        min_ns: u64::try_from(min_duration.as_nanos()).unwrap_or(u64::MAX),
        flags: flag(*failed, Narrowing::FAILED)
            | flag(*write, Narrowing::WRITE)
            | flag(*create, Narrowing::CREATE),
        prefix_len: len as u32,
        prefix: bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Runs, Way};

    fn skipped(hook: &str, skipped: u64, chosen: Option<Way>) -> HookStatus {
        HookStatus {
            hook: hook.to_owned(),
            ways: Vec::new(),
            chosen,
            attached: true,
            failure: None,
            runs: Runs {
                skipped,
                ..Runs::default()
            },
        }
    }

    #[test]
    fn what_a_second_program_notes_is_not_missed() {
        let way = Some(Way::TpBtf);
        let hooks = [
            skipped("alone", 3, way),
            skipped("first", 5, way),
            skipped("first__again", 2, way),
            skipped("other", 7, way),
            skipped("other__again", 0, None),
        ];
        assert_eq!(
            skipped_for_good(&hooks),
            [("alone", 3), ("first", 2), ("other", 7)]
        );
    }
}
