//! `dinle pktdrop`.

use std::process::ExitCode;

use dinle_proto::v1;

use super::Common;
use crate::client::{
    Screen,
    columns::{COMM, PID, PPID, UID},
    text,
};

pub(in crate::client) const PKTDROP: &str = "\
Print which packets the kernel drops, and why.";

/// A dropped packet in one cell.
pub(in crate::client) fn sample_summary(drop: &v1::Drop) -> String {
    let (from, to) = (drop.source.as_ref(), drop.destination.as_ref());
    format!(
        "{} {} → {}",
        drop.reason,
        text::endpoint(from),
        text::endpoint(to)
    )
}

/// A count in one cell.
pub(in crate::client) fn count_summary(count: &v1::DropCount) -> String {
    format!("{} {}", count.reason, count.count)
}

/// Arguments of `dinle pktdrop`.
#[derive(Clone, Debug, clap::Args)]
pub struct Pktdrop {
    #[command(flatten)]
    common: Common,
}

impl Pktdrop {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self { common } = self;
        let request = common.request(&[v1::Kind::DropCount], v1::Filter::default());
        common
            .run(request, vec![PID], vec![PPID, UID], COMM, screen)
            .await
    }
}
