//! `dinle tcplife`, `dinle tcpreset` and `dinle tcpretrans`.

use std::process::ExitCode;

use dinle_proto::v1::{self, event::Detail};

use super::Common;
use crate::client::{
    Screen,
    args::{Processes, parse_duration},
    columns::{COMM, Column, PID, PPID, Seen, UID, column},
    text::{self, NONE},
};

pub(in crate::client) const TCPLIFE: &str = "\
Print TCP sessions when they end, and connects that fail, in the columns of bcc's tcplife, with the pod's name in front.

LADDR is the pod's own end. TX_KB and RX_KB count payload, each byte once. MS is the time since the handshake began, or `-` where \
that was not seen. END says how it ended: who sent the first FIN, who sent a RST, TIMEOUT, the error of a connect that failed, or GAVE_UP \
where the process did not wait for one. Sessions that go on are reported at an interval, with OPEN. RPOD is the pod of this node that has \
the remote address.

Examples:
  dinle tcplife -n shop -D 5432
  dinle tcplife -p 'web-*' --min-duration 10s -o wide";

pub(in crate::client) const TCPRESET: &str = "\
Print TCP resets, sent and received, with the pod's name in front.

LADDR is the pod's own end. STATE is that of the session before. REASON is the kernel's, for what is sent, where it gives one (6.10).

Examples:
  dinle tcpreset -n shop
  dinle tcpreset -L 8080 -o json";

pub(in crate::client) const TCPRETRANS: &str = "\
Print TCP segments that were sent again, in the columns of bcc's tcpretrans, with the pod's name in front.

SEQ is the sequence number of the segment's first byte, and BYTES its payload.

Examples:
  dinle tcpretrans -n shop
  dinle tcpretrans --remote-port 443 --duration 1m";

fn ends(local: Option<&v1::Endpoint>, remote: Option<&v1::Endpoint>) -> String {
    format!("{} → {}", text::endpoint(local), text::endpoint(remote))
}

/// A session in one cell.
pub(in crate::client) fn session_summary(session: &v1::TcpSession) -> String {
    format!(
        "{} {} sent, {} received, {}",
        ends(session.local.as_ref(), session.remote.as_ref()),
        text::size(session.bytes_sent),
        text::size(session.bytes_received),
        end_of(session)
    )
}

/// A failed connect in one cell.
pub(in crate::client) fn connect_summary(connect: &v1::TcpConnect) -> String {
    ends(connect.local.as_ref(), connect.remote.as_ref())
}

/// A reset in one cell.
pub(in crate::client) fn reset_summary(reset: &v1::TcpReset) -> String {
    let way = direction(reset.direction);
    let ends = ends(reset.local.as_ref(), reset.remote.as_ref());
    match reset.reason.as_str() {
        "" => format!("{ends} {way} in {}", state(reset.state)),
        reason => format!("{ends} {way} in {}, {reason}", state(reset.state)),
    }
}

/// A retransmit in one cell.
pub(in crate::client) fn retransmit_summary(retransmit: &v1::TcpRetransmit) -> String {
    format!(
        "{} {} of {} in {}",
        ends(retransmit.local.as_ref(), retransmit.remote.as_ref()),
        text::size(retransmit.bytes.into()),
        retransmit.sequence,
        state(retransmit.state)
    )
}

/// How a connect that failed ended.
pub(in crate::client) fn end_of_connect(connect: &v1::TcpConnect) -> String {
    match connect.error {
        0 => "GAVE_UP".to_owned(),
        error => text::errno(error),
    }
}

/// How a session ended, or that it goes on.
fn end_of(session: &v1::TcpSession) -> String {
    if session.open {
        return "OPEN".to_owned();
    }
    match v1::TcpEnd::try_from(session.end) {
        Ok(v1::TcpEnd::Unspecified) => NONE.to_owned(),
        Ok(v1::TcpEnd::Error) => text::errno(session.error),
        Ok(
            end @ (v1::TcpEnd::FinSent
            | v1::TcpEnd::FinReceived
            | v1::TcpEnd::RstSent
            | v1::TcpEnd::RstReceived
            | v1::TcpEnd::Timeout),
        ) => text::without_prefix(end.as_str_name(), "TCP_END_"),
        Err(_) => format!("END_{}", session.end),
    }
}

fn state(number: i32) -> String {
    match v1::TcpState::try_from(number) {
        Ok(v1::TcpState::Unspecified) => NONE.to_owned(),
        Ok(state) => text::without_prefix(state.as_str_name(), "TCP_STATE_"),
        Err(_) => format!("STATE_{number}"),
    }
}

fn direction(number: i32) -> &'static str {
    match v1::Direction::try_from(number) {
        Ok(v1::Direction::Sent) => "sent",
        Ok(v1::Direction::Received) => "received",
        Ok(v1::Direction::Unspecified) | Err(_) => NONE,
    }
}

/// Both ends of what is about TCP.
fn both<'a>(seen: &Seen<'a>) -> (Option<&'a v1::Endpoint>, Option<&'a v1::Endpoint>) {
    let (local, remote) = match &seen.event.detail {
        Some(Detail::TcpSession(session)) => (&session.local, &session.remote),
        Some(Detail::TcpConnect(connect)) => (&connect.local, &connect.remote),
        Some(Detail::TcpReset(reset)) => (&reset.local, &reset.remote),
        Some(Detail::TcpRetransmit(segment)) => (&segment.local, &segment.remote),
        _ => return (None, None),
    };
    (local.as_ref(), remote.as_ref())
}

fn address(end: Option<&v1::Endpoint>) -> String {
    end.map_or(NONE, |end| text::or_none(&end.address))
        .to_owned()
}

fn port(end: Option<&v1::Endpoint>) -> String {
    end.map_or(NONE.to_owned(), |end| end.port.to_string())
}

/// `10.0.0.1:80`, whoever has the address.
fn with_port(end: Option<&v1::Endpoint>) -> String {
    let bare = end.map(|end| v1::Endpoint {
        workload: None,
        ..end.clone()
    });
    text::endpoint(bare.as_ref())
}

/// KiB, to see small amounts too.
fn kib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1024.0)
}

/// A cell that only sessions have.
fn of_session(seen: &Seen<'_>, cell: impl Fn(&v1::TcpSession) -> String) -> String {
    match &seen.event.detail {
        Some(Detail::TcpSession(session)) => cell(session),
        _ => NONE.to_owned(),
    }
}

// IPv6 addresses have up to 39 characters.
const LADDR: Column = column("LADDR", 15, 39, |seen| address(both(seen).0));
const LPORT: Column = column("LPORT", 5, 5, |seen| port(both(seen).0));
const RADDR: Column = column("RADDR", 15, 39, |seen| address(both(seen).1));
const RPORT: Column = column("RPORT", 5, 5, |seen| port(both(seen).1));
const TX_KB: Column = column("TX_KB", 7, 16, |seen| {
    of_session(seen, |session| kib(session.bytes_sent))
});
const RX_KB: Column = column("RX_KB", 7, 16, |seen| {
    of_session(seen, |session| kib(session.bytes_received))
});
const MS: Column = column("MS", 9, 16, |seen| match &seen.event.detail {
    Some(Detail::TcpSession(session)) => text::milliseconds(session.duration.as_ref()),
    Some(Detail::TcpConnect(connect)) => text::milliseconds(connect.duration.as_ref()),
    _ => NONE.to_owned(),
});
const END: Column = column("END", 12, 16, |seen| match &seen.event.detail {
    Some(Detail::TcpSession(session)) => end_of(session),
    Some(Detail::TcpConnect(connect)) => end_of_connect(connect),
    _ => NONE.to_owned(),
});
const RPOD: Column = column("RPOD", 4, 64, |seen| {
    match both(seen).1.and_then(|end| end.workload.as_ref()) {
        Some(workload) => format!("{}/{}", workload.namespace, workload.pod),
        None => NONE.to_owned(),
    }
});
const DIR: Column = column("DIR", 8, 8, |seen| match &seen.event.detail {
    Some(Detail::TcpReset(reset)) => direction(reset.direction).to_owned(),
    Some(Detail::TcpSession(session)) => match v1::TcpDirection::try_from(session.direction) {
        Ok(v1::TcpDirection::Connect) => "connect",
        Ok(v1::TcpDirection::Accept) => "accept",
        Ok(v1::TcpDirection::Unspecified) | Err(_) => NONE,
    }
    .to_owned(),
    Some(Detail::TcpConnect(_)) => "connect".to_owned(),
    _ => NONE.to_owned(),
});
const STATE: Column = column("STATE", 11, 12, |seen| match &seen.event.detail {
    Some(Detail::TcpSession(session)) => state(session.state),
    Some(Detail::TcpReset(reset)) => state(reset.state),
    Some(Detail::TcpRetransmit(segment)) => state(segment.state),
    _ => NONE.to_owned(),
});
const RETRANS: Column = column("RETRANS", 7, 10, |seen| {
    of_session(seen, |session| session.retransmits.to_string())
});
const RTT_MS: Column = column("RTT_MS", 7, 10, |seen| {
    of_session(seen, |session| match session.srtt_us {
        0 => NONE.to_owned(),
        us => format!("{:.3}", f64::from(us) / 1e3),
    })
});
const LOCAL: Column = column("LADDR:LPORT", 20, 47, |seen| with_port(both(seen).0));
const REMOTE: Column = column("RADDR:RPORT", 20, 47, |seen| with_port(both(seen).1));
const REASON: Column = column("REASON", 6, 40, |seen| match &seen.event.detail {
    Some(Detail::TcpReset(reset)) => text::or_none(&reset.reason).to_owned(),
    _ => NONE.to_owned(),
});
const IP: Column = column("IP", 2, 2, |seen| {
    match both(seen).0.map(|end| end.address.contains(':')) {
        Some(true) => "6",
        Some(false) => "4",
        None => NONE,
    }
    .to_owned()
});
// bcc tells retransmits from tail loss probes here, where it is asked to see those too; to the kernel's tracepoint all are alike.
const T: Column = column("T>", 2, 2, |_| "R>".to_owned());
const SEQ: Column = column("SEQ", 10, 10, |seen| match &seen.event.detail {
    Some(Detail::TcpRetransmit(segment)) => segment.sequence.to_string(),
    _ => NONE.to_owned(),
});
const BYTES: Column = column("BYTES", 5, 10, |seen| match &seen.event.detail {
    Some(Detail::TcpRetransmit(segment)) => segment.bytes.to_string(),
    _ => NONE.to_owned(),
});

/// Which connections, and of which processes.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Filters")]
struct Connections {
    /// Only these ports of the pod's own end; repeat it or separate with commas [default: any port]
    #[arg(short = 'L', long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65535))]
    local_port: Vec<u32>,
    /// Only these ports of the other end; repeat it or separate with commas [default: any port]
    #[arg(short = 'D', long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65535))]
    remote_port: Vec<u32>,
    /// Only these ports of either end; repeat it or separate with commas [default: any port]
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65535))]
    port: Vec<u32>,
    #[command(flatten)]
    processes: Processes,
}

impl Connections {
    fn filter(&self) -> v1::Filter {
        let Self {
            local_port,
            remote_port,
            port,
            processes,
        } = self;
        v1::Filter {
            ports: port.clone(),
            local_ports: local_port.clone(),
            remote_ports: remote_port.clone(),
            ..processes.to_proto(false)
        }
    }
}

/// Arguments of `dinle tcplife`.
#[derive(Clone, Debug, clap::Args)]
pub struct Tcplife {
    /// Only connects that failed [default: sessions too]
    #[arg(short = 'x', long, help_heading = "Filters")]
    failed: bool,
    /// Only sessions that lasted at least so long, and no connects that failed [default: however long]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "failed", help_heading = "Filters")]
    min_duration: Option<prost_types::Duration>,
    /// Time between two reports on a session that goes on, from 1s to 1h [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    interval: Option<prost_types::Duration>,
    #[command(flatten)]
    connections: Connections,
    #[command(flatten)]
    common: Common,
}

impl Tcplife {
    pub(in crate::client) fn request(&self) -> v1::SubscribeRequest {
        let Self {
            failed,
            min_duration,
            interval,
            connections,
            common,
        } = self;
        let kinds: &[v1::Kind] = match (failed, min_duration) {
            (true, _) => &[v1::Kind::TcpConnect],
            (false, Some(_)) => &[v1::Kind::TcpSession],
            (false, None) => &[v1::Kind::TcpSession, v1::Kind::TcpConnect],
        };
        let filter = v1::Filter {
            min_duration: *min_duration,
            ..connections.filter()
        };
        v1::SubscribeRequest {
            interval: *interval,
            ..common.request(kinds, filter)
        }
    }

    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let columns = vec![
            PID, COMM, LADDR, LPORT, RADDR, RPORT, TX_KB, RX_KB, MS, END, RPOD,
        ];
        let wide = vec![DIR, STATE, RETRANS, RTT_MS, PPID, UID];
        self.common.run(request, columns, wide, screen).await
    }
}

/// Arguments of `dinle tcpreset`.
#[derive(Clone, Debug, clap::Args)]
pub struct Tcpreset {
    #[command(flatten)]
    connections: Connections,
    #[command(flatten)]
    common: Common,
}

impl Tcpreset {
    pub(in crate::client) fn request(&self) -> v1::SubscribeRequest {
        let Self {
            connections,
            common,
        } = self;
        common.request(&[v1::Kind::TcpReset], connections.filter())
    }

    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let columns = vec![PID, COMM, DIR, LOCAL, REMOTE, STATE, REASON];
        let wide = vec![RPOD, PPID, UID];
        self.common.run(request, columns, wide, screen).await
    }
}

/// Arguments of `dinle tcpretrans`.
#[derive(Clone, Debug, clap::Args)]
pub struct Tcpretrans {
    #[command(flatten)]
    connections: Connections,
    #[command(flatten)]
    common: Common,
}

impl Tcpretrans {
    pub(in crate::client) fn request(&self) -> v1::SubscribeRequest {
        let Self {
            connections,
            common,
        } = self;
        common.request(&[v1::Kind::TcpRetransmit], connections.filter())
    }

    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let columns = vec![PID, IP, LOCAL, T, REMOTE, STATE, SEQ, BYTES];
        let wide = vec![COMM, RPOD, PPID, UID];
        self.common.run(request, columns, wide, screen).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::columns::{EventTable, Who};

    fn end(address: &str, port: u32, pod: Option<&str>) -> Option<v1::Endpoint> {
        Some(v1::Endpoint {
            address: address.to_owned(),
            port,
            workload: pod.map(|pod| v1::WorkloadName {
                namespace: "shop".to_owned(),
                pod: pod.to_owned(),
                ..Default::default()
            }),
        })
    }

    fn span(millis: i32) -> Option<prost_types::Duration> {
        Some(prost_types::Duration {
            seconds: 0,
            nanos: millis * 1_000_000,
        })
    }

    fn session() -> v1::TcpSession {
        v1::TcpSession {
            local: end("10.0.0.7", 40_000, None),
            remote: end("10.0.0.8", 5432, Some("db-0")),
            direction: v1::TcpDirection::Connect.into(),
            bytes_sent: 12_345,
            bytes_received: 512,
            duration: span(42),
            retransmits: 3,
            srtt_us: 1234,
            end: v1::TcpEnd::FinSent.into(),
            state: v1::TcpState::FinWait2.into(),
            ..Default::default()
        }
    }

    /// What is printed of these behind TIME to CONTAINER, with runs of spaces made one.
    fn printed(columns: Vec<Column>, details: Vec<Detail>) -> Vec<String> {
        let mut table = EventTable::tool(columns, crate::client::look::Look::default(), true);
        let mut out = Vec::new();
        table.header(&mut out).expect("a Vec takes all");
        for detail in details {
            let event = v1::Event {
                process: Some(v1::Process {
                    pid: 42,
                    comm: "app".to_owned(),
                    ..Default::default()
                }),
                detail: Some(detail),
                ..Default::default()
            };
            table
                .event(&event, &Who::unknown("n1"), &mut out)
                .expect("a Vec takes all");
        }
        let text = String::from_utf8(out).expect("UTF-8");
        let cells = |line: &str| {
            line.split_whitespace()
                .skip(5)
                .collect::<Vec<_>>()
                .join(" ")
        };
        text.lines().map(cells).collect()
    }

    #[test]
    fn tcplife_prints_the_columns_of_bcc_and_how_it_ended() {
        let columns = vec![
            PID, COMM, LADDR, LPORT, RADDR, RPORT, TX_KB, RX_KB, MS, END, RPOD, DIR, STATE,
            RETRANS, RTT_MS,
        ];
        let before = v1::TcpSession {
            remote: end("::1", 80, None),
            duration: None,
            open: true,
            end: 0,
            srtt_us: 0,
            direction: v1::TcpDirection::Unspecified.into(),
            state: v1::TcpState::Established.into(),
            ..session()
        };
        let broken = v1::TcpSession {
            end: v1::TcpEnd::Error.into(),
            error: 113,
            ..session()
        };
        let connect = |error| {
            Detail::TcpConnect(v1::TcpConnect {
                local: end("10.0.0.7", 40_001, None),
                remote: end("192.0.2.1", 9, None),
                error,
                duration: span(1),
            })
        };
        assert_eq!(
            printed(
                columns,
                vec![
                    Detail::TcpSession(session()),
                    Detail::TcpSession(before),
                    Detail::TcpSession(broken),
                    connect(111),
                    connect(0),
                ]
            ),
            [
                "PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS END RPOD DIR STATE RETRANS RTT_MS",
                "42 app 10.0.0.7 40000 10.0.0.8 5432 12.06 0.50 42.00 FIN_SENT shop/db-0 connect FIN_WAIT2 3 1.234",
                "42 app 10.0.0.7 40000 ::1 80 12.06 0.50 - OPEN - - ESTABLISHED 3 -",
                "42 app 10.0.0.7 40000 10.0.0.8 5432 12.06 0.50 42.00 EHOSTUNREACH shop/db-0 connect FIN_WAIT2 3 1.234",
                "42 app 10.0.0.7 40001 192.0.2.1 9 - - 1.00 ECONNREFUSED - connect - - -",
                "42 app 10.0.0.7 40001 192.0.2.1 9 - - 1.00 GAVE_UP - connect - - -",
            ]
        );
    }

    #[test]
    fn tcpreset_and_tcpretrans_print_both_ends() {
        let reset = |direction: v1::Direction, reason: &str| {
            Detail::TcpReset(v1::TcpReset {
                local: end("10.0.0.7", 80, None),
                remote: end("fd00::8", 40_000, Some("db-0")),
                direction: direction.into(),
                state: v1::TcpState::Established.into(),
                reason: reason.to_owned(),
            })
        };
        assert_eq!(
            printed(
                vec![PID, COMM, DIR, LOCAL, REMOTE, STATE, REASON, RPOD],
                vec![
                    reset(v1::Direction::Sent, "TCP_STATE"),
                    reset(v1::Direction::Received, "")
                ]
            ),
            [
                "PID COMM DIR LADDR:LPORT RADDR:RPORT STATE REASON RPOD",
                "42 app sent 10.0.0.7:80 [fd00::8]:40000 ESTABLISHED TCP_STATE shop/db-0",
                "42 app received 10.0.0.7:80 [fd00::8]:40000 ESTABLISHED - shop/db-0",
            ]
        );
        let again = v1::TcpRetransmit {
            local: end("10.0.0.7", 40_000, None),
            remote: end("192.0.2.1", 443, None),
            state: v1::TcpState::SynSent.into(),
            sequence: 4_000_000_000,
            bytes: 0,
            tcp_flags: 2,
        };
        assert_eq!(
            printed(
                vec![PID, IP, LOCAL, T, REMOTE, STATE, SEQ, BYTES],
                vec![Detail::TcpRetransmit(again)]
            ),
            [
                "PID IP LADDR:LPORT T> RADDR:RPORT STATE SEQ BYTES",
                "42 4 10.0.0.7:40000 R> 192.0.2.1:443 SYN_SENT 4000000000 0",
            ]
        );
    }
}
