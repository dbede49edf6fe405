//! Who does something.

use core::mem::offset_of;

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_probe_read_user,
};
use dinle_ebpf::{Task, offsets::MISSING};

use crate::{
    kernel::{Object, Ptr, at, offset, read},
    path::stored,
};

/// The thread that stands for the task's process.
#[inline(always)]
pub fn leader(task: Object) -> Object {
    task.follow(offset!(task_group_leader))
}

#[inline(always)]
pub fn start_boot_ns(task: Object) -> u64 {
    leader(task).read(offset!(task_start_boottime))
}

/// Fills in who the current task is.
///
/// # Safety
/// `to` is valid and `task` is the current task.
#[inline(always)]
pub unsafe fn fill_task(to: *mut Task, task: Object) {
    // SAFETY: these helpers have no preconditions.
    let (ids, owner) = unsafe { (bpf_get_current_pid_tgid(), bpf_get_current_uid_gid()) };
    // SAFETY: the caller's promise.
    let to = unsafe { &mut *to };
    let leader = leader(task);
    to.start_boot_ns = leader.read(offset!(task_start_boottime));
    to.pid = (ids >> 32) as u32;
    to.tid = ids as u32;
    to.uid = owner as u32;
    to.gid = (owner >> 32) as u32;
    to.pod_pid = innermost_pid(leader);
    to.pod_tid = if to.tid == to.pid {
        to.pod_pid
    } else {
        innermost_pid(task)
    };
    let mut parent = task.follow(offset!(task_real_parent));
    const { assert!(offset_of!(Task, comm) % 8 == 0 && offset_of!(Task, parent_comm) % 8 == 0) };
    // SAFETY: both are valid, and aligned as is asserted above.
    unsafe {
        task.copy_16(&raw mut to.comm, offset!(task_comm));
        parent.copy_16(&raw mut to.parent_comm, offset!(task_comm));
    }
    let mut len = 0;
    for slot in &mut to.ancestors {
        let pid: u32 = parent.read(offset!(task_tgid));
        // The idle task is nobody's ancestor.
        if pid == 0 {
            break;
        }
        *slot = pid;
        len += 1;
        parent = parent.follow(offset!(task_real_parent));
    }
    to.ancestors_len = len;
    to.ppid = to.ancestors[0];
}

/// A thread's id in its own PID namespace: the last element of `struct pid`'s numbers.
#[inline(always)]
pub fn innermost_pid(task: Object) -> u32 {
    let (numbers, size) = (offset!(pid_numbers), offset!(upid_size));
    if numbers == MISSING || size == MISSING {
        return 0;
    }
    let level: u32 = task
        .follow(offset!(task_thread_pid))
        .read(offset!(pid_level));
    // Which element is known only now, and the verifier wants to know at once: so this is no load.
    let pid: Ptr = read(task.address(), offset!(task_thread_pid));
    let last = at(pid, numbers.wrapping_add(level.wrapping_mul(size)));
    read(last, offset!(upid_nr))
}

/// Copies the beginning of a task's arguments to `to`, how many bytes to `len`. Returns the size of all arguments. The task is the
/// current one.
///
/// # Safety
/// `len` lies in a map, `to` has `MAX` bytes of room.
#[inline(always)]
pub unsafe fn arguments<const MAX: usize>(task: Object, len: *mut u16, to: *mut u8) -> u32 {
    let mm = task.follow(offset!(task_mm));
    let start: u64 = mm.read(offset!(mm_arg_start));
    let end: u64 = mm.read(offset!(mm_arg_end));
    let size = end.wrapping_sub(start);
    // SAFETY: the caller's promise; the helper checks the source address itself.
    unsafe {
        len.write_volatile(if size > MAX as u64 {
            MAX as u16
        } else {
            size as u16
        });
        let wanted = stored::<MAX>(len);
        if bpf_probe_read_user(to.cast(), wanted as u32, start as Ptr) != 0 {
            // What could not be read shows as truncated: the size is more than the length.
            len.write_volatile(0);
        }
    }
    size as u32
}
