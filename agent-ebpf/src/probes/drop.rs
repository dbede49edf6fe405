//! The sensor `drop`: packets that the kernel drops.

use aya_ebpf::{macros::map, maps::PerCpuHashMap};
use dinle_ebpf::drop::{DropKey, DropSum, SUMS_MAX};

/// Drops by cgroup, reason, protocol and port.
#[map]
static DROP_COUNT: PerCpuHashMap<DropKey, DropSum> = PerCpuHashMap::with_max_entries(SUMS_MAX, 0);
