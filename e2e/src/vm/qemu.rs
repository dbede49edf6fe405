//! Runs one virtual machine to its end.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::report::{End, PANIC};

const QEMU: &str = "qemu-system-x86_64";
/// Memory in MiB: the initramfs twice (as it came and unpacked), and the agent's maps.
const MEMORY_MIB: u32 = 2048;
/// More than one, so that events come from several processors. More would be emulated on the same few.
const PROCESSORS: u32 = 2;
/// Without cmpxchg16b: QEMU 7.2 emulates it wrongly with several processors, and 6.12 panics.
const PROCESSOR: &str = "max,cx16=off";
/// What makes an emulated kernel slow and is not what is tested: mitigations, zeroed allocations, slow grace periods.
/// `panic=-1` turns a panic into a reboot, and `-no-reboot` that into QEMU's end.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0 apparmor=0 rcupdate.rcu_expedited=1";
/// How long a kernel that panics may tell about it.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long a kernel without anything to run takes to panic at most, where KVM works. It is 2 seconds.
const TRIAL: Duration = Duration::from_secs(20);

/// How the machine's processors come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By this machine's own.
    Kvm,
    /// By emulation, about ten times slower.
    Tcg,
}

/// Fails where there is no QEMU, saying how to get it.
pub fn installed() -> Result<()> {
    Command::new(QEMU)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {QEMU}: apt-get install qemu-system-x86"))?;
    Ok(())
}

impl Accelerator {
    /// KVM where it works. `/dev/kvm` alone does not tell: in some virtual machines it is there, and guests hang or QEMU dies.
    pub fn best(kernel: &Path, log: &Path) -> Result<Self> {
        Ok(match run(kernel, None, None, log, TRIAL, Self::Kvm)? {
            End::Panic => Self::Kvm,
            End::Off | End::Timeout => Self::Tcg,
        })
    }
}

/// Bytes of a machine's disk. The file is sparse.
const DISK_BYTES: u64 = 64 << 20;

/// Makes an empty disk.
pub fn make_disk(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.set_len(DISK_BYTES)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Boots `kernel` with `initramfs` and a disk, and writes what it tells to `log`, within `limit`. Without an initramfs it panics.
pub fn run(
    kernel: &Path,
    initramfs: Option<&Path>,
    disk: Option<&Path>,
    log: &Path,
    limit: Duration,
    accelerator: Accelerator,
) -> Result<End> {
    let mut log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let accelerator = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg,thread=multi",
    };
    let mut qemu = Running(
        Command::new("nice")
            .arg(QEMU)
            .args(["-M", "q35", "-accel", accelerator, "-cpu", PROCESSOR])
            .args([
                "-smp",
                &PROCESSORS.to_string(),
                "-m",
                &MEMORY_MIB.to_string(),
            ])
            .args([
                "-nodefaults",
                "-no-reboot",
                "-display",
                "none",
                "-monitor",
                "none",
                "-serial",
                "stdio",
            ])
            .arg("-kernel")
            .arg(kernel)
            .args(
                initramfs
                    .into_iter()
                    .flat_map(|path| [OsStr::new("-initrd"), path.as_os_str()]),
            )
            .args(disk.into_iter().flat_map(|path| {
                // Nobody needs what is on it when the machine is off.
                let file = format!(
                    "file={},if=none,format=raw,cache=unsafe,id=disk",
                    path.display()
                );
                ["-drive".to_owned(), file]
                    .into_iter()
                    .chain(["-device", "virtio-blk-pci,drive=disk"].map(str::to_owned))
            }))
            .args(["-append", COMMAND_LINE])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .context("cannot run nice")?,
    );
    let Running(child) = &mut qemu;
    let mut serial = BufReader::new(child.stdout.take().context("QEMU has no serial line")?);
    let (lines, told) = mpsc::channel();
    thread::spawn(move || {
        let mut line = Vec::new();
        while serial.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
            if lines.send(std::mem::take(&mut line)).is_err() {
                break;
            }
        }
    });
    let mut deadline = Instant::now() + limit;
    let mut end = End::Off;
    loop {
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                log.write_all(&line).context("cannot write the log")?;
                if end == End::Off && String::from_utf8_lossy(&line).contains(PANIC) {
                    end = End::Panic;
                    deadline = Instant::now() + LAST_WORDS;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                if end == End::Off {
                    end = End::Timeout;
                }
                // The line that it was at, without an end, names the test that hangs: it comes when QEMU is gone.
                child.kill().context("cannot end QEMU")?;
                deadline = Instant::now() + LAST_WORDS;
            }
        }
    }
    Ok(end)
}

/// A QEMU that does not outlive its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let Self(child) = self;
        // It fails only for a process that has ended.
        let _ = child.kill();
        let _ = child.wait();
    }
}
