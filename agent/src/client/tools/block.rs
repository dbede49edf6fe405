//! `dinle biosnoop` and `dinle biolatency`.

use std::process::ExitCode;

use dinle_proto::v1;

use super::Common;
use crate::client::{
    Screen,
    args::Processes,
    columns::{COMM, PID, PPID, UID},
    text,
};

pub(in crate::client) const BIOSNOOP: &str = "\
Print requests to disks, in the columns of bcc's biosnoop, with the pod's name in front.";

pub(in crate::client) const BIOLATENCY: &str = "\
Draw how long requests to disks take, by pod, disk and operation.";

/// A request in one cell.
pub(in crate::client) fn io_summary(io: &v1::BlockIo) -> String {
    format!("{} {}", io.disk, text::size(io.bytes.into()))
}

/// Latencies in one cell.
pub(in crate::client) fn latency_summary(latency: &v1::BlockLatency) -> String {
    format!("{} {} requests", latency.disk, latency.count)
}

/// Arguments of `dinle biosnoop`.
#[derive(Clone, Debug, clap::Args)]
pub struct Biosnoop {
    #[command(flatten)]
    processes: Processes,
    #[command(flatten)]
    common: Common,
}

impl Biosnoop {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self { processes, common } = self;
        let request = common.request(&[v1::Kind::BlockIo], processes.to_proto(false));
        common
            .run(request, vec![PID], vec![PPID, UID], COMM, screen)
            .await
    }
}

/// Arguments of `dinle biolatency`.
#[derive(Clone, Debug, clap::Args)]
pub struct Biolatency {
    #[command(flatten)]
    common: Common,
}

impl Biolatency {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self { common } = self;
        let request = common.request(&[v1::Kind::BlockLatency], v1::Filter::default());
        common
            .run(request, vec![PID], vec![PPID, UID], COMM, screen)
            .await
    }
}
