//! Frames of the sensor `drop`.

use dinle_ebpf::{Drop, DropCount};
use dinle_proto::v1::{self, event::Detail};

use super::{
    DecodeError, Decoded, Names, parts, read,
    tcp::{endpoints, name},
    text,
};

pub(super) fn sample(body: &[u8], names: &Names) -> Result<Decoded, DecodeError> {
    let (drop, tail) = read::<Drop>(body)?;
    let [] = parts::<Drop, 0>(tail, [])?;
    let Drop {
        ends,
        location,
        reason,
        bytes,
        netns: _,
        ether_type,
        protocol,
        attribution,
        reserved: _,
        interface,
    } = drop;
    let (source, destination) = endpoints(&ends);
    let detail = v1::Drop {
        reason: name(&names.drop_reasons, reason),
        protocol: protocol.into(),
        ether_type: ether_type.into(),
        source: Some(source),
        destination: Some(destination),
        interface: text(&interface),
        location: place(location, names),
        bytes,
        attribution: attributed(attribution).into(),
    };
    Ok((None, Detail::Drop(detail)))
}

pub(super) fn count(body: &[u8], names: &Names) -> Result<Decoded, DecodeError> {
    let (dropped, tail) = read::<DropCount>(body)?;
    let [] = parts::<DropCount, 0>(tail, [])?;
    let DropCount {
        count,
        bytes,
        reason,
        ether_type,
        protocol,
        port,
        attribution,
        reserved: _,
    } = dropped;
    let detail = v1::DropCount {
        reason: name(&names.drop_reasons, reason),
        protocol: protocol.into(),
        ether_type: ether_type.into(),
        port: port.into(),
        count,
        bytes,
        attribution: attributed(attribution.into()).into(),
    };
    Ok((None, Detail::DropCount(detail)))
}

/// Where in the kernel's code that is.
fn place(address: u64, names: &Names) -> String {
    let symbols = names.symbols.load();
    let named = symbols.as_ref().and_then(|symbols| symbols.find(address));
    named.unwrap_or_else(|| format!("{address:#x}"))
}

fn attributed(attribution: u32) -> v1::Attribution {
    match attribution {
        1 => v1::Attribution::Socket,
        2 => v1::Attribution::NetworkNamespace,
        _ => v1::Attribution::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dinle_ebpf::{Header, Kind, tcp::Ends};
    use zerocopy::IntoBytes as _;

    use super::*;
    use crate::event::{Context, Symbols, decode, open};

    fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
        let header = Header {
            boot_ns: 5_000_000_000,
            cgroup_id: 7,
            slot: 1,
            kind: kind as u16,
            reserved: 0,
        };
        [header.as_bytes(), payload].concat()
    }

    fn sample_frame(reason: u32) -> Vec<u8> {
        let mut ends = Ends {
            local_port: 40_000,
            remote_port: 53,
            family: 2,
            ..Ends::default()
        };
        ends.local[..4].copy_from_slice(&[10, 0, 0, 1]);
        ends.remote[..4].copy_from_slice(&[10, 0, 0, 2]);
        let mut interface = [0; 16];
        interface[..4].copy_from_slice(b"eth0");
        let drop = Drop {
            ends,
            location: 0xffff_ffff_8100_011a,
            reason,
            bytes: 60,
            netns: 1,
            ether_type: 0x0800,
            protocol: 17,
            attribution: 2,
            reserved: 0,
            interface,
        };
        frame(Kind::Drop, drop.as_bytes())
    }

    fn context() -> Context {
        let names = Names {
            drop_reasons: [(3, "NO_SOCKET".to_owned())].into(),
            ..Names::default()
        };
        Context::new(0, Arc::new(names))
    }

    fn decoded(frame: &[u8], context: &Context) -> Detail {
        let event = open(frame).and_then(|envelope| decode(&envelope, context));
        let event = event.expect("a frame");
        assert_eq!(event.process, None);
        event.detail.expect("a detail")
    }

    #[test]
    fn a_sample_says_what_was_dropped_where_and_why() {
        let context = context();
        let Detail::Drop(drop) = decoded(&sample_frame(3), &context) else {
            panic!("no drop");
        };
        let (source, destination) = (drop.source.expect("one"), drop.destination.expect("one"));
        assert_eq!((&*source.address, source.port), ("10.0.0.1", 40_000));
        assert_eq!((&*destination.address, destination.port), ("10.0.0.2", 53));
        assert_eq!((&*drop.reason, &*drop.interface), ("NO_SOCKET", "eth0"));
        assert_eq!(
            (drop.protocol, drop.ether_type, drop.bytes),
            (17, 0x0800, 60)
        );
        assert_eq!(drop.location, "0xffffffff8100011a", "nobody has the names");
        assert_eq!(drop.attribution, v1::Attribution::NetworkNamespace as i32);
        let kallsyms = "ffffffff81000100 t __udp4_lib_rcv\n";
        let symbols = Symbols::parse(kallsyms);
        context.names.symbols.store(Some(Arc::new(symbols)));
        let Detail::Drop(drop) = decoded(&sample_frame(3), &context) else {
            panic!("no drop");
        };
        assert_eq!(drop.location, "__udp4_lib_rcv+0x1a");
    }

    #[test]
    fn a_reason_without_a_name_is_its_number_and_none_is_none() {
        for (reason, expected) in [(0x2_0001, "0x20001"), (u32::MAX, ""), (3, "NO_SOCKET")] {
            let Detail::Drop(drop) = decoded(&sample_frame(reason), &context()) else {
                panic!("no drop");
            };
            assert_eq!(drop.reason, expected);
        }
    }

    #[test]
    fn a_count_says_how_many_and_how_the_pod_is_known() {
        let count = DropCount {
            count: 23,
            bytes: 874,
            reason: 3,
            ether_type: 0x86dd,
            protocol: 6,
            port: 5432,
            attribution: 1,
            reserved: 0,
        };
        let frame = frame(Kind::DropCount, count.as_bytes());
        let Detail::DropCount(count) = decoded(&frame, &context()) else {
            panic!("no count");
        };
        let expected = v1::DropCount {
            reason: "NO_SOCKET".to_owned(),
            protocol: 6,
            ether_type: 0x86dd,
            port: 5432,
            count: 23,
            bytes: 874,
            attribution: v1::Attribution::Socket.into(),
        };
        assert_eq!(count, expected);
    }
}
