//! Frames of the sensor `file`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Task;

/// Longest name of a file as a process gave it, in bytes, without its NUL.
pub const FILENAME_MAX: usize = 1023;

/// Most bytes of a path's components, one NUL for each included.
pub const PATH_MAX: usize = 2047;
/// Opens under way at a time of which something is known.
pub const OPENING_MAX: u32 = 8192;
/// Deletions, and truncations.
pub const DELETING_MAX: u32 = 1024;

/// Most components of a path.
pub const PATH_DEPTH: usize = 48;

/// Longest name of a file that replaces another one, in bytes, without its NUL.
pub const SOURCE_MAX: usize = 255;

/// Most bytes of a process's arguments.
pub const ARGS_MAX: usize = 255;

/// What is known of a path, in the `flags` of a frame.
pub mod flags {
    /// The name was longer than [`super::FILENAME_MAX`].
    pub const FILENAME_CUT: u16 = 1;
    /// The name could not be read.
    pub const FILENAME_UNREADABLE: u16 = 2;
    /// The components are those of the file itself, as the kernel resolved it. Otherwise they are those of the directory that the
    /// name is relative to.
    pub const RESOLVED: u16 = 4;
    /// The components are complete, up to the process's root directory.
    pub const PATH_KNOWN: u16 = 8;
    /// There were more than [`super::PATH_DEPTH`] components, or more than [`super::PATH_MAX`] bytes of them: the first are missing.
    pub const PATH_CUT: u16 = 16;
    /// By io_uring.
    pub const IO_URING: u16 = 32;
    /// `inode`, `device` and, of a [`super::FileDelete`], what the file was are known.
    pub const INODE_KNOWN: u16 = 64;
    /// `size_before` is known.
    pub const SIZE_KNOWN: u16 = 128;
    /// The replacing file's name was as long as [`super::SOURCE_MAX`] or longer.
    pub const SOURCE_CUT: u16 = 256;
}

/// An open. Its tail holds the name as the process gave it and path components, innermost first, each with a NUL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FileOpen {
    /// Who.
    pub task: Task,
    /// Number of the inode.
    pub inode: u64,
    /// The filesystem's device: `dev_t` of the kernel, major in the upper 12 bits.
    pub device: u32,
    /// `O_*` of open(2).
    pub open_flags: u32,
    /// Permissions for a new file.
    pub mode: u32,
    /// The descriptor, or the negative error number.
    pub result: i32,
    /// Bytes of the name in the tail.
    pub filename_len: u16,
    /// Bytes of components in the tail.
    pub path_len: u16,
    /// Set of [`flags`].
    pub flags: u16,
    /// 0.
    pub reserved: u16,
}

/// A file's content went. Its tail holds the name as the process gave it, for a rename the name that the other file had, the beginning
/// of the process's arguments, each with a NUL, and path components, innermost first, each with a NUL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FileDelete {
    /// Who.
    pub task: Task,
    /// Number of the inode.
    pub inode: u64,
    /// Bytes of the file before.
    pub size_before: u64,
    /// The filesystem's device: `dev_t` of the kernel, major in the upper 12 bits.
    pub device: u32,
    /// 0, or the negative error number.
    pub result: i32,
    /// Size of all of the process's arguments in bytes.
    pub args_bytes: u32,
    /// [`FileDelete::UNLINK`] or another.
    pub how: u16,
    /// Bytes of the name in the tail.
    pub filename_len: u16,
    /// Bytes of the replacing file's name in the tail.
    pub source_len: u16,
    /// Bytes of arguments in the tail.
    pub args_len: u16,
    /// Bytes of components in the tail.
    pub path_len: u16,
    /// Set of [`flags`].
    pub flags: u16,
}

impl FileDelete {
    /// unlink, unlinkat.
    pub const UNLINK: u16 = 1;
    /// rmdir, unlinkat with AT_REMOVEDIR.
    pub const RMDIR: u16 = 2;
    /// Another file was renamed to its name.
    pub const RENAME: u16 = 3;
    /// truncate or ftruncate to 0.
    pub const TRUNCATE: u16 = 4;
    /// Opened with O_TRUNC.
    pub const OPEN_TRUNCATE: u16 = 5;
}
