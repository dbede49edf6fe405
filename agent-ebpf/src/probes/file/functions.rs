//! The route of the kernel's own functions.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs},
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use dinle_ebpf::{
    FileDelete, Kind,
    file::{ARGS_MAX, DELETING_MAX, OPENING_MAX, PATH_MAX, SOURCE_MAX, flags},
    offsets::MISSING,
};

use super::{
    Name, Opened, RENAME_EXCHANGE, gather, identity, is_compat, narrowed_delete, tell_open, thread,
    unwanted, walk, wanted_path,
};
use crate::{
    call::{Call, entry, exit},
    emit::{self, Scratch},
    kernel::{Object, Ptr, offset, read, read_str, syscall},
    path::{Path, stored},
    scope,
    task::{arguments, fill_task},
};

// include/uapi/asm-generic/errno-base.h, and include/linux/err.h: pointers above this are error numbers.
const EAGAIN: i32 = 11;
const MAX_ERRNO: u64 = 4095;

/// Room for frames, one for each of the programs that run in turn: a program may be interrupted by another one on its CPU, but not
/// by one of the same system call.
#[map]
static OPEN_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static INSTALL_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static DELETE_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

// ---- Opens.

/// An open under way.
#[repr(C)]
#[derive(Clone, Copy)]
struct Opening {
    /// `struct filename`.
    name: Ptr,
    /// The open file, once there is one.
    file: Ptr,
    dfd: i32,
    flags: u32,
    mode: u32,
    reserved: u32,
}

// SAFETY: its addresses are the kernel's; nobody follows them but through helpers that check.
unsafe impl Sync for Opening {}

/// By thread. A thread opens one file at a time; what it left behind, it replaces.
#[map]
static OPENING: LruHashMap<u64, Opening> = LruHashMap::with_max_entries(OPENING_MAX, 0);

// fs/namei.c: struct file *do_filp_open(int dfd, struct filename *pathname, const struct open_flags *op)
entry!(fentry__do_filp_open, kprobe__do_filp_open => open_begins);
exit!(fexit__do_filp_open, kretprobe__do_filp_open => open_ends);
// The same since 7.1, by another name.
entry!(fentry__do_file_open, kprobe__do_file_open => open_begins);
exit!(fexit__do_file_open, kretprobe__do_file_open => open_ends);
// fs/file.c: void fd_install(unsigned int fd, struct file *file)
entry!(fentry__fd_install, kprobe__fd_install => fd_installed);

#[inline(always)]
fn open_begins(call: Call) -> i32 {
    let Some(subject) = scope::current(Kind::FileOpen) else {
        return 0;
    };
    let op = call.arg(offset!(open_op)) as Ptr;
    let flags: u32 = read(op, offset!(open_flag));
    /// The kernel opens for execve: include/linux/fs.h.
    const FMODE_EXEC: u32 = 0x20;
    if flags & FMODE_EXEC != 0 {
        return 0;
    }
    let opening = Opening {
        name: call.arg(offset!(open_pathname)) as Ptr,
        file: core::ptr::null(),
        dfd: call.arg(offset!(open_dfd)) as i32,
        flags,
        mode: u32::from(read::<u16>(op, offset!(open_mode))),
        reserved: 0,
    };
    // An LRU map makes room by itself, but the kernel may be at work on it at this moment.
    if OPENING.insert(&thread(), &opening, 0).is_err() {
        emit::missed(subject, Kind::FileOpen);
    }
    0
}

#[inline(always)]
fn open_ends(call: Call) -> i32 {
    let Some(subject) = scope::current(Kind::FileOpen) else {
        return 0;
    };
    let thread = thread();
    // SAFETY: nobody but this thread uses the entry.
    let Some(opening) = (unsafe { OPENING.get(&thread) }).copied() else {
        return 0;
    };
    let value = call.value(offset!(open_params));
    let failed = value >= -(MAX_ERRNO as i64) as u64;
    let task = call.task();
    let syscall = in_open_syscall(task);
    if !failed && syscall {
        // Its descriptor comes with fd_install. In place: to put it in anew would take another entry.
        match OPENING.get_ptr_mut(&thread) {
            // SAFETY: nobody but this thread uses the entry.
            Some(entry) => unsafe { (*entry).file = value as Ptr },
            None => emit::missed(subject, Kind::FileOpen),
        }
        return 0;
    }
    _ = OPENING.remove(&thread);
    // What is neither the kernel does for itself.
    if !syscall && !by_io_uring(task) {
        return 0;
    }
    let result = if failed { value as i32 } else { 0 };
    // io_uring tries without waiting first, and then again.
    if !syscall && result == -EAGAIN || unwanted(opening.flags, result) {
        return 0;
    }
    tell_open(
        subject,
        task,
        &OPEN_SCRATCH,
        Opened {
            name: Name::Kernel(read(opening.name, offset!(filename_name))),
            dfd: opening.dfd,
            open_flags: opening.flags,
            mode: opening.mode,
            result,
            file: if failed {
                core::ptr::null()
            } else {
                value as Ptr
            },
            flags: if syscall { 0 } else { flags::IO_URING },
        },
    );
    0
}

#[inline(always)]
fn fd_installed(call: Call) -> i32 {
    let Some(subject) = scope::current(Kind::FileOpen) else {
        return 0;
    };
    let thread = thread();
    // SAFETY: nobody but this thread uses the entry.
    let Some(opening) = (unsafe { OPENING.get(&thread) }).copied() else {
        return 0;
    };
    // Descriptors come for much else too: sockets, pipes.
    let file = call.arg(1) as Ptr;
    if opening.file.is_null() || opening.file != file {
        return 0;
    }
    _ = OPENING.remove(&thread);
    let fd = call.arg(0) as i32;
    if unwanted(opening.flags, fd) {
        return 0;
    }
    tell_open(
        subject,
        call.task(),
        &INSTALL_SCRATCH,
        Opened {
            name: Name::Kernel(read(opening.name, offset!(filename_name))),
            dfd: opening.dfd,
            open_flags: opening.flags,
            mode: opening.mode,
            result: fd,
            file,
            flags: 0,
        },
    );
    0
}

/// The registers of user mode of the current task.
#[inline(always)]
fn user_registers(task: Object) -> Ptr {
    if offset!(helper_task_pt_regs) != MISSING {
        // SAFETY: the task is the current one.
        return unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as Ptr };
    }
    /// arch/x86/include/asm/page_64_types.h, without KASAN. Kernels without the helper have no padding (FRED) at the stack's end.
    const THREAD_SIZE: usize = 16 << 10;
    read::<Ptr>(task.address(), offset!(task_stack))
        .cast::<u8>()
        .wrapping_add(THREAD_SIZE - offset!(regs_size) as usize)
        .cast()
}

/// A kernel thread of io_uring: include/linux/sched.h.
const PF_IO_WORKER: u32 = 0x10;

#[inline(always)]
fn in_open_syscall(task: Object) -> bool {
    if task.read::<u32>(offset!(task_flags)) & PF_IO_WORKER != 0 {
        return false;
    }
    let number: u32 = read(user_registers(task), offset!(syscall_number));
    let native = number == syscall!(openat)
        || number == syscall!(open)
        || number == syscall!(openat2)
        || number == syscall!(creat);
    // Of 32 bits: arch/x86/entry/syscalls/syscall_32.tbl.
    let compat = [5, 8, 295, 437].contains(&number) && is_compat(task);
    native || compat
}

#[inline(always)]
fn by_io_uring(task: Object) -> bool {
    task.read::<u32>(offset!(task_flags)) & PF_IO_WORKER != 0
        || task.read::<u64>(offset!(task_io_uring)) != 0
}

// ---- What makes content go.

/// A deletion under way. It is described before it happens: afterwards there may be nothing left to describe.
#[repr(C)]
#[derive(Clone, Copy)]
struct Deleting {
    inode: u64,
    size: u64,
    device: u32,
    how: u16,
    flags: u16,
    path_len: u16,
    source_len: u16,
    reserved: u32,
    source: [u8; SOURCE_MAX + 1],
    path: [u8; PATH_MAX + 1],
}

/// By thread: a thread deletes one file at a time.
#[map]
static DELETING: LruHashMap<u64, Deleting> = LruHashMap::with_max_entries(DELETING_MAX, 0);

/// Room to build an entry: it is too large for the stack.
#[map]
static DELETING_SCRATCH: PerCpuArray<Deleting> = PerCpuArray::with_max_entries(1, 0);

/// The mount by which a thread is about to truncate: do_truncate is not told it.
#[map]
static TRUNCATING: LruHashMap<u64, u64> = LruHashMap::with_max_entries(DELETING_MAX, 0);

// include/linux/security.h: int security_path_unlink(const struct path *dir, struct dentry *dentry)
entry!(fentry__security_path_unlink, kprobe__security_path_unlink => |call: Call| {
    delete_begins(call, FileDelete::UNLINK, found(call.arg(0), call.arg(1)), core::ptr::null())
});
entry!(fentry__security_path_rmdir, kprobe__security_path_rmdir => |call: Call| {
    delete_begins(call, FileDelete::RMDIR, found(call.arg(0), call.arg(1)), core::ptr::null())
});
// int security_path_rename(const struct path *old_dir, struct dentry *old_dentry, const struct path *new_dir,
//                          struct dentry *new_dentry, unsigned int flags)
entry!(fentry__security_path_rename, kprobe__security_path_rename => |call: Call| {
    // Exchanged files both stay.
    if call.arg(4) & RENAME_EXCHANGE != 0 {
        return 0;
    }
    let source = read(call.arg(1) as Ptr, offset!(dentry_name));
    delete_begins(call, FileDelete::RENAME, found(call.arg(2), call.arg(3)), source)
});
// fs/namei.c: long do_unlinkat(int dfd, struct filename *name), and so on; since 7.1 by other names.
exit!(fexit__do_unlinkat, kretprobe__do_unlinkat => |call: Call| delete_ends(call, offset!(unlink_params)));
exit!(fexit__filename_unlinkat, kretprobe__filename_unlinkat => |call: Call| delete_ends(call, offset!(unlink_params)));
exit!(fexit__do_rmdir, kretprobe__do_rmdir => |call: Call| delete_ends(call, offset!(rmdir_params)));
exit!(fexit__filename_rmdir, kretprobe__filename_rmdir => |call: Call| delete_ends(call, offset!(rmdir_params)));
exit!(fexit__do_renameat2, kretprobe__do_renameat2 => |call: Call| delete_ends(call, offset!(rename_params)));
exit!(fexit__filename_renameat2, kretprobe__filename_renameat2 => |call: Call| delete_ends(call, offset!(rename_params)));
// fs/open.c: int vfs_truncate(const struct path *path, loff_t length)
entry!(fentry__vfs_truncate, kprobe__vfs_truncate => |call: Call| {
    if scope::current(Kind::FileDelete).is_some() {
        let mnt: u64 = read(call.arg(0) as Ptr, offset!(path_mnt));
        // An LRU map makes room by itself.
        _ = TRUNCATING.insert(&thread(), &mnt, 0);
    }
    0
});
// int do_truncate([idmap,] struct dentry *dentry, loff_t length, unsigned int time_attrs, struct file *filp)
entry!(fentry__do_truncate, kprobe__do_truncate => truncate_begins);
exit!(fexit__do_truncate, kretprobe__do_truncate => |call: Call| delete_ends(call, offset!(truncate_params)));

/// An entry in the directory at that address.
#[inline(always)]
fn found(directory: u64, dentry: u64) -> Path {
    Path {
        mnt: read(directory as Ptr, offset!(path_mnt)),
        dentry: dentry as Ptr,
    }
}

#[inline(always)]
fn truncate_begins(call: Call) -> i32 {
    /// An open with O_TRUNC: include/linux/fs.h.
    const ATTR_OPEN: u64 = 1 << 15;
    if scope::current(Kind::FileDelete).is_none() {
        return 0;
    }
    let dentry = call.arg(offset!(truncate_dentry)) as Ptr;
    let file = call.arg(offset!(truncate_filp)) as Ptr;
    let thread = thread();
    let mnt = if file.is_null() {
        // SAFETY: nobody but this thread uses the entry.
        (unsafe { TRUNCATING.get(&thread) }).copied().unwrap_or(0) as Ptr
    } else {
        Path::of_file(file).mnt
    };
    _ = TRUNCATING.remove(&thread);
    // Of an empty file nothing goes, and what is cut somewhere else is not gone.
    let inode: Ptr = read(dentry, offset!(dentry_inode));
    if call.arg(offset!(truncate_length)) != 0 || read::<u64>(inode, offset!(inode_size)) == 0 {
        return 0;
    }
    let how = if call.arg(offset!(truncate_attrs)) & ATTR_OPEN != 0 {
        FileDelete::OPEN_TRUNCATE
    } else {
        FileDelete::TRUNCATE
    };
    delete_begins(call, how, Path { mnt, dentry }, core::ptr::null())
}

/// A function begins that makes a file's content go. `source` is the name of the file that takes its place.
#[inline(always)]
fn delete_begins(call: Call, how: u16, path: Path, source: Ptr) -> i32 {
    let inode: Ptr = read(path.dentry, offset!(dentry_inode));
    // Where no file is, none goes.
    let Some(subject) = scope::current(Kind::FileDelete) else {
        return 0;
    };
    if inode.is_null() {
        return 0;
    }
    let Some(deleting) = DELETING_SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    let (number, device) = identity(inode);
    // SAFETY: an element of a per-CPU array is valid, and has room for each part at its largest.
    unsafe {
        (*deleting).inode = number;
        (*deleting).size = read(inode, offset!(inode_size));
        (*deleting).device = device;
        (*deleting).how = how;
        let len = &raw mut (*deleting).source_len;
        len.write_volatile(0);
        if !source.is_null() {
            let to = &raw mut (*deleting).source;
            let copied = read_str(to.cast(), SOURCE_MAX as u32 + 1, source);
            if copied > 0 {
                len.write_volatile(copied as u16 - 1);
            }
        }
        let gathered = &raw mut (*deleting).flags;
        gathered.write_volatile(flags::RESOLVED | flags::INODE_KNOWN | flags::SIZE_KNOWN);
        let len = &raw mut (*deleting).path_len;
        len.write_volatile(0);
        let to = (&raw mut (*deleting).path).cast();
        gather(gathered, walk(path, call.task(), len, to));
        // What a refused call left behind is replaced by the thread's next one; an LRU map makes room by itself.
        if wanted_path(Kind::FileDelete, gathered, to)
            && DELETING.insert(&thread(), &*deleting, 0).is_err()
        {
            emit::missed(subject, Kind::FileDelete);
        }
    }
    0
}

#[inline(always)]
fn delete_ends(call: Call, params: u32) -> i32 {
    let Some(subject) = scope::current(Kind::FileDelete) else {
        return 0;
    };
    let thread = thread();
    let Some(deleting) = DELETING.get_ptr_mut(&thread) else {
        return 0;
    };
    let result = call.value(params) as i32;
    if !narrowed_delete(result)
        && let Some(scratch) = DELETE_SCRATCH.get_ptr_mut(0)
    {
        let task = call.task();
        emit::with_tail::<FileDelete>(subject, scratch, |delete, tail| {
            // SAFETY: `delete` is a zeroed payload in a map; the tail has room for all parts at their largest (asserted above);
            // `deleting` is an entry of a map that nobody but this thread uses.
            unsafe {
                fill_task(&raw mut (*delete).task, task);
                (*delete).how = (*deleting).how;
                (*delete).result = result;
                (*delete).inode = (*deleting).inode;
                (*delete).device = (*deleting).device;
                (*delete).size_before = (*deleting).size;
                (*delete).flags = (*deleting).flags;
                if by_io_uring(task) && !in_other_syscall(task) {
                    (*delete).flags |= flags::IO_URING;
                }
                let len = &raw mut (*delete).source_len;
                len.write_volatile((*deleting).source_len);
                let source = stored::<SOURCE_MAX>(len);
                copy(tail, source, &raw const (*deleting).source);
                let len = &raw mut (*delete).args_len;
                (*delete).args_bytes = arguments::<ARGS_MAX>(task, len, tail.add(source));
                let args = stored::<ARGS_MAX>(len);
                let len = &raw mut (*delete).path_len;
                len.write_volatile((*deleting).path_len);
                let path = stored::<PATH_MAX>(len);
                copy(tail.add(source + args), path, &raw const (*deleting).path);
                Some(source + args + path)
            }
        });
    }
    _ = DELETING.remove(&thread);
    0
}

/// Copies the beginning of a part of a map's entry.
///
/// # Safety
/// `to` has room for `len` bytes, and `from` has so many.
#[inline(always)]
unsafe fn copy<const N: usize>(to: *mut u8, len: usize, from: *const [u8; N]) {
    // SAFETY: the caller's promise.
    unsafe { bpf_probe_read_kernel(to.cast(), len as u32, from.cast()) };
}

/// Whether the current task is in a system call that is not io_uring's.
#[inline(always)]
fn in_other_syscall(task: Object) -> bool {
    if task.read::<u32>(offset!(task_flags)) & PF_IO_WORKER != 0 {
        return false;
    }
    let number: u32 = read(user_registers(task), offset!(syscall_number));
    number != syscall!(io_uring_enter)
}
