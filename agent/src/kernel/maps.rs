//! Maps that the agent writes and reads: scope, and counters.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap as BpfHashMap, MapData, MapError, PerCpuArray},
};
use dinle_ebpf::{
    Counts, Kind, Narrowing, Rate, SCOPE_MAX, ScopeEntry, TrackerCounts, block::Request,
    drop::NETNS_MAX,
};

use super::{LoadError, causes, take_map};

/// Lets aya pass a wire type by value.
macro_rules! pod {
    ($($name:ident = $inner:ty;)*) => {$(
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(transparent)]
        struct $name($inner);

        // SAFETY: the wire's types are `#[repr(C)]` integers without padding (zerocopy's derives check it), valid for any bytes.
        unsafe impl Pod for $name {}
    )*};
}
pod! {
    ScopePod = ScopeEntry;
    CountsPod = Counts;
    TrackerPod = TrackerCounts;
    NarrowingPod = Narrowing;
    RatePod = Rate;
}

/// A request to a disk that is under way.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct RequestPod(Request);

// SAFETY: as above.
unsafe impl Pod for RequestPod {}

/// Takes everything out of a map with keys of 8 bytes, while programs may fill it.
pub(super) fn empty<V: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<(), String> {
    let failed = |error: MapError| format!("{name} cannot be emptied ({})", causes(&error));
    let Some(map) = ebpf.map_mut(name) else {
        return Err(format!("the object has no map {name}"));
    };
    let mut map = BpfHashMap::<_, u64, V>::try_from(map).map_err(failed)?;
    let known: Vec<u64> = map.keys().collect::<Result<_, _>>().map_err(failed)?;
    for key in known {
        match map.remove(&key) {
            // A program may take it out at any moment.
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// What is wanted of one cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The cgroup.
    pub cgroup_id: u64,
    /// [`Kind::bit`] of each kind; 0 if nothing is wanted of it.
    pub kinds: u64,
    /// Where its events and losses are counted.
    pub slot: u32,
}

/// Which cgroups the kernel reports on, and what of them.
pub struct Scope {
    map: BpfHashMap<MapData, u64, ScopePod>,
    /// What this has put in, and not taken out.
    put: HashSet<u64>,
    watched: usize,
}

/// Why the kernel does not report on all cgroups that are wanted.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// The map's size is fixed.
    #[error(
        "{missed} cgroups are not watched: the kernel's table holds {SCOPE_MAX}; narrow the selectors"
    )]
    Full {
        /// How many found no room.
        missed: usize,
    },
    /// Something else.
    #[error("the kernel's scope table cannot be written: {0}")]
    Map(#[from] MapError),
}

impl Scope {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let name = "SCOPE";
        let map = BpfHashMap::try_from(take_map(ebpf, name)?)
            .map_err(|error| LoadError::Map { name, error })?;
        Ok(Self {
            map,
            put: HashSet::new(),
            watched: 0,
        })
    }

    /// Makes the kernel report on the cgroups of `live` that are wanted, and not on the others of `live`. Cgroups that are not in
    /// the list are left alone: they may be new, and have inherited what is wanted of them. Parents must come before their
    /// children, so that a child that is made meanwhile inherits what its parent has now.
    pub fn apply(&mut self, live: &[Wanted]) -> Result<(), ScopeError> {
        let Self { map, put, watched } = self;
        let present: HashMap<u64, ScopeEntry> = map
            .iter()
            .map(|row| row.map(|(id, ScopePod(entry))| (id, entry)))
            .collect::<Result<_, _>>()?;
        // The kernel forgets a cgroup when that is released. One that is put in while the news of it is on its way would stay for ever.
        let there: HashSet<u64> = live.iter().map(|one| one.cgroup_id).collect();
        let gone: Vec<u64> = put.difference(&there).copied().collect();
        for cgroup_id in gone {
            if present.contains_key(&cgroup_id) {
                remove(map, cgroup_id)?;
            }
            // Only now: what could not be removed is tried again.
            put.remove(&cgroup_id);
        }
        // Room is made before it is used.
        for Wanted { cgroup_id, .. } in live
            .iter()
            .filter(|one| one.kinds == 0 && present.contains_key(&one.cgroup_id))
        {
            remove(map, *cgroup_id)?;
        }
        let mut missed = 0;
        *watched = 0;
        for &Wanted {
            cgroup_id,
            kinds,
            slot,
        } in live.iter().filter(|one| one.kinds != 0)
        {
            let entry = ScopeEntry {
                kinds,
                slot,
                reserved: 0,
            };
            if present.get(&cgroup_id) != Some(&entry) {
                match map.insert(cgroup_id, ScopePod(entry), 0) {
                    Ok(()) => _ = put.insert(cgroup_id),
                    Err(MapError::SyscallError(error))
                        if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
                    {
                        missed += 1;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            *watched += 1;
        }
        if missed > 0 {
            Err(ScopeError::Full { missed })
        } else {
            Ok(())
        }
    }

    /// How many cgroups are watched, as of the last [`Scope::apply`].
    pub fn watched(&self) -> usize {
        self.watched
    }
}

fn remove(map: &mut BpfHashMap<MapData, u64, ScopePod>, cgroup_id: u64) -> Result<(), MapError> {
    match map.remove(&cgroup_id) {
        // The tracker removes what is released.
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// What is not worth a frame, by kind.
pub struct Narrowings {
    map: Array<MapData, NarrowingPod>,
    set: HashMap<Kind, Narrowing>,
}

impl Narrowings {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let name = "NARROWING";
        let map = Array::try_from(take_map(ebpf, name)?)
            .map_err(|error| LoadError::Map { name, error })?;
        Ok(Self {
            map,
            set: HashMap::new(),
        })
    }

    /// Makes the kernel leave out what `narrowing` says of that kind.
    pub fn set(&mut self, kind: Kind, narrowing: Narrowing) -> Result<(), MapError> {
        if self.set.insert(kind, narrowing).unwrap_or_default() == narrowing {
            return Ok(());
        }
        self.map.set(kind as u32, NarrowingPod(narrowing), 0)
    }
}

/// How many events of one slot and kind may come out of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pace {
    /// All of them.
    #[default]
    All,
    /// So many a second, at least 1, and as many at once.
    PerSecond(u32),
    /// None; they are counted.
    Counted,
}

impl Pace {
    /// As the kernel half keeps it.
    fn rate(self) -> Rate {
        let share_ns = match self {
            Self::All => 0,
            Self::PerSecond(events) => (Rate::BURST_NS / u64::from(events.max(1))).max(1),
            Self::Counted => Rate::NONE,
        };
        Rate {
            share_ns,
            full_at_ns: 0,
        }
    }
}

/// How many events the kernel lets through.
pub struct Rates {
    map: Array<MapData, RatePod>,
    set: HashMap<(u32, Kind), Pace>,
}

impl Rates {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let name = "RATES";
        let map = Array::try_from(take_map(ebpf, name)?)
            .map_err(|error| LoadError::Map { name, error })?;
        Ok(Self {
            map,
            set: HashMap::new(),
        })
    }

    /// Lets so many events of each slot and kind through, and all of those that are not named.
    pub fn apply(&mut self, paces: &HashMap<(u32, Kind), Pace>) -> Result<(), MapError> {
        let Self { map, set } = self;
        let pace = |of: &(u32, Kind)| paces.get(of).copied().unwrap_or_default();
        let changed: Vec<_> = paces
            .keys()
            .chain(set.keys())
            .filter(|of| pace(of) != set.get(of).copied().unwrap_or_default())
            .copied()
            .collect();
        for of @ (slot, kind) in changed {
            let pace = pace(&of);
            map.set(slot * Kind::TABLE + kind as u32, RatePod(pace.rate()), 0)?;
            match pace {
                Pace::All => set.remove(&of),
                pace => set.insert(of, pace),
            };
        }
        Ok(())
    }
}

/// Between two times that all network namespaces are forgotten. Until they are learnt anew, in milliseconds, drops without a socket are not told.
const FORGET_AGAIN: Duration = Duration::from_secs(60);

/// Whose the network namespaces are: filled by the kernel, kept tidy here.
pub struct Namespaces {
    map: BpfHashMap<MapData, u64, u64>,
    /// When all were forgotten last.
    forgotten: Option<Instant>,
}

impl Namespaces {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let name = "NETNS";
        let map = BpfHashMap::try_from(take_map(ebpf, name)?)
            .map_err(|error| LoadError::Map { name, error })?;
        Ok(Self {
            map,
            forgotten: None,
        })
    }

    /// Forgets those of cgroups that are gone. If that leaves no room, all of them: a pod may have made one after the other, and most be gone though
    /// the pod is not. Those that are there are to be learnt anew at once.
    pub fn tidy(&mut self, exists: impl Fn(u64) -> bool) -> Result<(), MapError> {
        let known: Vec<(u64, u64)> = self.map.iter().filter_map(Result::ok).collect();
        let (stay, gone): (Vec<_>, Vec<_>) =
            known.into_iter().partition(|(_, cgroup)| exists(*cgroup));
        self.forget(gone)?;
        let lately = |since: Instant| since.elapsed() < FORGET_AGAIN;
        if stay.len() >= NETNS_MAX as usize && !self.forgotten.is_some_and(lately) {
            self.forgotten = Some(Instant::now());
            self.forget(stay)?;
        }
        Ok(())
    }

    fn forget(&mut self, namespaces: Vec<(u64, u64)>) -> Result<(), MapError> {
        for (namespace, _) in namespaces {
            match self.map.remove(&namespace) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether there is room for more.
    pub fn have_room(&self) -> bool {
        self.map.keys().filter_map(Result::ok).count() < NETNS_MAX as usize
    }
}

/// Events that found no room in the ring, or in a table, since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The pod's slot.
    pub slot: u32,
    /// Of this kind.
    pub kind: Kind,
    /// So many for lack of room in the ring.
    pub ring: u64,
    /// So many for lack of room in a table.
    pub table: u64,
    /// So many because they were beyond their pace.
    pub rate: u64,
    /// So many because the kernel did not run a program.
    pub skipped: u64,
}

/// What the kernel counted: monotonic, per CPU, summed here.
pub struct Counters {
    counts: PerCpuArray<MapData, CountsPod>,
    tracker: PerCpuArray<MapData, TrackerPod>,
    /// As of the last look.
    lost: HashMap<(u32, Kind), Counts>,
    tracker_lost: u64,
    scope_full: u64,
}

impl Counters {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let array =
            |ebpf: &mut Ebpf, name| -> Result<_, LoadError> { Ok((take_map(ebpf, name)?, name)) };
        let (counts, name) = array(ebpf, "COUNTS")?;
        let counts =
            PerCpuArray::try_from(counts).map_err(|error| LoadError::Map { name, error })?;
        let (tracker, name) = array(ebpf, "TRACKER")?;
        let tracker =
            PerCpuArray::try_from(tracker).map_err(|error| LoadError::Map { name, error })?;
        Ok(Self {
            counts,
            tracker,
            lost: HashMap::new(),
            tracker_lost: 0,
            scope_full: 0,
        })
    }

    /// What the kernel counted of one slot and kind since it was loaded.
    pub fn total(&self, slot: u32, kind: Kind) -> Result<Counts, MapError> {
        let values = self.counts.get(&(slot * Kind::TABLE + kind as u32), 0)?;
        Ok(values
            .iter()
            .fold(Counts::default(), |sum, CountsPod(one)| Counts {
                seen: sum.seen + one.seen,
                lost: sum.lost + one.lost,
                missed: sum.missed + one.missed,
                limited: sum.limited + one.limited,
                skipped: sum.skipped + one.skipped,
            }))
    }

    /// What was lost in these slots since the last call.
    pub fn losses(&mut self, slots: impl IntoIterator<Item = u32>) -> Result<Vec<Loss>, MapError> {
        let mut losses = Vec::new();
        for slot in slots {
            for &kind in Kind::ALL {
                let now = Counts {
                    seen: 0,
                    ..self.total(slot, kind)?
                };
                let before = self.lost.insert((slot, kind), now).unwrap_or_default();
                if now != before {
                    losses.push(Loss {
                        slot,
                        kind,
                        ring: now.lost - before.lost,
                        table: now.missed - before.missed,
                        rate: now.limited - before.limited,
                        skipped: now.skipped - before.skipped,
                    });
                }
            }
        }
        Ok(losses)
    }

    /// Forgets what was lost in these slots before: they count for others from now on.
    pub fn begin(&mut self, slots: impl IntoIterator<Item = u32>) -> Result<(), MapError> {
        self.losses(slots).map(|_| ())
    }

    /// What the tracker could not do since the last call.
    pub fn tracker(&mut self) -> Result<TrackerCounts, MapError> {
        let values = self.tracker.get(&0, 0)?;
        let lost = values.iter().map(|TrackerPod(one)| one.lost).sum();
        let scope_full = values.iter().map(|TrackerPod(one)| one.scope_full).sum();
        let since = TrackerCounts {
            lost: lost - self.tracker_lost,
            scope_full: scope_full - self.scope_full,
        };
        (self.tracker_lost, self.scope_full) = (lost, scope_full);
        Ok(since)
    }
}
