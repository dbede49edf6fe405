//! Other tools that show what is executed, as people install them.

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

use crate::{MEASURED, WARM_UP, workload::Workload};

/// A tool that compiles its programs at the start needs some seconds.
const START: Duration = Duration::from_secs(15);

/// To print what it still has.
const STOP: Duration = Duration::from_secs(5);

/// Executions between two looks whether a tool works yet. As many as fill the buffer of its output.
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
    version: &'static [&'static str],
}

/// All of them.
pub(crate) const PEERS: [Peer; 4] = [
    Peer {
        name: "bpftrace execsnoop.bt",
        program: "bpftrace",
        args: &["/usr/sbin/execsnoop.bt"],
        by_pid: false,
        version: &["bpftrace", "--version"],
    },
    Peer {
        name: "libbpf-tools execsnoop",
        program: "/usr/sbin/execsnoop",
        args: &[],
        by_pid: false,
        version: &[
            "dpkg-query",
            "-Wf",
            "libbpf-tools ${Version}",
            "libbpf-tools",
        ],
    },
    Peer {
        name: "bcc execsnoop",
        program: "execsnoop-bpfcc",
        args: &[],
        by_pid: false,
        version: &["dpkg-query", "-Wf", "bpfcc-tools ${Version}", "bpfcc-tools"],
    },
    Peer {
        name: "strace -f -e execve",
        program: "strace",
        args: &["-f", "-e", "trace=execve", "-p"],
        by_pid: true,
        version: &["strace", "--version"],
    },
];

impl Peer {
    /// Its first line about its version.
    pub(crate) fn version(&self) -> Option<String> {
        let output = std::process::Command::new(self.version.first()?)
            .args(&self.version[1..])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().next().map(str::to_owned)
    }

    /// Starts it, and waits until it shows an execution of the workload.
    pub(crate) async fn start(
        &self,
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
        let mut running = Running { child, output };
        let ready = async {
            while running.shown(WARM_UP)? == 0 {
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
}

impl Running {
    /// Ends it, and counts the measured executions that it showed.
    pub(crate) async fn stop(mut self) -> anyhow::Result<u64> {
        crate::signal(&self.child, libc::SIGINT);
        if timeout(STOP, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        self.shown(MEASURED)
    }

    fn text(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.output)?).into_owned())
    }

    fn shown(&self, marker: &str) -> anyhow::Result<u64> {
        let text = self.text()?;
        Ok(text.lines().filter(|line| line.contains(marker)).count() as u64)
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
