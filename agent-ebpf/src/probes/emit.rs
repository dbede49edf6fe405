//! The one door out: header, ring, wake-up, and the count of what found no room.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use dinle_ebpf::{Counts, FRAME_MAX, Header, Kind, Narrowing, Payload, Rate, SLOTS};

use crate::{
    kernel::{increment, zero},
    scope::Subject,
};

/// Frames on their way to the agent, which sets the size.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// [`Counts`] of each slot and kind.
#[map]
static COUNTS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(SLOTS * Kind::TABLE, 0);

/// [`Rate`] of each slot and kind. Written by the agent.
#[map]
static RATES: Array<Rate> = Array::with_max_entries(SLOTS * Kind::TABLE, 0);

/// Element 0 is 1 while the reader sleeps and wants to be woken. A wake-up costs several times what an event costs, so a
/// reader that is busy looks by itself every few milliseconds.
#[map]
static WAKE: Array<u32> = Array::with_max_entries(1, 0);

/// What is not worth a frame, by kind. Written by the agent.
#[map]
static NARROWING: Array<Narrowing> = Array::with_max_entries(Kind::TABLE, 0);

/// What of that kind nobody asks for.
#[inline(always)]
pub fn narrowing(kind: Kind) -> Option<&'static Narrowing> {
    // Plain numbers: a read that races with the agent's write sees a mix of two narrowings, both of which were right a moment ago.
    NARROWING.get(kind as u32)
}

/// Room to build a frame with a tail. One map of these for each program: programs may interrupt one another on a CPU,
/// but the kernel never runs one program twice on it at a time.
#[repr(C, align(8))]
pub struct Scratch(pub [u8; FRAME_MAX]);

#[repr(C)]
struct Frame<P> {
    header: Header,
    payload: P,
}

/// Emits a frame without a tail. `fill` gets a zeroed payload.
#[inline(always)]
pub fn fixed<P: Payload>(subject: Subject, fill: impl FnOnce(*mut P)) {
    let Some(counts) = counts(subject, P::KIND) else {
        return;
    };
    // SAFETY: an element of a per-CPU array is always valid.
    unsafe { increment(&raw mut (*counts).seen) };
    if !within_rate(subject, P::KIND) {
        // SAFETY: as above.
        return unsafe { increment(&raw mut (*counts).limited) };
    }
    let Some(mut slot) = EVENTS.reserve::<Frame<P>>(0) else {
        // SAFETY: as above.
        return unsafe { increment(&raw mut (*counts).lost) };
    };
    let frame = slot.as_mut_ptr();
    // SAFETY: the reservation is as large as a frame; every byte of it is written before it is submitted.
    unsafe {
        (&raw mut (*frame).header).write(header::<P>(subject));
        zero(&raw mut (*frame).payload);
        fill(&raw mut (*frame).payload);
    }
    slot.submit(wake());
}

/// Emits a frame with a tail, built in `scratch`. `fill` gets a zeroed payload and the tail's address, and returns the
/// tail's length; `None` if on a closer look nobody asked for it.
#[inline(always)]
pub fn with_tail<P: Payload>(
    subject: Subject,
    scratch: *mut Scratch,
    fill: impl FnOnce(*mut P, *mut u8) -> Option<usize>,
) {
    // What is beyond the rate need not be filled, unless only that tells whether anybody asked for it. Looked up twice: what is remembered would double
    // what the verifier has to walk, and a change in between lets an event more or less pass.
    if !is_looked_at::<P>() && !within_rate(subject, P::KIND) {
        return limited(subject, P::KIND);
    }
    let frame: *mut Frame<P> = scratch.cast();
    // SAFETY: a scratch buffer is larger than a frame and aligned like one.
    let tail = unsafe {
        (&raw mut (*frame).header).write(header::<P>(subject));
        zero(&raw mut (*frame).payload);
        fill(&raw mut (*frame).payload, frame.add(1).cast())
    };
    let Some(tail) = tail else {
        return;
    };
    if is_looked_at::<P>() && !within_rate(subject, P::KIND) {
        return limited(subject, P::KIND);
    }
    count(subject, P::KIND, |counts| &raw mut counts.seen);
    let mut len = size_of::<Frame<P>>() + tail;
    if len > FRAME_MAX {
        len = FRAME_MAX;
    }
    // SAFETY: within the scratch buffer.
    let bytes = unsafe { core::slice::from_raw_parts(scratch.cast::<u8>(), len) };
    if EVENTS.output::<[u8]>(bytes, wake()).is_err() {
        count(subject, P::KIND, |counts| &raw mut counts.lost);
    }
}

/// Whether only a frame tells if anybody asked for it.
#[inline(always)]
fn is_looked_at<P: Payload>() -> bool {
    narrowing(P::KIND).is_some_and(|narrowing| narrowing.prefix_len != 0)
}

/// Counts one that was beyond the rate.
#[inline(always)]
fn limited(subject: Subject, kind: Kind) {
    count(subject, kind, |counts| &raw mut counts.seen);
    count(subject, kind, |counts| &raw mut counts.limited);
}

/// Whether that slot and kind may have another frame; takes its token.
#[inline(always)]
fn within_rate(subject: Subject, kind: Kind) -> bool {
    // There always is one.
    let Some(rate) = RATES.get_ptr_mut(subject.slot * Kind::TABLE + kind as u32) else {
        return false;
    };
    // SAFETY: an element of an array map is always valid. A read or write that races with the agent's, or with another CPU's, lets an event
    // more or less pass.
    unsafe {
        let share = (&raw const (*rate).share_ns).read_volatile();
        if share == 0 {
            return true;
        }
        let now = bpf_ktime_get_boot_ns();
        // What is missing in the bucket, 0 at least. By arithmetic: each branch is one more way for the verifier.
        let missing = (&raw const (*rate).full_at_ns)
            .read_volatile()
            .wrapping_sub(now) as i64;
        let missing = (missing & !(missing >> 63)) as u64 + share;
        if missing > Rate::BURST_NS {
            return false;
        }
        (&raw mut (*rate).full_at_ns).write_volatile(now + missing);
    }
    true
}

#[inline(always)]
fn header<P: Payload>(subject: Subject) -> Header {
    Header {
        // SAFETY: this helper has no preconditions.
        boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        cgroup_id: subject.cgroup_id,
        slot: subject.slot,
        kind: P::KIND as u16,
        reserved: 0,
    }
}

#[inline(always)]
fn wake() -> u64 {
    if let Some(wake) = WAKE.get_ptr_mut(0) {
        // SAFETY: an element of an array map is always valid. Two CPUs that both see it set wake the reader twice.
        unsafe {
            if wake.read_volatile() != 0 {
                wake.write_volatile(0);
                return BPF_RB_FORCE_WAKEUP as u64;
            }
        }
    }
    BPF_RB_NO_WAKEUP as u64
}

/// Counts one that is added up in a table instead of told by a frame.
#[inline(always)]
pub fn added(subject: Subject, kind: Kind) {
    count(subject, kind, |counts| &raw mut counts.seen);
}

/// Counts one that should have been added up, or told by a frame, while a table was full.
#[inline(always)]
pub fn missed(subject: Subject, kind: Kind) {
    count(subject, kind, |counts| &raw mut counts.missed);
}

/// Counts one whose end the kernel did not run a program for.
#[inline(always)]
pub fn skipped(subject: Subject, kind: Kind) {
    count(subject, kind, |counts| &raw mut counts.skipped);
}

/// This CPU's counts. There always are some.
#[inline(always)]
fn counts(subject: Subject, kind: Kind) -> Option<*mut Counts> {
    COUNTS.get_ptr_mut(subject.slot * Kind::TABLE + kind as u32)
}

#[inline(always)]
fn count(subject: Subject, kind: Kind, field: impl FnOnce(&mut Counts) -> *mut u64) {
    if let Some(counts) = counts(subject, kind) {
        // SAFETY: an element of a per-CPU array is always valid.
        unsafe { increment(field(&mut *counts)) };
    }
}
