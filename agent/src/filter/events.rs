//! Which events of the workloads.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use dinle_proto::v1::{self, event::Detail};

use super::{Invalid, Kinds, Limits, check_elements, parse_duration, pattern::Pattern};

/// Pids that a [`Family`] remembers: as many processes as a busy node runs, in about 3 MiB.
const FAMILY_MAX: usize = 65_536;

/// Which events a subscriber wants.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    comm: Vec<Pattern>,
    binary: Vec<Pattern>,
    uids: Vec<u32>,
    pids: Vec<v1::PidMatch>,
    exit_failed: bool,
    path: Vec<Pattern>,
    failed: bool,
    write: bool,
    create: bool,
    ports: Vec<u32>,
    min_duration: Option<Duration>,
    local_ports: Vec<u32>,
    remote_ports: Vec<u32>,
    disk: Vec<Pattern>,
    reason: Vec<Pattern>,
}

/// What of a kind a filter leaves out in any case, so that nobody need tell it: `Narrow::default()` leaves out nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrow {
    /// Only what failed.
    pub failed: bool,
    /// Only opens for writing.
    pub write: bool,
    /// Only opens that may create.
    pub create: bool,
    /// Only what took at least so long.
    pub min_duration: Duration,
    /// Only paths that begin so.
    pub prefix: String,
}

impl Narrow {
    /// What both leave out.
    pub fn join(self, other: &Self) -> Self {
        let Self {
            failed,
            write,
            create,
            min_duration,
            mut prefix,
        } = self;
        prefix.truncate(common(&prefix, &other.prefix));
        Self {
            failed: failed && other.failed,
            write: write && other.write,
            create: create && other.create,
            min_duration: min_duration.min(other.min_duration),
            prefix,
        }
    }
}

/// Bytes that two texts begin with alike.
fn common(a: &str, b: &str) -> usize {
    let alike = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    alike.map(|(a, _)| a.len_utf8()).sum()
}

impl Filter {
    pub(super) fn parse(
        filter: Option<&v1::Filter>,
        kinds: Kinds,
        limits: &Limits,
    ) -> Result<Self, Invalid> {
        let empty = v1::Filter::default();
        let v1::Filter {
            comm,
            binary,
            uids,
            pids,
            exit_failed,
            path,
            failed,
            write,
            create,
            ports,
            min_duration,
            local_ports,
            remote_ports,
            disk,
            reason,
        } = filter.unwrap_or(&empty);

        // What is asked for, its field, who can answer, and why the others cannot.
        let asked: &[(bool, &str, Can, &str)] = &[
            (
                !binary.is_empty(),
                "filter.binary",
                |answers| answers.binary,
                "does not tell the program's path; ask for KIND_EXEC alone, or use `filter.comm`",
            ),
            (
                *exit_failed,
                "filter.exit_failed",
                |answers| answers.exit_code,
                "does not tell how a process ended; ask for KIND_EXIT alone",
            ),
            (
                !path.is_empty(),
                "filter.path",
                |answers| answers.path,
                "is not about files; ask for KIND_FILE_OPEN and KIND_FILE_DELETE alone",
            ),
            (
                *failed,
                "filter.failed",
                |answers| answers.error,
                "does not tell what failed; ask for KIND_FILE_OPEN, KIND_FILE_DELETE and KIND_BLOCK_IO alone",
            ),
            (
                *write,
                "filter.write",
                |answers| answers.open,
                "is no open of a file; ask for KIND_FILE_OPEN alone",
            ),
            (
                *create,
                "filter.create",
                |answers| answers.open,
                "is no open of a file; ask for KIND_FILE_OPEN alone",
            ),
            (
                !ports.is_empty(),
                "filter.ports",
                |answers| answers.ports,
                "has no ports; ask for the kinds of TCP and drops alone",
            ),
            (
                !local_ports.is_empty(),
                "filter.local_ports",
                |answers| answers.ends,
                "has no local port; ask for the kinds of TCP alone",
            ),
            (
                !remote_ports.is_empty(),
                "filter.remote_ports",
                |answers| answers.ends,
                "has no remote port; ask for the kinds of TCP alone",
            ),
            (
                min_duration.is_some(),
                "filter.min_duration",
                |answers| answers.duration,
                "does not tell how long something took; ask for KIND_TCP_SESSION and KIND_BLOCK_IO alone",
            ),
            (
                !disk.is_empty(),
                "filter.disk",
                |answers| answers.disk,
                "is not about disks; ask for KIND_BLOCK_IO and KIND_BLOCK_LATENCY alone",
            ),
            (
                !reason.is_empty(),
                "filter.reason",
                |answers| answers.reason,
                "has no reason; ask for KIND_TCP_RESET, KIND_DROP and KIND_DROP_COUNT alone",
            ),
            (
                !(comm.is_empty() && uids.is_empty() && pids.is_empty()),
                "filter",
                |answers| answers.process,
                "does not tell of processes; leave out `comm`, `uids` and `pids`",
            ),
        ];
        for &(asked, field, can, problem) in asked {
            let refuses = |kind: &v1::Kind| !can(&Answers::of(*kind));
            if asked && let Some(kind) = kinds.iter().find(refuses) {
                let name = kind.as_str_name();
                return Err(Invalid::new(field, format!("{name} {problem}")));
            }
        }
        check_elements("filter.uids", uids, limits)?;
        check_elements("filter.pids", pids, limits)?;
        check_ports("filter.ports", ports, limits)?;
        check_ports("filter.local_ports", local_ports, limits)?;
        check_ports("filter.remote_ports", remote_ports, limits)?;
        if let Some(index) = pids.iter().position(|rule| rule.pid == 0) {
            return Err(Invalid::new(
                format!("filter.pids[{index}].pid"),
                "is 0, which is the kernel's idle task; name a process by its id in the host's PID namespace",
            ));
        }
        Ok(Self {
            comm: parse_matches("filter.comm", comm, limits)?,
            binary: parse_matches("filter.binary", binary, limits)?,
            uids: uids.clone(),
            pids: pids.clone(),
            exit_failed: *exit_failed,
            path: parse_matches("filter.path", path, limits)?,
            failed: *failed,
            write: *write,
            create: *create,
            ports: ports.clone(),
            local_ports: local_ports.clone(),
            remote_ports: remote_ports.clone(),
            min_duration: match min_duration {
                Some(span) => Some(parse_duration("filter.min_duration", span)?),
                None => None,
            },
            disk: parse_matches("filter.disk", disk, limits)?,
            reason: parse_matches("filter.reason", reason, limits)?,
        })
    }

    /// Kinds that it must be shown, in addition to those that it decides about: who is whose child is known from forks.
    pub fn hears(&self) -> Kinds {
        let descendants = self.pids.iter().any(|rule| rule.descendants);
        descendants.then_some(v1::Kind::Fork).into_iter().collect()
    }

    /// What it leaves out of every kind that it can be asked about.
    pub fn narrow(&self) -> Narrow {
        let prefixes = self.path.iter().map(Pattern::literal_prefix);
        let shared = prefixes.reduce(|a, b| &a[..common(a, b)]);
        Narrow {
            failed: self.failed,
            write: self.write,
            create: self.create,
            min_duration: self.min_duration.unwrap_or_default(),
            prefix: shared.unwrap_or_default().to_owned(),
        }
    }

    /// Whether the subscriber wants this event of a workload and a kind that it asked for.
    ///
    /// Every such event must be shown in its order, with the same `family`, which learns from those that other fields leave out too.
    pub fn matches(&self, event: &v1::Event, family: &mut Family) -> bool {
        let Self {
            comm,
            binary,
            uids,
            pids,
            exit_failed,
            path,
            failed,
            write,
            create,
            ports,
            min_duration,
            local_ports,
            remote_ports,
            disk,
            reason,
        } = self;
        let process = event.process.as_ref();
        // First, because `family` learns from it whatever the others say.
        let pid = pids.is_empty() || process.is_some_and(|p| match_pids(pids, event, p, family));
        if !pid {
            return false;
        }
        let facts = Facts::of(event);
        (comm.is_empty() || process.is_some_and(|p| comm.iter().any(|c| c.matches(&p.comm))))
            && (uids.is_empty() || process.is_some_and(|p| uids.contains(&p.uid)))
            && (binary.is_empty() || binary.iter().any(|b| b.matches(facts.binary)))
            && (!exit_failed || facts.exit_failed)
            && (path.is_empty() || path.iter().any(|p| p.matches(facts.path)))
            && (!failed || facts.error != 0)
            && (!write || facts.open_flags & O_ACCMODE != O_RDONLY)
            && (!create || facts.open_flags & O_CREAT != 0)
            && (reason.is_empty() || reason.iter().any(|r| r.matches(facts.reason)))
            && (ports.is_empty() || facts.ports.iter().any(|port| ports.contains(port)))
            && (local_ports.is_empty() || local_ports.contains(&facts.ports[0]))
            && (remote_ports.is_empty() || remote_ports.contains(&facts.ports[1]))
            && min_duration.is_none_or(|least| facts.took.is_some_and(|took| took >= least))
            && (disk.is_empty() || disk.iter().any(|d| d.matches(facts.disk)))
    }
}

fn check_ports(field: &str, ports: &[u32], limits: &Limits) -> Result<(), Invalid> {
    check_elements(field, ports, limits)?;
    let wrong = |port: &u32| !(1..=u32::from(u16::MAX)).contains(port);
    match ports.iter().position(wrong) {
        None => Ok(()),
        Some(index) => Err(Invalid::new(
            format!("{field}[{index}]"),
            format!("is {}; ports are from 1 to 65535", ports[index]),
        )),
    }
}

// include/uapi/asm-generic/fcntl.h; the same on x86-64 and arm64.
const O_ACCMODE: u32 = 3;
const O_RDONLY: u32 = 0;
const O_CREAT: u32 = 0o100;

/// What filters ask of an event.
#[derive(Default)]
struct Facts<'a> {
    binary: &'a str,
    exit_failed: bool,
    path: &'a str,
    error: u32,
    open_flags: u32,
    /// Of the pod's own end first, where it has one.
    ports: [u32; 2],
    took: Option<Duration>,
    disk: &'a str,
    reason: &'a str,
}

impl<'a> Facts<'a> {
    fn of(event: &'a v1::Event) -> Self {
        let ports = |a: &Option<v1::Endpoint>, b: &Option<v1::Endpoint>| {
            [a, b].map(|end| end.as_ref().map_or(0, |end| end.port))
        };
        let span = |span: &Option<prost_types::Duration>| {
            span.and_then(|span| Duration::try_from(span).ok())
        };
        // One arm for each kind: a new one does not compile until it says what it can be asked.
        match &event.detail {
            None | Some(Detail::Fork(_)) => Self::default(),
            Some(Detail::BlockLatency(latency)) => Self {
                disk: &latency.disk,
                ..Self::default()
            },
            Some(Detail::Exec(exec)) => Self {
                binary: &exec.filename,
                ..Self::default()
            },
            Some(Detail::Exit(exit)) => Self {
                exit_failed: exit.code != 0 || exit.signal != 0,
                ..Self::default()
            },
            Some(Detail::FileOpen(open)) => Self {
                path: &open.path,
                error: open.error,
                open_flags: open.flags,
                ..Self::default()
            },
            Some(Detail::FileDelete(delete)) => Self {
                path: &delete.path,
                error: delete.error,
                ..Self::default()
            },
            Some(Detail::TcpSession(session)) => Self {
                ports: ports(&session.local, &session.remote),
                took: span(&session.duration),
                ..Self::default()
            },
            Some(Detail::TcpConnect(connect)) => Self {
                ports: ports(&connect.local, &connect.remote),
                ..Self::default()
            },
            Some(Detail::TcpReset(reset)) => Self {
                ports: ports(&reset.local, &reset.remote),
                reason: &reset.reason,
                ..Self::default()
            },
            Some(Detail::TcpRetransmit(retransmit)) => Self {
                ports: ports(&retransmit.local, &retransmit.remote),
                ..Self::default()
            },
            Some(Detail::BlockIo(io)) => Self {
                error: io.error,
                took: Some(
                    span(&io.queued).unwrap_or_default() + span(&io.device).unwrap_or_default(),
                ),
                disk: &io.disk,
                ..Self::default()
            },
            Some(Detail::Drop(drop)) => Self {
                ports: ports(&drop.source, &drop.destination),
                reason: &drop.reason,
                ..Self::default()
            },
            Some(Detail::DropCount(count)) => Self {
                ports: [count.port, 0],
                reason: &count.reason,
                ..Self::default()
            },
        }
    }
}

/// What a kind can be asked.
struct Answers {
    binary: bool,
    exit_code: bool,
    path: bool,
    error: bool,
    open: bool,
    ports: bool,
    /// Which of the ports is whose.
    ends: bool,
    duration: bool,
    disk: bool,
    reason: bool,
    process: bool,
}

/// Whether a kind can be asked one of them.
type Can = fn(&Answers) -> bool;

impl Answers {
    const NONE: Self = Self {
        binary: false,
        exit_code: false,
        path: false,
        error: false,
        open: false,
        ports: false,
        ends: false,
        duration: false,
        disk: false,
        reason: false,
        process: true,
    };

    const fn of(kind: v1::Kind) -> Self {
        match kind {
            v1::Kind::Unspecified | v1::Kind::Fork => Self::NONE,
            v1::Kind::Exec => Self {
                binary: true,
                ..Self::NONE
            },
            v1::Kind::Exit => Self {
                exit_code: true,
                ..Self::NONE
            },
            v1::Kind::FileOpen => Self {
                path: true,
                error: true,
                open: true,
                ..Self::NONE
            },
            v1::Kind::FileDelete => Self {
                path: true,
                error: true,
                ..Self::NONE
            },
            v1::Kind::TcpSession => Self {
                ports: true,
                ends: true,
                duration: true,
                ..Self::NONE
            },
            v1::Kind::TcpConnect | v1::Kind::TcpRetransmit => Self {
                ports: true,
                ends: true,
                ..Self::NONE
            },
            v1::Kind::TcpReset => Self {
                ports: true,
                reason: true,
                ..Self::NONE
            },
            v1::Kind::BlockIo => Self {
                error: true,
                duration: true,
                disk: true,
                ..Self::NONE
            },
            v1::Kind::BlockLatency => Self {
                disk: true,
                process: false,
                ..Self::NONE
            },
            v1::Kind::Drop | v1::Kind::DropCount => Self {
                ports: true,
                reason: true,
                process: false,
                ..Self::NONE
            },
        }
    }
}

fn parse_matches(
    field: &str,
    matches: &[v1::StringMatch],
    limits: &Limits,
) -> Result<Vec<Pattern>, Invalid> {
    use v1::string_match::Pattern::{Exact, Glob, Prefix};

    check_elements(field, matches, limits)?;
    matches
        .iter()
        .enumerate()
        .map(|(index, v1::StringMatch { pattern })| {
            let at = format!("{field}[{index}]");
            match pattern {
                Some(Exact(text)) => Pattern::exact(&format!("{at}.exact"), text),
                Some(Prefix(text)) => Pattern::prefix(&format!("{at}.prefix"), text),
                Some(Glob(text)) => Pattern::glob(&format!("{at}.glob"), text),
                None => Err(Invalid::new(
                    at,
                    "has no pattern; set `exact`, `prefix` or `glob`",
                )),
            }
        })
        .collect()
}

fn match_pids(
    rules: &[v1::PidMatch],
    event: &v1::Event,
    process: &v1::Process,
    family: &mut Family,
) -> bool {
    let v1::Process {
        pid,
        start_boot_ns,
        ancestors,
        ..
    } = process;
    let (pid, start) = (*pid, *start_boot_ns);
    let descends = rules
        .iter()
        .any(|rule| rule.descendants && (rule.pid == pid || ancestors.contains(&rule.pid)))
        || rules.iter().any(|rule| rule.descendants)
            && (family.contains_process(pid, start)
                || ancestors.iter().any(|ancestor| family.contains(*ancestor)));
    match &event.detail {
        Some(Detail::Exec(_)) if descends => family.remember(pid, start),
        // The pid is someone else's now.
        Some(Detail::Exec(_)) | Some(Detail::Exit(_)) => family.forget(pid),
        Some(Detail::Fork(fork)) if descends => {
            family.remember(fork.child_pid, fork.child_start_boot_ns);
        }
        Some(Detail::Fork(fork)) => family.forget(fork.child_pid),
        Some(
            Detail::FileOpen(_)
            | Detail::FileDelete(_)
            | Detail::TcpSession(_)
            | Detail::TcpConnect(_)
            | Detail::TcpReset(_)
            | Detail::TcpRetransmit(_)
            | Detail::BlockIo(_)
            | Detail::BlockLatency(_)
            | Detail::Drop(_)
            | Detail::DropCount(_),
        )
        | None => {}
    }
    descends || rules.iter().any(|rule| rule.pid == pid)
}

/// The descendants of the processes that a subscriber named: they stay so when their parents end and init adopts them.
///
/// It learns from FORK and EXEC events, whose order is that of the kernel, and forgets with EXIT events.
/// It holds 65,536 processes; the one that started first makes room for a new one.
#[derive(Clone, Debug, Default)]
pub struct Family {
    started: HashMap<u32, u64>,
    by_start: BTreeSet<(u64, u32)>,
}

impl Family {
    fn contains(&self, pid: u32) -> bool {
        self.started.contains_key(&pid)
    }

    /// Pids are used again; with the start they are unique.
    fn contains_process(&self, pid: u32, start: u64) -> bool {
        self.started.get(&pid) == Some(&start)
    }

    fn remember(&mut self, pid: u32, start: u64) {
        self.forget(pid);
        if self.started.len() == FAMILY_MAX
            && let Some((_, oldest)) = self.by_start.pop_first()
        {
            self.started.remove(&oldest);
        }
        self.started.insert(pid, start);
        self.by_start.insert((start, pid));
    }

    fn forget(&mut self, pid: u32) {
        if let Some(start) = self.started.remove(&pid) {
            self.by_start.remove(&(start, pid));
        }
    }
}

#[cfg(test)]
mod tests;
