//! Tables in which the kernel adds up: read at an interval, told as the difference to the last reading.

use std::{
    collections::HashMap,
    hash::Hash,
    ops::{Add, Sub},
    time::{Duration, Instant},
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuHashMap},
};
use dinle_ebpf::{
    BlockLatency, DropCount, Header, Kind, Payload,
    block::{BlockKey, BlockSum},
    drop::{DropKey, DropSum},
};
use zerocopy::IntoBytes as _;

use super::{LoadError, take_map};

/// Lets aya pass a wire type by value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: `#[repr(C)]` integers without padding (zerocopy's derives check it), valid for any bytes.
unsafe impl Pod for Plain<BlockKey> {}
// SAFETY: as above.
unsafe impl Pod for Plain<BlockSum> {}
// SAFETY: as above.
unsafe impl Pod for Plain<DropKey> {}
// SAFETY: as above.
unsafe impl Pod for Plain<DropSum> {}

/// A row of a table: what is counted apart, and the sums.
trait Row {
    type Key: Copy + Eq + Hash + 'static;
    type Sum: Copy
        + PartialEq
        + Default
        + Add<Output = Self::Sum>
        + Sub<Output = Self::Sum>
        + 'static;
    type Payload: Payload;

    fn cgroup_id(key: &Self::Key) -> u64;
    /// What a frame tells of it.
    fn payload(key: Self::Key, sum: Self::Sum) -> Self::Payload;
}

struct Block;

impl Row for Block {
    type Key = BlockKey;
    type Sum = BlockSum;
    type Payload = BlockLatency;

    fn cgroup_id(key: &BlockKey) -> u64 {
        key.cgroup_id
    }

    fn payload(key: BlockKey, sum: BlockSum) -> BlockLatency {
        let BlockKey {
            cgroup_id: _,
            device,
            operation,
            disk,
        } = key;
        let BlockSum {
            bytes,
            device_ns,
            queued_ns,
            buckets,
        } = sum;
        BlockLatency {
            bytes,
            device_ns,
            queued_ns,
            buckets,
            device,
            operation,
            disk,
        }
    }
}

struct Dropped;

impl Row for Dropped {
    type Key = DropKey;
    type Sum = DropSum;
    type Payload = DropCount;

    fn cgroup_id(key: &DropKey) -> u64 {
        key.cgroup_id
    }

    fn payload(key: DropKey, sum: DropSum) -> DropCount {
        let DropKey {
            cgroup_id: _,
            reason,
            ether_type,
            protocol,
            port,
            attribution,
            turn: _,
        } = key;
        let DropSum { count, bytes } = sum;
        DropCount {
            count,
            bytes,
            reason,
            ether_type,
            protocol,
            port,
            attribution,
            reserved: 0,
        }
    }
}

/// How a table lies in the kernel.
enum Rows<K: Pod, S: Pod> {
    /// With a sum for each CPU.
    PerCpu(PerCpuHashMap<MapData, K, S>),
    /// With one sum, to which all CPUs add.
    Shared(BpfHashMap<MapData, K, S>),
}

impl<K: Pod, S: Pod> Rows<K, S> {
    fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, LoadError> {
        let map = take_map(ebpf, name)?;
        let rows = match map {
            Map::HashMap(_) => BpfHashMap::try_from(map).map(Self::Shared),
            _ => PerCpuHashMap::try_from(map).map(Self::PerCpu),
        };
        rows.map_err(|error| LoadError::Map { name, error })
    }

    /// Gives each row, with its sums.
    fn each(&self, mut each: impl FnMut(K, &[S])) -> Result<(), MapError> {
        match self {
            Self::PerCpu(map) => map.iter().try_for_each(|row| {
                let (key, sums) = row?;
                each(key, &sums);
                Ok(())
            }),
            Self::Shared(map) => map.iter().try_for_each(|row| {
                let (key, sum) = row?;
                each(key, &[sum]);
                Ok(())
            }),
        }
    }

    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        let removed = match self {
            Self::PerCpu(map) => map.remove(key),
            Self::Shared(map) => map.remove(key),
        };
        match removed {
            Err(MapError::KeyNotFound) => Ok(()),
            other => other,
        }
    }
}

struct Table<R: Row>
where
    Plain<R::Key>: Pod,
    Plain<R::Sum>: Pod,
{
    rows: Rows<Plain<R::Key>, Plain<R::Sum>>,
    before: HashMap<R::Key, R::Sum>,
}

impl<R: Row> Table<R>
where
    Plain<R::Key>: Pod,
    Plain<R::Sum>: Pod,
{
    fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, LoadError> {
        Ok(Self {
            rows: Rows::take(ebpf, name)?,
            before: HashMap::new(),
        })
    }

    fn read(
        &mut self,
        boot_ns: u64,
        exists: impl Fn(u64) -> bool,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), MapError> {
        let Self { rows, before } = self;
        let mut gone = Vec::new();
        rows.each(|Plain(key), sums| {
            let sum = sums
                .iter()
                .fold(R::Sum::default(), |sum, &Plain(one)| sum + one);
            let old = before.insert(key, sum).unwrap_or_default();
            if sum == old {
                if !exists(R::cgroup_id(&key)) {
                    gone.push(key);
                }
                return;
            }
            let header = Header {
                boot_ns,
                cgroup_id: R::cgroup_id(&key),
                slot: 0,
                kind: R::Payload::KIND as u16,
                reserved: 0,
            };
            each(&[header.as_bytes(), R::payload(key, sum - old).as_bytes()].concat());
        })?;
        self.remove(gone)
    }

    fn remove_if(&mut self, gone: impl Fn(&R::Key) -> bool) -> Result<(), MapError> {
        let Self { before, .. } = self;
        let gone = before.keys().filter(|key| gone(key)).copied().collect();
        self.remove(gone)
    }

    fn remove(&mut self, keys: Vec<R::Key>) -> Result<(), MapError> {
        let Self { rows, before } = self;
        for key in keys {
            rows.remove(&Plain(key))?;
            before.remove(&key);
        }
        Ok(())
    }
}

/// Longer than any program runs: what is not added to for so long is not added to any more.
const TURN: Duration = Duration::from_millis(500);

/// Turns in which drops are counted. Ports make many rows, of which most are needed once: each turn has its own, and those of the turn
/// before are removed when they have been read.
struct Turns {
    map: Array<MapData, u32>,
    now: u32,
    since: Instant,
}

impl Turns {
    fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let name = "DROP_TURN";
        let map = Array::try_from(take_map(ebpf, name)?)
            .map_err(|error| LoadError::Map { name, error })?;
        Ok(Self {
            map,
            now: 0,
            since: Instant::now(),
        })
    }

    /// To be called after the table was read.
    fn next(&mut self, table: &mut Table<Dropped>) -> Result<(), MapError> {
        let Self { map, now, since } = self;
        if since.elapsed() < TURN {
            return Ok(());
        }
        table.remove_if(|key| key.turn != *now)?;
        *now ^= 1;
        map.set(0, *now, 0)?;
        *since = Instant::now();
        Ok(())
    }
}

/// All of them.
pub struct Tables {
    block: Table<Block>,
    drop: Table<Dropped>,
    turns: Turns,
}

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            block: Table::take(ebpf, "BLOCK_LATENCY")?,
            drop: Table::take(ebpf, "DROP_COUNT")?,
            turns: Turns::take(ebpf)?,
        })
    }

    /// Gives a frame for each row of that kind to which something was added since the last call. Kinds that are not told in snapshots
    /// have none. Rows of cgroups that do not exist any more are removed once nothing is added to them.
    pub fn read(
        &mut self,
        kind: Kind,
        boot_ns: u64,
        exists: impl Fn(u64) -> bool,
        each: impl FnMut(&[u8]),
    ) -> Result<(), MapError> {
        match kind {
            Kind::BlockLatency => self.block.read(boot_ns, exists, each),
            Kind::DropCount => {
                self.drop.read(boot_ns, exists, each)?;
                self.turns.next(&mut self.drop)
            }
            Kind::Exec
            | Kind::Exit
            | Kind::Fork
            | Kind::FileOpen
            | Kind::FileDelete
            | Kind::TcpSession
            | Kind::TcpConnect
            | Kind::TcpReset
            | Kind::TcpRetransmit
            | Kind::BlockIo
            | Kind::Drop => Ok(()),
        }
    }
}
