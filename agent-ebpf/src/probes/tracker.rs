//! The one thing that always runs: tells the agent which cgroups there are, and hands scope down to new ones before anything
//! runs in them.

use aya_ebpf::{
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{PerCpuArray, RingBuf},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use dinle_ebpf::{CgroupRecord, TrackerCounts};

use crate::{
    kernel::{Ptr, at, increment, offset, read, read_str},
    scope,
};

// include/trace/events/cgroup.h: (struct cgroup *cgrp, const char *path)
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn tp_btf__cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    created(ctx.arg(0), ctx.arg(1), &raw const MKDIR_TP_BTF)
}

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn raw_tracepoint__cgroup_mkdir(ctx: RawTracePointContext) -> i32 {
    created(ctx.arg(0), ctx.arg(1), &raw const MKDIR_RAW)
}

// Not cgroup_rmdir: tasks that are still exiting hold a removed cgroup until the release.
#[btf_tracepoint(function = "cgroup_release")]
pub fn tp_btf__cgroup_release(ctx: BtfTracePointContext) -> i32 {
    released(ctx.arg(0))
}

#[raw_tracepoint(tracepoint = "cgroup_release")]
pub fn raw_tracepoint__cgroup_release(ctx: RawTracePointContext) -> i32 {
    released(ctx.arg(0))
}

/// [`CgroupRecord`]s. A ring of its own: what happens to cgroups must arrive also when events do not.
#[map]
static CGROUPS: RingBuf = RingBuf::with_byte_size(512 << 10, 0);

#[map]
static TRACKER: PerCpuArray<TrackerCounts> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
struct Created {
    record: CgroupRecord,
    path: [u8; CgroupRecord::PATH_MAX],
}

#[map]
static MKDIR_TP_BTF: PerCpuArray<Created> = PerCpuArray::with_max_entries(1, 0);
#[map]
static MKDIR_RAW: PerCpuArray<Created> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn created(cgroup: Ptr, path: Ptr, scratch: *const PerCpuArray<Created>) -> i32 {
    let Some(id) = v2_id(cgroup) else {
        return 0;
    };
    let parent_id = parent_id(cgroup);
    if !scope::inherit(id, parent_id) {
        count(|counts| &raw mut counts.scope_full);
    }
    // SAFETY: maps are statics.
    let Some(scratch) = (unsafe { (*scratch).get_ptr_mut(0) }) else {
        return 0;
    };
    // SAFETY: the element is valid and this program's own; the path has as much room as is said.
    let bytes = unsafe {
        let copied = read_str(
            (&raw mut (*scratch).path).cast(),
            CgroupRecord::PATH_MAX as u32,
            path,
        );
        let copied = core::hint::black_box(copied);
        let copied = if copied > CgroupRecord::PATH_MAX {
            CgroupRecord::PATH_MAX
        } else {
            copied
        };
        (&raw mut (*scratch).record).write(CgroupRecord {
            id,
            parent_id,
            event: CgroupRecord::CREATED,
            // Its NUL travels along and does not count.
            path_len: if copied == 0 { 0 } else { copied as u16 - 1 },
            // The kernel's own buffer is as long (TRACE_CGROUP_PATH_LEN of kernel/cgroup/cgroup-internal.h).
            path_cut: (copied == 0 || copied == CgroupRecord::PATH_MAX) as u16,
            reserved: 0,
        });
        core::slice::from_raw_parts(scratch.cast::<u8>(), size_of::<CgroupRecord>() + copied)
    };
    if CGROUPS.output::<[u8]>(bytes, 0).is_err() {
        count(|counts| &raw mut counts.lost);
    }
    0
}

#[inline(always)]
fn released(cgroup: Ptr) -> i32 {
    let Some(id) = v2_id(cgroup) else {
        return 0;
    };
    scope::forget(id);
    let record = CgroupRecord {
        id,
        parent_id: 0,
        event: CgroupRecord::RELEASED,
        path_len: 0,
        path_cut: 0,
        reserved: 0,
    };
    if CGROUPS.output::<CgroupRecord>(&record, 0).is_err() {
        count(|counts| &raw mut counts.lost);
    }
    0
}

/// The cgroup's id, if it is of the v2 hierarchy: v1 hierarchies fire the same tracepoints and number by themselves.
#[inline(always)]
fn v2_id(cgroup: Ptr) -> Option<u64> {
    let root: Ptr = read(cgroup, offset!(cgroup_root));
    let hierarchy: u32 = read(root, offset!(cgroup_root_id));
    let id = id(cgroup);
    (hierarchy == 0 && id != 0).then_some(id)
}

#[inline(always)]
fn id(cgroup: Ptr) -> u64 {
    read(read(cgroup, offset!(cgroup_kn)), offset!(kernfs_id))
}

#[inline(always)]
fn parent_id(cgroup: Ptr) -> u64 {
    let state = offset!(cgroup_self);
    let parent: Ptr = read(at(cgroup, state), offset!(css_parent));
    // A cgroup's own state is embedded in it.
    id(parent.cast::<u8>().wrapping_sub(state as usize).cast())
}

#[inline(always)]
fn count(field: impl FnOnce(&mut TrackerCounts) -> *mut u64) {
    if let Some(counts) = TRACKER.get_ptr_mut(0) {
        // SAFETY: an element of a per-CPU array is always valid.
        unsafe { increment(field(&mut *counts)) };
    }
}
