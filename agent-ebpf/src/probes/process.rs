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
    process::{ARGS_MAX, CWD_DEPTH, CWD_MAX, FILENAME_MAX},
};

use crate::{
    drop,
    emit::{self, Scratch},
    kernel::{Ptr, offset, read, read_str},
    path::{self, End, Path, stored},
    scope,
    task::{arguments, fill_task, innermost_pid, leader, start_boot_ns},
};

// include/trace/events/sched.h: (struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
#[btf_tracepoint(function = "sched_process_exec")]
pub fn tp_btf__sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    exec(ctx.arg(0), ctx.arg(2), &raw const EXEC_TP_BTF)
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn raw_tracepoint__sched_process_exec(ctx: RawTracePointContext) -> i32 {
    exec(ctx.arg(0), ctx.arg(2), &raw const EXEC_RAW)
}

// include/trace/events/sched.h: (struct task_struct *p), since 6.16 (struct task_struct *p, bool group_dead)
#[btf_tracepoint(function = "sched_process_exit")]
pub fn tp_btf__sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let group_dead = (offset!(exit_group_dead) == 1).then(|| ctx.arg::<u8>(1) != 0);
    exit(ctx.arg(0), group_dead)
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn raw_tracepoint__sched_process_exit(ctx: RawTracePointContext) -> i32 {
    let group_dead = (offset!(exit_group_dead) == 1).then(|| ctx.arg::<u64>(1) as u8 != 0);
    exit(ctx.arg(0), group_dead)
}

// include/trace/events/sched.h: (struct task_struct *parent, struct task_struct *child)
#[btf_tracepoint(function = "sched_process_fork")]
pub fn tp_btf__sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    fork(ctx.arg(0), ctx.arg(1))
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn raw_tracepoint__sched_process_fork(ctx: RawTracePointContext) -> i32 {
    fork(ctx.arg(0), ctx.arg(1))
}

#[map]
static EXEC_TP_BTF: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static EXEC_RAW: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn exec(task: Ptr, bprm: Ptr, scratch: *const PerCpuArray<Scratch>) -> i32 {
    // Whatever starts in a pod has entered the pod's namespaces before.
    drop::learn(task);
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
unsafe fn cwd(exec: *mut Exec, task: Ptr, to: *mut u8) {
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
static ENDED: LruHashMap<Ended, u8> = LruHashMap::with_max_entries(4096, 0);

#[repr(C)]
#[derive(Clone, Copy)]
struct Ended {
    start_boot_ns: u64,
    pid: u64,
}

#[inline(always)]
fn exit(task: Ptr, group_dead: Option<bool>) -> i32 {
    let Some(subject) = scope::current(Kind::Exit) else {
        return 0;
    };
    let signal: Ptr = read(task, offset!(task_signal));
    if !last_thread(task, signal, group_dead) {
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
fn last_thread(task: Ptr, signal: Ptr, group_dead: Option<bool>) -> bool {
    if let Some(group_dead) = group_dead {
        return group_dead;
    }
    // do_exit of kernel/exit.c counts `live` down before the tracepoint.
    if offset!(signal_live) == MISSING || read::<i32>(signal, offset!(signal_live)) != 0 {
        return false;
    }
    let key = Ended {
        start_boot_ns: start_boot_ns(task),
        // SAFETY: this helper has no preconditions.
        pid: unsafe { bpf_get_current_pid_tgid() } >> 32,
    };
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
fn status(task: Ptr, signal: Ptr) -> u32 {
    /// include/linux/sched/signal.h
    const SIGNAL_GROUP_EXIT: u32 = 4;
    if read::<u32>(signal, offset!(signal_flags)) & SIGNAL_GROUP_EXIT != 0 {
        return read(signal, offset!(signal_group_exit_code));
    }
    read(leader(task), offset!(task_exit_code))
}

#[inline(always)]
fn fork(parent: Ptr, child: Ptr) -> i32 {
    let Some(subject) = scope::current(Kind::Fork) else {
        return 0;
    };
    let child_pid: u32 = read(child, offset!(task_tgid));
    if child_pid == read::<u32>(parent, offset!(task_tgid)) {
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
