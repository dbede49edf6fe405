//! CONTROL: carries demand from the hub to the kernel, and the kernel's answers back. Off the event path: it may take its time.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, LazyLock, atomic::Ordering},
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use dinle_ebpf::{Kind, Narrowing, SLOTS, drop::NETNS_MAX, tcp::SOCKETS_MAX};
use dinle_proto::v1;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    event::{Symbols, proto_kind},
    filter::Narrow,
    hub::{Hub, Stage},
    kernel::{AGAIN, HookStatus, Namespaces, Narrowings, Programs, Scope, Wanted, WayStatus},
    pipeline::Stats,
    workload::Index,
};

/// How often skipped runs are read, lingering programs detached and forgotten workloads dropped.
const TICK: Duration = Duration::from_secs(1);

/// Kinds that know pods by their network namespaces.
const BY_NAMESPACE: u64 = Kind::Drop.bit() | Kind::DropCount.bit();

/// Where the kernel shows its functions.
const KALLSYMS: &str = "/proc/kallsyms";

/// When to look at the network namespaces of all tasks. Most are learnt when a program starts; a process can enter another one later.
/// It costs some 0.2 µs a task.
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
    /// What of it the kernel leaves out.
    pub narrowing: Narrowings,
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
                    self.tell_skipped(&mut skipped);
                    self.detach_lingering(&mut lingering);
                    match sessions.tick(&mut self.programs) {
                        // More of them could not be remembered, and streams are told.
                        Ok(true) => self.reconcile(&mut lingering, &mut sessions, &mut look).await,
                        Ok(false) => {}
                        // It was told when somebody began to listen, and is the same each time.
                        Err(error) => tracing::debug!(error, "sessions are not reported on"),
                    }
                    self.show();
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
        let demand = self
            .hub
            .demand(live.iter().map(|live| (live.id, &live.workload)), SLOTS);
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
                kinds: want.kinds,
                slot: want.slot,
            })
            .collect();
        if let Err(error) = self.scope.apply(&wanted) {
            tracing::error!("{error}");
            notes.push(error.to_string());
        }
        if let Err(error) = sessions.follow(&mut self.programs, demand.interval, &wanted) {
            tracing::error!("{error}");
            notes.push(format!(
                "TCP sessions that were open before are told only when they end ({error})"
            ));
        }
        if sessions.unremembered > 0 {
            notes.push(format!(
                "{} TCP sessions began while {SOCKETS_MAX} others were open: they are told without their beginning, and some without \
                 their process",
                sessions.unremembered
            ));
        }
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
        self.show();
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
        let room = namespaces
            .retain(|cgroup_id| index.get(cgroup_id).is_some())
            .map_err(|error| format!("the table of network namespaces cannot be read ({error})"))?;
        programs.iterate("task").map_err(|reason| {
            format!(
                "network namespaces of pods that run already are not known, so that drops without a socket are not told: {reason}"
            )
        })?;
        if room {
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
    fn tell_skipped(&mut self, before: &mut HashMap<String, u64>) {
        for (hook, skipped) in skipped_for_good(&self.programs.status()) {
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

    fn show(&mut self) {
        let hooks = self.programs.status();
        self.node.store(Arc::new(Node {
            watched: self.scope.watched(),
            ..node(&hooks)
        }));
    }
}

/// What the kernel half remembers of TCP sessions.
#[derive(Default)]
struct Sessions {
    /// Cgroups that existed at the last look, and whether their sessions were listened to.
    cgroups: HashMap<u64, bool>,
    /// Somebody listened to some.
    remembered: bool,
    /// Those that go on are reported on.
    reported: bool,
    /// How many began while there was no room to remember them.
    unremembered: u64,
}

impl Sessions {
    /// Makes the kernel half remember the sessions that are wanted now, those that are open already included.
    fn follow(
        &mut self,
        programs: &mut Programs,
        interval: Option<Duration>,
        wanted: &[Wanted],
    ) -> Result<(), String> {
        const KINDS: u64 = Kind::TcpSession.bit()
            | Kind::TcpConnect.bit()
            | Kind::TcpReset.bit()
            | Kind::TcpRetransmit.bit();
        let now: HashMap<u64, bool> = wanted
            .iter()
            .map(|want| (want.cgroup_id, want.kinds & KINDS != 0))
            .collect();
        let before = std::mem::replace(&mut self.cgroups, now);
        let remembered = self.cgroups.values().any(|wanted| *wanted);
        self.reported = interval.is_some() && remembered;
        if let Some(interval) = interval {
            programs.set_session_interval(interval)?;
        }
        if std::mem::replace(&mut self.remembered, remembered) != remembered {
            // Those that nobody listens to go on unheard, so that nothing is known of them any more.
            programs.forget_sessions()?;
        }
        // In a cgroup that is new all sessions are heard of from the first on.
        let found = self
            .cgroups
            .iter()
            .any(|(id, wanted)| *wanted && before.get(id).is_some_and(|listened| !listened));
        if found || remembered && before.is_empty() {
            programs.find_sessions()?;
        }
        Ok(())
    }

    /// Makes the kernel half report on those that go on. Whether more than before could not be remembered.
    fn tick(&mut self, programs: &mut Programs) -> Result<bool, String> {
        if !self.remembered {
            return Ok(false);
        }
        let unremembered = programs.unremembered_sessions()?;
        let news = std::mem::replace(&mut self.unremembered, unremembered) != unremembered;
        if self.reported {
            programs.report_sessions()?;
        }
        Ok(news)
    }
}

/// How often each hook was missed: where a second program makes up for the first, at most as often as either.
fn skipped_for_good(hooks: &[HookStatus]) -> Vec<(&str, u64)> {
    let firsts = hooks.iter().filter(|first| !first.hook.ends_with(AGAIN));
    let missed = firsts.map(|first| {
        let second = hooks.iter().find(|second| {
            second.chosen.is_some() && second.hook.strip_suffix(AGAIN) == Some(&first.hook)
        });
        let skipped = second.map_or(first.skipped, |second| first.skipped.min(second.skipped));
        (first.hook.as_str(), skipped)
    });
    missed.collect()
}

/// Every hook that some kind may need.
fn every_hook() -> impl Iterator<Item = &'static str> {
    let hooks = |kind: &Kind| kind.routes().iter().copied().flatten().chain(kind.also());
    Kind::ALL.iter().flat_map(hooks).copied()
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
    let find = |name: &str| hooks.iter().find(|status| status.hook == name);
    let refusal = |name: &&str| match find(name) {
        Some(status) => status.reason(),
        None => Some(format!("this build has no program for {name}")),
    };
    let capability = |&kind: &Kind| {
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
        Kind::FileOpen => &["opens that the kernel makes for itself, as for execve, are left out"],
        Kind::FileDelete if syscalls => &[
            "system calls are heard: what io_uring and 32-bit programs do is not seen",
            "inode and size before are not known",
            "the path is joined from the name that the process gave, symbolic links not followed",
            "a rename is told whether or not it replaced a file",
        ],
        Kind::FileDelete => &[
            "what fails before the file is found, as for lack of permission on the way, is not seen",
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
        ],
        Kind::Drop | Kind::DropCount => &[
            "what the node drops outside of a pod's own network namespace is told only if the packet still has the pod's socket",
            "kernels before 5.17 give no reason, and free some packets in this way that were not dropped",
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Way;

    fn skipped(hook: &str, skipped: u64, chosen: Option<Way>) -> HookStatus {
        HookStatus {
            hook: hook.to_owned(),
            ways: Vec::new(),
            chosen,
            attached: true,
            failure: None,
            skipped,
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
