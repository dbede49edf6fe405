//! Runs one virtual machine to its end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::arch::Arch;
use super::report::{End, PANIC};

/// Memory in MiB: the initramfs twice (as it came and unpacked), and the agent's maps.
const MEMORY_MIB: u32 = 2048;
/// More than one, so that events come from several processors. More would be emulated on the same few.
const PROCESSORS: u32 = 2;
/// What makes an emulated kernel slow and is not what is tested: mitigations, zeroed allocations, slow grace periods.
/// `panic=-1` turns a panic into a reboot, and `-no-reboot` that into QEMU's end.
/// `no_timer_check`: a machine that is busy emulates no timer as fast as a kernel of x86 checks it.
const COMMAND_LINE: &str = "quiet panic=-1 no_timer_check mitigations=off init_on_alloc=0 apparmor=0 rcupdate.rcu_expedited=1";
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
pub fn installed(arch: Arch) -> Result<()> {
    let (qemu, package) = arch.qemu();
    Command::new(qemu)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {qemu}: apt-get install {package}"))?;
    Ok(())
}

impl Accelerator {
    /// KVM where it works, for this machine's own architecture. `/dev/kvm` alone does not tell: in some virtual machines it is there, and guests hang or QEMU dies.
    pub fn best(arch: Arch, kernel: &Path, log: &Path) -> Result<Self> {
        if !arch.is_native() {
            return Ok(Self::Tcg);
        }
        let machine = Machine {
            arch,
            accelerator: Self::Kvm,
            kernel,
            initramfs: None,
            disk: None,
        };
        Ok(match machine.run(log, TRIAL)? {
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

/// A machine to boot.
pub struct Machine<'a> {
    /// What it has as processors.
    pub arch: Arch,
    /// How they come about.
    pub accelerator: Accelerator,
    /// What it boots.
    pub kernel: &'a Path,
    /// Its files. Without any, the kernel panics.
    pub initramfs: Option<&'a Path>,
    /// An image.
    pub disk: Option<&'a Path>,
}

impl Machine<'_> {
    /// Boots it, and writes what it tells to `log`, within `limit`.
    pub fn run(&self, log: &Path, limit: Duration) -> Result<End> {
        let mut log =
            File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut qemu = Running(
            self.command()
                .stderr(log.try_clone()?)
                .spawn()
                .context("cannot run nice")?,
        );
        watch(&mut qemu, &mut log, limit)
    }

    fn command(&self) -> Command {
        let Self {
            arch,
            accelerator,
            kernel,
            initramfs,
            disk,
        } = self;
        let accelerator = match accelerator {
            Accelerator::Kvm => "kvm",
            // One thread for all CPUs, in turns. With more, a CPU may still run what another one has just replaced in the kernel's text,
            // such as the breakpoint with which it replaces instructions, and 7.x panics ("Oops: int3").
            Accelerator::Tcg => "tcg,thread=single",
        };
        let (machine, processor, serial) = arch.machine();
        let mut command = Command::new("nice");
        command
            .arg(arch.qemu().0)
            .args(["-M", machine, "-accel", accelerator, "-cpu", processor])
            .args(["-smp", &PROCESSORS.to_string()])
            .args(["-m", &MEMORY_MIB.to_string()])
            .args(["-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel)
            .args(["-append", &format!("console={serial} {COMMAND_LINE}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(initramfs) = initramfs {
            command.arg("-initrd").arg(initramfs);
        }
        if let Some(disk) = disk {
            // Nobody needs what is on it when the machine is off.
            let path = disk.display();
            let drive = format!("file={path},if=none,format=raw,cache=unsafe,id=disk");
            command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
        }
        command
    }
}

/// Writes what a machine tells to `log` until its end, within `limit`.
fn watch(qemu: &mut Running, log: &mut File, limit: Duration) -> Result<End> {
    let Running(child) = qemu;
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
