//! Processes that do much, and count what they did themselves.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Stdio},
};

use dinle_e2e::{
    act::act,
    cgroup::{Cgroup, Tree},
};
use dinle_proto::v1::Kind;

/// How many there are of each kind.
pub(crate) type Counts = BTreeMap<Kind, u64>;

/// One of `act fire`, which waits in the cgroup.
pub(crate) struct Producer {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Producer {
    /// It has entered the cgroup when this comes back, and does so much of each.
    pub(crate) fn new(
        tree: &Tree,
        inside: &Cgroup,
        dir: &Path,
        cpu: usize,
        disk: Option<&Path>,
        work: &[(&str, u64)],
    ) -> Self {
        let outside = tree.host("producers");
        let disk = disk.unwrap_or(Path::new("-"));
        let mut words = vec![
            "fire".to_owned(),
            inside.path.display().to_string(),
            outside.path.display().to_string(),
            dir.display().to_string(),
            cpu.to_string(),
            disk.display().to_string(),
        ];
        for (what, times) in work {
            words.extend([(*what).to_owned(), times.to_string()]);
        }
        let mut command = act(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = outside.spawn(command);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, out }
    }

    /// Lets it begin.
    pub(crate) fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// Waits for its end, and adds what it did.
    pub(crate) fn finish(mut self, counts: &mut Counts) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        for line in self.out.lines() {
            let line = line.unwrap();
            let (what, times) = line.split_once(' ').unwrap();
            let times: u64 = times.parse().unwrap();
            for kind in told_of(what) {
                *counts.entry(*kind).or_default() += times;
            }
        }
    }
}

/// What is told of one such piece of work, each as often as it is there.
fn told_of(what: &str) -> &'static [Kind] {
    use Kind::*;
    match what {
        "missing" | "open" => &[FileOpen],
        "delete" => &[FileDelete],
        "fork" => &[Fork, Exit],
        "exec" => &[Fork, Exec, Exit],
        // Both ends.
        "session" => &[TcpSession, TcpSession],
        "reset" => &[TcpSession, TcpSession, TcpReset, TcpReset],
        // The SYN finds nobody, the RST comes back.
        "refused" => &[TcpConnect, TcpReset, Drop, DropCount],
        // The SYN is sent twice, and finds nobody twice.
        "silent" => &[TcpConnect, Drop, DropCount, Drop, DropCount],
        "retransmitted" => &[TcpRetransmit],
        "datagram" => &[Drop, DropCount],
        "read" => &[BlockIo, BlockLatency],
        other => panic!("what is told of {other}?"),
    }
}
