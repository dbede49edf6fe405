//! The sensor `file`: who opens files, and who makes their content go.
//!
//! Two routes. In the kernel's own functions every way to a file is seen (system calls, io_uring), and what it is before it goes. Where
//! functions cannot be attached to, system calls are heard when they return. What is told of a file is made here, for both.

mod functions;
mod syscalls;

use aya_ebpf::{
    helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_user, bpf_probe_read_user_str},
    maps::PerCpuArray,
};
use dinle_ebpf::{
    FRAME_MAX, FileDelete, FileOpen, Header, Kind, Narrowing,
    file::{ARGS_MAX, FILENAME_MAX, PATH_DEPTH, PATH_MAX, SOURCE_MAX, flags},
};

use crate::{
    emit::{self, Scratch},
    kernel::{Object, Ptr, offset, read, read_str},
    path::{self, End, Path, stored},
    scope::Subject,
    task::{arguments, fill_task},
};

// include/uapi/asm-generic/fcntl.h and include/uapi/linux/fcntl.h, the same on x86-64 and arm64.
const O_ACCMODE: u32 = 3;
const O_CREAT: u32 = 0o100;
const AT_FDCWD: i32 = -100;
const RENAME_EXCHANGE: u64 = 2;

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

#[inline(always)]
fn thread() -> u64 {
    // SAFETY: this helper has no preconditions.
    unsafe { bpf_get_current_pid_tgid() }
}

/// The open file behind a descriptor of the task's; null if there is none.
#[inline(always)]
fn file_of(task: Object, fd: i32) -> Ptr {
    let table = task.follow(offset!(task_files)).follow(offset!(files_fdt));
    let max: u32 = table.read(offset!(fdt_max));
    if fd < 0 || fd as u32 >= max {
        return core::ptr::null();
    }
    let places: u64 = table.read(offset!(fdt_fd));
    read(places as Ptr, fd as u32 * 8)
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
unsafe fn walk(path: Path, task: Object, len: *mut u16, to: *mut u8) -> u16 {
    // SAFETY: the caller's promise.
    match unsafe { path::components::<PATH_MAX, PATH_DEPTH>(path, Path::root_of(task), len, to) } {
        End::Root => flags::PATH_KNOWN,
        End::Cut => flags::PATH_CUT,
        End::Nowhere => 0,
    }
}

/// The directory that a name is relative to.
#[inline(always)]
fn directory(task: Object, dfd: i32) -> Path {
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
fn tell_open(subject: Subject, task: Object, scratch: &PerCpuArray<Scratch>, opened: Opened) {
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
fn tell_delete(subject: Subject, task: Object, scratch: &PerCpuArray<Scratch>, deleted: Deleted) {
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

/// Whether every listener would leave it out.
#[inline(always)]
fn narrowed_delete(result: i32) -> bool {
    emit::narrowing(Kind::FileDelete)
        .is_some_and(|Narrowing { flags, .. }| flags & Narrowing::FAILED != 0 && result >= 0)
}

/// In a system call of 32 bits the numbers mean other calls.
#[inline(always)]
fn is_compat(task: Object) -> bool {
    // arch/x86/include/asm/thread_info.h
    const TS_COMPAT: u32 = 2;
    task.read::<u32>(offset!(task_status)) & TS_COMPAT != 0
}
