//! What differs between machines with different processors.

use std::path::PathBuf;
use std::process::Command;

/// Processors that a kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// The 64 bits of ARM.
    Arm64,
}

impl Arch {
    /// What Debian calls it.
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Whether this machine's processors are such.
    pub fn is_native(self) -> bool {
        match self {
            Self::Amd64 => cfg!(target_arch = "x86_64"),
            Self::Arm64 => cfg!(target_arch = "aarch64"),
        }
    }

    /// QEMU for it, and the package that has it.
    pub fn qemu(self) -> (&'static str, &'static str) {
        match self {
            Self::Amd64 => ("qemu-system-x86_64", "qemu-system-x86"),
            Self::Arm64 => ("qemu-system-aarch64", "qemu-system-arm"),
        }
    }

    /// Machine, processor, and the name of the serial line.
    pub(super) fn machine(self) -> (&'static str, &'static str, &'static str) {
        match self {
            // Without cmpxchg16b: QEMU 7.2 emulates it wrongly with several processors, and 6.12 panics.
            Self::Amd64 => ("q35", "max,cx16=off", "ttyS0"),
            // Signing pointers as the architecture says it takes QEMU half of its time.
            Self::Arm64 => ("virt", "max,pauth-impdef=on", "ttyAMA0"),
        }
    }

    /// Cargo that builds for it.
    pub(super) fn cargo(self) -> Command {
        if self.is_native() {
            return Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        }
        let mut command = Command::new(super::workspace().join("e2e/cross"));
        command.arg("cargo");
        command
    }

    /// A program that leaves out of others what is for debuggers.
    pub(super) fn strip(self) -> &'static str {
        match self {
            _ if self.is_native() => "strip",
            Self::Amd64 => "x86_64-linux-gnu-strip",
            Self::Arm64 => "aarch64-linux-gnu-strip",
        }
    }

    /// A machine without a distribution in one static binary, and how to get it.
    pub(super) fn busybox(self) -> (PathBuf, &'static str) {
        if self.is_native() {
            ("/bin/busybox".into(), "apt-get install busybox-static")
        } else {
            let path = super::workspace().join("target/arm64/debian/bin/busybox");
            (path, "e2e/setup arm64")
        }
    }
}
