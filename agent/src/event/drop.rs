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
