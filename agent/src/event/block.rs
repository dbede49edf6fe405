//! Frames of the sensor `block`.

use std::time::Duration;

use dinle_ebpf::{BlockIo, BlockLatency};
use dinle_proto::v1::{self, event::Detail};

use super::{DecodeError, Decoded, device, parts, read, text};

pub(super) fn io(body: &[u8]) -> Result<Decoded, DecodeError> {
    let (io, tail) = read::<BlockIo>(body)?;
    let [] = parts::<BlockIo, 0>(tail, [])?;
    let BlockIo {
        task,
        sector,
        queued_ns,
        device_ns,
        bytes,
        device: dev,
        cmd_flags,
        error,
        attribution,
        flags,
        disk,
    } = io;
    let (device_major, device_minor) = device(dev);
    let span = |ns| prost_types::Duration::try_from(Duration::from_nanos(ns)).ok();
    // include/linux/blk_types.h: `enum req_flag_bits`. The order of these has not changed since 4.10.
    const REQ_OP_BITS: u32 = 8;
    let bit = |number: u32| cmd_flags & (1 << (REQ_OP_BITS + number)) != 0;
    let detail = v1::BlockIo {
        disk: text(&disk),
        device_major,
        device_minor,
        operation: operation(cmd_flags).into(),
        sync: bit(3),
        meta: bit(4),
        fua: bit(9),
        preflush: bit(10),
        read_ahead: bit(11),
        sector: (sector != u64::MAX).then_some(sector),
        bytes,
        queued: (flags & BlockIo::ISSUED != 0)
            .then(|| span(queued_ns))
            .flatten(),
        device: span(device_ns),
        error: errno(error),
        attribution: match attribution {
            BlockIo::BY_BIO => v1::Attribution::Bio,
            BlockIo::BY_TASK => v1::Attribution::Task,
            _ => v1::Attribution::Unspecified,
        }
        .into(),
    };
    Ok((Some(task), Detail::BlockIo(detail)))
}

pub(super) fn latency(body: &[u8]) -> Result<Decoded, DecodeError> {
    let (latency, tail) = read::<BlockLatency>(body)?;
    let [] = parts::<BlockLatency, 0>(tail, [])?;
    let BlockLatency {
        bytes,
        device_ns,
        queued_ns,
        buckets,
        device: dev,
        operation: op,
        disk,
    } = latency;
    let (device_major, device_minor) = device(dev);
    let used = buckets
        .iter()
        .rposition(|&count| count != 0)
        .map_or(0, |last| last + 1);
    let detail = v1::BlockLatency {
        disk: text(&disk),
        device_major,
        device_minor,
        operation: operation(op).into(),
        count: buckets.iter().copied().fold(0, u64::saturating_add),
        bytes,
        device_ns,
        queued_ns,
        buckets: buckets[..used].to_vec(),
    };
    Ok((None, Detail::BlockLatency(detail)))
}

/// `enum req_op` of include/linux/blk_types.h.
fn operation(cmd_flags: u32) -> v1::BlockOperation {
    match cmd_flags & 0xff {
        0 => v1::BlockOperation::Read,
        1 => v1::BlockOperation::Write,
        2 => v1::BlockOperation::Flush,
        3 => v1::BlockOperation::Discard,
        5 => v1::BlockOperation::SecureErase,
        9 => v1::BlockOperation::WriteZeroes,
        // Appending to a zone is 7, or 13 before 5.19, when 7 was to write the same to many sectors, which hardly anything ever asked for.
        7 | 10..=19 => v1::BlockOperation::Zone,
        32..=35 => v1::BlockOperation::Driver,
        _ => v1::BlockOperation::Unspecified,
    }
}

/// The error number of an end: `blk_errors` of block/blk-core.c. Numbers from 14 on have changed meaning between kernels; they and whatever
/// comes later are told as EIO, as the kernel itself does with those that it has no better word for.
fn errno(error: i32) -> u32 {
    let known = match error {
        ..=0 => return error.unsigned_abs(),
        1 => libc::EOPNOTSUPP,
        2 => libc::ETIMEDOUT,
        3 => libc::ENOSPC,
        4 => libc::ENOLINK,
        5 => libc::EREMOTEIO,
        6 => libc::EBADE,
        7 => libc::ENODATA,
        8 => libc::EILSEQ,
        9 => libc::ENOMEM,
        11 => libc::EREMCHG,
        12 => libc::EAGAIN,
        13 => libc::EBUSY,
        _ => libc::EIO,
    };
    known.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dinle_ebpf::{Header, Kind, Task, block::BUCKETS};
    use zerocopy::{FromBytes as _, IntoBytes as _};

    use super::*;
    use crate::event::{Context, decode, open};

    const SECTOR: u64 = 2048;

    fn header(kind: Kind) -> Header {
        Header {
            boot_ns: 1,
            cgroup_id: 70,
            slot: 3,
            kind: kind as u16,
            reserved: 0,
        }
    }

    fn name(text: &str) -> [u8; 32] {
        let mut name = [0; 32];
        name[..text.len()].copy_from_slice(text.as_bytes());
        name
    }

    /// A direct write of 4 KiB to a partition of the second NVMe disk, as the kernel half tells it.
    fn write() -> BlockIo {
        BlockIo {
            task: Task {
                pid: 42,
                ..Task::read_from_bytes(&[0; size_of::<Task>()]).expect("zeros are a task")
            },
            sector: SECTOR,
            queued_ns: 1_500,
            device_ns: 2_000_000_000,
            bytes: 4096,
            device: 259 << 20 | 5,
            // REQ_OP_WRITE, REQ_SYNC, REQ_IDLE.
            cmd_flags: 0x8801,
            error: 0,
            attribution: BlockIo::BY_BIO,
            flags: BlockIo::ISSUED,
            disk: name("nvme1n1"),
        }
    }

    #[test]
    fn buckets_without_bounds_are_no_overflow() {
        let most = [0xff; size_of::<BlockLatency>()];
        let frame = [header(Kind::BlockLatency).as_bytes(), &most].concat();
        match decoded(&frame).detail {
            Some(Detail::BlockLatency(latency)) => assert_eq!(latency.count, u64::MAX),
            other => panic!("{other:?}"),
        }
    }

    fn told(io: &BlockIo) -> v1::BlockIo {
        let frame = [header(Kind::BlockIo).as_bytes(), io.as_bytes()].concat();
        match decoded(&frame).detail {
            Some(Detail::BlockIo(io)) => io,
            other => panic!("{other:?}"),
        }
    }

    fn decoded(frame: &[u8]) -> v1::Event {
        let context = Context::new(0, Arc::default());
        let envelope = open(frame).expect("a frame");
        decode(&envelope, &context).expect("an event")
    }

    #[test]
    fn a_request_says_what_went_where_and_how_long_it_took() {
        let span = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        let expected = v1::BlockIo {
            disk: "nvme1n1".to_owned(),
            device_major: 259,
            device_minor: 5,
            operation: v1::BlockOperation::Write.into(),
            sync: true,
            sector: Some(SECTOR),
            bytes: 4096,
            queued: span(0, 1_500),
            device: span(2, 0),
            attribution: v1::Attribution::Bio.into(),
            ..Default::default()
        };
        assert_eq!(told(&write()), expected);
        let frame = [header(Kind::BlockIo).as_bytes(), write().as_bytes()].concat();
        let event = decoded(&frame);
        assert_eq!(
            (event.cgroup_id, event.process.map(|p| p.pid)),
            (70, Some(42))
        );
    }

    #[test]
    fn a_request_of_nobody_has_no_process() {
        let io = BlockIo {
            task: Task::read_from_bytes(&[0; size_of::<Task>()]).expect("zeros are a task"),
            ..write()
        };
        let frame = [header(Kind::BlockIo).as_bytes(), io.as_bytes()].concat();
        assert_eq!(decoded(&frame).process, None);
    }

    #[test]
    fn flags_are_told_one_by_one() {
        let flags = |bit: u32| {
            let io = told(&BlockIo {
                cmd_flags: 1 << bit,
                ..write()
            });
            [io.sync, io.meta, io.fua, io.preflush, io.read_ahead]
        };
        assert_eq!(flags(11), [true, false, false, false, false]);
        assert_eq!(flags(12), [false, true, false, false, false]);
        assert_eq!(flags(17), [false, false, true, false, false]);
        assert_eq!(flags(18), [false, false, false, true, false]);
        assert_eq!(flags(19), [false, false, false, false, true]);
    }

    #[test]
    fn a_flush_has_no_sector_and_was_not_queued() {
        let io = told(&BlockIo {
            sector: u64::MAX,
            queued_ns: 0,
            bytes: 0,
            cmd_flags: 1 << 18 | 2,
            attribution: BlockIo::BY_TASK,
            flags: 0,
            ..write()
        });
        assert_eq!(io.operation(), v1::BlockOperation::Flush);
        assert_eq!((io.sector, io.queued, io.bytes), (None, None, 0));
        assert_eq!(io.attribution(), v1::Attribution::Task);
        assert!(io.device.is_some());
    }

    #[test]
    fn errors_are_numbers_of_errno_however_the_kernel_says_them() {
        let error = |error| told(&BlockIo { error, ..write() }).error;
        let table = [
            (0, 0),
            (-libc::EIO, libc::EIO),
            (-libc::ENOSPC, libc::ENOSPC),
            (1, libc::EOPNOTSUPP),
            (3, libc::ENOSPC),
            (7, libc::ENODATA),
            (10, libc::EIO),
            (13, libc::EBUSY),
            (19, libc::EIO),
            (255, libc::EIO),
        ];
        for (told, expected) in table {
            assert_eq!(error(told), expected as u32, "{told}");
        }
    }

    #[test]
    fn latencies_count_what_is_in_their_buckets() {
        let mut buckets = [0; BUCKETS];
        buckets[0] = 2;
        buckets[7] = 5;
        let latency = BlockLatency {
            bytes: 7 * 4096,
            device_ns: 1_000_000,
            queued_ns: 2_000,
            buckets,
            device: 8 << 20,
            operation: 0,
            disk: name("sda"),
        };
        let frame = [header(Kind::BlockLatency).as_bytes(), latency.as_bytes()].concat();
        let expected = v1::BlockLatency {
            disk: "sda".to_owned(),
            device_major: 8,
            device_minor: 0,
            operation: v1::BlockOperation::Read.into(),
            count: 7,
            bytes: 7 * 4096,
            device_ns: 1_000_000,
            queued_ns: 2_000,
            buckets: vec![2, 0, 0, 0, 0, 0, 0, 5],
        };
        let event = decoded(&frame);
        assert_eq!(event.detail, Some(Detail::BlockLatency(expected)));
        assert_eq!(event.process, None);
    }
}
