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
