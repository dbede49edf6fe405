//! The sensor `process`: what ran, and how it ended.

use aya_ebpf::{
    helpers::generated::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{LruHashMap, PerCpuArray},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use dinle_ebpf::{
    Exec, Exit, Fork, Kind,
    offsets::MISSING,
    process::{ARGS_MAX, CWD_DEPTH, CWD_MAX, ENDED_MAX, FILENAME_MAX},
};

use crate::{
    drop,
    emit::{self, Scratch},
    kernel::{Object, Ptr, offset, read, read_str},
    path::{self, End, Path, stored},
    scope::{self, Subject},
    task::{arguments, fill_task, innermost_pid, leader, start_boot_ns},
};

// include/trace/events/sched.h: (struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
#[btf_tracepoint(function = "sched_process_exec")]
pub fn tp_btf__sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let task = Object::new(ctx.arg(0), true);
    exec(task, ctx.arg(2), &raw const EXEC_TP_BTF)
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn raw_tracepoint__sched_process_exec(ctx: RawTracePointContext) -> i32 {
    let task = Object::new(ctx.arg(0), false);
    exec(task, ctx.arg(2), &raw const EXEC_RAW)
}

// include/trace/events/sched.h: (struct task_struct *p), since 6.16 (struct task_struct *p, bool group_dead)
#[btf_tracepoint(function = "sched_process_exit")]
pub fn tp_btf__sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let group_dead = (offset!(exit_group_dead) == 1).then(|| ctx.arg::<u8>(1) != 0);
    exit(Object::new(ctx.arg(0), true), group_dead)
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn raw_tracepoint__sched_process_exit(ctx: RawTracePointContext) -> i32 {
    let group_dead = (offset!(exit_group_dead) == 1).then(|| ctx.arg::<u64>(1) as u8 != 0);
    exit(Object::new(ctx.arg(0), false), group_dead)
}

// include/trace/events/sched.h: (struct task_struct *parent, struct task_struct *child)
#[btf_tracepoint(function = "sched_process_fork")]
pub fn tp_btf__sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    fork(Object::new(ctx.arg(0), true), Object::new(ctx.arg(1), true))
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn raw_tracepoint__sched_process_fork(ctx: RawTracePointContext) -> i32 {
    fork(
        Object::new(ctx.arg(0), false),
        Object::new(ctx.arg(1), false),
    )
}

#[map]
static EXEC_TP_BTF: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static EXEC_RAW: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn exec(task: Object, bprm: Ptr, scratch: *const PerCpuArray<Scratch>) -> i32 {
    // Whatever starts in a pod has entered the pod's namespaces before.
    drop::learn(task.address());
    let Some(subject) = scope::current(Kind::Exec) else {
        return 0;
    };
    // SAFETY: maps are statics.
    let Some(scratch) = (unsafe { (*scratch).get_ptr_mut(0) }) else {
        return 0;
    };
    emit::with_tail::<Exec>(subject, scratch, |exec, tail| {
        // SAFETY: `exec` is a zeroed payload; the tail has room for the three parts at their largest (asserted below).
        unsafe {
            fill_task(&raw mut (*exec).task, task);
            filename(exec, bprm, tail);
            let filename = stored::<FILENAME_MAX>(&raw mut (*exec).filename_len);
            let len = &raw mut (*exec).args_len;
            (*exec).args_bytes = arguments::<ARGS_MAX>(task, len, tail.add(filename));
            let args = stored::<ARGS_MAX>(&raw mut (*exec).args_len);
            cwd(exec, task, tail.add(filename + args));
            Some(filename + args + stored::<CWD_MAX>(&raw mut (*exec).cwd_len))
        }
    });
    0
}

// The parts of an Exec's tail at their largest fit the scratch buffer, with the room that the last name of a path may need.
const _: () = assert!(
    size_of::<dinle_ebpf::Header>() + size_of::<Exec>() + FILENAME_MAX + ARGS_MAX + CWD_MAX + 1
        <= dinle_ebpf::FRAME_MAX
);

#[inline(always)]
unsafe fn filename(exec: *mut Exec, bprm: Ptr, to: *mut u8) {
    let name: Ptr = read(bprm, offset!(bprm_filename));
    // SAFETY: the caller's tail has that much room; `exec` is valid.
    unsafe {
        let copied = read_str(to, FILENAME_MAX as u32 + 1, name);
        if copied != 0 {
            (&raw mut (*exec).filename_len).write_volatile(copied as u16 - 1);
        }
        // A name that just fits is as long as one that was cut.
        if copied == FILENAME_MAX + 1 && read::<u8>(name, FILENAME_MAX as u32) != 0 {
            (*exec).flags |= Exec::FILENAME_CUT;
        }
    }
}

/// Writes the names of the working directory's components.
#[inline(always)]
unsafe fn cwd(exec: *mut Exec, task: Object, to: *mut u8) {
    // SAFETY: `exec` is valid; the caller's tail has room for `CWD_MAX`.
    unsafe {
        let len = &raw mut (*exec).cwd_len;
        let (cwd, root) = (Path::cwd_of(task), Path::root_of(task));
        (*exec).flags |= match path::components::<CWD_MAX, CWD_DEPTH>(cwd, root, len, to) {
            End::Root => Exec::CWD_KNOWN,
            End::Cut => Exec::CWD_CUT,
            End::Nowhere => 0,
        };
    }
}

/// Processes whose end was told already. Two threads that exit at once can both find that no thread is left.
#[map]
static ENDED: LruHashMap<Ended, u8> = LruHashMap::with_max_entries(ENDED_MAX, 0);

#[repr(C)]
#[derive(Clone, Copy)]
struct Ended {
    start_boot_ns: u64,
    pid: u64,
}

impl Ended {
    /// With this in its `pid` an entry says that the leading thread came by while others were left.
    const LEADER_PASSED: u64 = 1 << 63;
}

#[inline(always)]
fn exit(task: Object, group_dead: Option<bool>) -> i32 {
    let Some(subject) = scope::current(Kind::Exit) else {
        return 0;
    };
    let signal = task.follow(offset!(task_signal));
    if !last_thread(subject, task, signal, group_dead) {
        return 0;
    }
    emit::fixed::<Exit>(subject, |exit| {
        // SAFETY: `exit` is a zeroed payload.
        unsafe {
            fill_task(&raw mut (*exit).task, task);
            (*exit).status = status(task, signal);
        }
    });
    0
}

#[inline(always)]
fn last_thread(subject: Subject, task: Object, signal: Object, group_dead: Option<bool>) -> bool {
    if let Some(group_dead) = group_dead {
        return group_dead;
    }
    if offset!(signal_live) == MISSING {
        return false;
    }
    // do_exit of kernel/exit.c counts `live` down, notes the thread's own code, and comes to the tracepoint. The process's code is the
    // leading thread's, so that another thread may tell it only once that one has been here. Of two at once each looks behind what it
    // leaves for the other, so that one of them tells.
    let others = || signal.read::<i32>(offset!(signal_live)) != 0;
    // SAFETY: this helper has no preconditions.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    let key = Ended {
        start_boot_ns: start_boot_ns(task),
        pid: ids >> 32,
    };
    let passed = Ended {
        pid: key.pid | Ended::LEADER_PASSED,
        ..key
    };
    if ids as u32 == (ids >> 32) as u32 {
        if others() {
            // An LRU map makes room by itself, but the kernel may be at work on it: then the last thread may not know to tell.
            if ENDED.insert(&passed, &1, 0).is_err() {
                emit::missed(subject, Kind::Exit);
            }
            if others() {
                return false;
            }
        }
    } else if others() {
        return false;
    } else {
        // SAFETY: a byte that is always 1.
        let was_here = unsafe { ENDED.get(&passed) }.is_some();
        // Or it was, before somebody listened: then its parent may know already.
        if !was_here && leader(task).read::<i32>(offset!(task_exit_state)) == 0 {
            return false;
        }
    }
    const BPF_NOEXIST: u64 = 1;
    const EEXIST: i32 = -17;
    // Should the table have no room, twice is better than never.
    match ENDED.insert(&key, &1, BPF_NOEXIST) {
        Ok(()) => true,
        Err(error) => error as i32 != EEXIST,
    }
}

/// What the parent will see in wait(2): wait_task_zombie of kernel/exit.c.
#[inline(always)]
fn status(task: Object, signal: Object) -> u32 {
    /// include/linux/sched/signal.h
    const SIGNAL_GROUP_EXIT: u32 = 4;
    if signal.read::<u32>(offset!(signal_flags)) & SIGNAL_GROUP_EXIT != 0 {
        return signal.read(offset!(signal_group_exit_code));
    }
    leader(task).read(offset!(task_exit_code))
}

#[inline(always)]
fn fork(parent: Object, child: Object) -> i32 {
    let Some(subject) = scope::current(Kind::Fork) else {
        return 0;
    };
    let child_pid: u32 = child.read(offset!(task_tgid));
    if child_pid == parent.read::<u32>(offset!(task_tgid)) {
        // A thread.
        return 0;
    }
    emit::fixed::<Fork>(subject, |fork| {
        // SAFETY: `fork` is a zeroed payload.
        unsafe {
            fill_task(&raw mut (*fork).task, parent);
            (*fork).child_start_boot_ns = start_boot_ns(child);
            (*fork).child_pid = child_pid;
            (*fork).child_pod_pid = innermost_pid(child);
        }
    });
    0
}
