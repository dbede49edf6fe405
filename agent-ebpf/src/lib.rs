//! WIRE: the bytes that cross between the kernel and the agent, each shape declared once.
//!
//! A frame is a [`Header`], the payload that its `kind` names, and, for kinds that have one, a tail of bytes whose parts
//! the payload measures. Layouts are checked when this compiles: `derive(IntoBytes)` refuses implicit padding, so that no
//! frame carries stale bytes of the kernel's memory.
#![no_std]

pub mod offsets;
pub mod process;

pub use process::{Exec, Exit, Fork, Task};

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

/// Declares every kind once: its name (which is the payload's), its number (that of the contract's enum `Kind`, never used
/// again), and the hooks that it needs.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $id:literal on [$($hook:literal),+],)*) => {
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

            /// Places in the kernel that the kind needs, all of them.
            pub const fn hooks(self) -> &'static [&'static str] {
                match self { $(Self::$kind => &[$($hook),+],)* }
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
    Exec = 1 on ["sched_process_exec"],
    /// The end of a process.
    Exit = 2 on ["sched_process_exit"],
    /// A new process.
    Fork = 3 on ["sched_process_fork"],
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
