//! The way of an event, from top to bottom: ring → open → identify → route → decode → publish. One thread, the reader, goes it
//! for all events; it waits for nothing but the kernel.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dinle_ebpf::Kind;
use dinle_proto::v1;

use crate::{
    event::{self, Context, Envelope, Names},
    hub::{Command, IdMap, Publisher, Stage, Targets, encode_name},
    kernel::{CgroupEvent, Counters, Reader, Ring, Tables, boot_ns, boot_unix_ns},
    workload::Index,
};

/// Frames between two looks at the tracker, at commands and at who listens: bounds their delay under load to some ten milliseconds.
const PASS: usize = 8192;

/// How often losses are read from the kernel and the clock is compared.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What the reader tells the rest of the agent. Counters only grow.
#[derive(Debug, Default)]
pub struct Stats {
    /// Frames taken out of the ring, by kind.
    pub frames: [AtomicU64; Kind::TABLE as usize],
    /// Frames that could not be read.
    pub undecodable: AtomicU64,
    /// Records that the tracker's ring had no room for.
    pub tracker_lost: AtomicU64,
    /// New cgroups that could not inherit their parent's scope.
    pub scope_full: AtomicU64,
    /// The tree of cgroups must be walked anew.
    pub rescan: AtomicBool,
    /// Rounds of the loop: a reader that stands still is stuck.
    pub rounds: AtomicU64,
}

/// The reader.
pub struct Pipeline {
    /// Where frames come from.
    pub reader: Reader,
    /// What the kernel counted.
    pub counters: Counters,
    /// What the kernel added up.
    pub tables: Tables,
    /// Names that this kernel gives to numbers.
    pub names: Arc<Names>,
    /// Who a cgroup is.
    pub index: Index,
    /// Where events go.
    pub publisher: Publisher,
    /// What is told.
    pub stats: Arc<Stats>,
    /// Ends the loop.
    pub stop: Arc<AtomicBool>,
}

impl Pipeline {
    /// Runs until it is stopped. Give it a thread of its own.
    pub fn run(self) {
        let Self {
            mut reader,
            mut counters,
            mut tables,
            names,
            index,
            publisher,
            stats,
            stop,
        } = self;
        let mut router = Router::new(index.clone(), publisher, stats.clone(), names);
        let mut housekeeping = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            stats.rounds.fetch_add(1, Ordering::Relaxed);
            // Taken first: what happened before a command is in the rings and on the board by now.
            let commands = router.publisher.commands();
            track(&mut reader.cgroups, &index);
            if router.publisher.is_stale() {
                // What was lost until now is told to those who listened until now, and to nobody else.
                losses(&mut counters, &mut router.publisher, &stats);
                sums(&mut tables, &mut reader.cgroups, &mut router);
                pass_over(&mut tables, &router);
                report(counters.begin(router.listeners_changed()));
            }
            router.workloads_changed();
            let drain = if commands.is_empty() {
                PASS
            } else {
                reader.frames_max
            };
            let Reader {
                events, cgroups, ..
            } = &mut reader;
            let mut frames = 0;
            // A cgroup that is new: the tracker told of it before anything ran in it.
            while frames < drain
                && events
                    .next(|frame| router.frame(frame, || track(cgroups, &index)))
                    .is_some()
            {
                frames += 1;
            }
            router.publisher.flush();
            let finished = router.publisher.take_finished();
            if !commands.is_empty()
                || !finished.is_empty()
                || housekeeping.elapsed() >= HOUSEKEEPING
            {
                housekeeping = Instant::now();
                router.context.clock.boot_unix_ns = boot_unix_ns();
                losses(&mut counters, &mut router.publisher, &stats);
                sums(&mut tables, &mut reader.cgroups, &mut router);
                router.publisher.tell_sums(Instant::now());
            }
            for id in finished {
                router.publisher.finish(id, v1::EndReason::MaxEvents);
            }
            for command in commands {
                match command {
                    Command::Finish(id, reason) => router.publisher.finish(id, reason),
                    // Whoever asked may have left.
                    Command::Sync(done) => _ = done.send(()),
                }
            }
            if let Err(error) = reader.sleeper.wait(frames > 0) {
                tracing::error!(%error, "the reader cannot ask the kernel to be woken; it looks every millisecond instead");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Takes one frame after another to those who want them.
pub struct Router {
    index: Index,
    /// Where events go.
    pub publisher: Publisher,
    stats: Arc<Stats>,
    context: Context,
    epoch: u64,
    routes: IdMap<Route>,
    peers: Peers,
}

/// Which pods have the addresses that were seen of late. Parsing one and asking the index costs more than a session is worth.
#[derive(Default)]
struct Peers(HashMap<String, Option<v1::WorkloadName>>);

/// Addresses that [`Peers`] remembers, at about 200 bytes each; then it forgets them all. Most nodes talk to fewer.
const PEERS_MAX: usize = 4096;

impl Peers {
    /// Names the pods at the other ends of an event.
    fn name(&mut self, event: &mut v1::Event, index: &Index) {
        let Self(known) = self;
        for end in event::peers(event) {
            if let Some(name) = known.get(&end.address) {
                end.workload.clone_from(name);
                continue;
            }
            if known.len() >= PEERS_MAX {
                known.clear();
            }
            let address = end.address.parse().ok();
            end.workload = address.and_then(|address| index.pod_of_address(address));
            known.insert(end.address.clone(), end.workload.clone());
        }
    }
}

/// What is decided once for a cgroup, until workloads or listeners change.
struct Route {
    workload: Arc<v1::Workload>,
    name: Vec<u8>,
    /// Listeners by kind.
    targets: [Targets; Kind::TABLE as usize],
}

impl Router {
    /// A router that has decided nothing yet.
    pub fn new(index: Index, publisher: Publisher, stats: Arc<Stats>, names: Arc<Names>) -> Self {
        let epoch = index.epoch();
        let context = Context::new(boot_unix_ns(), names);
        Self {
            index,
            publisher,
            stats,
            context,
            epoch,
            routes: IdMap::default(),
            peers: Peers::default(),
        }
    }

    /// Takes note of who listens and who runs now. For those who have no kernel to count losses in.
    pub fn refresh(&mut self) {
        if self.publisher.is_stale() {
            self.listeners_changed();
        }
        self.workloads_changed();
    }

    /// Takes note of who listens now. Returns the slots that nobody watched before.
    pub fn listeners_changed(&mut self) -> Vec<u32> {
        self.routes.clear();
        self.publisher.refresh()
    }

    /// Takes note of who runs now, if that has changed.
    pub fn workloads_changed(&mut self) {
        let Self {
            index,
            publisher,
            epoch,
            routes,
            peers: Peers(peers),
            ..
        } = self;
        if index.epoch() != *epoch {
            *epoch = index.epoch();
            routes.clear();
            peers.clear();
            publisher.workloads_changed(|cgroup_id| index.get(cgroup_id));
        }
    }

    /// Takes a frame its way. `track` makes the index know of cgroups that are new.
    pub fn frame(&mut self, frame: &[u8], track: impl FnOnce()) {
        let Self {
            index,
            publisher,
            stats,
            context,
            routes,
            peers,
            ..
        } = self;
        let envelope = match event::open(frame) {
            Ok(envelope) => envelope,
            Err(error) => {
                undecodable(stats, &error);
                return publisher.lose_unread();
            }
        };
        let Envelope { header, kind, .. } = &envelope;
        let proto_kind = event::proto_kind(*kind);
        stats.frames[*kind as usize].fetch_add(1, Ordering::Relaxed);
        let route = match routes.entry(header.cgroup_id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                track();
                if index.get(header.cgroup_id).is_none() {
                    stats.rescan.store(true, Ordering::Relaxed);
                }
                let Some(workload) = identify(index, publisher, header.cgroup_id, header.slot)
                else {
                    return if kind.is_snapshot() {
                        // Its slot is not known either.
                        publisher.lose_everywhere(proto_kind, Stage::Agent, 1)
                    } else {
                        publisher.lose(header.slot, proto_kind, Stage::Agent, 1)
                    };
                };
                new.insert(Route::new(workload, publisher))
            }
        };
        let Targets { whole, redacted } = route.targets[*kind as usize];
        if whole | redacted == 0 {
            return;
        }
        let mut event = match event::decode(&envelope, context) {
            Ok(event) => event,
            Err(error) => {
                undecodable(stats, &error);
                return publisher.lose(header.slot, proto_kind, Stage::Agent, 1);
            }
        };
        peers.name(&mut event, index);
        // Kinds that have other ends have neither arguments nor paths.
        let strangers = event::peers(&mut event)
            .filter_map(|end| end.workload.as_ref())
            .filter(|name| name.namespace != route.workload.namespace)
            .fold(0, |all, name| {
                all | publisher.strangers(whole, proto_kind, &name.namespace)
            });
        let mut tell = |event: &v1::Event, targets| match kind.is_snapshot() {
            true => publisher.add_up(event, &route.workload, targets),
            false => publisher.publish(event, proto_kind, &route.workload, &route.name, targets),
        };
        if whole & !strangers != 0 {
            tell(&event, whole & !strangers);
        }
        if strangers != 0 {
            event::hide_peers(&mut event, &route.workload.namespace);
            tell(&event, strangers);
        }
        if redacted != 0 {
            event::redact(&mut event);
            tell(&event, redacted);
        }
    }
}

impl Route {
    fn new(workload: Arc<v1::Workload>, publisher: &Publisher) -> Self {
        let mut targets = [Targets::default(); Kind::TABLE as usize];
        for &kind in Kind::ALL {
            targets[kind as usize] = publisher.targets(event::proto_kind(kind), &workload);
        }
        Self {
            name: encode_name(&workload),
            workload,
            targets,
        }
    }
}

/// Who that is. A cgroup that nobody told of is at least of the pod whose slot it inherited.
fn identify(
    index: &Index,
    publisher: &Publisher,
    cgroup_id: u64,
    slot: u32,
) -> Option<Arc<v1::Workload>> {
    index.get(cgroup_id).or_else(|| {
        let pod = publisher.pod_of_slot(slot)?;
        Some(Arc::new(v1::Workload {
            cgroup_id,
            cgroup_path: String::new(),
            ..(*pod).clone()
        }))
    })
}

fn track(cgroups: &mut Ring, index: &Index) {
    while cgroups.cgroup(|event| note(index, event)).is_some() {}
}

fn note(index: &Index, event: Option<CgroupEvent<'_>>) {
    match event {
        Some(CgroupEvent::Created {
            id,
            parent_id,
            path,
            path_cut,
        }) => index.cgroup_created(id, parent_id, &path, path_cut),
        Some(CgroupEvent::Released { id }) => index.cgroup_released(id),
        None => tracing::error!("a record of the cgroup tracker is malformed"),
    }
}

fn undecodable(stats: &Stats, error: &event::DecodeError) {
    // The first of them is enough to see what is wrong, and the counter tells how many there were.
    if stats.undecodable.fetch_add(1, Ordering::Relaxed) == 0 {
        tracing::error!(%error, "a frame of the ring is malformed");
    }
}

/// Takes what the kernel added up since the last time the way of all frames.
fn sums(tables: &mut Tables, cgroups: &mut Ring, router: &mut Router) {
    let now = boot_ns();
    let index = router.index.clone();
    let exists = |cgroup_id| index.get(cgroup_id).is_some();
    for &kind in Kind::ALL.iter().filter(|kind| kind.is_snapshot()) {
        if router.publisher.hears(event::proto_kind(kind)) {
            report(tables.read(kind, now, exists, |frame| {
                router.frame(frame, || track(cgroups, &index));
            }));
        }
    }
}

/// Passes over what was added up while nobody listened: whoever begins to listen now is told what happens from now on.
fn pass_over(tables: &mut Tables, router: &Router) {
    let exists = |cgroup_id| router.index.get(cgroup_id).is_some();
    for &kind in Kind::ALL.iter().filter(|kind| kind.is_snapshot()) {
        if !router.publisher.hears(event::proto_kind(kind)) {
            report(tables.read(kind, 0, exists, |_| ()));
        }
    }
}

fn losses(counters: &mut Counters, publisher: &mut Publisher, stats: &Stats) {
    for loss in report(counters.losses(publisher.watched_slots())) {
        let kind = event::proto_kind(loss.kind);
        for (stage, count) in [
            (Stage::KernelRing, loss.ring),
            (Stage::KernelTable, loss.table),
            (Stage::RateLimit, loss.rate),
            (Stage::KernelSkipped, loss.skipped),
        ] {
            if count > 0 {
                publisher.lose(loss.slot, kind, stage, count);
            }
        }
    }
    let counts = report(counters.tracker());
    stats.tracker_lost.fetch_add(counts.lost, Ordering::Relaxed);
    stats
        .scope_full
        .fetch_add(counts.scope_full, Ordering::Relaxed);
    if counts.lost > 0 {
        stats.rescan.store(true, Ordering::Relaxed);
    }
}

/// Counters of our own maps can be read. Should the kernel ever say otherwise, the next look finds what this one missed.
fn report<T: Default>(counted: Result<T, impl std::fmt::Display>) -> T {
    counted.unwrap_or_else(|error| {
        tracing::error!(%error, "the kernel's counters cannot be read");
        T::default()
    })
}

#[cfg(test)]
mod tests;
