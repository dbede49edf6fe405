//! The first process of a virtual machine: makes a machine out of a kernel, runs the agent's check and the tests, tells how they
//! ended, powers off. It is linked statically, and started by the kernel as `/init`.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use dinle_e2e::vm::initramfs::{ACT, AGENT, MODULES, ONLY, TESTS};
use dinle_e2e::vm::report::{CHECK, SETUP, end_line, kernel_line, start_line};

/// Kind of filesystem and where it goes, in an order in which each place is there.
const MOUNTS: [(&str, &str); 8] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tracefs", "/sys/kernel/tracing"),
    ("securityfs", "/sys/kernel/security"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tmpfs", "/tmp"),
];

/// An emulated machine is about this many times slower than the one that emulates it.
const PATIENCE: &str = "5";

/// The tests of the agent, and those of them that show what a kernel's version can change: where things lie in its structs, and
/// what its verifier takes. The others test what is the same everywhere, and an emulated machine is slow.
const KERNEL: &str = "kernel";
const DEPENDS_ON_THE_KERNEL: &[&str] = &[
    "block::",
    "clock::",
    "exec::",
    "exit::",
    "file::",
    "fork::",
    "scope::",
    "tcp::",
    "drop::",
    "flags::a_check",
    "loss::a_ring",
];

/// The machine's disk, whose content nobody needs.
const DISK: &str = "/dev/vda";

/// What a shell says of a program that cannot be run, and of one that a signal ended.
const CANNOT_RUN: i32 = 127;
const SIGNALLED: i32 = 128;

fn main() {
    assert_eq!(
        std::process::id(),
        1,
        "init powers the machine off: it is for a virtual machine only"
    );
    if step(SETUP, set_up) {
        step(
            CHECK,
            || run(Command::new(AGENT).args(["agent", "--check"])),
        );
        let only = fs::read_to_string(ONLY).unwrap_or_default();
        let only: Vec<&str> = match only.lines().collect() {
            none if Vec::is_empty(&none) => DEPENDS_ON_THE_KERNEL.to_vec(),
            some => some,
        };
        for test in tests() {
            let name = test
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            step(&name, || {
                let mut command = Command::new(&test);
                if fs::exists(DISK)? {
                    command.env("DINLE_DISK", DISK);
                }
                run(command
                    .arg("--test-threads=1")
                    .args(if name == KERNEL { &only[..] } else { &[] })
                    .env("RUST_BACKTRACE", "1")
                    .env("DINLE_BIN", AGENT)
                    .env("DINLE_ACT", ACT)
                    // Nobody else goes by it.
                    .env("DINLE_SET_CLOCK", "1")
                    .env("DINLE_PATIENCE", PATIENCE))
            });
        }
    }
    power_off();
}

/// Tells of a step's begin and end. Whether it succeeded.
fn step(name: &str, act: impl FnOnce() -> Result<i32>) -> bool {
    println!("{}", start_line(name));
    let exit = act().unwrap_or_else(|error| {
        println!("{error:#}");
        CANNOT_RUN
    });
    println!("{}", end_line(name, exit));
    exit == 0
}

fn set_up() -> Result<i32> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
        mount(kind, place).with_context(|| format!("cannot mount {kind} at {place}"))?;
    }
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the release")?;
    println!("{}", kernel_line(release.trim()));
    loopback_up().context("cannot bring the interface lo up")?;
    load_modules();
    run(Command::new("/bin/busybox").args(["--install", "-s", "/bin"]))
}

/// Without a disk's module, the tests of disks say that there is none.
fn load_modules() {
    for module in listed(MODULES) {
        if let Err(error) = load_module(&module) {
            println!("{} does not load: {error}", module.display());
        }
    }
}

fn load_module(module: &Path) -> io::Result<()> {
    let file = fs::File::open(module)?;
    // SAFETY: the descriptor is open and the string of parameters ends with a NUL.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            std::os::fd::AsRawFd::as_raw_fd(&file),
            c"".as_ptr(),
            0,
        )
    };
    if failed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn mount(kind: &str, place: &str) -> io::Result<()> {
    let kind = CString::new(kind)?;
    let place = CString::new(place)?;
    // SAFETY: the pointers are to strings that live until it returns; no data is given.
    let failed = unsafe {
        libc::mount(
            kind.as_ptr(),
            place.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if failed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: zeros are a valid `ifreq`: numbers, and pointers that are null.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the descriptor is open and the request is a whole `ifreq` that outlives the call.
    let failed = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCSIFFLAGS,
            &request,
        )
    };
    if failed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Every test that was packed.
fn tests() -> Vec<PathBuf> {
    listed(TESTS)
}

/// What is in a directory, by name.
fn listed(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort_unstable();
    paths
}

/// Runs a program and returns its exit status. Orphans are init's to bury, meanwhile.
fn run(command: &mut Command) -> Result<i32> {
    let child = command
        .env("PATH", "/:/bin")
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| {
            format!(
                "cannot run {:?} (is it linked statically?)",
                command.get_program()
            )
        })?;
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let pid = unsafe { libc::waitpid(-1, &mut status, 0) };
        ensure!(
            pid > 0,
            "cannot wait for {:?}: {}",
            command.get_program(),
            io::Error::last_os_error()
        );
        if pid.cast_unsigned() == child.id() {
            return Ok(if libc::WIFSIGNALED(status) {
                SIGNALLED + libc::WTERMSIG(status)
            } else {
                libc::WEXITSTATUS(status)
            });
        }
    }
}

fn power_off() {
    // SAFETY: neither takes a pointer. Nothing of the machine is to be kept.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
}
