//! The route of system calls, which are heard when they return.

use aya_ebpf::{
    helpers::generated::bpf_probe_read_user,
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::PerCpuArray,
    programs::{BtfTracePointContext, RawTracePointContext},
};
use dinle_ebpf::{FileDelete, Kind, file::flags};

use super::{
    AT_FDCWD, Deleted, Name, O_CREAT, Opened, RENAME_EXCHANGE, directory, file_of, identity,
    is_compat, is_regular, narrowed_delete, tell_delete, tell_open, unwanted,
};
use crate::{
    call::syscall_argument,
    emit::Scratch,
    kernel::{Object, Ptr, offset, read, syscall},
    path::Path,
    scope::{self, Subject},
};

// include/uapi/asm-generic/fcntl.h and include/uapi/linux/fcntl.h, the same on x86-64 and arm64.
const O_TRUNC: u32 = 0o1000;
const AT_REMOVEDIR: u64 = 0x200;

/// Room for frames. One program at a time is at the end of a system call on a CPU, and tells the open before the deletion.
#[map]
static EXIT_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// What a system call was asked, or did. It is written to a map and read back, so that the verifier follows one state from there on, not one
/// for each system call.
#[repr(C)]
#[derive(Clone, Copy)]
struct Asked {
    name: u64,
    source: u64,
    flags: u64,
    mode: u64,
    inode: u64,
    path: Path,
    device: u32,
    dfd: i32,
    how: u32,
    known: u32,
}

// SAFETY: its addresses are the kernel's; nobody follows them but through helpers that check.
unsafe impl Sync for Asked {}

#[map]
static ASKED: PerCpuArray<Asked> = PerCpuArray::with_max_entries(1, 0);

impl Asked {
    /// This CPU's. Filled in place: the stack has no room for copies.
    #[inline(always)]
    fn here() -> Option<*mut Self> {
        ASKED.get_ptr_mut(0)
    }

    /// Notes what was asked.
    ///
    /// # Safety
    /// `to` is [`Self::here`].
    #[inline(always)]
    unsafe fn note(to: *mut Self, name: u64, source: u64, dfd: i32, how: u16) {
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*to).name).write_volatile(name);
            (&raw mut (*to).source).write_volatile(source);
            (&raw mut (*to).dfd).write_volatile(dfd);
            (&raw mut (*to).how).write_volatile(how.into());
            (&raw mut (*to).inode).write_volatile(0);
            (&raw mut (*to).device).write_volatile(0);
            (&raw mut (*to).known).write_volatile(0);
        }
    }

    /// Notes the file that it was about.
    ///
    /// # Safety
    /// `to` is [`Self::here`].
    #[inline(always)]
    unsafe fn note_file(to: *mut Self, inode: Ptr) {
        let (number, device) = identity(inode);
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*to).inode).write_volatile(number);
            (&raw mut (*to).device).write_volatile(device);
            (&raw mut (*to).known).write_volatile((flags::RESOLVED | flags::INODE_KNOWN).into());
        }
    }
}

// include/trace/events/syscalls.h: (struct pt_regs *regs, long ret)
#[btf_tracepoint(function = "sys_exit")]
pub fn tp_btf__sys_exit(ctx: BtfTracePointContext) -> i32 {
    syscall_returned(ctx.arg(0), ctx.arg::<u64>(1) as i64, true)
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn raw_tracepoint__sys_exit(ctx: RawTracePointContext) -> i32 {
    syscall_returned(ctx.arg(0), ctx.arg::<u64>(1) as i64, false)
}

#[inline(always)]
fn syscall_returned(regs: Ptr, result: i64, tracing: bool) -> i32 {
    let regs = Object::new(regs, tracing);
    // Every system call of the node comes here. The number has 64 bits on x86-64 and 32 on arm64; their lower bytes come first on both.
    let number = regs.read::<u32>(offset!(syscall_number));
    // Most calls are none of these: the first test of each is on numbers alone.
    let opens = number == syscall!(openat)
        || number == syscall!(open)
        || number == syscall!(openat2)
        || number == syscall!(creat);
    let deletes = number == syscall!(unlink)
        || number == syscall!(unlinkat)
        || number == syscall!(rmdir)
        || number == syscall!(rename)
        || number == syscall!(renameat)
        || number == syscall!(renameat2)
        || number == syscall!(truncate)
        || number == syscall!(ftruncate);
    if !opens && !deletes {
        return 0;
    }
    let result = result as i32;
    let Some(asked) = Asked::here() else {
        return 0;
    };
    let deletion = if opens {
        open_returned(number, regs, result, asked)
    } else {
        delete_returned(number, regs, result, asked)
    };
    let Some(subject) = deletion else {
        return 0;
    };
    let given = |address| match address {
        0 => Name::None,
        address => Name::User(address),
    };
    // SAFETY: an element of a per-CPU array is valid, and no other program uses it.
    let deleted = unsafe {
        Deleted {
            how: (&raw const (*asked).how).read_volatile() as u16,
            name: given((&raw const (*asked).name).read_volatile()),
            path: Path {
                mnt: (&raw const (*asked).path.mnt).read_volatile(),
                dentry: (&raw const (*asked).path.dentry).read_volatile(),
            },
            result: if opens { 0 } else { result },
            inode: (&raw const (*asked).inode).read_volatile(),
            device: (&raw const (*asked).device).read_volatile(),
            size_before: 0,
            source: given((&raw const (*asked).source).read_volatile()),
            flags: (&raw const (*asked).known).read_volatile() as u16,
        }
    };
    tell_delete(subject, Object::current(tracing), &EXIT_SCRATCH, deleted);
    0
}

/// Tells of an open. Whose it is, if it was a deletion too, which `asked` describes then.
#[inline(always)]
fn open_returned(number: u32, regs: Object, result: i32, asked: *mut Asked) -> Option<Subject> {
    let (subject, kinds) = scope::current_any(Kind::FileOpen.bit() | Kind::FileDelete.bit())?;
    let task = Object::current(regs.is_typed());
    if is_compat(task) {
        return None;
    }
    let arg = |position| syscall_argument(regs, position);
    // `struct open_how` of include/uapi/linux/openat2.h begins with flags and mode, 64 bits each.
    let mut how = [0u64; 2];
    let (dfd, name, flags, mode) = if number == syscall!(open) {
        (AT_FDCWD, arg(0), arg(1), arg(2))
    } else if number == syscall!(creat) {
        // open(2): O_CREAT | O_WRONLY | O_TRUNC.
        (AT_FDCWD, arg(0), u64::from(O_CREAT | O_TRUNC | 1), arg(1))
    } else if number == syscall!(openat2) {
        // SAFETY: both have 16 bytes; the helper checks the source address itself.
        unsafe { bpf_probe_read_user(how.as_mut_ptr().cast(), 16, arg(2) as Ptr) };
        (arg(0) as i32, arg(1), how[0], how[1])
    } else {
        (arg(0) as i32, arg(1), arg(2), arg(3))
    };
    // SAFETY: `asked` is this CPU's.
    let (name, dfd, open_flags, mode) = unsafe {
        Asked::note(asked, name, 0, dfd, FileDelete::OPEN_TRUNCATE);
        (&raw mut (*asked).flags).write_volatile(flags);
        (&raw mut (*asked).mode).write_volatile(mode);
        (
            (&raw const (*asked).name).read_volatile(),
            (&raw const (*asked).dfd).read_volatile(),
            (&raw const (*asked).flags).read_volatile() as u32,
            (&raw const (*asked).mode).read_volatile() as u32,
        )
    };
    let file = if result >= 0 {
        file_of(task, result)
    } else {
        core::ptr::null()
    };
    if kinds & Kind::FileOpen.bit() != 0 && !unwanted(open_flags, result) {
        tell_open(
            subject,
            task,
            &EXIT_SCRATCH,
            Opened {
                name: Name::User(name),
                dfd,
                open_flags,
                mode: if open_flags & O_CREAT != 0 { mode } else { 0 },
                result,
                file,
                flags: 0,
            },
        );
    }
    /// The open made the file: include/linux/fs.h.
    const FMODE_CREATED: u32 = 0x10_0000;
    if kinds & Kind::FileDelete.bit() == 0
        || open_flags & O_TRUNC == 0
        || result < 0
        || narrowed_delete(result)
        || read::<u32>(file, offset!(file_mode)) & FMODE_CREATED != 0
    {
        return None;
    }
    let inode: Ptr = read(file, offset!(file_inode));
    // Of /dev/null nothing goes.
    if !is_regular(inode) {
        return None;
    }
    // SAFETY: `asked` is this CPU's.
    unsafe {
        Asked::note_file(asked, inode);
        (&raw mut (*asked).path).write_volatile(Path::of_file(file));
    }
    Some(subject)
}

/// Whose it is, if a deletion was asked for, which `asked` describes then.
#[inline(always)]
fn delete_returned(number: u32, regs: Object, result: i32, asked: *mut Asked) -> Option<Subject> {
    let subject = scope::current(Kind::FileDelete)?;
    let task = Object::current(regs.is_typed());
    if is_compat(task) || narrowed_delete(result) {
        return None;
    }
    let arg = |position| syscall_argument(regs, position);
    let (how, dfd, name, source) = if number == syscall!(unlink) {
        (FileDelete::UNLINK, AT_FDCWD, arg(0), 0)
    } else if number == syscall!(rmdir) {
        (FileDelete::RMDIR, AT_FDCWD, arg(0), 0)
    } else if number == syscall!(unlinkat) {
        let how = if arg(2) & AT_REMOVEDIR != 0 {
            FileDelete::RMDIR
        } else {
            FileDelete::UNLINK
        };
        (how, arg(0) as i32, arg(1), 0)
    } else if number == syscall!(rename) {
        (FileDelete::RENAME, AT_FDCWD, arg(1), arg(0))
    } else if number == syscall!(truncate) {
        if arg(1) != 0 {
            return None;
        }
        (FileDelete::TRUNCATE, AT_FDCWD, arg(0), 0)
    } else if number == syscall!(ftruncate) {
        if arg(1) != 0 {
            return None;
        }
        (FileDelete::TRUNCATE, arg(0) as i32, 0, 0)
    } else {
        // renameat, renameat2: exchanged files both stay.
        if number == syscall!(renameat2) && arg(4) & RENAME_EXCHANGE != 0 {
            return None;
        }
        (FileDelete::RENAME, arg(2) as i32, arg(3), arg(1))
    };
    // SAFETY: `asked` is this CPU's.
    unsafe {
        Asked::note(asked, name, source, dfd, how);
        let dfd = (&raw const (*asked).dfd).read_volatile();
        (&raw mut (*asked).path).write_volatile(directory(task, dfd));
        if (&raw const (*asked).name).read_volatile() == 0 {
            // ftruncate: no directory, but the file itself.
            Asked::note_file(asked, read(file_of(task, dfd), offset!(file_inode)));
        }
    }
    Some(subject)
}
