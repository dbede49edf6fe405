//! `dinle opensnoop` and `dinle filesnoop`.

use std::process::ExitCode;

use dinle_proto::v1::{self, event::Detail};

use super::Common;
use crate::client::{
    Screen,
    args::{Processes, string_match},
    columns::{COMM, Column, KIND, PARENT, PID, PPID, Seen, UID, column},
    text::{self, NONE},
};

pub(in crate::client) const OPENSNOOP: &str = "\
Print opens of files, in the columns of bcc's opensnoop, with the pod's name in front.

PATH is absolute inside the container. Of an open that failed it is joined from the name that the process gave and the \
directory that the name is relative to, and begins with `…` where only its end is known. FD is the new descriptor, ERR why \
there is none.

Examples:
  dinle opensnoop -n shop --failed
  dinle opensnoop -n shop --path '/etc/*' --write";

pub(in crate::client) const FILESNOOP: &str = "\
Print who opens files, and who makes their content go: METHOD tells how, by unlink, rmdir, rename of another file to the \
name, truncate to nothing, or open with O_TRUNC (open_truncate).

PATH is absolute inside the container, SIZE that of the file before, where the kernel lets it be known.

Examples:
  dinle filesnoop --deleted -n shop
  dinle filesnoop --deleted --path '/var/log/*' -o wide";

/// An open in one cell.
pub(in crate::client) fn open_summary(open: &v1::FileOpen) -> String {
    format!("{} {}", path(open), flag_names(open.flags))
}

/// How a file's content went, in one cell.
pub(in crate::client) fn delete_summary(delete: &v1::FileDelete) -> String {
    let source = match &*delete.source {
        "" => String::new(),
        source => format!(" from {source}"),
    };
    let size = match delete.size_before {
        Some(size) => format!(" ({})", text::size(size)),
        None => String::new(),
    };
    format!("{} {}{source}{size}", method(delete), deleted_path(delete))
}

/// The path, or for want of it the name that the process gave.
fn path(open: &v1::FileOpen) -> &str {
    match &*open.path {
        "" => text::or_none(&open.filename),
        path => path,
    }
}

fn deleted_path(delete: &v1::FileDelete) -> &str {
    match &*delete.path {
        "" => text::or_none(&delete.filename),
        path => path,
    }
}

fn method(delete: &v1::FileDelete) -> String {
    let name = delete.method().as_str_name();
    let short = name.strip_prefix("DELETE_METHOD_").unwrap_or(name);
    short.to_lowercase()
}

/// `O_*` of open(2) that say what is meant; include/uapi/asm-generic/fcntl.h and those of x86, which differ from arm64 only in the
/// four that are not named here.
fn flag_names(flags: u32) -> String {
    const NAMES: [(u32, &str); 10] = [
        (0o100, "CREAT"),
        (0o200, "EXCL"),
        (0o400, "NOCTTY"),
        (0o1000, "TRUNC"),
        (0o2000, "APPEND"),
        (0o4000, "NONBLOCK"),
        (0o10000, "DSYNC"),
        (0o1_000_000, "NOATIME"),
        (0o2_000_000, "CLOEXEC"),
        (0o10_000_000, "PATH"),
    ];
    let access = match flags & 3 {
        0 => "RDONLY",
        1 => "WRONLY",
        2 => "RDWR",
        _ => "NONE",
    };
    let set = NAMES.iter().filter(|(bit, _)| flags & bit != 0);
    let mut names = vec![access];
    names.extend(set.map(|(_, name)| *name));
    names.join("|")
}

/// A cell of each of the two kinds.
fn cell(
    seen: &Seen<'_>,
    open: impl FnOnce(&v1::FileOpen) -> String,
    delete: impl FnOnce(&v1::FileDelete) -> String,
) -> String {
    if let Some(Detail::FileOpen(detail)) = &seen.event.detail {
        open(detail)
    } else if let Some(Detail::FileDelete(detail)) = &seen.event.detail {
        delete(detail)
    } else {
        NONE.to_owned()
    }
}

fn none<T>(_: &T) -> String {
    NONE.to_owned()
}

const FD: Column = column("FD", 3, 6, |seen| {
    let fd = |open: &v1::FileOpen| open.fd.map_or(NONE.to_owned(), |fd| fd.to_string());
    cell(seen, fd, none)
});
const ERR: Column = column("ERR", 6, 14, |seen| {
    cell(
        seen,
        |open| text::errno(open.error),
        |delete| text::errno(delete.error),
    )
});
const FLAGS: Column = column("FLAGS", 16, 40, |seen| {
    cell(seen, |open| flag_names(open.flags), none)
});
const MODE: Column = column("MODE", 5, 5, |seen| {
    let mode = |open: &v1::FileOpen| match open.mode {
        0 => NONE.to_owned(),
        mode => format!("{mode:04o}"),
    };
    cell(seen, mode, none)
});
const METHOD: Column = column("METHOD", 13, 13, |seen| cell(seen, none, method));
const SIZE: Column = column("SIZE", 6, 6, |seen| {
    let size = |delete: &v1::FileDelete| delete.size_before.map_or(NONE.to_owned(), text::size);
    cell(seen, none, size)
});
const INODE: Column = column("INODE", 8, 20, |seen| {
    cell(
        seen,
        |open| text::known_plain(open.inode),
        |delete| text::known_plain(delete.inode.unwrap_or(0)),
    )
});
const DEVICE: Column = column("DEV", 6, 12, |seen| {
    let device = |major: u32, minor: u32| match (major, minor) {
        (0, 0) => NONE.to_owned(),
        (major, minor) => format!("{major}:{minor}"),
    };
    cell(
        seen,
        |open| device(open.device_major, open.device_minor),
        |delete| device(delete.device_major, delete.device_minor),
    )
});
const FROM: Column = column("FROM", 8, 32, |seen| {
    cell(seen, none, |delete| {
        text::or_none(&delete.source).to_owned()
    })
});
const ARGS: Column = column("ARGS", 16, 60, |seen| {
    let args = |delete: &v1::FileDelete| {
        let words = delete.process_args.iter();
        let words: Vec<String> = words
            .map(|arg| text::shell_quoted(arg).into_owned())
            .collect();
        let cut = if delete.process_args_truncated {
            " …"
        } else {
            ""
        };
        format!("{}{cut}", words.join(" "))
    };
    cell(seen, none, args)
});
const PATH: Column = column("PATH", 4, 160, |seen| {
    cell(
        seen,
        |open| path(open).to_owned(),
        |delete| deleted_path(delete).to_owned(),
    )
});

/// Which files.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Filters")]
struct Files {
    /// Only what failed [default: all]
    #[arg(short = 'x', long)]
    failed: bool,
    /// Only paths like this, absolute inside the container; `/var/log/*` is a prefix, other globs work too; can be repeated [default: any path]
    #[arg(long, value_name = "PATH")]
    path: Vec<String>,
    #[command(flatten)]
    processes: Processes,
}

impl Files {
    fn to_proto(&self) -> v1::Filter {
        let Self {
            failed,
            path,
            processes,
        } = self;
        v1::Filter {
            failed: *failed,
            path: path.iter().map(|text| string_match(text)).collect(),
            ..processes.to_proto(false)
        }
    }
}

/// Arguments of `dinle opensnoop`.
#[derive(Clone, Debug, clap::Args)]
pub struct Opensnoop {
    /// Print the user id too [default: no]
    #[arg(short = 'U', long)]
    print_uid: bool,
    /// Print how files are opened too [default: no]
    #[arg(short, long)]
    extended_fields: bool,
    /// Only opens for writing [default: all]
    #[arg(long, help_heading = "Filters")]
    write: bool,
    /// Only opens that may create the file [default: all]
    #[arg(long, help_heading = "Filters")]
    create: bool,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    common: Common,
}

impl Opensnoop {
    pub(in crate::client) fn request(&self) -> v1::SubscribeRequest {
        let filter = v1::Filter {
            write: self.write,
            create: self.create,
            ..self.files.to_proto()
        };
        self.common.request(&[v1::Kind::FileOpen], filter)
    }

    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let Self {
            print_uid,
            extended_fields,
            common,
            ..
        } = self;
        let mut columns = Vec::new();
        if print_uid {
            columns.push(UID);
        }
        columns.extend([PID, COMM, FD, ERR]);
        if extended_fields {
            columns.push(FLAGS);
        }
        // The path may be long, and is last.
        if common.output.is_wide() {
            columns.extend([PPID, PARENT, MODE, INODE, DEVICE]);
        }
        columns.push(PATH);
        common.run(request, columns, Vec::new(), screen).await
    }
}

/// Arguments of `dinle filesnoop`.
#[derive(Clone, Debug, clap::Args)]
pub struct Filesnoop {
    /// Only what made content go [default: opens too]
    #[arg(short, long)]
    deleted: bool,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    common: Common,
}

impl Filesnoop {
    pub(in crate::client) fn request(&self) -> v1::SubscribeRequest {
        let both = [v1::Kind::FileDelete, v1::Kind::FileOpen];
        let kinds = if self.deleted { &both[..1] } else { &both };
        self.common.request(kinds, self.files.to_proto())
    }

    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let Self {
            deleted, common, ..
        } = self;
        let mut columns = vec![PID, COMM, PARENT];
        if deleted {
            columns.extend([METHOD, ERR, SIZE]);
        } else {
            columns.extend([KIND, METHOD, FLAGS, ERR, SIZE]);
        }
        if common.output.is_wide() {
            columns.extend([PPID, UID, INODE, DEVICE, FROM, ARGS]);
        }
        columns.push(PATH);
        common.run(request, columns, Vec::new(), screen).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_the_names_of_open() {
        for (flags, expected) in [
            (0, "RDONLY"),
            (0o1101, "WRONLY|CREAT|TRUNC"),
            (0o2_000_002, "RDWR|CLOEXEC"),
        ] {
            assert_eq!(flag_names(flags), expected);
        }
    }

    #[test]
    fn a_deletion_is_one_cell() {
        let delete = v1::FileDelete {
            method: v1::DeleteMethod::Rename.into(),
            path: "/var/log/app.log".into(),
            source: "app.log.tmp".into(),
            size_before: Some(2048),
            ..Default::default()
        };
        assert_eq!(
            delete_summary(&delete),
            "rename /var/log/app.log from app.log.tmp (2.0K)"
        );
        let unknown = v1::FileDelete {
            method: v1::DeleteMethod::Unlink.into(),
            filename: "x".into(),
            ..Default::default()
        };
        assert_eq!(delete_summary(&unknown), "unlink x");
    }
}
