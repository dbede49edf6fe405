//! Frames of the sensor `block`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Task;

/// Bytes of a disk's name with its NUL: `DISK_NAME_LEN` of include/linux/blkdev.h.
pub const DISK_NAME_LEN: usize = 32;

/// Buckets of a latency histogram: bucket 0 counts requests of less than 2 µs, bucket i those of 2^i to 2^(i+1) µs, the last all longer ones.
pub const BUCKETS: usize = 27;

/// A request, when it is done.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockIo {
    /// Who asked for it; pid 0 if that is not known.
    pub task: Task,
    /// First sector, of 512 bytes; `u64::MAX` for none.
    pub sector: u64,
    /// Nanoseconds between the request's making and its issue to the device; 0 if it was not issued.
    pub queued_ns: u64,
    /// Nanoseconds in the device.
    pub device_ns: u64,
    /// Bytes.
    pub bytes: u32,
    /// `dev_t` of the disk.
    pub device: u32,
    /// Operation and flags of the request's first bio: `bi_opf`, `REQ_*` of include/linux/blk_types.h. Of one that only writes out
    /// the disk's cache the operation is `REQ_OP_FLUSH`.
    pub cmd_flags: u32,
    /// 0, a negative error number (before 5.16), or a `blk_status_t` of include/linux/blk_types.h.
    pub error: i32,
    /// How its pod is known: [`BlockIo::BY_BIO`] or [`BlockIo::BY_TASK`].
    pub attribution: u32,
    /// Set of [`BlockIo::ISSUED`].
    pub flags: u32,
    /// The disk's name, NUL-padded.
    pub disk: [u8; DISK_NAME_LEN],
}

impl BlockIo {
    /// By the cgroup that the data belongs to.
    pub const BY_BIO: u32 = 1;
    /// By the task that made the request.
    pub const BY_TASK: u32 = 2;
    /// It went to the device: `queued_ns` and `device_ns` are known apart.
    pub const ISSUED: u32 = 1;
}

/// Latencies of one cgroup, disk and operation in an interval. How many there were is the sum of the buckets.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockLatency {
    /// Bytes.
    pub bytes: u64,
    /// Nanoseconds in the device, all together.
    pub device_ns: u64,
    /// Nanoseconds queued, all together.
    pub queued_ns: u64,
    /// Requests by time in the device.
    pub buckets: [u64; BUCKETS],
    /// `dev_t` of the disk.
    pub device: u32,
    /// Operation: the lowest 8 bits of `cmd_flags`.
    pub operation: u32,
    /// The disk's name, NUL-padded.
    pub disk: [u8; DISK_NAME_LEN],
}

/// What is known of a request that is under way: a row of the map `BLOCK_REQUESTS`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// Who asked; zeros if that is not known.
    pub task: Task,
    /// Whose it is.
    pub cgroup_id: u64,
    /// [`Kind::bit`](crate::Kind::bit) of each kind that was wanted when it was made.
    pub kinds: u64,
    /// When that was, by the monotonic clock.
    pub made_ns: u64,
    /// 0: not issued yet. What follows is set then.
    pub issued_ns: u64,
    /// When the kernel says that it was made: tells it from a later one at the same address.
    pub start_time: u64,
    /// First sector.
    pub sector: u64,
    /// Bytes.
    pub bytes: u32,
    /// `bi_opf` of its bio.
    pub cmd_flags: u32,
    /// As in [`BlockIo`].
    pub attribution: u32,
    /// 0.
    pub reserved: u32,
}

/// Requests that are under way at a time: entries of the map `BLOCK_REQUESTS`. A disk has queues of 32 to some 1000 requests.
pub const REQUESTS_MAX: u32 = 8192;

/// Sums that are kept at a time: entries of the map `BLOCK_LATENCY`. Enough for 200 containers with 3 operations on 3 disks each.
pub const SUMS_MAX: u32 = 2048;

/// What is added up apart.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct BlockKey {
    /// The cgroup.
    pub cgroup_id: u64,
    /// As in [`BlockLatency`].
    pub device: u32,
    /// As in [`BlockLatency`].
    pub operation: u32,
    /// As in [`BlockLatency`].
    pub disk: [u8; DISK_NAME_LEN],
}

/// The sums: as in [`BlockLatency`]. Shared by all CPUs: with one for each, machines with many CPUs would need tens of megabytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[expect(missing_docs, reason = "each is as in `BlockLatency`")]
pub struct BlockSum {
    pub bytes: u64,
    pub device_ns: u64,
    pub queued_ns: u64,
    pub buckets: [u64; BUCKETS],
}

impl BlockSum {
    fn with(self, other: Self, each: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            bytes: each(self.bytes, other.bytes),
            device_ns: each(self.device_ns, other.device_ns),
            queued_ns: each(self.queued_ns, other.queued_ns),
            buckets: core::array::from_fn(|i| each(self.buckets[i], other.buckets[i])),
        }
    }
}

impl core::ops::Add for BlockSum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.with(other, u64::wrapping_add)
    }
}

impl core::ops::Sub for BlockSum {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.with(other, u64::wrapping_sub)
    }
}
