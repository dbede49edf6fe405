//! The process that does what is measured.

use std::{
    io::{self, BufRead as _, Write as _},
    path::Path,
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{
    scenario::{self, Doer, PROGRAM, Scenario},
    support,
};

/// The tools under test have CPU 0; what they slow down has this one.
const CPU: usize = 1;

/// First argument of the mode of this binary that runs the workload.
pub(crate) const MODE: &str = "workload";

/// Compiles the program that does nothing.
pub(crate) fn compile(directory: &Path) -> anyhow::Result<()> {
    let (source, program) = (directory.join("noop.c"), directory.join(PROGRAM));
    std::fs::write(&source, "int main(void) { return 0; }\n")?;
    let status = std::process::Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .args([&program, &source])
        .status()
        .context(
            "cc, the C compiler, does not run; on Debian run `apt-get install gcc libc6-dev`",
        )?;
    ensure!(
        status.success(),
        "cc cannot link a static program ({status}); on Debian run `apt-get install libc6-dev`"
    );
    Ok(())
}

/// The workload's own half: for each line `<marker> <count>`, does the operation that often and says how many nanoseconds that
/// took, by the clock and on the CPU.
pub(crate) fn serve(scenario: &str, directory: &str) -> anyhow::Result<()> {
    support::pin(CPU)?;
    let scenario = scenario::parse(scenario)?;
    let mut doer = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        // Only now: by the first line this process is in its cgroup, and a socket stays in that in which it was made.
        let doer = match &mut doer {
            Some(doer) => doer,
            none => none.insert(Doer::new(scenario, Path::new(directory))?),
        };
        let (marker, count) = line.split_once(' ').context("`<marker> <count>`")?;
        let count: u32 = count.parse()?;
        let (begin, cpu) = (Instant::now(), support::cpu_of_process_and_children_ns()?);
        doer.run(marker, count)?;
        let cpu = support::cpu_of_process_and_children_ns()? - cpu;
        println!("{} {cpu}", begin.elapsed().as_nanos());
        io::stdout().flush()?;
    }
    Ok(())
}

/// What one operation takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Time {
    /// By the clock: what else runs on the machine counts too.
    pub(crate) wall_ns: f64,
    /// On the CPU, of the process and its children.
    pub(crate) cpu_ns: f64,
}

/// The process that runs the workload. It ends when this is dropped.
pub(crate) struct Workload {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Workload {
    /// Starts it in a cgroup.
    pub(crate) fn start(
        scenario: Scenario,
        directory: &Path,
        cgroup: &Path,
    ) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([MODE, scenario.name()])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the workload's process")?;
        let (Some(pid), Some(stdin), Some(stdout)) =
            (child.id(), child.stdin.take(), child.stdout.take())
        else {
            bail!("the workload's process ended at once");
        };
        let procs = cgroup.join("cgroup.procs");
        std::fs::write(&procs, pid.to_string())
            .with_context(|| format!("{} cannot be written", procs.display()))?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout).lines(),
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Does the operation that often, with the marker on it.
    pub(crate) async fn run(&mut self, marker: &str, count: u32) -> anyhow::Result<Time> {
        self.stdin
            .write_all(format!("{marker} {count}\n").as_bytes())
            .await?;
        let line = self.stdout.next_line().await?;
        let line = line.context("the workload's process ended")?;
        let (wall, cpu) = line.split_once(' ').context("two numbers")?;
        let each = |ns: &str| Ok::<_, anyhow::Error>(ns.parse::<f64>()? / f64::from(count));
        Ok(Time {
            wall_ns: each(wall)?,
            cpu_ns: each(cpu)?,
        })
    }
}
