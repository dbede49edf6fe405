//! What each column shows of an event.

use dinle_proto::v1::{self, event::Detail};

use super::{
    look::Look,
    table::{Table, Width},
    text::{self, NONE},
    tools::{block, drop, file, tcp},
};

/// Hex digits of a container's id that tell it from its neighbours, as in `docker ps`.
const CONTAINER_ID_DIGITS: usize = 12;

/// Who runs in a cgroup, in the words of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) node: String,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) container_id: String,
}

impl Who {
    /// Nobody that this client was told of.
    pub(super) fn unknown(node: &str) -> Self {
        let none = || NONE.to_owned();
        Self {
            node: text::or_none(node).to_owned(),
            namespace: none(),
            pod: none(),
            container: none(),
            container_id: none(),
        }
    }

    pub(super) fn new(workload: &v1::Workload, node: &str) -> Self {
        let v1::Workload {
            cgroup_path,
            state,
            node: own_node,
            namespace,
            pod,
            pod_uid,
            container,
            container_id,
            cgroup_id: _,
            labels: _,
            owner: _,
            image: _,
            container_type: _,
        } = workload;
        let (pod, container) = match v1::IdentityState::try_from(*state) {
            // The unit's or the session's name is the nearest that it has to a name.
            Ok(v1::IdentityState::Host) => {
                let unit = cgroup_path.rsplit('/').find(|part| !part.is_empty());
                ("", unit.unwrap_or_default())
            }
            Ok(v1::IdentityState::Pending) => (pod_uid.as_str(), ""),
            Ok(
                v1::IdentityState::Pod
                | v1::IdentityState::Container
                | v1::IdentityState::Sandbox
                | v1::IdentityState::Unknown
                | v1::IdentityState::Unspecified,
            )
            | Err(_) => (pod.as_str(), container.as_str()),
        };
        let short_id: String = container_id.chars().take(CONTAINER_ID_DIGITS).collect();
        let node = if own_node.is_empty() { node } else { own_node };
        Self {
            node: text::or_none(node).to_owned(),
            namespace: text::or_none(namespace).to_owned(),
            pod: text::or_none(pod).to_owned(),
            container: text::or_none(container).to_owned(),
            container_id: text::or_none(&short_id).to_owned(),
        }
    }
}

/// An event and who did it.
pub(super) struct Seen<'a> {
    pub(super) event: &'a v1::Event,
    /// Empty where nobody knows who did it.
    pub(super) process: &'a v1::Process,
    pub(super) who: &'a Who,
    words: Words,
}

/// How arguments are printed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Words {
    /// As a shell would have to be given them.
    Shell,
    /// As bcc's execsnoop prints them: the path first, then the arguments, at most `max` words.
    Bcc { max: usize, quoted: bool },
}

pub(super) struct Column {
    width: Width,
    cell: fn(&Seen<'_>) -> String,
}

pub(super) const fn column(
    name: &'static str,
    start: usize,
    widest: usize,
    cell: fn(&Seen<'_>) -> String,
) -> Column {
    let width = Width {
        name,
        start,
        widest,
    };
    Column { width, cell }
}

// Starts fit what is usual. Names in Kubernetes may have 63 or 253 characters, of which the beginning tells most.
pub(super) const TIME: Column =
    column("TIME", 12, 12, |seen| text::clock(seen.event.time.as_ref()));
pub(super) const NODE: Column = column("NODE", 10, 32, |seen| seen.who.node.clone());
pub(super) const NAMESPACE: Column = column("NAMESPACE", 12, 32, |seen| seen.who.namespace.clone());
pub(super) const POD: Column = column("POD", 26, 48, |seen| seen.who.pod.clone());
pub(super) const CONTAINER: Column = column("CONTAINER", 14, 32, |seen| seen.who.container.clone());
pub(super) const KIND: Column = column("KIND", 4, 16, |seen| text::kind(seen.event.kind));
pub(super) const PID: Column = column("PID", 7, 10, |seen| of_process(seen, seen.process.pid));
pub(super) const PPID: Column = column("PPID", 7, 10, |seen| of_process(seen, seen.process.ppid));
pub(super) const UID: Column = column("UID", 5, 10, |seen| of_process(seen, seen.process.uid));
// 15 bytes at most.
pub(super) const COMM: Column = column("COMM", 15, 15, |seen| {
    text::or_none(&seen.process.comm).to_owned()
});
const PCOMM: Column = column("PCOMM", 15, 15, |seen| seen.process.comm.clone());
const CODE: Column = column("CODE", 7, 16, |seen| outcome(seen.event).0);
const DURATION: Column = column("DURATION", 9, 16, |seen| outcome(seen.event).1);
// Only successful ones are seen.
const RET: Column = column("RET", 3, 3, |_| "0".to_owned());
const ARGS: Column = column("ARGS", 4, 160, summary);
const DETAILS: Column = column("DETAILS", 7, 160, summary);
const POD_PID: Column = column("POD-PID", 7, 10, |seen| seen.process.pod_pid.to_string());
const TID: Column = column("TID", 7, 10, |seen| seen.process.tid.to_string());
pub(super) const PARENT: Column = column("PARENT", 15, 15, |seen| {
    text::or_none(&seen.process.parent_comm).to_owned()
});
const GID: Column = column("GID", 5, 10, |seen| seen.process.gid.to_string());
const CONTAINER_ID: Column = column("CONTAINER-ID", 12, 12, |seen| seen.who.container_id.clone());
const CWD: Column = column("CWD", 16, 48, |seen| {
    let Some(Detail::Exec(exec)) = &seen.event.detail else {
        return NONE.to_owned();
    };
    if exec.cwd_truncated {
        format!("…{}", exec.cwd)
    } else {
        text::or_none(&exec.cwd).to_owned()
    }
});

const WIDE: [Column; 6] = [POD_PID, TID, PARENT, GID, CONTAINER_ID, CWD];

/// A number of a process, or `-` where nobody knows the process.
fn of_process(seen: &Seen<'_>, number: u32) -> String {
    match seen.process.pid {
        0 => NONE.to_owned(),
        _ => number.to_string(),
    }
}

/// How something ended, and how long it took.
fn outcome(event: &v1::Event) -> (String, String) {
    let none = || NONE.to_owned();
    let Some(detail) = &event.detail else {
        return (none(), none());
    };
    match detail {
        Detail::Exit(exit) => (text::code(exit), text::seconds(exit.duration.as_ref())),
        Detail::FileOpen(open) => (text::errno(open.error), none()),
        Detail::FileDelete(delete) => (text::errno(delete.error), none()),
        Detail::TcpSession(session) => (
            text::errno(session.error),
            text::seconds(session.duration.as_ref()),
        ),
        Detail::TcpConnect(connect) => (
            tcp::end_of_connect(connect),
            text::seconds(connect.duration.as_ref()),
        ),
        Detail::BlockIo(io) => (text::errno(io.error), text::seconds(io.device.as_ref())),
        Detail::Exec(_)
        | Detail::Fork(_)
        | Detail::TcpReset(_)
        | Detail::TcpRetransmit(_)
        | Detail::BlockLatency(_)
        | Detail::Drop(_)
        | Detail::DropCount(_) => (none(), none()),
    }
}

/// What happened, in one cell.
fn summary(seen: &Seen<'_>) -> String {
    let Some(detail) = &seen.event.detail else {
        return NONE.to_owned();
    };
    match detail {
        Detail::Exec(_) if seen.event.redacted => text::REDACTED.to_owned(),
        Detail::Exec(exec) => args(exec, seen.words),
        Detail::Fork(fork) => format!("child {}", fork.child_pid),
        Detail::Exit(_) => NONE.to_owned(),
        Detail::FileOpen(open) => file::open_summary(open),
        Detail::FileDelete(delete) => file::delete_summary(delete),
        Detail::TcpSession(session) => tcp::session_summary(session),
        Detail::TcpConnect(connect) => tcp::connect_summary(connect),
        Detail::TcpReset(reset) => tcp::reset_summary(reset),
        Detail::TcpRetransmit(retransmit) => tcp::retransmit_summary(retransmit),
        Detail::BlockIo(io) => block::io_summary(io),
        Detail::BlockLatency(latency) => block::latency_summary(latency),
        Detail::Drop(drop) => drop::sample_summary(drop),
        Detail::DropCount(count) => drop::count_summary(count),
    }
}

fn args(exec: &v1::Exec, words: Words) -> String {
    let v1::Exec {
        filename,
        args,
        args_truncated,
        filename_truncated,
        args_bytes: _,
        cwd: _,
        cwd_truncated: _,
    } = exec;
    let (shown, cut): (Vec<String>, bool) = match words {
        Words::Shell => {
            let quoted = args.iter().map(|arg| text::shell_quoted(arg).into_owned());
            (quoted.collect(), *args_truncated)
        }
        Words::Bcc { max, quoted } => {
            let path = if *filename_truncated {
                format!("{filename}…")
            } else {
                filename.clone()
            };
            // argv[0] is whatever the caller wanted it to be.
            let all = std::iter::once(path).chain(args.iter().skip(1).cloned());
            let shown = all.take(max).map(|word| match quoted {
                true => text::bcc_quoted(&word),
                false => word,
            });
            (shown.collect(), *args_truncated || args.len() > max)
        }
    };
    let line = shown.join(" ");
    if cut { format!("{line} …") } else { line }
}

/// A table of events.
pub(super) struct EventTable {
    table: Table,
    columns: Vec<Column>,
    words: Words,
}

impl EventTable {
    /// The columns of `dinle watch`.
    pub(super) fn watch(kinds: &[v1::Kind], wide: bool, look: Look, header: bool) -> Self {
        let look = if wide { look.uncut() } else { look };
        let mut columns = vec![
            TIME, NODE, NAMESPACE, POD, CONTAINER, KIND, PID, PPID, UID, COMM, CODE, DURATION,
        ];
        if wide {
            columns.extend(WIDE);
        }
        let process = [v1::Kind::Exec, v1::Kind::Exit, v1::Kind::Fork];
        let only_process = kinds.iter().all(|kind| process.contains(kind));
        columns.push(if only_process { ARGS } else { DETAILS });
        Self::new(columns, Words::Shell, look, header)
    }

    /// The columns of a tool, behind TIME, NODE, NAMESPACE, POD and CONTAINER.
    pub(super) fn tool(columns: Vec<Column>, look: Look, header: bool) -> Self {
        let mut all = vec![TIME, NODE, NAMESPACE, POD, CONTAINER];
        all.extend(columns);
        Self::new(all, Words::Shell, look, header)
    }

    /// The columns of `dinle execsnoop`.
    pub(super) fn execsnoop(
        (time, uid, wide): (bool, bool, bool),
        words: Words,
        look: Look,
        header: bool,
    ) -> Self {
        let look = if wide { look.uncut() } else { look };
        let mut columns = Vec::new();
        if time {
            columns.push(TIME);
        }
        columns.extend([NODE, NAMESPACE, POD, CONTAINER]);
        if uid {
            columns.push(UID);
        }
        columns.extend([PCOMM, PID, PPID]);
        if wide {
            columns.extend(WIDE);
        }
        columns.extend([RET, ARGS]);
        Self::new(columns, words, look, header)
    }

    fn new(columns: Vec<Column>, words: Words, look: Look, header: bool) -> Self {
        let widths = columns.iter().map(|column| column.width).collect();
        Self {
            table: Table::new(widths, look, header),
            columns,
            words,
        }
    }

    /// Prints the header, unless it was printed or is not wanted.
    pub(super) fn header(&mut self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        self.table.header(out)
    }

    /// Prints an event as a line.
    pub(super) fn event(
        &mut self,
        event: &v1::Event,
        who: &Who,
        out: &mut dyn std::io::Write,
    ) -> std::io::Result<()> {
        let nobody = v1::Process::default();
        let seen = Seen {
            event,
            process: event.process.as_ref().unwrap_or(&nobody),
            who,
            words: self.words,
        };
        let cells: Vec<_> = self
            .columns
            .iter()
            .map(|column| (column.cell)(&seen))
            .collect();
        self.table.row(&cells, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> v1::Workload {
        v1::Workload {
            cgroup_id: 70,
            cgroup_path: "/kubepods.slice/pod1/cri-0123456789abcdef.scope".to_owned(),
            state: v1::IdentityState::Container.into(),
            node: "node-1".to_owned(),
            namespace: "shop".to_owned(),
            pod: "web-0".to_owned(),
            pod_uid: "5c0f0c5e-0000-4000-8000-000000000000".to_owned(),
            container: "app".to_owned(),
            container_id: "0123456789abcdef".to_owned(),
            ..Default::default()
        }
    }

    fn process() -> v1::Process {
        v1::Process {
            pid: 4242,
            tid: 4243,
            pod_pid: 7,
            pod_tid: 8,
            ppid: 4000,
            parent_comm: "sh".to_owned(),
            comm: "ls".to_owned(),
            uid: 1000,
            gid: 100,
            ..Default::default()
        }
    }

    fn exec(args: &[&str]) -> v1::Event {
        v1::Event {
            time: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 7_000_000,
            }),
            kind: v1::Kind::Exec.into(),
            cgroup_id: 70,
            process: Some(process()),
            detail: Some(Detail::Exec(v1::Exec {
                filename: "/bin/ls".to_owned(),
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                cwd: "/srv".to_owned(),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn exit(code: u32, signal: u32) -> v1::Event {
        v1::Event {
            kind: v1::Kind::Exit.into(),
            detail: Some(Detail::Exit(v1::Exit {
                code,
                signal,
                duration: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 204_000_000,
                }),
                ..Default::default()
            })),
            ..exec(&[])
        }
    }

    fn truncated(mut event: v1::Event) -> v1::Event {
        if let Some(Detail::Exec(exec)) = &mut event.detail {
            exec.args_truncated = true;
            exec.cwd_truncated = true;
        }
        event
    }

    /// What is printed, with runs of spaces made one, so that a golden line can be read.
    fn squeezed(mut table: EventTable, events: &[(v1::Event, Who)]) -> Vec<String> {
        let mut out = Vec::new();
        for (event, who) in events {
            table.header(&mut out).expect("a Vec takes all");
            table.event(event, who, &mut out).expect("a Vec takes all");
        }
        String::from_utf8(out)
            .expect("UTF-8")
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    fn web() -> Who {
        Who::new(&workload(), "node-of-plan")
    }

    #[test]
    fn watch_prints_execs_and_exits() {
        let host = v1::Workload {
            state: v1::IdentityState::Host.into(),
            cgroup_path: "/system.slice/cron.service".to_owned(),
            ..Default::default()
        };
        let events = [
            (exec(&["ls", "-l", "a b"]), web()),
            (truncated(exec(&["ls", "-l"])), web()),
            (exit(3, 0), web()),
            (exit(0, 9), web()),
            (exit(0, 0), Who::new(&host, "node-1")),
        ];
        assert_eq!(
            squeezed(
                EventTable::watch(&[v1::Kind::Exec], false, Look::default(), true),
                &events
            ),
            [
                "TIME NODE NAMESPACE POD CONTAINER KIND PID PPID UID COMM CODE DURATION ARGS",
                "22:13:20.007 node-1 shop web-0 app exec 4242 4000 1000 ls - - ls -l 'a b'",
                "22:13:20.007 node-1 shop web-0 app exec 4242 4000 1000 ls - - ls -l …",
                "22:13:20.007 node-1 shop web-0 app exit 4242 4000 1000 ls 3 1.204s -",
                "22:13:20.007 node-1 shop web-0 app exit 4242 4000 1000 ls SIGKILL 1.204s -",
                "22:13:20.007 node-1 - - cron.service exit 4242 4000 1000 ls 0 1.204s -",
            ]
        );
    }

    #[test]
    fn columns_stand_below_their_names() {
        let mut out = Vec::new();
        let mut table = EventTable::watch(&[v1::Kind::Exec], false, Look::default(), true);
        table.header(&mut out).expect("a Vec takes all");
        table
            .event(&exec(&["ls"]), &web(), &mut out)
            .expect("a Vec takes all");
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "TIME         NODE       NAMESPACE    POD                        CONTAINER      KIND PID     PPID    UID   COMM            CODE    DURATION  ARGS\n\
             22:13:20.007 node-1     shop         web-0                      app            exec 4242    4000    1000  ls              -       -         ls\n"
        );
    }

    #[test]
    fn wide_adds_columns_before_the_arguments() {
        let events = [
            (exec(&["ls"]), web()),
            (truncated(exec(&["ls"])), web()),
            (exit(0, 0), web()),
        ];
        assert_eq!(
            squeezed(
                EventTable::watch(&[v1::Kind::Exec], true, Look::default(), true),
                &events
            ),
            [
                "TIME NODE NAMESPACE POD CONTAINER KIND PID PPID UID COMM CODE DURATION \
                 POD-PID TID PARENT GID CONTAINER-ID CWD ARGS",
                "22:13:20.007 node-1 shop web-0 app exec 4242 4000 1000 ls - - \
                 7 4243 sh 100 0123456789ab /srv ls",
                "22:13:20.007 node-1 shop web-0 app exec 4242 4000 1000 ls - - \
                 7 4243 sh 100 0123456789ab …/srv ls …",
                "22:13:20.007 node-1 shop web-0 app exit 4242 4000 1000 ls 0 1.204s \
                 7 4243 sh 100 0123456789ab - -",
            ]
        );
    }

    #[test]
    fn what_was_left_out_is_marked() {
        let mut event = exec(&["ls", "-l"]);
        event.redacted = true;
        if let Some(Detail::Exec(exec)) = &mut event.detail {
            exec.filename.clear();
            exec.args.clear();
        }
        let shown = text::marked(&event);
        let who = Who::unknown("n1");
        let process = v1::Process::default();
        let seen = Seen {
            event: &shown,
            process: &process,
            who: &who,
            words: Words::Shell,
        };
        assert_eq!(summary(&seen), "(redacted)");
        let open = v1::Event {
            redacted: true,
            detail: Some(Detail::FileOpen(v1::FileOpen::default())),
            ..Default::default()
        };
        let shown = text::marked(&open);
        let seen = Seen {
            event: &shown,
            process: &process,
            who: &who,
            words: Words::Shell,
        };
        assert!(summary(&seen).contains("(redacted)"), "{}", summary(&seen));
    }

    #[test]
    fn execsnoop_prints_the_path_and_then_the_arguments() {
        let events = [(exec(&["alias", "-l", "a \"b\""]), web())];
        let words = |max, quoted| Words::Bcc { max, quoted };
        let table =
            |words| EventTable::execsnoop((true, false, false), words, Look::default(), true);
        assert_eq!(
            squeezed(table(words(20, false)), &events),
            [
                "TIME NODE NAMESPACE POD CONTAINER PCOMM PID PPID RET ARGS",
                "22:13:20.007 node-1 shop web-0 app ls 4242 4000 0 /bin/ls -l a \"b\"",
            ]
        );
        assert_eq!(
            squeezed(table(words(3, true)), &events)[1],
            r#"22:13:20.007 node-1 shop web-0 app ls 4242 4000 0 "/bin/ls" "-l" "a \"b\"""#
        );
        assert_eq!(
            squeezed(table(words(2, false)), &events)[1],
            "22:13:20.007 node-1 shop web-0 app ls 4242 4000 0 /bin/ls -l …"
        );
        let all = EventTable::execsnoop(
            (false, true, true),
            words(20, false),
            Look::default(),
            false,
        );
        assert_eq!(
            squeezed(all, &events),
            [
                "node-1 shop web-0 app 1000 ls 4242 4000 7 4243 sh 100 0123456789ab /srv 0 /bin/ls -l a \"b\""
            ]
        );
    }

    #[test]
    fn each_state_of_knowledge_has_its_words() {
        use v1::IdentityState;
        let named = |workload: &v1::Workload| {
            let Who {
                node,
                namespace,
                pod,
                container,
                container_id,
            } = Who::new(workload, "node-of-plan");
            [node, namespace, pod, container, container_id].join(" ")
        };
        let in_state = |state: IdentityState| v1::Workload {
            state: state.into(),
            ..workload()
        };
        assert_eq!(
            named(&in_state(IdentityState::Container)),
            "node-1 shop web-0 app 0123456789ab"
        );
        let pod = v1::Workload {
            container: String::new(),
            ..in_state(IdentityState::Pod)
        };
        assert_eq!(named(&pod), "node-1 shop web-0 - 0123456789ab");
        let pending = v1::Workload {
            state: IdentityState::Pending.into(),
            pod_uid: "5c0f".to_owned(),
            ..Default::default()
        };
        assert_eq!(named(&pending), "node-of-plan - 5c0f - -");
        let host = |path: &str| v1::Workload {
            state: IdentityState::Host.into(),
            cgroup_path: path.to_owned(),
            ..Default::default()
        };
        assert_eq!(
            named(&host("/user.slice/session-1.scope/")),
            "node-of-plan - - session-1.scope -"
        );
        assert_eq!(named(&host("/")), "node-of-plan - - - -");
        let unknown = v1::Workload {
            state: IdentityState::Unknown.into(),
            ..Default::default()
        };
        assert_eq!(named(&unknown), "node-of-plan - - - -");
        assert_eq!(
            Who::new(&unknown, "node-of-plan"),
            Who::unknown("node-of-plan")
        );
    }

    #[test]
    fn a_hostile_name_stays_on_its_line() {
        let mut event = exec(&["ls", "\u{1b}[2J"]);
        if let Some(process) = &mut event.process {
            process.comm = "a\nb".to_owned();
        }
        let terminal = Look {
            colored: false,
            width: Some(|| 200),
        };
        let lines = squeezed(
            EventTable::watch(&[v1::Kind::Exec], false, terminal, false),
            &[(event, web())],
        );
        assert_eq!(
            lines,
            ["22:13:20.007 node-1 shop web-0 app exec 4242 4000 1000 a\\nb - - ls $'\\u001b[2J'"]
        );
    }
}
