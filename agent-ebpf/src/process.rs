//! Frames of the sensor `process`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::COMM_LEN;

/// How many ancestors a [`Task`] names.
pub const ANCESTORS: usize = 16;
/// Ends of processes that are remembered, so that none is told twice.
pub const ENDED_MAX: u32 = 4096;

// Lengths are one less than a power of two, so that a mask bounds them: the verifier follows a mask better than a comparison.

/// Longest filename of an [`Exec`] in bytes, without its NUL.
pub const FILENAME_MAX: usize = 511;

/// Most bytes of arguments of an [`Exec`].
pub const ARGS_MAX: usize = 2047;

/// Most bytes of a working directory of an [`Exec`], one NUL for each component included.
pub const CWD_MAX: usize = 1023;

/// Most components of a working directory.
pub const CWD_DEPTH: usize = 24;

/// Who does something: part of each payload whose hook runs in the subject's own context.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Task {
    /// Nanoseconds since boot when the process started (`task_struct.start_boottime` of its leader).
    pub start_boot_ns: u64,
    /// Process id on the host: the kernel's tgid.
    pub pid: u32,
    /// Thread id on the host: the kernel's pid.
    pub tid: u32,
    /// Process id in the task's own PID namespace.
    pub pod_pid: u32,
    /// Thread id in the task's own PID namespace.
    pub pod_tid: u32,
    /// The parent's process id on the host.
    pub ppid: u32,
    /// Real user id, in the initial user namespace.
    pub uid: u32,
    /// Real group id, in the initial user namespace.
    pub gid: u32,
    /// How many of `ancestors` are set.
    pub ancestors_len: u32,
    /// The thread's command name, NUL-padded.
    pub comm: [u8; COMM_LEN],
    /// The parent's command name, NUL-padded.
    pub parent_comm: [u8; COMM_LEN],
    /// Process ids on the host, parent first.
    pub ancestors: [u32; ANCESTORS],
}

/// A process executed a program. Its tail holds the filename, the arguments (each with its NUL) and the working directory's
/// components, innermost first, each with a NUL.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exec {
    /// Who.
    pub task: Task,
    /// Size of all arguments in bytes.
    pub args_bytes: u32,
    /// Bytes of the filename in the tail.
    pub filename_len: u16,
    /// Bytes of arguments in the tail.
    pub args_len: u16,
    /// Bytes of the working directory in the tail.
    pub cwd_len: u16,
    /// Set of [`Exec::FILENAME_CUT`], [`Exec::CWD_CUT`] and [`Exec::CWD_KNOWN`].
    pub flags: u16,
    /// 0.
    pub reserved: u32,
}

impl Exec {
    /// The filename was longer than [`FILENAME_MAX`].
    pub const FILENAME_CUT: u16 = 1;
    /// The working directory was deeper than [`CWD_DEPTH`] or longer than [`CWD_MAX`].
    pub const CWD_CUT: u16 = 2;
    /// The working directory could be read.
    pub const CWD_KNOWN: u16 = 4;
}

/// A process ended: its last thread exited.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exit {
    /// Who. The thread is the last one, which need not be the leader.
    pub task: Task,
    /// Status as wait(2) encodes it: the code in bits 8 to 15, the signal in bits 0 to 6, 0x80 for a core dump.
    pub status: u32,
    /// 0.
    pub reserved: u32,
}

/// A process made another one. The task is the parent.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Fork {
    /// The parent.
    pub task: Task,
    /// Nanoseconds since boot when the child started.
    pub child_start_boot_ns: u64,
    /// The child's process id on the host.
    pub child_pid: u32,
    /// The child's process id in its own PID namespace.
    pub child_pod_pid: u32,
}
