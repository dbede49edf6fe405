//! `dinle opensnoop` and `dinle filesnoop`.

use std::process::ExitCode;

use dinle_proto::v1::{self, event::Detail};

use super::Common;
use crate::client::{
    Screen,
    args::{Processes, string_match},
    columns::{COMM, Column, PID, PPID, UID, column},
    text,
};

pub(in crate::client) const OPENSNOOP: &str = "\
Print opens of files, in the columns of bcc's opensnoop, with the pod's name in front.

PATH is absolute inside the container; of an open that failed it is joined from the name that the process gave.";

pub(in crate::client) const FILESNOOP: &str = "\
Print who opens files, or with --deleted who made their content go: unlinked, replaced by a rename, or truncated.";

/// What happened to a file.
pub(in crate::client) fn open_summary(open: &v1::FileOpen) -> String {
    open.path.clone()
}

/// How a file's content went.
pub(in crate::client) fn delete_summary(delete: &v1::FileDelete) -> String {
    delete.path.clone()
}

/// Arguments of `dinle opensnoop`.
#[derive(Clone, Debug, clap::Args)]
pub struct Opensnoop {
    /// Only opens that failed [default: all]
    #[arg(short = 'x', long, help_heading = "Filters")]
    failed: bool,
    /// Only paths like this; `/var/log/*` is a prefix, other globs work too; can be repeated [default: any path]
    #[arg(long, value_name = "PATH", help_heading = "Filters")]
    path: Vec<String>,
    #[command(flatten)]
    processes: Processes,
    #[command(flatten)]
    common: Common,
}

const PATH: Column = column("PATH", 4, 160, |seen| match &seen.event.detail {
    Some(Detail::FileOpen(open)) => text::or_none(&open.path).to_owned(),
    Some(Detail::FileDelete(delete)) => text::or_none(&delete.path).to_owned(),
    _ => text::NONE.to_owned(),
});

impl Opensnoop {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self {
            failed,
            path,
            processes,
            common,
        } = self;
        let filter = v1::Filter {
            failed,
            path: path.iter().map(|text| string_match(text)).collect(),
            ..processes.to_proto(false)
        };
        let request = common.request(&[v1::Kind::FileOpen], filter);
        common
            .run(request, vec![PID, COMM, PATH], vec![PPID, UID], screen)
            .await
    }
}

/// Arguments of `dinle filesnoop`.
#[derive(Clone, Debug, clap::Args)]
pub struct Filesnoop {
    /// Only what made content go [default: opens too]
    #[arg(short, long)]
    deleted: bool,
    #[command(flatten)]
    processes: Processes,
    #[command(flatten)]
    common: Common,
}

impl Filesnoop {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self {
            deleted,
            processes,
            common,
        } = self;
        let kinds = match deleted {
            true => vec![v1::Kind::FileDelete],
            false => vec![v1::Kind::FileOpen, v1::Kind::FileDelete],
        };
        let request = common.request(&kinds, processes.to_proto(false));
        common
            .run(request, vec![PID, COMM, PATH], vec![PPID, UID], screen)
            .await
    }
}
