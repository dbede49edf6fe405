//! Who does something.

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_probe_read_user,
};
use dinle_ebpf::{Task, offsets::MISSING};

use crate::{
    kernel::{Ptr, at, offset, read},
    path::stored,
};

/// The thread that stands for the task's process.
#[inline(always)]
pub fn leader(task: Ptr) -> Ptr {
    read(task, offset!(task_group_leader))
}

#[inline(always)]
pub fn start_boot_ns(task: Ptr) -> u64 {
    read(leader(task), offset!(task_start_boottime))
}

/// Fills in who the current task is.
///
/// # Safety
/// `to` is valid and `task` is the current task.
#[inline(always)]
pub unsafe fn fill_task(to: *mut Task, task: Ptr) {
    // SAFETY: these helpers have no preconditions.
    let (ids, owner) = unsafe { (bpf_get_current_pid_tgid(), bpf_get_current_uid_gid()) };
    // SAFETY: the caller's promise.
    let to = unsafe { &mut *to };
    to.start_boot_ns = start_boot_ns(task);
    to.pid = (ids >> 32) as u32;
    to.tid = ids as u32;
    to.uid = owner as u32;
    to.gid = (owner >> 32) as u32;
    to.pod_pid = innermost_pid(leader(task));
    to.pod_tid = innermost_pid(task);
    to.comm = read(task, offset!(task_comm));
    let mut parent: Ptr = read(task, offset!(task_real_parent));
    to.parent_comm = read(parent, offset!(task_comm));
    let mut len = 0;
    for slot in &mut to.ancestors {
        let pid: u32 = read(parent, offset!(task_tgid));
        // The idle task is nobody's ancestor.
        if pid == 0 {
            break;
        }
        *slot = pid;
        len += 1;
        parent = read(parent, offset!(task_real_parent));
    }
    to.ancestors_len = len;
    to.ppid = to.ancestors[0];
}

/// A thread's id in its own PID namespace: the last element of `struct pid`'s numbers.
#[inline(always)]
pub fn innermost_pid(task: Ptr) -> u32 {
    let (numbers, size) = (offset!(pid_numbers), offset!(upid_size));
    if numbers == MISSING || size == MISSING {
        return 0;
    }
    let pid: Ptr = read(task, offset!(task_thread_pid));
    let level: u32 = read(pid, offset!(pid_level));
    let last = at(pid, numbers.wrapping_add(level.wrapping_mul(size)));
    read(last, offset!(upid_nr))
}

/// Copies the beginning of a task's arguments to `to`, how many bytes to `len`. Returns the size of all arguments. The task is the
/// current one.
///
/// # Safety
/// `len` lies in a map, `to` has `MAX` bytes of room.
#[inline(always)]
pub unsafe fn arguments<const MAX: usize>(task: Ptr, len: *mut u16, to: *mut u8) -> u32 {
    let mm: Ptr = read(task, offset!(task_mm));
    let start: u64 = read(mm, offset!(mm_arg_start));
    let end: u64 = read(mm, offset!(mm_arg_end));
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
