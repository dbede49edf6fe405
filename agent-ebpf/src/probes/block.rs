//! The sensor `block`: requests to disks.

use aya_ebpf::{macros::map, maps::PerCpuHashMap};
use dinle_ebpf::block::{BlockKey, BlockSum, SUMS_MAX};

/// Latencies by cgroup, disk and operation.
#[map]
static BLOCK_LATENCY: PerCpuHashMap<BlockKey, BlockSum> =
    PerCpuHashMap::with_max_entries(SUMS_MAX, 0);
