//! The sensor `process`: what ran, and how it ended.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_user},
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
    kernel::{Ptr, at, offset, read, read_str},
    scope,
    task::{fill_task, innermost_pid, leader, start_boot_ns},
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
            args(exec, task, tail.add(filename));
            let args = stored::<ARGS_MAX>(&raw mut (*exec).args_len);
            cwd(exec, task, tail.add(filename + args));
            filename + args + stored::<CWD_MAX>(&raw mut (*exec).cwd_len)
        }
    });
    0
}

// The parts of an Exec's tail at their largest fit the scratch buffer, with the room that the last name of a path may need.
const _: () = assert!(
    size_of::<dinle_ebpf::Header>() + size_of::<Exec>() + FILENAME_MAX + ARGS_MAX + CWD_MAX + 1
        <= dinle_ebpf::FRAME_MAX
);

/// Reads a length back from the payload. The payload lies in a map, whose values the verifier does not follow: so it goes on with
/// one state, "anything up to the mask", instead of one for each way in which the length may have come about.
///
/// # Safety
/// `len` is valid.
#[inline(always)]
unsafe fn stored<const MAX: usize>(len: *mut u16) -> usize {
    const { assert!((MAX + 1).is_power_of_two()) };
    // SAFETY: the caller's promise.
    usize::from(unsafe { len.read_volatile() }) & MAX
}

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

#[inline(always)]
unsafe fn args(exec: *mut Exec, task: Ptr, to: *mut u8) {
    let mm: Ptr = read(task, offset!(task_mm));
    let start: u64 = read(mm, offset!(mm_arg_start));
    let end: u64 = read(mm, offset!(mm_arg_end));
    let size = end.wrapping_sub(start);
    // SAFETY: the caller's tail has `ARGS_MAX` of room; the helper checks the source address itself; `exec` is valid.
    unsafe {
        (*exec).args_bytes = size as u32;
        let len = &raw mut (*exec).args_len;
        len.write_volatile(if size > ARGS_MAX as u64 {
            ARGS_MAX as u16
        } else {
            size as u16
        });
        let wanted = stored::<ARGS_MAX>(len);
        if bpf_probe_read_user(to.cast(), wanted as u32, start as Ptr) != 0 {
            // What could not be read shows as truncated: `args_bytes` is more than `args_len`.
            len.write_volatile(0);
        }
    }
}

/// A place in the file system: `struct path`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Path {
    mnt: Ptr,
    dentry: Ptr,
}

impl Path {
    #[inline(always)]
    fn read(path: Ptr) -> Self {
        Self {
            mnt: read(path, offset!(path_mnt)),
            dentry: read(path, offset!(path_dentry)),
        }
    }
}

/// Writes the names of the working directory's components, innermost first, up to the task's root directory.
#[inline(always)]
unsafe fn cwd(exec: *mut Exec, task: Ptr, to: *mut u8) {
    /// NAME_MAX of include/uapi/linux/limits.h, and a NUL.
    const NAME: usize = 256;
    if offset!(mount_mnt) == MISSING || offset!(fs_pwd) == MISSING || offset!(fs_root) == MISSING {
        return;
    }
    let fs: Ptr = read(task, offset!(task_fs));
    let root = Path::read(at(fs, offset!(fs_root)));
    let Path {
        mut mnt,
        mut dentry,
    } = Path::read(at(fs, offset!(fs_pwd)));
    // SAFETY: `exec` is valid.
    let len = unsafe { &raw mut (*exec).cwd_len };
    let mut flags = Exec::CWD_CUT;
    for _ in 0..CWD_DEPTH {
        if dentry.is_null() {
            flags = 0;
            break;
        }
        if (Path { mnt, dentry }) == root {
            flags = Exec::CWD_KNOWN;
            break;
        }
        if read::<Ptr>(mnt, offset!(vfsmount_root)) == dentry {
            let mount: Ptr = mnt
                .cast::<u8>()
                .wrapping_sub(offset!(mount_mnt) as usize)
                .cast();
            let parent: Ptr = read(mount, offset!(mount_parent));
            // The root of the mount namespace: the task's root directory is elsewhere, as after pivot_root.
            if parent == mount {
                flags = Exec::CWD_KNOWN;
                break;
            }
            mnt = at(parent, offset!(mount_mnt));
            dentry = read(mount, offset!(mount_mountpoint));
            continue;
        }
        // SAFETY: `exec` is valid; the caller's tail has room for `CWD_MAX`, and `NAME` of that is left.
        unsafe {
            let written = stored::<CWD_MAX>(len);
            if written > CWD_MAX - NAME {
                break;
            }
            let copied = read_str(
                to.add(written),
                NAME as u32,
                read(dentry, offset!(dentry_name)),
            );
            len.write_volatile((written + copied) as u16);
        }
        dentry = read(dentry, offset!(dentry_parent));
    }
    // SAFETY: `exec` is valid.
    unsafe { (*exec).flags |= flags };
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
