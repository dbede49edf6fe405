//! Frames of the sensor `tcp`.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use dinle_ebpf::{TcpConnect, TcpReset, TcpRetransmit, TcpSession, tcp::Ends};
use dinle_proto::v1::{self, event::Detail};

use super::{DecodeError, Decoded, Names, parts, read};

pub(super) fn session(body: &[u8], boot_ns: u64) -> Result<Decoded, DecodeError> {
    let (session, tail) = read::<TcpSession>(body)?;
    let [] = parts::<TcpSession, 0>(tail, [])?;
    let TcpSession {
        task,
        ends,
        start_boot_ns,
        bytes_sent,
        bytes_received,
        retransmits,
        srtt_us,
        state,
        direction,
        flags,
        error,
    } = session;
    let (local, remote) = endpoints(&ends);
    let lasted = Duration::from_nanos(boot_ns.saturating_sub(start_boot_ns));
    let open = flags & TcpSession::OPEN != 0;
    let detail = v1::TcpSession {
        local: Some(local),
        remote: Some(remote),
        direction: match direction {
            TcpSession::CONNECT => v1::TcpDirection::Connect,
            TcpSession::ACCEPT => v1::TcpDirection::Accept,
            _ => v1::TcpDirection::Unspecified,
        }
        .into(),
        bytes_sent,
        bytes_received,
        duration: (start_boot_ns != 0)
            .then(|| prost_types::Duration::try_from(lasted).ok())
            .flatten(),
        began_before: start_boot_ns == 0,
        open,
        retransmits,
        srtt_us,
        end: if open {
            v1::TcpEnd::Unspecified
        } else {
            end(flags, error)
        }
        .into(),
        state: state_of(state).into(),
        error: error.into(),
    };
    Ok((Some(task), Detail::TcpSession(detail)))
}

/// A reset ends what a FIN began. After a timeout a RST is sent to nobody who would hear it.
fn end(flags: u16, error: u16) -> v1::TcpEnd {
    const ETIMEDOUT: u16 = 110;
    if flags & TcpSession::RST_RECEIVED != 0 {
        v1::TcpEnd::RstReceived
    } else if error == ETIMEDOUT {
        v1::TcpEnd::Timeout
    } else if flags & TcpSession::RST_SENT != 0 {
        v1::TcpEnd::RstSent
    } else if error != 0 {
        v1::TcpEnd::Error
    } else if flags & TcpSession::FIN_SENT != 0 {
        v1::TcpEnd::FinSent
    } else if flags & TcpSession::FIN_RECEIVED != 0 {
        v1::TcpEnd::FinReceived
    } else {
        v1::TcpEnd::Unspecified
    }
}

pub(super) fn connect(body: &[u8]) -> Result<Decoded, DecodeError> {
    let (connect, tail) = read::<TcpConnect>(body)?;
    let [] = parts::<TcpConnect, 0>(tail, [])?;
    let TcpConnect {
        task,
        ends,
        duration_ns,
        error,
        reserved: _,
    } = connect;
    let (local, remote) = endpoints(&ends);
    let took = Duration::from_nanos(duration_ns);
    let detail = v1::TcpConnect {
        local: Some(local),
        remote: Some(remote),
        error,
        duration: (duration_ns != 0)
            .then(|| prost_types::Duration::try_from(took).ok())
            .flatten(),
    };
    Ok((Some(task), Detail::TcpConnect(detail)))
}

pub(super) fn reset(body: &[u8], names: &Names) -> Result<Decoded, DecodeError> {
    let (reset, tail) = read::<TcpReset>(body)?;
    let [] = parts::<TcpReset, 0>(tail, [])?;
    let TcpReset {
        task,
        ends,
        reason,
        state,
        direction,
    } = reset;
    let (local, remote) = endpoints(&ends);
    let detail = v1::TcpReset {
        local: Some(local),
        remote: Some(remote),
        direction: match direction {
            1 => v1::Direction::Sent,
            2 => v1::Direction::Received,
            _ => v1::Direction::Unspecified,
        }
        .into(),
        state: state_of(state).into(),
        reason: name(&names.reset_reasons, reason),
    };
    Ok((Some(task), Detail::TcpReset(detail)))
}

pub(super) fn retransmit(body: &[u8]) -> Result<Decoded, DecodeError> {
    let (retransmit, tail) = read::<TcpRetransmit>(body)?;
    let [] = parts::<TcpRetransmit, 0>(tail, [])?;
    let TcpRetransmit {
        task,
        ends,
        sequence,
        bytes,
        state,
        tcp_flags,
        reserved: _,
    } = retransmit;
    let (local, remote) = endpoints(&ends);
    let detail = v1::TcpRetransmit {
        local: Some(local),
        remote: Some(remote),
        state: state_of(state).into(),
        sequence,
        bytes,
        tcp_flags: tcp_flags.into(),
    };
    Ok((Some(task), Detail::TcpRetransmit(detail)))
}

/// The name that the kernel gives to a number. Where the kernel gives no number, there is none.
pub(super) fn name(names: &std::collections::HashMap<u32, String>, number: u32) -> String {
    const NONE: u32 = u32::MAX;
    match names.get(&number) {
        Some(name) => name.clone(),
        None if number == NONE => String::new(),
        // A reason of a subsystem, or of a module.
        None => format!("{number:#x}"),
    }
}

fn state_of(state: u16) -> v1::TcpState {
    v1::TcpState::try_from(i32::from(state)).unwrap_or_default()
}

/// Both ends: local and remote, or source and destination.
pub(super) fn endpoints(ends: &Ends) -> (v1::Endpoint, v1::Endpoint) {
    let Ends {
        local,
        remote,
        local_port,
        remote_port,
        family,
        reserved: _,
    } = ends;
    let end = |address: &[u8; 16], port: u16| v1::Endpoint {
        address: address_of(*family, address),
        port: port.into(),
        workload: None,
    };
    (end(local, *local_port), end(remote, *remote_port))
}

fn address_of(family: u16, bytes: &[u8; 16]) -> String {
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    let [a, b, c, d, ..] = *bytes;
    match family {
        AF_INET => Ipv4Addr::new(a, b, c, d).to_string(),
        // IPv4 over an IPv6 socket is IPv4.
        AF_INET6 => Ipv6Addr::from(*bytes).to_canonical().to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{self, process::tests as process};
    use dinle_ebpf::Kind;
    use zerocopy::IntoBytes as _;

    fn ends() -> Ends {
        let mut ends = Ends {
            local_port: 40_000,
            remote_port: 443,
            family: 2,
            ..Ends::default()
        };
        ends.local[..4].copy_from_slice(&[10, 0, 0, 7]);
        ends.remote[..4].copy_from_slice(&[192, 0, 2, 1]);
        ends
    }

    fn session_with(change: impl FnOnce(&mut TcpSession)) -> v1::TcpSession {
        let mut session = TcpSession {
            task: process::task(),
            ends: ends(),
            start_boot_ns: 4_000_000_000,
            bytes_sent: 12,
            bytes_received: 34,
            retransmits: 5,
            srtt_us: 678,
            state: 9,
            direction: TcpSession::ACCEPT,
            flags: TcpSession::FIN_RECEIVED,
            error: 0,
        };
        change(&mut session);
        let frame = [
            process::header(Kind::TcpSession).as_bytes(),
            session.as_bytes(),
        ]
        .concat();
        let envelope = event::open(&frame).expect("a frame");
        let context = event::Context::new(0, Default::default());
        let decoded = event::decode(&envelope, &context).expect("decoded");
        match decoded.detail {
            Some(Detail::TcpSession(session)) => session,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_session_says_all_that_its_frame_does() {
        let end = |address: &str, port| {
            Some(v1::Endpoint {
                address: address.to_owned(),
                port,
                workload: None,
            })
        };
        let expected = v1::TcpSession {
            local: end("10.0.0.7", 40_000),
            remote: end("192.0.2.1", 443),
            direction: v1::TcpDirection::Accept.into(),
            bytes_sent: 12,
            bytes_received: 34,
            duration: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            began_before: false,
            open: false,
            retransmits: 5,
            srtt_us: 678,
            end: v1::TcpEnd::FinReceived.into(),
            state: v1::TcpState::LastAck.into(),
            error: 0,
        };
        assert_eq!(session_with(|_| ()), expected);
        assert_eq!(
            session_with(|session| {
                session.start_boot_ns = 0;
                session.flags = TcpSession::OPEN;
                session.direction = 0;
            }),
            v1::TcpSession {
                direction: v1::TcpDirection::Unspecified.into(),
                duration: None,
                began_before: true,
                open: true,
                end: v1::TcpEnd::Unspecified.into(),
                ..expected
            }
        );
    }

    #[test]
    fn what_ended_a_session_is_what_ended_it_for_good() {
        use v1::TcpEnd as End;
        const FIN_SENT: u16 = TcpSession::FIN_SENT;
        const FIN_RECEIVED: u16 = TcpSession::FIN_RECEIVED;
        const RST_SENT: u16 = TcpSession::RST_SENT;
        const RST_RECEIVED: u16 = TcpSession::RST_RECEIVED;
        let table = [
            (0, 0, End::Unspecified),
            (FIN_SENT, 0, End::FinSent),
            (FIN_RECEIVED, 0, End::FinReceived),
            (RST_SENT, 0, End::RstSent),
            (FIN_RECEIVED | RST_SENT, 0, End::RstSent),
            (FIN_SENT | RST_RECEIVED, 104, End::RstReceived),
            // `ss -K`
            (RST_SENT, 103, End::RstSent),
            (0, 110, End::Timeout),
            (FIN_SENT, 110, End::Timeout),
            // Keepalive sends a RST into the void.
            (RST_SENT, 110, End::Timeout),
            (0, 113, End::Error),
            (FIN_SENT, 113, End::Error),
        ];
        for (flags, error, expected) in table {
            assert_eq!(end(flags, error), expected, "{flags} {error}");
        }
    }

    #[test]
    fn ipv4_over_an_ipv6_socket_is_ipv4() {
        let mut ends = ends();
        ends.family = 10;
        ends.local = [0; 16];
        ends.local[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 7]);
        ends.remote = [0; 16];
        ends.remote[15] = 1;
        let (local, remote) = endpoints(&ends);
        assert_eq!(
            (local.address.as_str(), remote.address.as_str()),
            ("10.0.0.7", "::1")
        );
    }
}
