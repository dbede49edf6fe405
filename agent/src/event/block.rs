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
        error: error.unsigned_abs(),
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
        count,
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
        count,
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
        _ => v1::BlockOperation::Unspecified,
    }
}
