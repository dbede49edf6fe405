//! Frames of the sensor `tcp`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Task;

/// The two ends of a connection.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Ends {
    /// This node's address: 16 bytes for IPv6, the first 4 for IPv4.
    pub local: [u8; 16],
    /// The peer's.
    pub remote: [u8; 16],
    /// This node's port, in the host's byte order.
    pub local_port: u16,
    /// The peer's port, in the host's byte order.
    pub remote_port: u16,
    /// AF_INET (2) or AF_INET6 (10).
    pub family: u16,
    /// 0.
    pub reserved: u16,
}

/// A session that ended, or that is reported on while it goes on.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TcpSession {
    /// Who; pid 0 if that is not known.
    pub task: Task,
    /// Between whom.
    pub ends: Ends,
    /// Nanoseconds since boot when the handshake began; 0 if the session was there before anyone listened.
    pub start_boot_ns: u64,
    /// Payload bytes sent, each counted once.
    pub bytes_sent: u64,
    /// Payload bytes received, each counted once.
    pub bytes_received: u64,
    /// Segments sent again.
    pub retransmits: u32,
    /// Smoothed round trip time in microseconds.
    pub srtt_us: u32,
    /// State before it ended, or now: `TCP_*` of include/net/tcp_states.h.
    pub state: u16,
    /// [`TcpSession::CONNECT`], [`TcpSession::ACCEPT`] or 0.
    pub direction: u16,
    /// What happened: set of [`TcpSession::FIN_SENT`] and others.
    pub flags: u16,
    /// `sk_err`: why it ended, or 0.
    pub error: u16,
}

impl TcpSession {
    /// This node connected.
    pub const CONNECT: u16 = 1;
    /// This node accepted.
    pub const ACCEPT: u16 = 2;
    /// We sent a FIN first.
    pub const FIN_SENT: u16 = 1;
    /// They sent a FIN first.
    pub const FIN_RECEIVED: u16 = 2;
    /// We sent a RST.
    pub const RST_SENT: u16 = 4;
    /// We got a RST.
    pub const RST_RECEIVED: u16 = 8;
    /// The session goes on.
    pub const OPEN: u16 = 16;
}

/// Sessions and connects that are remembered at a time: entries of the map `SOCKETS`. What begins while it is full is told when it
/// ends all the same, without its beginning and its process.
pub const SOCKETS_MAX: u32 = 32_768;
/// Connects under way at a time of which something is known.
pub const CONNECTING_MAX: u32 = 4096;

/// Calls of the program that looks for sessions that are open already: each takes its share of the kernel's hash table.
pub const SHARES: u32 = 16_384;

/// What is remembered of a socket, by its address.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Socket {
    /// Who; pid 0 as long as that is not known.
    pub task: Task,
    /// Nanoseconds since boot when it began; 0 if that was before anyone listened.
    pub start_boot_ns: u64,
    /// Nanoseconds since boot when it was told of last, or first seen.
    pub told_boot_ns: u64,
    /// As in [`TcpSession`].
    pub direction: u16,
    /// As in [`TcpSession`].
    pub flags: u16,
    /// Once it is closed, and its RST is still to be sent: its last state. Otherwise 0.
    pub closed: u16,
    /// The last change of its state that was noted: the old one in the high byte, the new one in the low byte.
    pub last: u16,
}

/// A connect that failed.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TcpConnect {
    /// Who; pid 0 if that is not known.
    pub task: Task,
    /// Between whom.
    pub ends: Ends,
    /// Nanoseconds that it took; 0 if that is not known.
    pub duration_ns: u64,
    /// Why: an error number.
    pub error: u32,
    /// 0.
    pub reserved: u32,
}

/// A RST.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TcpReset {
    /// Who; pid 0 if that is not known.
    pub task: Task,
    /// Between whom.
    pub ends: Ends,
    /// The kernel's reason (`enum sk_rst_reason` of include/net/rstreason.h, since 6.10); `u32::MAX` where it gives none.
    pub reason: u32,
    /// State of the session: `TCP_*` of include/net/tcp_states.h; 0 without a socket.
    pub state: u16,
    /// 1: sent, 2: received.
    pub direction: u16,
}

/// A segment that was sent again.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TcpRetransmit {
    /// Who; pid 0 if that is not known.
    pub task: Task,
    /// Between whom.
    pub ends: Ends,
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// Payload bytes.
    pub bytes: u32,
    /// State of the session: `TCP_*` of include/net/tcp_states.h.
    pub state: u16,
    /// TCP flags of the segment.
    pub tcp_flags: u16,
    /// 0.
    pub reserved: u32,
}
