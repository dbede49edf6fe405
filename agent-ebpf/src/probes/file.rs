//! The sensor `file`: who opens files, and who makes their content go.
//!
//! Two routes. In the kernel's own functions every way to a file is seen (system calls, io_uring), and what it is before it goes. Where
//! functions cannot be attached to, system calls are heard when they return.

use aya_ebpf::{
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf,
        bpf_probe_read_kernel, bpf_probe_read_user, bpf_probe_read_user_str, bpf_task_pt_regs,
    },
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{LruHashMap, PerCpuArray},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use dinle_ebpf::{
    FRAME_MAX, FileDelete, FileOpen, Header, Kind, Narrowing,
    file::{ARGS_MAX, FILENAME_MAX, PATH_DEPTH, PATH_MAX, SOURCE_MAX, flags},
    offsets::MISSING,
};

use crate::{
    call::{Call, entry, exit, syscall_argument},
    emit::{self, Scratch},
    kernel::{Ptr, at, offset, read, read_str, syscall},
    path::{self, End, Path, stored},
    scope::{self, Subject},
    task::{arguments, fill_task},
};

// include/uapi/asm-generic/fcntl.h and include/uapi/linux/fcntl.h, the same on x86-64 and arm64.
const O_ACCMODE: u32 = 3;
const O_CREAT: u32 = 0o100;
const O_TRUNC: u32 = 0o1000;
const AT_FDCWD: i32 = -100;
const AT_REMOVEDIR: u64 = 0x200;
const RENAME_EXCHANGE: u64 = 2;

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
#[map]
static EXIT_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

// The largest frames fit, with the room that the last name of a path may need.
const _: () =
    assert!(size_of::<Header>() + size_of::<FileOpen>() + FILENAME_MAX + PATH_MAX + 1 <= FRAME_MAX);
const _: () = assert!(
    size_of::<Header>()
        + size_of::<FileDelete>()
        + FILENAME_MAX
        + PATH_MAX
        + SOURCE_MAX
        + ARGS_MAX
        + 1
        <= FRAME_MAX
);

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

#[inline(always)]
fn current() -> Ptr {
    // SAFETY: this helper has no preconditions.
    (unsafe { bpf_get_current_task() }) as Ptr
}

#[inline(always)]
fn thread() -> u64 {
    // SAFETY: this helper has no preconditions.
    unsafe { bpf_get_current_pid_tgid() }
}

/// The open file behind a descriptor of the task's; null if there is none.
#[inline(always)]
fn file_of(task: Ptr, fd: i32) -> Ptr {
    let files: Ptr = read(task, offset!(task_files));
    let table: Ptr = read(files, offset!(files_fdt));
    let max: u32 = read(table, offset!(fdt_max));
    if fd < 0 || fd as u32 >= max {
        return core::ptr::null();
    }
    let places: Ptr = read(table, offset!(fdt_fd));
    read(places, fd as u32 * 8)
}

/// A name as a process gave it.
#[derive(Clone, Copy)]
enum Name {
    /// In the process's memory.
    User(u64),
    /// In the kernel's.
    Kernel(Ptr),
    /// Not known.
    None,
}

impl Name {
    /// Copies it to `to`, its length to `len`. Returns flags.
    ///
    /// # Safety
    /// `len` lies in a map, `to` has room for [`FILENAME_MAX`] bytes and a NUL.
    #[inline(always)]
    unsafe fn copy(self, len: *mut u16, to: *mut u8) -> u16 {
        let size = FILENAME_MAX as u32 + 1;
        // SAFETY: the caller's promise; the helpers check the source address themselves.
        let copied = match self {
            Self::User(address) => {
                let copied = unsafe { bpf_probe_read_user_str(to.cast(), size, address as Ptr) };
                if copied < 0 { 0 } else { copied as usize }
            }
            // SAFETY: as above.
            Self::Kernel(address) => unsafe { read_str(to, size, address) },
            Self::None => return 0,
        };
        if copied == 0 {
            return flags::FILENAME_UNREADABLE;
        }
        // SAFETY: the caller's promise.
        unsafe { len.write_volatile(copied as u16 - 1) };
        // A name that just fits is as long as one that was cut.
        if copied != FILENAME_MAX + 1 {
            return 0;
        }
        let mut next = 0u8;
        let at = FILENAME_MAX as u32;
        match self {
            // SAFETY: a byte is as large as is said; the helper checks the source address itself.
            Self::User(address) => unsafe {
                let address = address + u64::from(at);
                bpf_probe_read_user((&raw mut next).cast(), 1, address as Ptr);
            },
            Self::Kernel(address) => next = read(address, at),
            Self::None => {}
        }
        if next != 0 { flags::FILENAME_CUT } else { 0 }
    }
}

/// Writes the components of a path, up to the task's root. Returns flags.
///
/// # Safety
/// As of [`path::components`].
#[inline(always)]
unsafe fn walk(path: Path, task: Ptr, len: *mut u16, to: *mut u8) -> u16 {
    // SAFETY: the caller's promise.
    match unsafe { path::components::<PATH_MAX, PATH_DEPTH>(path, Path::root_of(task), len, to) } {
        End::Root => flags::PATH_KNOWN,
        End::Cut => flags::PATH_CUT,
        End::Nowhere => 0,
    }
}

/// The directory that a name is relative to.
#[inline(always)]
fn directory(task: Ptr, dfd: i32) -> Path {
    if dfd == AT_FDCWD {
        Path::cwd_of(task)
    } else {
        Path::of_file(file_of(task, dfd))
    }
}

/// An open that is over.
struct Opened {
    name: Name,
    dfd: i32,
    open_flags: u32,
    mode: u32,
    /// Descriptor, or negative error number.
    result: i32,
    /// Null if it failed.
    file: Ptr,
    flags: u16,
}

/// Whether every listener would leave it out.
#[inline(always)]
fn unwanted(open_flags: u32, result: i32) -> bool {
    let Some(Narrowing { flags, .. }) = emit::narrowing(Kind::FileOpen) else {
        return false;
    };
    flags & Narrowing::FAILED != 0 && result >= 0
        || flags & Narrowing::WRITE != 0 && open_flags & O_ACCMODE == 0
        || flags & Narrowing::CREATE != 0 && open_flags & O_CREAT == 0
}

#[inline(always)]
fn tell_open(subject: Subject, scratch: &PerCpuArray<Scratch>, opened: Opened) {
    let Opened {
        name,
        dfd,
        open_flags,
        mode,
        result,
        file,
        flags: known,
    } = opened;
    let Some(scratch) = scratch.get_ptr_mut(0) else {
        return;
    };
    let task = current();
    emit::with_tail::<FileOpen>(subject, scratch, |open, tail| {
        // SAFETY: `open` is a zeroed payload in a map; the tail has room for both parts at their largest (asserted above).
        unsafe {
            fill_task(&raw mut (*open).task, task);
            (*open).open_flags = open_flags;
            (*open).mode = mode;
            (*open).result = result;
            // Gathered in the map: what the verifier does not follow multiplies no states.
            let gathered = &raw mut (*open).flags;
            gathered.write_volatile(known);
            gather(gathered, name.copy(&raw mut (*open).filename_len, tail));
            let filename = stored::<FILENAME_MAX>(&raw mut (*open).filename_len);
            let path = if file.is_null() {
                directory(task, dfd)
            } else {
                let (inode, device) = identity(read(file, offset!(file_inode)));
                (*open).inode = inode;
                (*open).device = device;
                gather(gathered, flags::RESOLVED | flags::INODE_KNOWN);
                Path::of_file(file)
            };
            let len = &raw mut (*open).path_len;
            gather(gathered, walk(path, task, len, tail.add(filename)));
            let path = stored::<PATH_MAX>(len);
            wanted_path(Kind::FileOpen, gathered, tail.add(filename)).then_some(filename + path)
        }
    });
}

/// Whether any listener may want a file of the path that was walked. Only what the kernel resolved is known well enough to say no.
///
/// # Safety
/// `flags` is valid, `to` is what the path was written to.
#[inline(always)]
unsafe fn wanted_path(kind: Kind, flags: *mut u16, to: *mut u8) -> bool {
    let resolved = flags::RESOLVED | flags::PATH_KNOWN;
    let Some(narrowing) = emit::narrowing(kind) else {
        return true;
    };
    // SAFETY: the caller's promise.
    unsafe {
        narrowing.prefix_len == 0
            || flags.read_volatile() & resolved != resolved
            || path::begins::<PATH_MAX>(narrowing, to)
    }
}

/// Adds flags.
///
/// # Safety
/// `to` is valid.
#[inline(always)]
unsafe fn gather(to: *mut u16, flags: u16) {
    // SAFETY: the caller's promise.
    unsafe { to.write_volatile(to.read_volatile() | flags) };
}

/// Whether an inode is a file that holds bytes, and no directory, device or pipe.
#[inline(always)]
fn is_regular(inode: Ptr) -> bool {
    // include/uapi/linux/stat.h
    const S_IFMT: u16 = 0o170_000;
    const S_IFREG: u16 = 0o100_000;
    read::<u16>(inode, offset!(inode_mode)) & S_IFMT == S_IFREG
}

/// Number and device of an inode.
#[inline(always)]
fn identity(inode: Ptr) -> (u64, u32) {
    let sb: Ptr = read(inode, offset!(inode_sb));
    (
        read(inode, offset!(inode_number)),
        read(sb, offset!(sb_device)),
    )
}

/// What went.
struct Deleted {
    how: u16,
    name: Name,
    /// The file, or the directory that the name is relative to.
    path: Path,
    result: i32,
    inode: u64,
    device: u32,
    size_before: u64,
    /// For a rename, the replacing file's name: a string in the kernel, or in the process.
    source: Name,
    flags: u16,
}

#[inline(always)]
fn tell_delete(subject: Subject, scratch: &PerCpuArray<Scratch>, deleted: Deleted) {
    let Deleted {
        how,
        name,
        path,
        result,
        inode,
        device,
        size_before,
        source,
        flags: known,
    } = deleted;
    let Some(scratch) = scratch.get_ptr_mut(0) else {
        return;
    };
    let task = current();
    emit::with_tail::<FileDelete>(subject, scratch, |delete, tail| {
        // SAFETY: `delete` is a zeroed payload in a map; the tail has room for all parts at their largest (asserted above).
        unsafe {
            fill_task(&raw mut (*delete).task, task);
            (*delete).how = how;
            (*delete).result = result;
            (*delete).inode = inode;
            (*delete).device = device;
            (*delete).size_before = size_before;
            let gathered = &raw mut (*delete).flags;
            gathered.write_volatile(known);
            gather(gathered, name.copy(&raw mut (*delete).filename_len, tail));
            let filename = stored::<FILENAME_MAX>(&raw mut (*delete).filename_len);
            let len = &raw mut (*delete).source_len;
            let size = SOURCE_MAX as u32 + 1;
            let to = tail.add(filename);
            let copied = match source {
                Name::User(address) => bpf_probe_read_user_str(to.cast(), size, address as Ptr),
                Name::Kernel(address) => read_str(to, size, address) as i64,
                Name::None => 0,
            };
            if copied > 0 {
                len.write_volatile(copied as u16 - 1);
            }
            // A name that just fits is told as one that was cut: it is as long.
            if copied == i64::from(size) {
                gather(gathered, flags::SOURCE_CUT);
            }
            let source = stored::<SOURCE_MAX>(len);
            let len = &raw mut (*delete).args_len;
            (*delete).args_bytes = arguments::<ARGS_MAX>(task, len, tail.add(filename + source));
            let args = stored::<ARGS_MAX>(len);
            // Last, because the verifier goes on from each of its many ends.
            let len = &raw mut (*delete).path_len;
            let to = tail.add(filename + source + args);
            gather(gathered, walk(path, task, len, to));
            let path = stored::<PATH_MAX>(len);
            wanted_path(Kind::FileDelete, gathered, to).then_some(filename + source + args + path)
        }
    });
}

// ---- The route of system calls.

// include/trace/events/syscalls.h: (struct pt_regs *regs, long ret)
#[btf_tracepoint(function = "sys_exit")]
pub fn tp_btf__sys_exit(ctx: BtfTracePointContext) -> i32 {
    let regs: Ptr = ctx.arg(0);
    let at = regs
        .cast::<u8>()
        .wrapping_add(offset!(syscall_number) as usize)
        .cast::<u64>();
    // Every system call of the node comes here: a load costs less than a helper.
    // SAFETY: the verifier knows what these registers are, and refuses a load outside of them.
    let number = unsafe { at.read_volatile() } as u32;
    syscall_returned(number, regs, ctx.arg::<u64>(1) as i64)
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn raw_tracepoint__sys_exit(ctx: RawTracePointContext) -> i32 {
    let regs: Ptr = ctx.arg(0);
    let number = read(regs, offset!(syscall_number));
    syscall_returned(number, regs, ctx.arg::<u64>(1) as i64)
}

#[inline(always)]
fn syscall_returned(number: u32, regs: Ptr, result: i64) -> i32 {
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
    let deletes = if opens {
        open_returned(number, regs, result, asked)
    } else {
        delete_returned(number, regs, result, asked)
    };
    if !deletes {
        return 0;
    }
    let Some(subject) = scope::current(Kind::FileDelete) else {
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
    tell_delete(subject, &EXIT_SCRATCH, deleted);
    0
}

/// In a system call of 32 bits the numbers mean other calls.
#[inline(always)]
fn is_compat(task: Ptr) -> bool {
    // arch/x86/include/asm/thread_info.h
    const TS_COMPAT: u32 = 2;
    read::<u32>(task, offset!(task_status)) & TS_COMPAT != 0
}

/// Tells of an open. Whether it was a deletion, too, which `asked` describes then.
#[inline(always)]
fn open_returned(number: u32, regs: Ptr, result: i32, asked: *mut Asked) -> bool {
    let task = current();
    if !scope::wants_any(Kind::FileOpen.bit() | Kind::FileDelete.bit()) || is_compat(task) {
        return false;
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
    if !unwanted(open_flags, result)
        && let Some(subject) = scope::current(Kind::FileOpen)
    {
        tell_open(
            subject,
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
    if open_flags & O_TRUNC == 0
        || result < 0
        || narrowed_delete(result)
        || read::<u32>(file, offset!(file_mode)) & FMODE_CREATED != 0
    {
        return false;
    }
    let inode: Ptr = read(file, offset!(file_inode));
    // Of /dev/null nothing goes.
    if !is_regular(inode) {
        return false;
    }
    // SAFETY: `asked` is this CPU's.
    unsafe {
        Asked::note_file(asked, inode);
        (&raw mut (*asked).path).write_volatile(Path::of_file(file));
    }
    true
}

/// Whether a deletion was asked for, which `asked` describes then.
#[inline(always)]
fn delete_returned(number: u32, regs: Ptr, result: i32, asked: *mut Asked) -> bool {
    let task = current();
    if !scope::wants_any(Kind::FileDelete.bit()) || is_compat(task) || narrowed_delete(result) {
        return false;
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
            return false;
        }
        (FileDelete::TRUNCATE, AT_FDCWD, arg(0), 0)
    } else if number == syscall!(ftruncate) {
        if arg(1) != 0 {
            return false;
        }
        (FileDelete::TRUNCATE, arg(0) as i32, 0, 0)
    } else {
        // renameat, renameat2: exchanged files both stay.
        if number == syscall!(renameat2) && arg(4) & RENAME_EXCHANGE != 0 {
            return false;
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
    true
}

/// Whether every listener would leave it out.
#[inline(always)]
fn narrowed_delete(result: i32) -> bool {
    emit::narrowing(Kind::FileDelete)
        .is_some_and(|Narrowing { flags, .. }| flags & Narrowing::FAILED != 0 && result >= 0)
}

// ---- The route of the kernel's own functions: opens.

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
static OPENING: LruHashMap<u64, Opening> = LruHashMap::with_max_entries(8192, 0);

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
    let task = current();
    let syscall = in_open_syscall(task);
    if !failed && syscall {
        // Its descriptor comes with fd_install.
        let opening = Opening {
            file: value as Ptr,
            ..opening
        };
        if OPENING.insert(&thread, &opening, 0).is_err() {
            emit::missed(subject, Kind::FileOpen);
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
fn user_registers(task: Ptr) -> Ptr {
    if offset!(helper_task_pt_regs) != MISSING {
        // SAFETY: the task is the current one.
        return unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as Ptr };
    }
    /// arch/x86/include/asm/page_64_types.h, without KASAN. Kernels without the helper have no padding (FRED) at the stack's end.
    const THREAD_SIZE: usize = 16 << 10;
    read::<Ptr>(task, offset!(task_stack))
        .cast::<u8>()
        .wrapping_add(THREAD_SIZE - offset!(regs_size) as usize)
        .cast()
}

/// A kernel thread of io_uring: include/linux/sched.h.
const PF_IO_WORKER: u32 = 0x10;

#[inline(always)]
fn in_open_syscall(task: Ptr) -> bool {
    if read::<u32>(task, offset!(task_flags)) & PF_IO_WORKER != 0 {
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
fn by_io_uring(task: Ptr) -> bool {
    read::<u32>(task, offset!(task_flags)) & PF_IO_WORKER != 0
        || !read::<Ptr>(task, offset!(task_io_uring)).is_null()
}

// ---- The route of the kernel's own functions: what makes content go.

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
static DELETING: LruHashMap<u64, Deleting> = LruHashMap::with_max_entries(1024, 0);

/// Room to build an entry: it is too large for the stack.
#[map]
static DELETING_SCRATCH: PerCpuArray<Deleting> = PerCpuArray::with_max_entries(1, 0);

/// The mount by which a thread is about to truncate: do_truncate is not told it.
#[map]
static TRUNCATING: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1024, 0);

// include/linux/security.h: int security_path_unlink(const struct path *dir, struct dentry *dentry)
entry!(fentry__security_path_unlink, kprobe__security_path_unlink => |call: Call| {
    delete_begins(FileDelete::UNLINK, found(call.arg(0), call.arg(1)), core::ptr::null())
});
entry!(fentry__security_path_rmdir, kprobe__security_path_rmdir => |call: Call| {
    delete_begins(FileDelete::RMDIR, found(call.arg(0), call.arg(1)), core::ptr::null())
});
// int security_path_rename(const struct path *old_dir, struct dentry *old_dentry, const struct path *new_dir,
//                          struct dentry *new_dentry, unsigned int flags)
entry!(fentry__security_path_rename, kprobe__security_path_rename => |call: Call| {
    // Exchanged files both stay.
    if call.arg(4) & RENAME_EXCHANGE != 0 {
        return 0;
    }
    let source = read(call.arg(1) as Ptr, offset!(dentry_name));
    delete_begins(FileDelete::RENAME, found(call.arg(2), call.arg(3)), source)
});
// fs/namei.c: long do_unlinkat(int dfd, struct filename *name), and so on; since 7.1 by other names.
exit!(fexit__do_unlinkat, kretprobe__do_unlinkat => |call: Call| delete_ends(call.value(offset!(unlink_params))));
exit!(fexit__filename_unlinkat, kretprobe__filename_unlinkat => |call: Call| delete_ends(call.value(offset!(unlink_params))));
exit!(fexit__do_rmdir, kretprobe__do_rmdir => |call: Call| delete_ends(call.value(offset!(rmdir_params))));
exit!(fexit__filename_rmdir, kretprobe__filename_rmdir => |call: Call| delete_ends(call.value(offset!(rmdir_params))));
exit!(fexit__do_renameat2, kretprobe__do_renameat2 => |call: Call| delete_ends(call.value(offset!(rename_params))));
exit!(fexit__filename_renameat2, kretprobe__filename_renameat2 => |call: Call| delete_ends(call.value(offset!(rename_params))));
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
exit!(fexit__do_truncate, kretprobe__do_truncate => |call: Call| delete_ends(call.value(offset!(truncate_params))));

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
    delete_begins(how, Path { mnt, dentry }, core::ptr::null())
}

/// A function begins that makes a file's content go. `source` is the name of the file that takes its place.
#[inline(always)]
fn delete_begins(how: u16, path: Path, source: Ptr) -> i32 {
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
        gather(gathered, walk(path, current(), len, to));
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
fn delete_ends(value: u64) -> i32 {
    let Some(subject) = scope::current(Kind::FileDelete) else {
        return 0;
    };
    let thread = thread();
    let Some(deleting) = DELETING.get_ptr_mut(&thread) else {
        return 0;
    };
    let result = value as i32;
    if !narrowed_delete(result)
        && let Some(scratch) = DELETE_SCRATCH.get_ptr_mut(0)
    {
        let task = current();
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
fn in_other_syscall(task: Ptr) -> bool {
    if read::<u32>(task, offset!(task_flags)) & PF_IO_WORKER != 0 {
        return false;
    }
    let number: u32 = read(user_registers(task), offset!(syscall_number));
    number != syscall!(io_uring_enter)
}
