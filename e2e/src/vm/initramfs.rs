//! What a virtual machine runs: built by cargo, made small, packed.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::arch::Arch;
use super::cpio::Archive;

/// Where modules lie in the machine. Their names begin with their number in the order in which they are loaded.
pub const MODULES: &str = "/modules";
/// Where the tests lie in the machine.
pub const TESTS: &str = "/tests";
/// Where the agent lies in the machine.
pub const AGENT: &str = "/dinle";
/// Where the tests' helper lies.
pub const ACT: &str = "/act";
/// Beginnings of the names of the tests to run, one a line; empty for those that depend on the kernel.
pub const ONLY: &str = "/only";
/// Where BusyBox lies.
const BUSYBOX: &str = "/bin/busybox";

/// What goes into a machine.
pub struct Programs {
    /// The agent.
    pub agent: PathBuf,
    /// What the tests have run in the pods.
    pub act: PathBuf,
    /// The first process.
    pub init: PathBuf,
    /// The tests.
    pub tests: Vec<PathBuf>,
}

/// Builds everything, and the tests called `names`. The whole workspace each time: cargo then builds no dependency twice.
pub fn build(arch: Arch, names: &[String]) -> Result<Programs> {
    let built = cargo(arch, &["build", "--workspace", "--bins"])?;
    let binary = |name| executable(&built, name, false);
    let mut tests = Vec::new();
    if !names.is_empty() {
        let mut args = vec!["test", "--workspace", "--no-run"];
        args.extend(names.iter().flat_map(|name| ["--test", name]));
        let built = cargo(arch, &args)?;
        for name in names {
            tests.push(executable(&built, name, true)?);
        }
    }
    Ok(Programs {
        agent: binary("dinle")?,
        act: binary("act")?,
        init: binary("init")?,
        tests,
    })
}

/// Runs cargo and returns its messages.
fn cargo(arch: Arch, args: &[&str]) -> Result<Vec<Value>> {
    let output = arch
        .cargo()
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(super::workspace())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo {} failed", args.join(" "));
    output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(b"{"))
        .map(|line| serde_json::from_slice(line).context("cannot read cargo's messages"))
        .collect()
}

fn executable(messages: &[Value], name: &str, test: bool) -> Result<PathBuf> {
    messages
        .iter()
        .filter(|message| message["target"]["name"] == name && message["profile"]["test"] == test)
        .find_map(|message| message["executable"].as_str())
        .map(PathBuf::from)
        .with_context(|| format!("cargo did not build an executable of {name}"))
}

/// Writes the initramfs `out`.
pub fn pack(
    arch: Arch,
    programs: &Programs,
    tests: &[(String, PathBuf)],
    only: &[String],
    out: &Path,
) -> Result<()> {
    let Programs {
        agent,
        act,
        init,
        tests: _,
    } = programs;
    let file = File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    let (path, mend) = arch.busybox();
    let busybox =
        fs::read(&path).with_context(|| format!("cannot read {}: {mend}", path.display()))?;
    let small = |path: &Path| stripped(arch, path, &out.with_extension("stripped"));
    let mut archive = Archive::new(BufWriter::new(file));
    for directory in ["bin", "dev", TESTS] {
        archive.directory(inside(directory))?;
    }
    // Init's own input and output, opened before anything is mounted.
    archive.device("dev/console", 5, 1)?;
    archive.program("init", &small(init)?)?;
    archive.program(inside(AGENT), &small(agent)?)?;
    archive.program(inside(ACT), &small(act)?)?;
    archive.program(inside(BUSYBOX), &busybox)?;
    archive.program(inside(ONLY), only.join("\n").as_bytes())?;
    archive.link("bin/sh", "busybox")?;
    for (name, path) in tests {
        archive.program(inside(&format!("{TESTS}/{name}")), &small(path)?)?;
    }
    archive
        .finish()
        .with_context(|| format!("cannot write {}", out.display()))?;
    Ok(())
}

/// Writes `out`: the initramfs `common` with the modules of one kernel behind it. The kernel unpacks archives that follow each other.
pub fn with_modules(common: &Path, modules: &[PathBuf], out: &Path) -> Result<()> {
    fs::copy(common, out).with_context(|| format!("cannot write {}", out.display()))?;
    let file = File::options()
        .append(true)
        .open(out)
        .with_context(|| format!("cannot write {}", out.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    archive.directory(inside(MODULES))?;
    for (number, module) in modules.iter().enumerate() {
        let bytes =
            fs::read(module).with_context(|| format!("cannot read {}", module.display()))?;
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.program(inside(&format!("{MODULES}/{number}-{name}")), &bytes)?;
    }
    archive
        .finish()
        .with_context(|| format!("cannot write {}", out.display()))?;
    Ok(())
}

/// Paths in an archive are relative.
fn inside(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// A program without what is for debuggers: a tenth of it. Symbols stay, for backtraces.
fn stripped(arch: Arch, program: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let status = Command::new(arch.strip())
        .arg("-g")
        .arg("-o")
        .args([scratch, program])
        .status()
        .with_context(|| format!("cannot run {}: apt-get install binutils", arch.strip()))?;
    ensure!(status.success(), "strip {} failed", program.display());
    let bytes = fs::read(scratch).with_context(|| format!("cannot read {}", scratch.display()))?;
    fs::remove_file(scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    Ok(bytes)
}
