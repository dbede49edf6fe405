//! Which cgroups and kinds somebody wants: the only policy that the kernel half holds.

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::generated::bpf_get_current_cgroup_id, macros::map,
    maps::HashMap,
};
use dinle_ebpf::{Kind, SCOPE_MAX, ScopeEntry};

/// Cgroup id → what is wanted of it. Written by the agent, and by [`inherit`].
#[map]
static SCOPE: HashMap<u64, ScopeEntry> = HashMap::with_max_entries(SCOPE_MAX, 0);

/// A subject that is in scope.
#[derive(Clone, Copy)]
pub struct Subject {
    pub cgroup_id: u64,
    pub slot: u32,
}

/// The current task's cgroup, if this kind is wanted of it. The first thing that every hook in a task's own context does.
#[inline(always)]
pub fn current(kind: Kind) -> Option<Subject> {
    // SAFETY: this helper has no preconditions.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    wanted(cgroup_id, kind)
}

/// The current task's cgroup, and which of these kinds are wanted of it, if any is. `kinds` are [`Kind::bit`]s.
#[inline(always)]
pub fn current_any(kinds: u64) -> Option<(Subject, u64)> {
    // SAFETY: this helper has no preconditions.
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    wanted_any(cgroup_id, kinds)
}

/// That cgroup, if this kind is wanted of it.
#[inline(always)]
pub fn wanted(cgroup_id: u64, kind: Kind) -> Option<Subject> {
    // SAFETY: entries are plain numbers; a read that races with the agent's update sees a mix of two valid policies at worst.
    let entry = unsafe { SCOPE.get(&cgroup_id) }?;
    (entry.kinds & kind.bit() != 0).then_some(Subject {
        cgroup_id,
        slot: entry.slot,
    })
}

/// That cgroup, and which of these kinds are wanted of it, if any is. `kinds` are [`Kind::bit`]s.
#[inline(always)]
pub fn wanted_any(cgroup_id: u64, kinds: u64) -> Option<(Subject, u64)> {
    // SAFETY: as in `wanted`.
    let entry = unsafe { SCOPE.get(&cgroup_id) }?;
    let kinds = entry.kinds & kinds;
    (kinds != 0).then_some((
        Subject {
            cgroup_id,
            slot: entry.slot,
        },
        kinds,
    ))
}

/// All that is wanted of that cgroup.
#[inline(always)]
pub fn entry(cgroup_id: u64) -> Option<ScopeEntry> {
    // SAFETY: as in `wanted`.
    unsafe { SCOPE.get(&cgroup_id) }.copied()
}

/// Gives a new cgroup what is wanted of its parent. `false` if the map had no room.
#[inline(always)]
pub fn inherit(child: u64, parent: u64) -> bool {
    // SAFETY: as in `wanted`.
    let Some(entry) = (unsafe { SCOPE.get(&parent) }) else {
        return true;
    };
    let entry = *entry;
    const EEXIST: i32 = -17;
    // The agent may have set the child already, and knows better.
    match SCOPE.insert(&child, &entry, BPF_NOEXIST as u64) {
        Ok(()) => true,
        Err(error) => error as i32 == EEXIST,
    }
}

/// Forgets a cgroup.
#[inline(always)]
pub fn forget(cgroup_id: u64) {
    // Most cgroups were never in scope: that they are not there is no error.
    _ = SCOPE.remove(&cgroup_id);
}
