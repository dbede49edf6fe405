//! Frames of the sensor `drop`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::tcp::Ends;

/// Bytes of an interface's name with its NUL: `IFNAMSIZ` of include/uapi/linux/if.h.
pub const INTERFACE_LEN: usize = 16;

/// A packet that was dropped.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Drop {
    /// Source as `local`, destination as `remote`.
    pub ends: Ends,
    /// Address in the kernel's code that dropped it.
    pub location: u64,
    /// `enum skb_drop_reason` of include/net/dropreason-core.h; `u32::MAX` where the kernel gives none (before 5.17).
    pub reason: u32,
    /// Bytes of the packet, from the header of IP on.
    pub bytes: u32,
    /// Number of the network namespace's inode.
    pub netns: u32,
    /// Ethernet protocol in the host's byte order.
    pub ether_type: u16,
    /// IP protocol: 6 for TCP, 17 for UDP.
    pub protocol: u16,
    /// How its pod is known: 1 by its socket, 2 by its network namespace.
    pub attribution: u32,
    /// 0.
    pub reserved: u32,
    /// The interface's name, NUL-padded.
    pub interface: [u8; INTERFACE_LEN],
}

/// Packets that were dropped in an interval, of one cgroup, reason, protocol and port.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DropCount {
    /// Packets.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
    /// As in [`Drop`].
    pub reason: u32,
    /// As in [`Drop`].
    pub ether_type: u16,
    /// As in [`Drop`].
    pub protocol: u16,
    /// Destination port; 0 for none.
    pub port: u16,
    /// As in [`Drop`].
    pub attribution: u16,
    /// 0.
    pub reserved: u32,
}

/// Rows that are added up at a time: entries of the map `DROP_COUNT`.
pub const SUMS_MAX: u32 = 8192;

/// What is counted apart.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DropKey {
    /// The cgroup.
    pub cgroup_id: u64,
    /// As in [`DropCount`].
    pub reason: u32,
    /// As in [`DropCount`].
    pub ether_type: u16,
    /// As in [`DropCount`].
    pub protocol: u16,
    /// As in [`DropCount`].
    pub port: u16,
    /// As in [`DropCount`].
    pub attribution: u16,
    /// The turn: element 0 of the map `DROP_TURN` at the time. Rows of a turn that is over are not added to any more, and make room.
    pub turn: u32,
}

/// Network namespaces whose pod is known: entries of the map `NETNS`. A pod has one.
pub const NETNS_MAX: u32 = 4096;

/// One CPU's sums.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DropSum {
    /// Packets.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl core::ops::Add for DropSum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            count: self.count.wrapping_add(other.count),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }
}

impl core::ops::Sub for DropSum {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            count: self.count.wrapping_sub(other.count),
            bytes: self.bytes.wrapping_sub(other.bytes),
        }
    }
}
