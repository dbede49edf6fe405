//! `dinle pktdrop`.

use std::process::ExitCode;

use dinle_proto::v1::{self, event::Detail};

use super::Common;
use crate::client::{
    Screen,
    args::{parse_duration, string_match},
    columns::{Column, Seen, column},
    text::{self, NONE},
};

pub(in crate::client) const PKTDROP: &str = "\
Print which packets the kernel drops, and why.

Drops are counted in the kernel, by pod, reason, protocol and destination port: a line tells what an interval added to one of these, and \
BYTES are from the header of IP on. With --samples each packet is printed instead, with both ends, the interface inside the pod, and the \
function of the kernel that dropped it.

REASON is the kernel's own name, without SKB_DROP_REASON_: NO_SOCKET when nobody listens, SOCKET_RCVBUFF when the program reads too \
slowly, NETFILTER_DROP for a rule of iptables or nftables. Kernels before 5.17 give none. BY says how the pod is known: by the packet's \
socket, or by the network namespace it was in. What the node drops outside of a pod's network namespace is told only by the socket.

TIME is UTC, by the node's clock.

Examples:
  dinle pktdrop -n shop --interval 10s
  dinle pktdrop --samples --reason 'NETFILTER_*' --port 5432";

/// A dropped packet in one cell.
pub(in crate::client) fn sample_summary(drop: &v1::Drop) -> String {
    let (from, to) = (drop.source.as_ref(), drop.destination.as_ref());
    format!(
        "{} {} {} → {}",
        text::or_none(&drop.reason),
        protocol(drop.protocol, drop.ether_type),
        text::endpoint(from),
        text::endpoint(to)
    )
}

/// A count in one cell.
pub(in crate::client) fn count_summary(count: &v1::DropCount) -> String {
    format!(
        "{} {} {} to port {}",
        text::thousands(count.count),
        text::or_none(&count.reason),
        protocol(count.protocol, count.ether_type),
        text::known_plain(count.port.into())
    )
}

/// What people call a protocol: that of IP, or of Ethernet where it is another.
pub(in crate::client) fn protocol(protocol: u32, ether_type: u32) -> String {
    // include/uapi/linux/in.h and if_ether.h
    let name = match (ether_type, protocol) {
        (0x0800, 0) => "IPv4",
        (0x86dd, 0) => "IPv6",
        (0x0806, _) => "ARP",
        (0x8100 | 0x88a8, _) => "VLAN",
        (_, 1) => "ICMP",
        (_, 2) => "IGMP",
        (_, 4) => "IPIP",
        (_, 6) => "TCP",
        (_, 17) => "UDP",
        (_, 33) => "DCCP",
        (_, 41) => "6IN4",
        (_, 47) => "GRE",
        (_, 50) => "ESP",
        (_, 51) => "AH",
        (_, 58) => "ICMPv6",
        (_, 132) => "SCTP",
        (0, 0) => NONE,
        (_, 0) => return format!("{ether_type:#06x}"),
        (_, other) => return other.to_string(),
    };
    name.to_owned()
}

fn attribution(number: i32) -> String {
    match v1::Attribution::try_from(number) {
        Ok(v1::Attribution::Socket) => "socket",
        Ok(v1::Attribution::NetworkNamespace) => "netns",
        Ok(v1::Attribution::Unspecified | v1::Attribution::Bio | v1::Attribution::Task)
        | Err(_) => NONE,
    }
    .to_owned()
}

const REASON: Column = column("REASON", 18, 40, |seen| match &seen.event.detail {
    Some(Detail::Drop(drop)) => text::or_none(&drop.reason).to_owned(),
    Some(Detail::DropCount(count)) => text::or_none(&count.reason).to_owned(),
    _ => NONE.to_owned(),
});
const PROTO: Column = column("PROTO", 6, 8, |seen| match &seen.event.detail {
    Some(Detail::Drop(drop)) => protocol(drop.protocol, drop.ether_type),
    Some(Detail::DropCount(count)) => protocol(count.protocol, count.ether_type),
    _ => NONE.to_owned(),
});
/// Tells IPv4 from IPv6, as bcc's tools do.
const IP: Column = column("IP", 2, 2, |seen| {
    of_count(seen, |count| {
        match count.ether_type {
            0x0800 => "4",
            0x86dd => "6",
            _ => NONE,
        }
        .to_owned()
    })
});
const BY: Column = column("BY", 6, 6, |seen| match &seen.event.detail {
    Some(Detail::Drop(drop)) => attribution(drop.attribution),
    Some(Detail::DropCount(count)) => attribution(count.attribution),
    _ => NONE.to_owned(),
});

const COUNT: Column = column("COUNT", 7, 20, |seen| {
    of_count(seen, |count| count.count.to_string())
});
const BYTES: Column = column("BYTES", 9, 20, |seen| {
    of_count(seen, |count| count.bytes.to_string())
});
const PORT: Column = column("PORT", 5, 5, |seen| {
    of_count(seen, |count| text::known_plain(count.port.into()))
});

const LEN: Column = column("LEN", 5, 10, |seen| {
    of_sample(seen, |drop| drop.bytes.to_string())
});
const IFACE: Column = column("IFACE", 8, 15, |seen| {
    of_sample(seen, |drop| text::or_none(&drop.interface).to_owned())
});
const FROM: Column = column("FROM", 21, 47, |seen| {
    of_sample(seen, |drop| end(drop.source.as_ref()))
});
const TO: Column = column("TO", 21, 47, |seen| {
    of_sample(seen, |drop| end(drop.destination.as_ref()))
});
const LOCATION: Column = column("LOCATION", 8, 80, |seen| {
    of_sample(seen, |drop| drop.location.clone())
});

fn of_count(seen: &Seen<'_>, cell: impl Fn(&v1::DropCount) -> String) -> String {
    match &seen.event.detail {
        Some(Detail::DropCount(count)) => cell(count),
        _ => NONE.to_owned(),
    }
}

fn of_sample(seen: &Seen<'_>, cell: impl Fn(&v1::Drop) -> String) -> String {
    match &seen.event.detail {
        Some(Detail::Drop(drop)) => cell(drop),
        _ => NONE.to_owned(),
    }
}

/// Of a packet that is not of IP, nobody knows the ends.
fn end(end: Option<&v1::Endpoint>) -> String {
    match end {
        Some(known) if !known.address.is_empty() => text::endpoint(end),
        Some(_) | None => NONE.to_owned(),
    }
}

/// Arguments of `dinle pktdrop`.
#[derive(Clone, Debug, clap::Args)]
pub struct Pktdrop {
    /// Print each packet [default: counts]
    #[arg(long, conflicts_with = "interval")]
    samples: bool,
    /// Time between two counts, such as `10s`, from 1s to 1h [default: 1s]
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    interval: Option<prost_types::Duration>,
    /// Only for these reasons, such as NO_SOCKET; globs too [default: all]
    #[arg(
        long,
        value_name = "REASON",
        value_delimiter = ',',
        help_heading = "Filters"
    )]
    reason: Vec<String>,
    /// Only packets to these ports; with --samples also from them [default: all]
    #[arg(long, value_name = "PORT", value_delimiter = ',', help_heading = "Filters", value_parser = clap::value_parser!(u16).range(1..))]
    port: Vec<u16>,
    #[command(flatten)]
    common: Common,
}

impl Pktdrop {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let columns = if self.samples {
            vec![REASON, PROTO, FROM, TO, IFACE, LEN, LOCATION]
        } else {
            vec![COUNT, BYTES, REASON, IP, PROTO, PORT]
        };
        self.common.run(request, columns, vec![BY], screen).await
    }

    pub(in crate::client) fn request(&self) -> v1::SubscribeRequest {
        let Self {
            samples,
            interval,
            reason,
            port,
            common,
        } = self;
        let kind = if *samples {
            v1::Kind::Drop
        } else {
            v1::Kind::DropCount
        };
        let filter = v1::Filter {
            reason: reason.iter().map(|text| string_match(text)).collect(),
            ports: port.iter().map(|port| (*port).into()).collect(),
            ..Default::default()
        };
        v1::SubscribeRequest {
            interval: *interval,
            ..common.request(&[kind], filter)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_their_names() {
        let table = [
            ((6, 0x0800), "TCP"),
            ((17, 0x86dd), "UDP"),
            ((58, 0x86dd), "ICMPv6"),
            ((0, 0x0800), "IPv4"),
            ((0, 0x0806), "ARP"),
            ((0, 0x88cc), "0x88cc"),
            ((99, 0x0800), "99"),
            ((0, 0), "-"),
        ];
        for ((number, ether_type), expected) in table {
            assert_eq!(protocol(number, ether_type), expected);
        }
    }

    #[test]
    fn summaries_say_what_was_dropped_and_why() {
        let at = |address: &str, port| {
            Some(v1::Endpoint {
                address: address.to_owned(),
                port,
                workload: None,
            })
        };
        let drop = v1::Drop {
            reason: "NO_SOCKET".to_owned(),
            protocol: 17,
            ether_type: 0x0800,
            source: at("10.0.0.1", 40_000),
            destination: at("10.0.0.2", 53),
            ..Default::default()
        };
        assert_eq!(
            sample_summary(&drop),
            "NO_SOCKET UDP 10.0.0.1:40000 → 10.0.0.2:53"
        );
        let count = v1::DropCount {
            protocol: 6,
            ether_type: 0x86dd,
            port: 5432,
            count: 1204,
            ..Default::default()
        };
        assert_eq!(count_summary(&count), "1,204 - TCP to port 5432");
        assert_eq!(end(at("", 0).as_ref()), "-");
    }
}
