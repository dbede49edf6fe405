//! WIRE: the bytes that cross between the kernel and the agent, each shape declared once.
//!
//! A frame is a [`Header`], the payload that its `kind` names, and, for kinds that have one, a tail of bytes whose parts
//! the payload measures. Layouts are checked when this compiles: `derive(IntoBytes)` refuses implicit padding, so that no
//! frame carries stale bytes of the kernel's memory.
#![no_std]

pub mod block;
pub mod drop;
pub mod file;
pub mod offsets;
pub mod process;
pub mod tcp;

pub use block::{BlockIo, BlockLatency};
pub use drop::{Drop, DropCount};
pub use file::{FileDelete, FileOpen};
pub use process::{Exec, Exit, Fork, Task};
pub use tcp::{TcpConnect, TcpReset, TcpRetransmit, TcpSession};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a command name with its NUL: `TASK_COMM_LEN` of include/linux/sched.h.
pub const COMM_LEN: usize = 16;

/// No frame is larger: a scratch buffer of this size holds any of them.
pub const FRAME_MAX: usize = 4096;

/// Slots for loss counters, and so the number of pods that can be watched at a time. Slot 0 is shared by those beyond.
pub const SLOTS: u32 = 1024;

/// Entries of the scope map: cgroups that can be watched at a time, containers and their sub-cgroups included.
pub const SCOPE_MAX: u32 = 16_384;

/// A payload and its place in [`Kind`]: a probe cannot mislabel what it emits.
pub trait Payload: FromBytes + IntoBytes + Immutable + KnownLayout + 'static {
    /// The kind.
    const KIND: Kind;
}

/// A table of what is under way. When it is full, what was put in first makes room.
#[derive(Clone, Copy, Debug)]
pub struct UnderWay {
    /// The map.
    pub name: &'static str,
    /// Entries at least.
    pub entries: u32,
    /// At most: an entry may be large.
    pub most: u32,
}

impl UnderWay {
    /// Each CPU sets 128 entries aside, and one that finds no more takes back its own latest (kernel/bpf/bpf_lru_list.c, until it was
    /// changed in 2025): with fewer than twice as many for each, entries go long before the table is full.
    const ENTRIES_PER_CPU: u32 = 256;

    /// The tables.
    pub const ALL: [Self; 5] = [
        Self::new("OPENING", file::OPENING_MAX, u32::MAX),
        // 2.4 KB each.
        Self::new("DELETING", file::DELETING_MAX, 4 * file::DELETING_MAX),
        Self::new("TRUNCATING", file::DELETING_MAX, u32::MAX),
        Self::new("CONNECTING", tcp::CONNECTING_MAX, u32::MAX),
        Self::new("ENDED", process::ENDED_MAX, u32::MAX),
    ];

    const fn new(name: &'static str, entries: u32, most: u32) -> Self {
        Self {
            name,
            entries,
            most,
        }
    }

    /// How many entries it has on a machine with so many CPUs.
    pub fn entries_for(&self, cpus: u32) -> u32 {
        let each = cpus.saturating_mul(Self::ENTRIES_PER_CPU);
        self.entries.max(each).min(self.most)
    }
}

/// Kinds that look at the same thing: what an operator switches off, and what permissions are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sensor {
    /// Programs that run.
    Process,
    /// Files.
    File,
    /// TCP connections.
    Tcp,
    /// Disks.
    Block,
    /// Packets that the kernel drops.
    Drop,
}

impl Sensor {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Process,
        Self::File,
        Self::Tcp,
        Self::Block,
        Self::Drop,
    ];

    /// What users call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::File => "file",
            Self::Tcp => "tcp",
            Self::Block => "block",
            Self::Drop => "drop",
        }
    }
}

impl core::fmt::Display for Sensor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// Declares every kind once: its name (which is the payload's), its number (that of the contract's enum `Kind`, never used
/// again), its sensor, and its routes: sets of hooks, each of which is enough for the kind. The first whose hooks can all be attached is taken.
/// What is named after `also` is attached where the kernel allows it, to hear more.
///
/// A hook is the name of a tracepoint or of a kernel function's entry; with `:return` it is the function's return. With `__again` a
/// second program is attached to the same, which does what the first did not because the kernel skipped it.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $id:literal of $sensor:ident on $([$($hook:literal),+])or+ $(also [$($also:literal),+])?,)*) => {
        /// One type of event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $kind = $id),* }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// `None` for a number that this build does not know.
            pub const fn from_id(id: u16) -> Option<Self> {
                match id { $($id => Some(Self::$kind),)* _ => None }
            }

            /// What it belongs to.
            pub const fn sensor(self) -> Sensor {
                match self { $(Self::$kind => Sensor::$sensor,)* }
            }

            /// Sets of hooks, the best first. Each is enough.
            pub const fn routes(self) -> &'static [&'static [&'static str]] {
                match self { $(Self::$kind => &[$(&[$($hook),+]),+],)* }
            }

            /// Hooks that let the kind hear more, each for itself.
            pub const fn also(self) -> &'static [&'static str] {
                match self { $(Self::$kind => &[$($($also),+)?],)* }
            }
        }

        $(
            impl Payload for $kind { const KIND: Kind = Kind::$kind; }
            // A payload follows its header without a gap, and a tail follows the payload.
            const _: () = assert!(size_of::<$kind>() % align_of::<Header>() == 0);
            const _: () = assert!(size_of::<Header>() + size_of::<$kind>() <= FRAME_MAX);
        )*
    };
}

kinds! {
    /// A successful execve.
    Exec = 1 of Process on ["sched_process_exec"],
    /// The end of a process.
    Exit = 2 of Process on ["sched_process_exit"],
    /// A new process.
    Fork = 3 of Process on ["sched_process_fork"],
    /// An open of a file, failed ones too.
    FileOpen = 4 of File on
        ["do_filp_open", "do_filp_open:return", "fd_install"] or
        ["do_file_open", "do_file_open:return", "fd_install"] or
        ["sys_exit"],
    /// A file's content went: unlinked, replaced by a rename, or truncated.
    FileDelete = 5 of File on
        ["security_path_unlink", "do_unlinkat:return", "security_path_rmdir", "do_rmdir:return",
         "security_path_rename", "do_renameat2:return", "vfs_truncate", "do_truncate", "do_truncate:return"] or
        ["security_path_unlink", "filename_unlinkat:return", "security_path_rmdir", "filename_rmdir:return",
         "security_path_rename", "filename_renameat2:return", "vfs_truncate", "do_truncate", "do_truncate:return"] or
        ["sys_exit"],
    /// A TCP session, when it ends or is reported on.
    TcpSession = 6 of Tcp on ["inet_sock_set_state"]
        also ["inet_sock_set_state__again", "inet_csk_accept:return"],
    /// A connect that failed.
    TcpConnect = 7 of Tcp on ["inet_sock_set_state"]
        also ["inet_sock_set_state__again", "tcp_v4_connect", "tcp_v4_connect:return", "tcp_v6_connect", "tcp_v6_connect:return"],
    /// A RST, sent or received.
    TcpReset = 8 of Tcp on ["tcp_send_reset", "tcp_receive_reset"]
        also ["inet_sock_set_state", "inet_csk_accept:return"],
    /// A segment that was sent again.
    TcpRetransmit = 9 of Tcp on ["tcp_retransmit_skb"] also ["inet_sock_set_state", "inet_csk_accept:return"],
    /// A request to a disk, when it is done. The hooks are attached in this order: what is seen to begin is seen to end.
    BlockIo = 10 of Block on ["block_rq_complete", "block_rq_issue", "block_getrq"] also ["block_rq_merge"],
    /// Latencies of such requests, told in snapshots.
    BlockLatency = 11 of Block on ["block_rq_complete", "block_rq_issue", "block_getrq"] also ["block_rq_merge"],
    /// A packet that was dropped.
    Drop = 12 of Drop on ["kfree_skb"] also ["sched_process_exec"],
    /// Counts of such packets, told in snapshots.
    DropCount = 13 of Drop on ["kfree_skb"] also ["sched_process_exec"],
}

impl Kind {
    /// One more than the largest number: the stride of tables indexed by kind.
    pub const TABLE: u32 = {
        let mut largest = 0;
        let mut i = 0;
        while i < Self::ALL.len() {
            if Self::ALL[i] as u32 > largest {
                largest = Self::ALL[i] as u32;
            }
            i += 1;
        }
        largest + 1
    };

    /// The kind's bit in [`ScopeEntry::kinds`].
    pub const fn bit(self) -> u64 {
        1 << self as u16
    }

    /// Whether the kind needs a hook, on any route, or hears more by it.
    pub fn uses(self, hook: &str) -> bool {
        let hooks = self.routes().iter().copied().flatten();
        hooks.chain(self.also()).any(|used| *used == hook)
    }

    /// Whether the kernel adds its events up, and the agent tells them at an interval.
    pub const fn is_snapshot(self) -> bool {
        match self {
            Self::BlockLatency | Self::DropCount => true,
            Self::Exec
            | Self::Exit
            | Self::Fork
            | Self::FileOpen
            | Self::FileDelete
            | Self::TcpSession
            | Self::TcpConnect
            | Self::TcpReset
            | Self::TcpRetransmit
            | Self::BlockIo
            | Self::Drop => false,
        }
    }
}

// `bit` has room for 63 kinds.
const _: () = assert!(Kind::TABLE <= 64);

/// What every frame begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Nanoseconds since boot, suspend included (`bpf_ktime_get_boot_ns`).
    pub boot_ns: u64,
    /// The cgroup v2 id of the subject.
    pub cgroup_id: u64,
    /// Loss slot of the subject's pod.
    pub slot: u32,
    /// A [`Kind`].
    pub kind: u16,
    /// 0.
    pub reserved: u16,
}

/// What the scope map holds of a cgroup that somebody watches.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ScopeEntry {
    /// [`Kind::bit`] of each kind that is wanted.
    pub kinds: u64,
    /// Index of the pod's counters, below [`SLOTS`].
    pub slot: u32,
    /// 0.
    pub reserved: u32,
}

/// One CPU's counters of one slot and kind, at `slot * Kind::TABLE + kind` of the map `COUNTS`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Counts {
    /// Events in scope.
    pub seen: u64,
    /// Those of them for which the ring had no room.
    pub lost: u64,
    /// Those of them that were beyond their [`Rate`].
    pub limited: u64,
    /// Those, beside them, for which a table had no room.
    pub missed: u64,
    /// Those, beside them, whose end the kernel did not run a program for.
    pub skipped: u64,
}

/// How many events of one slot and kind may go to the ring, at `slot * Kind::TABLE + kind` of the map `RATES`: a token bucket, kept as the time at which
/// it is full again (GCRA). All zeros: as many as there are.
///
/// CPUs that take from it at the same moment can take the same token: the rate then holds but for that.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Rate {
    /// Nanoseconds of a second that each event takes: 0: there is no limit; [`Rate::NONE`]: none may.
    pub share_ns: u64,
    /// By the boot clock. Kept by the kernel half.
    pub full_at_ns: u64,
}

impl Rate {
    /// A share that no bucket holds.
    pub const NONE: u64 = 1 << 62;
    /// What an idle bucket gathers: a second's worth.
    pub const BURST_NS: u64 = 1_000_000_000;
}

/// What is not worth a frame of one kind, whoever asks for it: element [`Kind`] of the map `NARROWING`. All zeros: everything is.
/// The agent's filters decide exactly; this only saves work where every listener agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Narrowing {
    /// Nanoseconds below which a request or a session is too short to be told.
    pub min_ns: u64,
    /// Set of [`Narrowing::FAILED`] and others.
    pub flags: u32,
    /// Bytes of `prefix`; 0: any path.
    pub prefix_len: u32,
    /// What a file's name as the process gave it, and if that is relative its resolved path, begins with. Zeros follow.
    pub prefix: [u8; Narrowing::PREFIX_MAX],
}

impl Default for Narrowing {
    fn default() -> Self {
        Self {
            min_ns: 0,
            flags: 0,
            prefix_len: 0,
            prefix: [0; Self::PREFIX_MAX],
        }
    }
}

impl Narrowing {
    /// Only what failed.
    pub const FAILED: u32 = 1;
    /// Only opens for writing.
    pub const WRITE: u32 = 2;
    /// Only opens that may create.
    pub const CREATE: u32 = 4;
    /// Most bytes of a prefix.
    pub const PREFIX_MAX: usize = 64;
}

/// What happened to a cgroup: a record of the tracker's ring, followed by `path_len` bytes of path.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CgroupRecord {
    /// Its id.
    pub id: u64,
    /// Its parent's id.
    pub parent_id: u64,
    /// [`CgroupRecord::CREATED`] or [`CgroupRecord::RELEASED`].
    pub event: u16,
    /// Bytes of path, without a NUL.
    pub path_len: u16,
    /// The path was longer than [`CgroupRecord::PATH_MAX`].
    pub path_cut: u16,
    /// 0.
    pub reserved: u16,
}

impl CgroupRecord {
    /// The cgroup was made.
    pub const CREATED: u16 = 1;
    /// The cgroup is gone, with everything that ran in it.
    pub const RELEASED: u16 = 2;
    /// Longest path, in bytes. The nested paths of kind are about 350 long.
    pub const PATH_MAX: usize = 1024;
}

/// One CPU's count of what the tracker could not do.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TrackerCounts {
    /// Records for which the tracker's ring had no room: the agent walks the tree anew.
    pub lost: u64,
    /// New cgroups that should have inherited scope while the map was full: what runs there goes unseen.
    pub scope_full: u64,
}
