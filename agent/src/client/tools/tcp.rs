//! `dinle tcplife`, `dinle tcpreset` and `dinle tcpretrans`.

use std::process::ExitCode;

use dinle_proto::v1;

use super::Common;
use crate::client::{
    Screen,
    args::Processes,
    columns::{COMM, PID, PPID, UID},
    text,
};

pub(in crate::client) const TCPLIFE: &str = "\
Print TCP sessions when they end, in the columns of bcc's tcplife, with the pod's name in front.";

pub(in crate::client) const TCPRESET: &str = "\
Print TCP resets, sent and received.";

pub(in crate::client) const TCPRETRANS: &str = "\
Print TCP segments that were sent again, in the columns of bcc's tcpretrans, with the pod's name in front.";

fn ends(local: Option<&v1::Endpoint>, remote: Option<&v1::Endpoint>) -> String {
    format!("{} → {}", text::endpoint(local), text::endpoint(remote))
}

/// A session in one cell.
pub(in crate::client) fn session_summary(session: &v1::TcpSession) -> String {
    ends(session.local.as_ref(), session.remote.as_ref())
}

/// A failed connect in one cell.
pub(in crate::client) fn connect_summary(connect: &v1::TcpConnect) -> String {
    ends(connect.local.as_ref(), connect.remote.as_ref())
}

/// A reset in one cell.
pub(in crate::client) fn reset_summary(reset: &v1::TcpReset) -> String {
    ends(reset.local.as_ref(), reset.remote.as_ref())
}

/// A retransmit in one cell.
pub(in crate::client) fn retransmit_summary(retransmit: &v1::TcpRetransmit) -> String {
    ends(retransmit.local.as_ref(), retransmit.remote.as_ref())
}

/// Arguments of `dinle tcplife`.
#[derive(Clone, Debug, clap::Args)]
pub struct Tcplife {
    #[command(flatten)]
    processes: Processes,
    #[command(flatten)]
    common: Common,
}

impl Tcplife {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self { processes, common } = self;
        let request = common.request(
            &[v1::Kind::TcpSession, v1::Kind::TcpConnect],
            processes.to_proto(false),
        );
        common
            .run(request, vec![PID], vec![PPID, UID], COMM, screen)
            .await
    }
}

/// Arguments of `dinle tcpreset`.
#[derive(Clone, Debug, clap::Args)]
pub struct Tcpreset {
    #[command(flatten)]
    processes: Processes,
    #[command(flatten)]
    common: Common,
}

impl Tcpreset {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self { processes, common } = self;
        let request = common.request(&[v1::Kind::TcpReset], processes.to_proto(false));
        common
            .run(request, vec![PID], vec![PPID, UID], COMM, screen)
            .await
    }
}

/// Arguments of `dinle tcpretrans`.
#[derive(Clone, Debug, clap::Args)]
pub struct Tcpretrans {
    #[command(flatten)]
    processes: Processes,
    #[command(flatten)]
    common: Common,
}

impl Tcpretrans {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self { processes, common } = self;
        let request = common.request(&[v1::Kind::TcpRetransmit], processes.to_proto(false));
        common
            .run(request, vec![PID], vec![PPID, UID], COMM, screen)
            .await
    }
}
