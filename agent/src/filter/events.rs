//! Which events of the workloads.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use dinle_proto::v1::{self, event::Detail};

use super::{Invalid, Kinds, check_elements, parse_duration, pattern::Pattern};

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
    pub(super) fn parse(filter: Option<&v1::Filter>, kinds: Kinds) -> Result<Self, Invalid> {
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
        let asked = [
            (
                !binary.is_empty(),
                "filter.binary",
                has_binary as fn(v1::Kind) -> bool,
                "does not tell the program's path; ask for KIND_EXEC alone, or use `filter.comm`",
            ),
            (
                *exit_failed,
                "filter.exit_failed",
                has_exit_code,
                "does not tell how a process ended; ask for KIND_EXIT alone",
            ),
            (
                !path.is_empty(),
                "filter.path",
                has_path,
                "is not about files; ask for KIND_FILE_OPEN and KIND_FILE_DELETE alone",
            ),
            (
                *failed,
                "filter.failed",
                has_error,
                "does not tell what failed; ask for KIND_FILE_OPEN, KIND_FILE_DELETE and KIND_BLOCK_IO alone",
            ),
            (
                *write,
                "filter.write",
                is_open,
                "is no open of a file; ask for KIND_FILE_OPEN alone",
            ),
            (
                *create,
                "filter.create",
                is_open,
                "is no open of a file; ask for KIND_FILE_OPEN alone",
            ),
            (
                !ports.is_empty(),
                "filter.ports",
                has_ports,
                "has no ports; ask for the kinds of TCP and drops alone",
            ),
            (
                !local_ports.is_empty(),
                "filter.local_ports",
                has_ends,
                "has no local port; ask for the kinds of TCP alone",
            ),
            (
                !remote_ports.is_empty(),
                "filter.remote_ports",
                has_ends,
                "has no remote port; ask for the kinds of TCP alone",
            ),
            (
                min_duration.is_some(),
                "filter.min_duration",
                has_duration,
                "does not tell how long something took; ask for KIND_TCP_SESSION and KIND_BLOCK_IO alone",
            ),
            (
                !disk.is_empty(),
                "filter.disk",
                has_disk,
                "is not about disks; ask for KIND_BLOCK_IO and KIND_BLOCK_LATENCY alone",
            ),
            (
                !reason.is_empty(),
                "filter.reason",
                has_reason,
                "has no reason; ask for KIND_TCP_RESET, KIND_DROP and KIND_DROP_COUNT alone",
            ),
            (
                !(comm.is_empty() && uids.is_empty() && pids.is_empty()),
                "filter",
                has_process,
                "does not tell of processes; leave out `comm`, `uids` and `pids`",
            ),
        ];
        for (asked, field, answers, problem) in asked {
            if asked && let Some(kind) = kinds.iter().find(|kind| !answers(*kind)) {
                let name = kind.as_str_name();
                return Err(Invalid::new(field, format!("{name} {problem}")));
            }
        }
        check_elements("filter.uids", uids)?;
        check_elements("filter.pids", pids)?;
        check_ports("filter.ports", ports)?;
        check_ports("filter.local_ports", local_ports)?;
        check_ports("filter.remote_ports", remote_ports)?;
        if let Some(index) = pids.iter().position(|rule| rule.pid == 0) {
            return Err(Invalid::new(
                format!("filter.pids[{index}].pid"),
                "is 0, which is the kernel's idle task; name a process by its id in the host's PID namespace",
            ));
        }
        Ok(Self {
            comm: parse_matches("filter.comm", comm)?,
            binary: parse_matches("filter.binary", binary)?,
            uids: uids.clone(),
            pids: pids.clone(),
            exit_failed: *exit_failed,
            path: parse_matches("filter.path", path)?,
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
            disk: parse_matches("filter.disk", disk)?,
            reason: parse_matches("filter.reason", reason)?,
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

fn check_ports(field: &str, ports: &[u32]) -> Result<(), Invalid> {
    check_elements(field, ports)?;
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

fn has_binary(kind: v1::Kind) -> bool {
    Answers::of(kind).binary
}

fn has_exit_code(kind: v1::Kind) -> bool {
    Answers::of(kind).exit_code
}

fn has_path(kind: v1::Kind) -> bool {
    Answers::of(kind).path
}

fn has_error(kind: v1::Kind) -> bool {
    Answers::of(kind).error
}

fn is_open(kind: v1::Kind) -> bool {
    Answers::of(kind).open
}

fn has_ends(kind: v1::Kind) -> bool {
    Answers::of(kind).ends
}

fn has_ports(kind: v1::Kind) -> bool {
    Answers::of(kind).ports
}

fn has_duration(kind: v1::Kind) -> bool {
    Answers::of(kind).duration
}

fn has_disk(kind: v1::Kind) -> bool {
    Answers::of(kind).disk
}

fn has_reason(kind: v1::Kind) -> bool {
    Answers::of(kind).reason
}

fn has_process(kind: v1::Kind) -> bool {
    Answers::of(kind).process
}

fn parse_matches(field: &str, matches: &[v1::StringMatch]) -> Result<Vec<Pattern>, Invalid> {
    use v1::string_match::Pattern::{Exact, Glob, Prefix};

    check_elements(field, matches)?;
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
mod tests {
    use super::*;
    use v1::string_match;

    fn exec(pid: u32, ancestors: &[u32]) -> v1::Event {
        v1::Event {
            kind: v1::Kind::Exec.into(),
            process: Some(v1::Process {
                pid,
                tid: pid,
                start_boot_ns: u64::from(pid) * 1000,
                ppid: ancestors.first().copied().unwrap_or_default(),
                ancestors: ancestors.to_vec(),
                comm: "nginx".to_owned(),
                uid: 101,
                ..Default::default()
            }),
            detail: Some(Detail::Exec(v1::Exec {
                filename: "/usr/sbin/nginx".to_owned(),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn exit(pid: u32, ancestors: &[u32], code: u32, signal: u32) -> v1::Event {
        v1::Event {
            kind: v1::Kind::Exit.into(),
            detail: Some(Detail::Exit(v1::Exit {
                code,
                signal,
                ..Default::default()
            })),
            ..exec(pid, ancestors)
        }
    }

    fn both() -> Kinds {
        [v1::Kind::Exec, v1::Kind::Exit].into_iter().collect()
    }

    fn only(kind: v1::Kind) -> Kinds {
        [kind].into_iter().collect()
    }

    fn parsed(filter: &v1::Filter, kinds: Kinds) -> Filter {
        Filter::parse(Some(filter), kinds).expect("a filter")
    }

    fn refused(filter: &v1::Filter, kinds: Kinds) -> String {
        Filter::parse(Some(filter), kinds)
            .expect_err("should be refused")
            .to_string()
    }

    fn matches(filter: &v1::Filter, kinds: Kinds, event: &v1::Event) -> bool {
        parsed(filter, kinds).matches(event, &mut Family::default())
    }

    fn exact(text: &str) -> v1::StringMatch {
        v1::StringMatch {
            pattern: Some(string_match::Pattern::Exact(text.to_owned())),
        }
    }

    fn prefix(text: &str) -> v1::StringMatch {
        v1::StringMatch {
            pattern: Some(string_match::Pattern::Prefix(text.to_owned())),
        }
    }

    fn glob(text: &str) -> v1::StringMatch {
        v1::StringMatch {
            pattern: Some(string_match::Pattern::Glob(text.to_owned())),
        }
    }

    #[test]
    fn no_filter_matches_everything() {
        let filter = Filter::parse(None, both()).expect("no filter");
        let mut family = Family::default();
        assert!(filter.matches(&exec(5, &[]), &mut family));
        assert!(filter.matches(&exit(5, &[], 0, 0), &mut family));
        assert!(filter.matches(&v1::Event::default(), &mut family));
    }

    #[test]
    fn elements_of_a_field_are_alternatives_and_fields_must_all_match() {
        let table = [
            (vec![exact("nginx")], vec![], true),
            (vec![exact("ngin")], vec![], false),
            (vec![exact("sh"), exact("nginx")], vec![], true),
            (vec![prefix("ngi")], vec![], true),
            (vec![glob("n?in*")], vec![], true),
            (vec![glob("n?in")], vec![], false),
            (vec![], vec![101], true),
            (vec![], vec![0, 101], true),
            (vec![], vec![0], false),
            (vec![exact("nginx")], vec![0], false),
            (vec![exact("sh")], vec![101], false),
        ];
        for (comm, uids, expected) in table {
            let filter = v1::Filter {
                comm,
                uids,
                ..Default::default()
            };
            assert_eq!(
                matches(&filter, both(), &exec(5, &[])),
                expected,
                "{filter:?}"
            );
        }
    }

    #[test]
    fn binary_is_the_path_given_to_execve() {
        let table = [
            (exact("/usr/sbin/nginx"), true),
            (exact("nginx"), false),
            (prefix("/usr/"), true),
            (glob("/usr/*nginx"), true),
            (glob("*/nginx"), true),
            (glob("*/bin/*"), false),
        ];
        for (binary, expected) in table {
            let filter = v1::Filter {
                binary: vec![binary],
                ..Default::default()
            };
            let kinds = only(v1::Kind::Exec);
            assert_eq!(
                matches(&filter, kinds, &exec(5, &[])),
                expected,
                "{filter:?}"
            );
        }
    }

    #[test]
    fn failed_is_a_code_or_a_signal() {
        let filter = v1::Filter {
            exit_failed: true,
            ..Default::default()
        };
        let kinds = only(v1::Kind::Exit);
        assert!(!matches(&filter, kinds, &exit(5, &[], 0, 0)));
        assert!(matches(&filter, kinds, &exit(5, &[], 3, 0)));
        assert!(matches(&filter, kinds, &exit(5, &[], 0, 9)));
    }

    #[test]
    fn pids_match_alone_or_with_descendants() {
        let rule = |descendants| v1::Filter {
            pids: vec![v1::PidMatch {
                pid: 10,
                descendants,
            }],
            ..Default::default()
        };
        for descendants in [false, true] {
            let filter = rule(descendants);
            assert!(matches(&filter, both(), &exec(10, &[1])));
            assert!(matches(&filter, both(), &exit(10, &[1], 0, 0)));
            assert!(!matches(&filter, both(), &exec(11, &[1])));
            assert_eq!(
                matches(&filter, both(), &exec(12, &[11, 10, 1])),
                descendants
            );
            assert_eq!(
                matches(&filter, both(), &exit(12, &[11, 10, 1], 0, 0)),
                descendants
            );
        }
    }

    fn descendants_of_10() -> v1::Filter {
        v1::Filter {
            pids: vec![v1::PidMatch {
                pid: 10,
                descendants: true,
            }],
            ..Default::default()
        }
    }

    #[test]
    fn descendants_stay_in_the_family_when_init_adopts_them() {
        let filter = parsed(&descendants_of_10(), both());
        let mut family = Family::default();
        let steps = [
            (exec(20, &[10, 1]), true),
            // 10 ended; 20 and its new child still count.
            (exec(20, &[1]), true),
            (exec(30, &[20, 1]), true),
            (exec(40, &[1]), false),
            (exit(20, &[1], 0, 0), true),
            (exec(30, &[1]), true),
            (exit(30, &[1], 0, 0), true),
            // All are gone: their pids mean nothing any more.
            (exec(31, &[20, 1]), false),
            (exec(30, &[1]), false),
        ];
        for (index, (event, expected)) in steps.iter().enumerate() {
            assert_eq!(
                filter.matches(event, &mut family),
                *expected,
                "step {index}"
            );
        }
        assert!(family.started.is_empty() && family.by_start.is_empty());
    }

    #[test]
    fn a_pid_that_is_used_again_is_someone_else() {
        let filter = parsed(&descendants_of_10(), both());
        let mut family = Family::default();
        assert!(filter.matches(&exec(20, &[10, 1]), &mut family));
        let mut reused = exec(20, &[1]);
        if let Some(process) = &mut reused.process {
            process.start_boot_ns += 1;
        }
        assert!(!filter.matches(&reused, &mut family), "its exit was lost");
        assert!(!filter.matches(&exec(21, &[20, 1]), &mut family));
    }

    #[test]
    fn the_family_learns_from_events_that_other_fields_leave_out() {
        let filter = v1::Filter {
            comm: vec![exact("curl")],
            ..descendants_of_10()
        };
        let filter = parsed(&filter, both());
        let mut family = Family::default();
        assert!(!filter.matches(&exec(20, &[10, 1]), &mut family), "nginx");
        let mut curl = exec(30, &[20, 1]);
        if let Some(process) = &mut curl.process {
            process.comm = "curl".to_owned();
        }
        assert!(filter.matches(&curl, &mut family));
    }

    #[test]
    fn a_rule_without_descendants_teaches_nothing() {
        let filter = v1::Filter {
            pids: vec![v1::PidMatch {
                pid: 10,
                descendants: false,
            }],
            ..Default::default()
        };
        let filter = parsed(&filter, both());
        let mut family = Family::default();
        assert!(filter.matches(&exec(10, &[1]), &mut family));
        assert!(family.started.is_empty());
    }

    #[test]
    fn a_full_family_forgets_the_oldest() {
        let mut family = Family::default();
        let max = u32::try_from(FAMILY_MAX).expect("fits");
        for pid in 1..=max {
            family.remember(pid, u64::from(pid));
        }
        family.remember(max, u64::from(max));
        assert!(family.contains(1), "the same again needs no room");
        family.remember(max + 1, u64::from(max) + 1);
        assert!(!family.contains(1));
        assert!(family.contains(2));
        assert!(family.contains(max + 1));
        assert_eq!(family.started.len(), FAMILY_MAX);
        assert_eq!(family.by_start.len(), FAMILY_MAX);
    }

    #[test]
    fn ports_are_of_either_end_or_of_one() {
        let end = |port| {
            Some(v1::Endpoint {
                port,
                ..v1::Endpoint::default()
            })
        };
        let event = v1::Event {
            kind: v1::Kind::TcpConnect.into(),
            detail: Some(Detail::TcpConnect(v1::TcpConnect {
                local: end(40_000),
                remote: end(443),
                ..v1::TcpConnect::default()
            })),
            ..v1::Event::default()
        };
        let kinds = only(v1::Kind::TcpConnect);
        // Either, local, remote; whether it matches.
        let table = [
            (vec![443], vec![], vec![], true),
            (vec![1, 40_000], vec![], vec![], true),
            (vec![1], vec![], vec![], false),
            (vec![], vec![40_000], vec![], true),
            (vec![], vec![443], vec![], false),
            (vec![], vec![], vec![443, 80], true),
            (vec![], vec![], vec![40_000], false),
            (vec![443], vec![40_000], vec![443], true),
        ];
        for (ports, local_ports, remote_ports, expected) in table {
            let filter = v1::Filter {
                ports,
                local_ports,
                remote_ports,
                ..v1::Filter::default()
            };
            assert_eq!(matches(&filter, kinds, &event), expected, "{filter:?}");
        }
        let wrong = v1::Filter {
            remote_ports: vec![80, 65_536],
            ..v1::Filter::default()
        };
        assert_eq!(
            refused(&wrong, kinds),
            "filter.remote_ports[1]: is 65536; ports are from 1 to 65535"
        );
        let drops = v1::Filter {
            local_ports: vec![80],
            ..v1::Filter::default()
        };
        assert!(refused(&drops, only(v1::Kind::DropCount)).contains("ask for the kinds of TCP"));
    }

    #[test]
    fn reasons_are_asked_of_what_has_them() {
        let drop = |reason: &str| v1::Event {
            kind: v1::Kind::DropCount.into(),
            detail: Some(Detail::DropCount(v1::DropCount {
                reason: reason.to_owned(),
                ..Default::default()
            })),
            ..Default::default()
        };
        let filter = v1::Filter {
            reason: vec![exact("NO_SOCKET"), glob("NETFILTER_*")],
            ..Default::default()
        };
        let parsed = Filter::parse(Some(&filter), only(v1::Kind::DropCount)).expect("a filter");
        let mut family = Family::default();
        for (reason, expected) in [
            ("NO_SOCKET", true),
            ("NETFILTER_DROP", true),
            ("UDP_CSUM", false),
            ("", false),
        ] {
            assert_eq!(parsed.matches(&drop(reason), &mut family), expected);
        }
        assert_eq!(
            refused(&filter, only(v1::Kind::TcpSession)),
            "filter.reason: KIND_TCP_SESSION has no reason; \
             ask for KIND_TCP_RESET, KIND_DROP and KIND_DROP_COUNT alone"
        );
    }

    #[test]
    fn refusals_say_what_to_ask_instead() {
        let binary = v1::Filter {
            binary: vec![exact("/bin/sh")],
            ..Default::default()
        };
        let expected = "filter.binary: KIND_EXIT does not tell the program's path; \
                        ask for KIND_EXEC alone, or use `filter.comm`";
        assert_eq!(refused(&binary, both()), expected);
        assert_eq!(refused(&binary, only(v1::Kind::Exit)), expected);

        let failed = v1::Filter {
            exit_failed: true,
            ..Default::default()
        };
        let expected = "filter.exit_failed: KIND_EXEC does not tell how a process ended; ask for KIND_EXIT alone";
        assert_eq!(refused(&failed, both()), expected);
        assert_eq!(refused(&failed, only(v1::Kind::Exec)), expected);

        let pid_0 = v1::Filter {
            pids: vec![
                v1::PidMatch {
                    pid: 1,
                    descendants: false,
                },
                v1::PidMatch::default(),
            ],
            ..Default::default()
        };
        assert_eq!(
            refused(&pid_0, both()),
            "filter.pids[1].pid: is 0, which is the kernel's idle task; \
             name a process by its id in the host's PID namespace"
        );

        let nothing = v1::Filter {
            comm: vec![exact("a"), v1::StringMatch::default()],
            ..Default::default()
        };
        assert_eq!(
            refused(&nothing, both()),
            "filter.comm[1]: has no pattern; set `exact`, `prefix` or `glob`"
        );

        let bad_glob = v1::Filter {
            binary: vec![exact("a"), exact("b"), glob("{x")],
            ..Default::default()
        };
        assert!(
            refused(&bad_glob, only(v1::Kind::Exec)).starts_with("filter.binary[2].glob: `{x` ")
        );
    }

    #[test]
    fn requests_match_by_disk_time_and_failure() {
        let event = |disk: &str, error, took| {
            let detail = Detail::BlockIo(v1::BlockIo {
                disk: disk.to_owned(),
                error,
                queued: Some(span(took / 4)),
                device: Some(span(took - took / 4)),
                ..Default::default()
            });
            v1::Event {
                kind: v1::Kind::BlockIo.into(),
                detail: Some(detail),
                ..Default::default()
            }
        };
        fn span(milliseconds: i32) -> prost_types::Duration {
            prost_types::Duration {
                seconds: 0,
                nanos: milliseconds * 1_000_000,
            }
        }
        let kinds = only(v1::Kind::BlockIo);
        let disk = v1::Filter {
            disk: vec![exact("sda"), prefix("nvme")],
            ..Default::default()
        };
        for (name, expected) in [("sda", true), ("nvme1n1", true), ("sdab", false)] {
            assert_eq!(
                matches(&disk, kinds, &event(name, 0, 1)),
                expected,
                "{name}"
            );
        }
        let failed = v1::Filter {
            failed: true,
            ..Default::default()
        };
        assert!(matches(&failed, kinds, &event("sda", 5, 1)));
        assert!(!matches(&failed, kinds, &event("sda", 0, 1)));
        let slow = v1::Filter {
            min_duration: Some(span(100)),
            ..Default::default()
        };
        assert!(matches(&slow, kinds, &event("sda", 0, 100)));
        assert!(!matches(&slow, kinds, &event("sda", 0, 99)));

        let latency = v1::Event {
            kind: v1::Kind::BlockLatency.into(),
            detail: Some(Detail::BlockLatency(v1::BlockLatency {
                disk: "sdb".to_owned(),
                ..Default::default()
            })),
            ..Default::default()
        };
        assert!(!matches(&disk, only(v1::Kind::BlockLatency), &latency));
        assert_eq!(
            refused(&disk, both()),
            "filter.disk: KIND_EXEC is not about disks; ask for KIND_BLOCK_IO and KIND_BLOCK_LATENCY alone"
        );
    }

    #[test]
    fn more_than_64_elements_are_refused() {
        let table = [
            (
                "filter.comm",
                v1::Filter {
                    comm: vec![exact("a"); 65],
                    ..Default::default()
                },
            ),
            (
                "filter.binary",
                v1::Filter {
                    binary: vec![exact("a"); 65],
                    ..Default::default()
                },
            ),
            (
                "filter.uids",
                v1::Filter {
                    uids: vec![1; 65],
                    ..Default::default()
                },
            ),
            (
                "filter.pids",
                v1::Filter {
                    pids: vec![
                        v1::PidMatch {
                            pid: 1,
                            descendants: true
                        };
                        65
                    ],
                    ..Default::default()
                },
            ),
        ];
        for (field, filter) in table {
            assert_eq!(
                refused(&filter, only(v1::Kind::Exec)),
                format!("{field}: has 65 elements, 64 are allowed; use globs, or several streams")
            );
        }
    }
}
