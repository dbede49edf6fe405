//! Where a file is, by walking the kernel's directory entries.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use dinle_ebpf::{Narrowing, offsets::MISSING};

use crate::kernel::{Object, Ptr, at, offset, read, read_str};

/// `NAME_MAX` of include/uapi/linux/limits.h, and a NUL.
const NAME: usize = 256;

/// A place in the file system: `struct path`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Path {
    pub mnt: Ptr,
    pub dentry: Ptr,
}

/// How a walk ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// At the root directory.
    Root,
    /// Before it: there are more components than asked for, or no room for them.
    Cut,
    /// Nowhere that leads to it, as for pipes.
    Nowhere,
}

impl Path {
    /// The one at that address.
    #[inline(always)]
    pub fn read(path: Ptr) -> Self {
        // Neighbours in every kernel so far.
        if offset!(path_dentry) == offset!(path_mnt) + 8 {
            let [mnt, dentry]: [u64; 2] = read(path, offset!(path_mnt));
            return Self {
                mnt: mnt as Ptr,
                dentry: dentry as Ptr,
            };
        }
        Self {
            mnt: read(path, offset!(path_mnt)),
            dentry: read(path, offset!(path_dentry)),
        }
    }

    /// A task's root directory.
    #[inline(always)]
    pub fn root_of(task: Object) -> Self {
        let fs = task.follow(offset!(task_fs));
        Self::read(at(fs.address(), offset!(fs_root)))
    }

    /// A task's working directory.
    #[inline(always)]
    pub fn cwd_of(task: Object) -> Self {
        let fs = task.follow(offset!(task_fs));
        Self::read(at(fs.address(), offset!(fs_pwd)))
    }

    /// Where an open file is.
    #[inline(always)]
    pub fn of_file(file: Ptr) -> Self {
        Self::read(at(file, offset!(file_path)))
    }
}

/// Where the components of the last walk begin, innermost first. Programs that walk do not interrupt one another's walk: they run
/// where tasks can be preempted only between system calls and their own functions.
#[repr(C)]
struct Starts {
    at: [u16; Self::MAX],
    len: u16,
    /// Of a comparison: the component and the byte that are next. Here and not in registers, so that the verifier does not follow them.
    component: u16,
    byte: u16,
    reserved: u16,
}

impl Starts {
    /// More than any walk has components.
    const MAX: usize = 64;
}

#[map]
static STARTS: PerCpuArray<Starts> = PerCpuArray::with_max_entries(1, 0);

/// Whether the path that was walked last begins as it must. `to` is what it was written to.
///
/// # Safety
/// `to` has `MAX` bytes of room, and one.
#[inline(always)]
pub unsafe fn begins<const MAX: usize>(narrowing: &Narrowing, to: *mut u8) -> bool {
    let Some(starts) = STARTS.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: an element of a per-CPU array is valid; indices are masked.
    unsafe {
        let (component, byte) = (&raw mut (*starts).component, &raw mut (*starts).byte);
        component.write_volatile((&raw const (*starts).len).read_volatile());
        byte.write_volatile(0);
        for i in 0..Narrowing::PREFIX_MAX {
            if i as u32 >= narrowing.prefix_len {
                break;
            }
            let wanted = (&raw const narrowing.prefix[i]).read_volatile();
            let at = stored::<MAX>(byte);
            let found = to.add(at).read_volatile();
            if wanted != b'/' {
                if found != wanted {
                    return false;
                }
                byte.write_volatile(at as u16 + 1);
                continue;
            }
            // A component ends where the prefix's does, and another one follows.
            let left = component.read_volatile();
            if i != 0 && found != 0 || left == 0 {
                return false;
            }
            component.write_volatile(left - 1);
            let number = usize::from(left - 1) & (Starts::MAX - 1);
            let start = (&raw const (*starts).at).cast::<u16>().add(number);
            byte.write_volatile(start.read_volatile());
        }
    }
    true
}

/// Reads a length back from memory of a map, whose values the verifier does not follow: so it goes on with one state, "anything up
/// to the mask", instead of one for each way in which the length may have come about.
///
/// # Safety
/// `len` is valid.
#[inline(always)]
pub unsafe fn stored<const MAX: usize>(len: *mut u16) -> usize {
    const { assert!((MAX + 1).is_power_of_two()) };
    // SAFETY: the caller's promise.
    usize::from(unsafe { len.read_volatile() }) & MAX
}

/// Writes the names of a path's components to `to`, innermost first, each with a NUL, up to `root`; how many bytes to `len`.
///
/// # Safety
/// `len` lies in a map and is 0, `to` has `MAX` bytes of room, and one.
#[inline(always)]
pub unsafe fn components<const MAX: usize, const DEPTH: usize>(
    path: Path,
    root: Path,
    len: *mut u16,
    to: *mut u8,
) -> End {
    if offset!(mount_mnt) == MISSING || offset!(fs_pwd) == MISSING || offset!(fs_root) == MISSING {
        return End::Nowhere;
    }
    const { assert!(DEPTH < Starts::MAX) };
    let Some(starts) = STARTS.get_ptr_mut(0) else {
        return End::Nowhere;
    };
    let count = {
        // SAFETY: an element of a per-CPU array is valid.
        let count = unsafe { &raw mut (*starts).len };
        // SAFETY: as above.
        unsafe { count.write_volatile(0) };
        count
    };
    let Path {
        mut mnt,
        mut dentry,
    } = path;
    let mut mounted: Ptr = read(mnt, offset!(vfsmount_root));
    for _ in 0..DEPTH {
        if dentry.is_null() || mnt.is_null() {
            return End::Nowhere;
        }
        if (Path { mnt, dentry }) == root {
            return End::Root;
        }
        if mounted == dentry {
            let mount: Ptr = mnt
                .cast::<u8>()
                .wrapping_sub(offset!(mount_mnt) as usize)
                .cast();
            let parent: Ptr = read(mount, offset!(mount_parent));
            if parent == mount {
                // The root of a mount namespace: the task's root directory is elsewhere, as after pivot_root. What is mounted in
                // no namespace has none, or an error in its place (MNT_NS_INTERNAL of fs/mount.h).
                const LAST_ADDRESS: u64 = -4096i64 as u64;
                let ns: u64 = read(mount, offset!(mount_ns));
                return if ns != 0 && ns < LAST_ADDRESS {
                    End::Root
                } else {
                    End::Nowhere
                };
            }
            mnt = at(parent, offset!(mount_mnt));
            mounted = read(mnt, offset!(vfsmount_root));
            dentry = read(mount, offset!(mount_mountpoint));
            continue;
        }
        let Entry { parent, name } = Entry::read(dentry);
        // SAFETY: the caller's promise; `NAME` bytes of the room are left.
        unsafe {
            let written = stored::<MAX>(len);
            if written > MAX - NAME {
                return End::Cut;
            }
            let copied = read_str(to.add(written), NAME as u32, name);
            len.write_volatile((written + copied) as u16);
            let number = usize::from(count.read_volatile()) & (Starts::MAX - 1);
            let start = (&raw mut (*starts).at).cast::<u16>().add(number);
            start.write_volatile(written as u16);
            count.write_volatile(number as u16 + 1);
        }
        dentry = parent;
    }
    End::Cut
}

/// What a walk needs of a `struct dentry`.
struct Entry {
    parent: Ptr,
    name: Ptr,
}

impl Entry {
    #[inline(always)]
    fn read(dentry: Ptr) -> Self {
        let (parent, name) = (offset!(dentry_parent), offset!(dentry_name));
        // They are neighbours in every kernel so far, with the name's length and hash between: one call of a helper for both.
        if name == parent + 16 {
            let [parent, _, name]: [u64; 3] = read(dentry, parent);
            return Self {
                parent: parent as Ptr,
                name: name as Ptr,
            };
        }
        Self {
            parent: read(dentry, parent),
            name: read(dentry, name),
        }
    }
}
