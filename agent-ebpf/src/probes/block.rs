//! The sensor `block`: requests to disks.
//!
//! Only `block_getrq` runs in the context of whoever asks for something. By the time that a request is issued or done, whoever is
//! current has nothing to do with it. So what is known then is kept: at first by the bio's address, from the issue on by the request's.

use core::ptr::null;

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{Array, HashMap, PerCpuArray},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use dinle_ebpf::{
    BlockIo, Kind, Narrowing,
    block::{BUCKETS, BlockKey, BlockSum, DISK_NAME_LEN, REQUESTS_MAX, Request, SUMS_MAX},
    offsets::MISSING,
};

use crate::{
    call::Call,
    emit,
    kernel::{Object, Ptr, add, at, offset, read, zero},
    scope::{self, Subject},
    task::fill_task,
};

// include/trace/events/block.h: (struct bio *bio), before 5.11 (struct request_queue *q, struct bio *bio, int rw)
#[btf_tracepoint(function = "block_getrq")]
pub fn tp_btf__block_getrq(ctx: BtfTracePointContext) -> i32 {
    made(
        argument(&ctx, offset!(getrq_bio)),
        &raw const GETRQ_TP_BTF,
        true,
    )
}

#[raw_tracepoint(tracepoint = "block_getrq")]
pub fn raw_tracepoint__block_getrq(ctx: RawTracePointContext) -> i32 {
    made(
        argument(&ctx, offset!(getrq_bio)),
        &raw const GETRQ_RAW,
        false,
    )
}

// include/trace/events/block.h: (struct request *rq), before 5.11 (struct request_queue *q, struct request *rq)
#[btf_tracepoint(function = "block_rq_issue")]
pub fn tp_btf__block_rq_issue(ctx: BtfTracePointContext) -> i32 {
    issued(argument(&ctx, offset!(issue_rq)))
}

#[raw_tracepoint(tracepoint = "block_rq_issue")]
pub fn raw_tracepoint__block_rq_issue(ctx: RawTracePointContext) -> i32 {
    issued(argument(&ctx, offset!(issue_rq)))
}

// The same arguments.
#[btf_tracepoint(function = "block_rq_merge")]
pub fn tp_btf__block_rq_merge(ctx: BtfTracePointContext) -> i32 {
    merged(argument(&ctx, offset!(merge_rq)))
}

#[raw_tracepoint(tracepoint = "block_rq_merge")]
pub fn raw_tracepoint__block_rq_merge(ctx: RawTracePointContext) -> i32 {
    merged(argument(&ctx, offset!(merge_rq)))
}

/// An argument at a position that differs between kernels. Programs of both ways have them in a row; and only a helper may read from a place
/// in it that the compiler does not know.
#[inline(always)]
fn argument(ctx: &impl EbpfContext, position: u32) -> Ptr {
    Call::trampoline(ctx.as_ptr()).arg(position) as Ptr
}

// include/trace/events/block.h: (struct request *rq, blk_status_t error, unsigned int nr_bytes), before 5.16 `int error`
#[btf_tracepoint(function = "block_rq_complete")]
pub fn tp_btf__block_rq_complete(ctx: BtfTracePointContext) -> i32 {
    completed(
        ctx.arg(0),
        ctx.arg::<u64>(1) as i32,
        ctx.arg::<u64>(2) as u32,
    )
}

#[raw_tracepoint(tracepoint = "block_rq_complete")]
pub fn raw_tracepoint__block_rq_complete(ctx: RawTracePointContext) -> i32 {
    completed(
        ctx.arg(0),
        ctx.arg::<u64>(1) as i32,
        ctx.arg::<u64>(2) as u32,
    )
}

/// By the address of its bio until it is issued, of the request itself from then on. An entry is removed when the request is done. Under load some few
/// ends are not seen, since the kernel does not run the program for them: what is left of those is found, and counted, when the address is used
/// again. The agent empties the table before it attaches.
#[map]
static BLOCK_REQUESTS: HashMap<u64, Request> = HashMap::with_max_entries(REQUESTS_MAX, 0);

/// Latencies by cgroup, disk and operation.
#[map]
static BLOCK_LATENCY: HashMap<BlockKey, BlockSum> = HashMap::with_max_entries(SUMS_MAX, 0);

/// Zeros, for which the stack has no room.
#[map]
static BLOCK_NOTHING: Array<BlockSum> = Array::with_max_entries(1, 0);

#[map]
static GETRQ_TP_BTF: PerCpuArray<Request> = PerCpuArray::with_max_entries(1, 0);
#[map]
static GETRQ_RAW: PerCpuArray<Request> = PerCpuArray::with_max_entries(1, 0);

/// include/linux/blk_types.h: `enum req_op` is the lowest byte of the flags, and the bit of `enum req_flag_bits` asks to write out the
/// disk's cache first. Neither has changed since 4.10.
const REQ_OP_MASK: u32 = 0xff;
const REQ_OP_FLUSH: u32 = 2;
const REQ_PREFLUSH: u32 = 1 << 18;

/// How many bios of a request are looked at to find the one that it was made for. Later ones may be merged in front of that.
const BIOS_MAX: usize = 4;

/// Whose request it is.
struct Origin {
    cgroup_id: u64,
    attribution: u32,
    /// Whether the current task is of that cgroup.
    own: bool,
}

/// Takes the cgroup of the bio, which is the data's: who writes it out may be anybody. Where that says less than the task's, since it
/// encloses it, or nothing, it is the task's.
#[inline(always)]
fn origin(bio: Ptr, task: Ptr) -> Origin {
    let own: Ptr = read(read(task, offset!(task_cgroups)), offset!(css_set_dfl_cgrp));
    let data = data_cgroup(bio);
    if data.is_null() || (data != own && encloses(data, own)) {
        return Origin {
            cgroup_id: id(own),
            attribution: BlockIo::BY_TASK,
            own: true,
        };
    }
    Origin {
        cgroup_id: id(data),
        attribution: BlockIo::BY_BIO,
        own: data == own,
    }
}

/// The cgroup v2 that the bio is charged to; null if the controller `io` is not one of cgroup v2.
#[inline(always)]
fn data_cgroup(bio: Ptr) -> Ptr {
    let blkg: Ptr = read(bio, offset!(bio_blkg));
    let blkcg: Ptr = read(blkg, offset!(blkg_blkcg));
    if blkg.is_null() || blkcg.is_null() || offset!(blkcg_css) == MISSING {
        return null();
    }
    let cgroup: Ptr = read(at(blkcg, offset!(blkcg_css)), offset!(css_cgroup));
    let root: Ptr = read(cgroup, offset!(cgroup_root));
    if root.is_null() || read::<u32>(root, offset!(cgroup_root_id)) != 0 {
        return null();
    }
    cgroup
}

/// Whether one is an ancestor of the other one, or the same.
#[inline(always)]
fn encloses(outer: Ptr, inner: Ptr) -> bool {
    let level: u32 = read(outer, offset!(cgroup_level));
    if level > read::<u32>(inner, offset!(cgroup_level)) {
        return false;
    }
    // Both are rows of 8 bytes.
    let (ancestors, ids) = (offset!(cgroup_ancestors), offset!(cgroup_ancestor_ids));
    if ancestors != MISSING {
        read::<Ptr>(inner, ancestors.wrapping_add(level.wrapping_mul(8))) == outer
    } else if ids != MISSING {
        read::<u64>(inner, ids.wrapping_add(level.wrapping_mul(8))) == id(outer)
    } else {
        false
    }
}

#[inline(always)]
fn id(cgroup: Ptr) -> u64 {
    read(read(cgroup, offset!(cgroup_kn)), offset!(kernfs_id))
}

#[inline(always)]
fn made(bio: Ptr, scratch: *const PerCpuArray<Request>, tracing: bool) -> i32 {
    let key = bio as u64;
    let task = Object::current(tracing);
    let Origin {
        cgroup_id,
        attribution,
        own,
    } = origin(bio, task.address());
    let io = scope::wanted(cgroup_id, Kind::BlockIo);
    let latency = scope::wanted(cgroup_id, Kind::BlockLatency);
    if io.is_none() && latency.is_none() {
        forget(key);
        return 0;
    }
    // SAFETY: maps are statics.
    let Some(request) = (unsafe { (*scratch).get_ptr_mut(0) }) else {
        return 0;
    };
    let bit = |wanted: bool, kind: Kind| if wanted { kind.bit() } else { 0 };
    // SAFETY: the element is valid and this program's own.
    unsafe {
        zero(request);
        if own && io.is_some() {
            fill_task(&raw mut (*request).task, task);
        }
        (*request).cgroup_id = cgroup_id;
        (*request).kinds =
            bit(io.is_some(), Kind::BlockIo) | bit(latency.is_some(), Kind::BlockLatency);
        (*request).cmd_flags = read(bio, offset!(bio_opf));
        (*request).attribution = attribution;
        (*request).made_ns = now();
        if BLOCK_REQUESTS.insert(&key, &*request, 0).is_err() {
            lost(cgroup_id, (*request).kinds, emit::missed);
        }
    }
    0
}

#[inline(always)]
fn issued(rq: Ptr) -> i32 {
    let mut bio: Ptr = read(rq, offset!(request_bio));
    for _ in 0..BIOS_MAX {
        // As of a flush that the kernel makes.
        if bio.is_null() {
            return 0;
        }
        let key = bio as u64;
        if let Some(request) = BLOCK_REQUESTS.get_ptr_mut(&key) {
            // SAFETY: the entry stays ours until it is removed below: its bio belongs to this request.
            unsafe {
                (*request).issued_ns = now();
                (*request).start_time = read(rq, offset!(request_start_time));
                (*request).sector = read(rq, offset!(request_sector));
                (*request).bytes = read(rq, offset!(request_data_len));
                keep(rq as u64, &*request);
            }
            forget(key);
            return 0;
        }
        bio = read(bio, offset!(bio_next));
    }
    // Not one of ours; or issued again, for which the first time counts.
    0
}

/// Takes note of a request that is issued.
#[inline(always)]
fn keep(key: u64, request: &Request) {
    if BLOCK_REQUESTS
        .insert(&key, request, BPF_NOEXIST as u64)
        .is_ok()
    {
        return;
    }
    // Its address was another's, whose end was not seen. Of one that is issued again the bio is not known any more.
    miss(key);
    if BLOCK_REQUESTS.insert(&key, request, 0).is_err() {
        lost(request.cgroup_id, request.kinds, emit::missed);
    }
}

/// Counts a request whose end was not seen, if that is what this entry is.
#[inline(always)]
fn miss(key: u64) {
    if let Some(request) = BLOCK_REQUESTS.get_ptr(&key) {
        // SAFETY: entries are plain numbers.
        let (cgroup_id, kinds) = unsafe { ((*request).cgroup_id, (*request).kinds) };
        lost(cgroup_id, kinds, emit::skipped);
    }
}

/// A request becomes part of another one, and is never issued, or not again.
#[inline(always)]
fn merged(rq: Ptr) -> i32 {
    let bio: Ptr = read(rq, offset!(request_bio));
    forget(bio as u64);
    forget(rq as u64);
    0
}

#[inline(always)]
fn completed(rq: Ptr, error: i32, done: u32) -> i32 {
    let left: u32 = read(rq, offset!(request_data_len));
    if done < left {
        return 0;
    }
    let mut key = rq as u64;
    let mut found = BLOCK_REQUESTS.get_ptr_mut(&key);
    if let Some(request) = found {
        // SAFETY: entries are plain numbers.
        let known = unsafe { (*request).start_time };
        if known != read(rq, offset!(request_start_time)) {
            miss(key);
            forget(key);
            found = None;
        }
    }
    if found.is_none() {
        // What is done without being issued as such: a flush, which the kernel makes a request of its own for.
        let bio: Ptr = read(rq, offset!(request_bio));
        if bio.is_null() {
            return 0;
        }
        key = bio as u64;
        found = BLOCK_REQUESTS.get_ptr_mut(&key);
    }
    let Some(request) = found else {
        return 0;
    };
    // SAFETY: the entry stays ours until it is removed below: its request is done here and nowhere else.
    let request = unsafe { &mut *request };
    if request.issued_ns == 0 {
        request.bytes = left;
        request.sector = read(rq, offset!(request_sector));
    }
    if request.bytes == 0 && request.cmd_flags & REQ_PREFLUSH != 0 {
        request.cmd_flags = request.cmd_flags & !REQ_OP_MASK | REQ_OP_FLUSH;
        request.sector = u64::MAX;
    }
    tell(request, rq, error);
    forget(key);
    0
}

/// A disk.
struct Disk {
    device: u32,
    name: [u8; DISK_NAME_LEN],
}

impl Disk {
    #[inline(always)]
    fn of(rq: Ptr) -> Self {
        let disk: Ptr = if offset!(request_disk) != MISSING {
            read(rq, offset!(request_disk))
        } else {
            read(read(rq, offset!(request_queue)), offset!(queue_disk))
        };
        let major: u32 = read(disk, offset!(disk_major));
        let minor: u32 = read(disk, offset!(disk_first_minor));
        Self {
            // MKDEV of include/linux/kdev_t.h
            device: major << 20 | minor,
            name: read(disk, offset!(disk_name)),
        }
    }
}

#[inline(always)]
fn tell(request: &Request, rq: Ptr, error: i32) {
    let now = now();
    let (queued_ns, device_ns) = if request.issued_ns == 0 {
        (0, now.wrapping_sub(request.made_ns))
    } else {
        (
            request.issued_ns.wrapping_sub(request.made_ns),
            now.wrapping_sub(request.issued_ns),
        )
    };
    // Asked for again: who listens, and in which slot its losses count, may have changed meanwhile.
    let wanted = |kind: Kind| {
        let then = request.kinds & kind.bit() != 0;
        then.then(|| scope::wanted(request.cgroup_id, kind))
            .flatten()
    };
    if let Some(subject) = wanted(Kind::BlockIo)
        && worth_telling(error, queued_ns.wrapping_add(device_ns))
    {
        emit::fixed::<BlockIo>(subject, |io| {
            let Disk { device, name } = Disk::of(rq);
            // SAFETY: `io` is a zeroed payload.
            unsafe {
                (*io).task = request.task;
                (*io).sector = request.sector;
                (*io).queued_ns = queued_ns;
                (*io).device_ns = device_ns;
                (*io).bytes = request.bytes;
                (*io).device = device;
                (*io).cmd_flags = request.cmd_flags;
                (*io).error = error;
                (*io).attribution = request.attribution;
                (*io).flags = if request.issued_ns == 0 {
                    0
                } else {
                    BlockIo::ISSUED
                };
                (*io).disk = name;
            }
        });
    }
    if let Some(subject) = wanted(Kind::BlockLatency) {
        let Disk { device, name } = Disk::of(rq);
        let key = BlockKey {
            cgroup_id: subject.cgroup_id,
            device,
            operation: request.cmd_flags & REQ_OP_MASK,
            disk: name,
        };
        match sum_of(&key) {
            Some(sum) => {
                // SAFETY: an entry of a map; several CPUs add to it, each atomically.
                unsafe {
                    add(&raw mut (*sum).bytes, request.bytes.into());
                    add(&raw mut (*sum).device_ns, device_ns);
                    add(&raw mut (*sum).queued_ns, queued_ns);
                    add(
                        (&raw mut (*sum).buckets)
                            .cast::<u64>()
                            .add(bucket(device_ns)),
                        1,
                    );
                }
                emit::added(subject, Kind::BlockLatency);
            }
            None => emit::missed(subject, Kind::BlockLatency),
        }
    }
}

#[inline(always)]
fn worth_telling(error: i32, took_ns: u64) -> bool {
    let Some(narrowing) = emit::narrowing(Kind::BlockIo) else {
        return true;
    };
    (narrowing.flags & Narrowing::FAILED == 0 || error != 0) && took_ns >= narrowing.min_ns
}

/// The sums under that key. `None` if the table has no room.
#[inline(always)]
fn sum_of(key: &BlockKey) -> Option<*mut BlockSum> {
    if let Some(sum) = BLOCK_LATENCY.get_ptr_mut(key) {
        return Some(sum);
    }
    let nothing = BLOCK_NOTHING.get(0)?;
    // Another CPU may have been first: then it is there. What else can fail shows when it is not.
    _ = BLOCK_LATENCY.insert(key, nothing, BPF_NOEXIST as u64);
    BLOCK_LATENCY.get_ptr_mut(key)
}

/// As [`BlockSum::buckets`] says.
#[inline(always)]
fn bucket(ns: u64) -> usize {
    let log2 = (63 - (ns / 1000 | 1).leading_zeros()) as usize;
    if log2 < BUCKETS { log2 } else { BUCKETS - 1 }
}

/// Counts a request of this cgroup that will not be told.
#[inline(always)]
fn lost(cgroup_id: u64, kinds: u64, count: impl Fn(Subject, Kind)) {
    for kind in [Kind::BlockIo, Kind::BlockLatency] {
        if kinds & kind.bit() != 0
            && let Some(subject) = scope::wanted(cgroup_id, kind)
        {
            count(subject, kind);
        }
    }
}

/// Removes an entry, if there is one. Most requests are not ours: looking takes no lock.
#[inline(always)]
fn forget(key: u64) {
    if BLOCK_REQUESTS.get_ptr(&key).is_some() {
        // Gone already is as good.
        _ = BLOCK_REQUESTS.remove(&key);
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: this helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
