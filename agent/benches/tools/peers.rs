//! Other tools that show the same operations, as people install them.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    MEASURED, WARM_UP,
    scenario::{MEASURED_FD, Scenario},
    workload::Workload,
};

/// A tool that compiles its programs at the start needs some seconds.
const START: Duration = Duration::from_secs(15);

/// To print what it still has.
const STOP: Duration = Duration::from_secs(5);

/// Operations between two looks whether a tool works yet. As many as fill the buffer of its output.
const WARM_UP_OPS: u32 = 40;

/// Tracing tools look for tracefs where it is not always mounted. They get it in a mount namespace of their own.
const WITH_TRACEFS: &str = "\
    [ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing; \
    [ -d /sys/kernel/debug/tracing/events ] || mount -t debugfs debugfs /sys/kernel/debug; \
    exec \"$0\" \"$@\"";

/// One tool.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    /// What the table calls it.
    pub(crate) name: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    /// Its last argument is the workload's process id.
    by_pid: bool,
    package: &'static str,
}

const fn peer(
    name: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    package: &'static str,
) -> Peer {
    Peer {
        name,
        program,
        args,
        by_pid: false,
        package,
    }
}

const fn strace(name: &'static str, args: &'static [&'static str]) -> Peer {
    Peer {
        by_pid: true,
        ..peer(name, "strace", args, "strace")
    }
}

const EXEC: [Peer; 4] = [
    peer(
        "bpftrace execsnoop.bt",
        "bpftrace",
        &["/usr/sbin/execsnoop.bt"],
        "bpftrace",
    ),
    peer(
        "libbpf-tools execsnoop",
        "/usr/sbin/execsnoop",
        &[],
        "libbpf-tools",
    ),
    peer("bcc execsnoop", "execsnoop-bpfcc", &[], "bpfcc-tools"),
    strace("strace -f -e execve", &["-f", "-e", "trace=execve", "-p"]),
];
const OPEN: [Peer; 4] = [
    peer(
        "bpftrace opensnoop.bt",
        "bpftrace",
        &["/usr/sbin/opensnoop.bt"],
        "bpftrace",
    ),
    peer(
        "libbpf-tools opensnoop",
        "/usr/sbin/opensnoop",
        &[],
        "libbpf-tools",
    ),
    peer("bcc opensnoop", "opensnoop-bpfcc", &[], "bpfcc-tools"),
    strace("strace -f -e openat", &["-f", "-e", "trace=openat", "-p"]),
];
const UNLINK: [Peer; 4] = [
    peer(
        "bpftrace, unlink and unlinkat",
        "bpftrace",
        &[
            "-e",
            "tracepoint:syscalls:sys_enter_unlink, tracepoint:syscalls:sys_enter_unlinkat \
             { printf(\"%d %s %s\\n\", pid, comm, str(args->pathname)); }",
        ],
        "bpftrace",
    ),
    peer(
        "libbpf-tools filelife",
        "/usr/sbin/filelife",
        &[],
        "libbpf-tools",
    ),
    peer("bcc filelife", "filelife-bpfcc", &[], "bpfcc-tools"),
    strace(
        "strace -f -e unlink,unlinkat",
        &["-f", "-e", "trace=unlink,unlinkat", "-p"],
    ),
];
const TCP: [Peer; 4] = [
    peer(
        "bpftrace tcplife.bt",
        "bpftrace",
        &["/usr/sbin/tcplife.bt"],
        "bpftrace",
    ),
    peer(
        "libbpf-tools tcplife",
        "/usr/sbin/tcplife",
        &[],
        "libbpf-tools",
    ),
    peer("bcc tcplife", "tcplife-bpfcc", &[], "bpfcc-tools"),
    strace("strace -f -e connect", &["-f", "-e", "trace=connect", "-p"]),
];
const READ: [Peer; 4] = [
    peer(
        "bpftrace biosnoop.bt",
        "bpftrace",
        &["/usr/sbin/biosnoop.bt"],
        "bpftrace",
    ),
    peer(
        "libbpf-tools biosnoop",
        "/usr/sbin/biosnoop",
        &[],
        "libbpf-tools",
    ),
    peer("bcc biosnoop", "biosnoop-bpfcc", &[], "bpfcc-tools"),
    strace("strace -f -e pread64", &["-f", "-e", "trace=pread64", "-p"]),
];

/// Those that show an operation.
pub(crate) fn peers(scenario: Scenario) -> [Peer; 4] {
    match scenario {
        Scenario::Exec => EXEC,
        Scenario::Open => OPEN,
        Scenario::Unlink => UNLINK,
        Scenario::Tcp => TCP,
        Scenario::Read => READ,
    }
}

impl Peer {
    /// The package that it comes from, with its version.
    pub(crate) fn version(&self) -> Option<String> {
        let output = std::process::Command::new("dpkg-query")
            .args(["-Wf", "${Package} ${Version}", self.package])
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts it, and waits until it shows an operation of the workload.
    pub(crate) async fn start(
        &self,
        scenario: Scenario,
        workload: &mut Workload,
        directory: &Path,
    ) -> anyhow::Result<Running> {
        let output = directory.join("peer.out");
        let file = File::create(&output)?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", WITH_TRACEFS, self.program])
            .args(self.args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true);
        if self.by_pid {
            command.args(workload.pid().map(|pid| pid.to_string()));
        }
        let child = command.spawn().context("unshare of util-linux")?;
        // A measured read has a descriptor of its own, a warm-up has any.
        let reads = self.by_pid && scenario == Scenario::Read;
        let needle = |marker: &str| match reads {
            true if marker == MEASURED => format!("pread64({MEASURED_FD}, "),
            true => "pread64(".to_owned(),
            false => scenario.needle(marker),
        };
        let mut running = Running {
            child,
            output,
            needle: needle(MEASURED),
        };
        let warm = needle(WARM_UP);
        let ready = async {
            while running.shown(&warm)? == 0 {
                if let Some(status) = running.child.try_wait()? {
                    anyhow::bail!("it ended with {status}: {}", running.complaint()?);
                }
                workload.run(WARM_UP, WARM_UP_OPS).await?;
                sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        };
        match timeout(START, ready).await {
            Ok(ready) => ready?,
            Err(_) => anyhow::bail!(
                "it showed nothing within {} s: {}",
                START.as_secs(),
                running.complaint()?
            ),
        }
        Ok(running)
    }
}

/// A tool that runs. It ends when this is dropped.
pub(crate) struct Running {
    child: Child,
    output: PathBuf,
    /// What lines of measured operations have.
    needle: String,
}

impl Running {
    /// Ends it, and counts the measured operations that it showed.
    pub(crate) async fn stop(mut self) -> anyhow::Result<u64> {
        crate::signal(&self.child, libc::SIGINT);
        if timeout(STOP, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        self.shown(&self.needle)
    }

    fn text(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.output)?).into_owned())
    }

    fn shown(&self, needle: &str) -> anyhow::Result<u64> {
        let text = self.text()?;
        Ok(text.lines().filter(|line| line.contains(needle)).count() as u64)
    }

    /// The first line that looks like a reason, else the last.
    fn complaint(&self) -> anyhow::Result<String> {
        let text = self.text()?;
        let said = |line: &&str| {
            ["Unable", "ERROR", "failed", "cannot"]
                .iter()
                .any(|word| line.contains(word))
        };
        let line = text.lines().find(said).or_else(|| text.lines().last());
        Ok(line.unwrap_or("it said nothing").trim().to_owned())
    }
}
