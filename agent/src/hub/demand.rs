//! What all listeners together want of the kernel.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use dinle_proto::v1;

use super::{Fidelity, Hub};
use crate::filter::{Narrow, Request};

/// Time between two reports on a session that goes on, for those who do not say.
const SESSION_INTERVAL: Duration = Duration::from_secs(30);

/// What is wanted of one cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The cgroup.
    pub cgroup_id: u64,
    /// One bit for each kind, by its number; 0 if nothing is wanted.
    pub kinds: u64,
    /// Where the kernel counts its events.
    pub slot: u32,
}

/// What is wanted of all cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// One for each cgroup that was asked about, in the same order.
    pub cgroups: Vec<Want>,
    /// Kinds that somebody listens to, whether or not a pod matches yet.
    pub kinds: u64,
    /// Pods are counted in other slots than before, or told to others: the reader must know before the kernel does.
    pub moved: bool,
    /// What nobody asks for of each of the kinds.
    pub narrow: Vec<(v1::Kind, Narrow)>,
    /// Slots and kinds of which everyone who listens is told less than everything: what those are told who are told most.
    pub fidelity: HashMap<(u32, v1::Kind), Fidelity>,
    /// Time between two reports on a session that goes on: the shortest that somebody asks for. `None`: nobody hears of sessions.
    pub interval: Option<Duration>,
}

/// Who is counted where. A pod has a slot of its own while it is watched; slot 0 is for host processes, and for pods when slots
/// run out: their losses are then told to everyone who watches any of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    by_pod: HashMap<String, u32>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Slot {
    /// Listeners that watch it.
    listeners: u64,
    pod: Option<Arc<v1::Workload>>,
}

impl Slots {
    pub(super) fn listeners(&self, slot: u32) -> u64 {
        self.slots
            .get(slot as usize)
            .map_or(0, |slot| slot.listeners)
    }

    /// The pod that is counted there.
    pub(super) fn pod(&self, slot: u32) -> Option<&Arc<v1::Workload>> {
        self.slots.get(slot as usize)?.pod.as_ref()
    }

    /// How many pods have a slot.
    pub(super) fn pods(&self) -> usize {
        self.by_pod.len()
    }

    /// Slots that somebody watches.
    pub(super) fn watched(&self) -> impl Iterator<Item = u32> {
        self.slots
            .iter()
            .zip(0..)
            .filter(|(slot, _)| slot.listeners != 0)
            .map(|(_, at)| at)
    }
}

impl Hub {
    /// What the kernel should report, given the cgroups that exist. `slots` is how many slots there are.
    pub fn demand<'a>(
        &self,
        live: impl IntoIterator<Item = (u64, &'a Arc<v1::Workload>)>,
        slots: u32,
    ) -> Demand {
        let board = self.board();
        let mut demand = Demand::default();
        for (bit, listener) in board.listeners() {
            let Request {
                kinds,
                filter,
                interval,
                ..
            } = &listener.request;
            let heard = board.hears_at_all(bit, listener);
            demand.kinds |= heard.bits();
            for kind in heard.iter() {
                // What is heard for the filter's sake alone is wanted whole.
                let own = if kinds.contains(kind) {
                    filter.narrow()
                } else {
                    Narrow::default()
                };
                match demand.narrow.iter_mut().find(|(known, _)| *known == kind) {
                    Some((_, narrow)) => *narrow = std::mem::take(narrow).join(&own),
                    None => demand.narrow.push((kind, own)),
                }
            }
            if heard.contains(v1::Kind::TcpSession) {
                let own = interval.unwrap_or(SESSION_INTERVAL);
                demand.interval = Some(demand.interval.map_or(own, |other| other.min(own)));
            }
        }
        // A pod that is watched on keeps its slot: what was counted there stays told to those who watch it.
        let mut next = Slots {
            slots: vec![Slot::default()],
            by_pod: HashMap::new(),
        };
        let mut seated: Vec<(u64, u64, u64, &Arc<v1::Workload>)> = Vec::new();
        let shed = board.listeners().any(|(_, listener)| listener.is_shed());
        let mut best: HashMap<(u32, v1::Kind), Fidelity> = HashMap::new();
        for (cgroup_id, workload) in live {
            let (mut kinds, mut listeners) = (0, 0);
            for (bit, listener) in board.listeners() {
                if !listener.request.selector.matches_pod(workload) {
                    continue;
                }
                let hears = board.hears(bit, listener, workload);
                if !hears.is_empty() {
                    kinds |= hears.bits();
                    listeners |= bit;
                }
            }
            seated.push((cgroup_id, kinds, listeners, workload));
            if kinds != 0
                && let Some(&slot) = board.slots.by_pod.get(&workload.pod_uid)
            {
                next.by_pod.insert(workload.pod_uid.clone(), slot);
                next.slots
                    .resize_with(next.slots.len().max(slot as usize + 1), Slot::default);
            }
        }
        let mut taken: std::collections::HashSet<u32> = next.by_pod.values().copied().collect();
        let mut free = 1;
        for (cgroup_id, kinds, listeners, workload) in seated {
            let slot = match next.by_pod.get(&workload.pod_uid) {
                _ if kinds == 0 || workload.pod_uid.is_empty() => 0,
                Some(&slot) => slot,
                None => {
                    while free < slots && taken.contains(&free) {
                        free += 1;
                    }
                    let slot = if free < slots { free } else { 0 };
                    if slot != 0 {
                        taken.insert(slot);
                        next.by_pod.insert(workload.pod_uid.clone(), slot);
                    }
                    slot
                }
            };
            if kinds != 0 {
                next.slots
                    .resize_with(next.slots.len().max(slot as usize + 1), Slot::default);
                let seat = &mut next.slots[slot as usize];
                seat.listeners |= listeners;
                let mine = board
                    .listeners()
                    .filter(|(bit, _)| shed && listeners & bit != 0);
                for (bit, listener) in mine {
                    for kind in board.hears(bit, listener, workload).iter() {
                        let told = listener.fidelity(kind);
                        let best = best.entry((slot, kind)).or_insert(told);
                        *best = told.min(*best);
                    }
                }
                // Parents come first: the pod's own cgroup stands for it.
                if slot != 0 && seat.pod.is_none() {
                    seat.pod = Some(pod_of(workload));
                }
            }
            demand.cgroups.push(Want {
                cgroup_id,
                kinds,
                slot,
            });
        }
        best.retain(|_, fidelity| *fidelity != Fidelity::Whole);
        demand.fidelity = best;
        demand.moved = *board.slots != next;
        if demand.moved {
            let next = Arc::new(next);
            self.change(|board| {
                board.slots = next;
                Ok(())
            })
            .unwrap_or_else(|never: Infallible| match never {});
        }
        demand
    }
}

/// The workload without its container.
fn pod_of(workload: &Arc<v1::Workload>) -> Arc<v1::Workload> {
    if workload.container_id.is_empty() {
        return workload.clone();
    }
    Arc::new(v1::Workload {
        state: v1::IdentityState::Pod.into(),
        container: String::new(),
        container_id: String::new(),
        image: String::new(),
        container_type: v1::ContainerType::Unspecified.into(),
        ..(**workload).clone()
    })
}
