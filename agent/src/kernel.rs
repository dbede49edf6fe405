//! KERNEL: the eBPF half, as the agent sees it. Everything that speaks to the kernel's BPF, and all `unsafe` of the agent, is here.

pub mod btf;
mod costs;
mod maps;
mod programs;
mod ring;
mod sessions;
mod tables;

pub use btf::Names;
pub use costs::{Meter, Runs};
pub use dinle_ebpf::Sensor;
pub use maps::{Counters, Loss, Namespaces, Narrowings, Pace, Rates, Scope, ScopeError, Wanted};
pub use programs::{AGAIN, HookStatus, Programs, Way, WayStatus};
pub use ring::{CgroupEvent, Nudge, Reader, Ring, Sleeper, boot_ns, boot_unix_ns, cpu_ns};
pub use tables::Tables;

use aya::{EbpfLoader, maps::MapError, util::nr_cpus};
use dinle_ebpf::{
    UnderWay,
    offsets::{Offsets, Syscalls},
};

/// What the agent's build made of `agent-ebpf`; empty in builds with `DINLE_EBPF_SKIP`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dinle-ebpf.o"));

/// Knobs of the kernel half.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the ring buffer in bytes: a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Ways to attach that may be used, in the order in which they are tried.
    pub ways: Vec<Way>,
    /// Whose programs are loaded.
    pub sensors: Vec<Sensor>,
    /// Also try the ways that are not needed, to tell whether they would work.
    pub every_way: bool,
}

impl Options {
    /// 4 MiB: a burst of 100,000 execs a second fits while the reader is away for 100 ms.
    pub const RING_BYTES: u32 = 4 << 20;
    /// Below this a single burst of a shell script overflows.
    pub const RING_BYTES_MIN: u32 = 64 << 10;
    /// Memory that no ring of events has use for.
    pub const RING_BYTES_MAX: u32 = 1 << 30;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ring_bytes: Self::RING_BYTES,
            ways: Way::ALL.to_vec(),
            sensors: Sensor::ALL.to_vec(),
            every_way: false,
        }
    }
}

/// The kernel half, loaded: the tracker is attached, and the sensors' programs are loaded but not attached.
/// Each part goes its own way. When the last part is dropped, nothing is left in the kernel.
pub struct Kernel {
    /// Which cgroups the kernel reports on.
    pub scope: Scope,
    /// What attaches when somebody listens.
    pub programs: Programs,
    /// Where frames come from.
    pub reader: Reader,
    /// What the kernel counted.
    pub counters: Counters,
    /// What the kernel leaves out where nobody asks for it.
    pub narrowing: Narrowings,
    /// How many events the kernel lets through.
    pub rates: Rates,
    /// Whose the network namespaces are.
    pub namespaces: Namespaces,
    /// What the kernel added up.
    pub tables: Tables,
    /// Names that this kernel gives to numbers.
    pub names: Names,
}

/// Why the kernel half cannot be loaded at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Nothing to load.
    #[error(
        "this binary was built without its eBPF programs (DINLE_EBPF_SKIP was set); build it again without that variable"
    )]
    NotBuilt,
    /// The size of the ring is not one that the kernel takes.
    #[error(
        "the ring's size is {0} bytes, but must be a power of two between {min} and {max}; try {default}",
        min = Options::RING_BYTES_MIN, max = Options::RING_BYTES_MAX, default = Options::RING_BYTES
    )]
    RingBytes(u32),
    /// The kernel's types cannot be read.
    #[error(transparent)]
    Btf(#[from] btf::BtfError),
    /// aya's view of the same.
    #[error("cannot read the kernel's types from /sys/kernel/btf/vmlinux: {0}")]
    AyaBtf(#[from] aya::BtfError),
    /// A map could not be made.
    #[error(
        "cannot create the eBPF maps ({0}): the agent needs CAP_BPF and CAP_PERFMON (or root), and a kernel of 5.8 or later"
    )]
    Object(String),
    /// A map is not as expected.
    #[error("the eBPF map {name}: {error}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        error: MapError,
    },
    /// Without the tracker no pod has a name.
    #[error("the cgroup tracker cannot be attached: {0}")]
    Tracker(String),
    /// A file descriptor could not be had.
    #[error("cannot create an eventfd: {0}")]
    Nudge(std::io::Error),
}

impl Kernel {
    /// Loads everything and attaches the tracker.
    pub fn load(options: &Options) -> Result<Self, LoadError> {
        let Options {
            ring_bytes,
            ways,
            sensors,
            every_way,
        } = options;
        check_ring_bytes(*ring_bytes)?;
        if OBJECT.is_empty() {
            return Err(LoadError::NotBuilt);
        }
        let types = btf::Btf::of_running_kernel()?;
        let offsets = btf::offsets(&types).values();
        let syscalls = syscalls();
        let mut loader = EbpfLoader::new();
        loader
            .override_global("OFFSETS", &offsets[..], true)
            .override_global("SYSCALLS", &syscalls, true)
            .map_max_entries("EVENTS", *ring_bytes);
        let cpus = nr_cpus().map_or(1, |cpus| cpus as u32);
        for table in &UnderWay::ALL {
            loader.map_max_entries(table.name, table.entries_for(cpus));
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|error| LoadError::Object(causes(&error)))?;
        drop(loader);
        let scope = Scope::take(&mut ebpf)?;
        let counters = Counters::take(&mut ebpf)?;
        let narrowing = Narrowings::take(&mut ebpf)?;
        let rates = Rates::take(&mut ebpf)?;
        let namespaces = Namespaces::take(&mut ebpf)?;
        let tables = Tables::take(&mut ebpf)?;
        let reader = Reader::take(&mut ebpf, *ring_bytes)?;
        let btf = aya::Btf::from_sys_fs()?;
        let functions = |name: &str| types.has_func(name);
        let mut programs = Programs::load(ebpf, &btf, &functions, ways, sensors, *every_way);
        let names = btf::names(&types);
        drop((btf, types));
        for hook in TRACKER_HOOKS {
            programs.attach(hook).map_err(LoadError::Tracker)?;
        }
        // Two copies of the kernel's types have come and gone: give their pages back.
        // SAFETY: has no preconditions.
        unsafe { libc::malloc_trim(0) };
        Ok(Self {
            scope,
            programs,
            reader,
            counters,
            narrowing,
            rates,
            namespaces,
            tables,
            names,
        })
    }
}

/// Numbers of the system calls that programs look for, on the architecture that this is built for.
fn syscalls() -> [u32; size_of::<Syscalls>() / size_of::<u32>()] {
    let number = |number: libc::c_long| number as u32;
    let mut known = Syscalls {
        openat: number(libc::SYS_openat),
        openat2: number(libc::SYS_openat2),
        unlinkat: number(libc::SYS_unlinkat),
        renameat2: number(libc::SYS_renameat2),
        truncate: number(libc::SYS_truncate),
        ftruncate: number(libc::SYS_ftruncate),
        execve: number(libc::SYS_execve),
        execveat: number(libc::SYS_execveat),
        io_uring_enter: number(libc::SYS_io_uring_enter),
        ..Syscalls::MISSING
    };
    #[cfg(target_arch = "x86_64")]
    {
        known.open = number(libc::SYS_open);
        known.creat = number(libc::SYS_creat);
        known.unlink = number(libc::SYS_unlink);
        known.rmdir = number(libc::SYS_rmdir);
        known.rename = number(libc::SYS_rename);
    }
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        known.renameat = number(libc::SYS_renameat);
    }
    zerocopy::transmute!(known)
}

/// Hooks of the tracker, which is no sensor: it always runs.
const TRACKER_HOOKS: [&str; 2] = ["cgroup_mkdir", "cgroup_release"];

fn check_ring_bytes(bytes: u32) -> Result<(), LoadError> {
    let fits = (Options::RING_BYTES_MIN..=Options::RING_BYTES_MAX).contains(&bytes);
    if fits && bytes.is_power_of_two() {
        Ok(())
    } else {
        Err(LoadError::RingBytes(bytes))
    }
}

// `values` are as many u32 as the struct has fields, in its order: what the kernel half reads.
const _: () = assert!(size_of::<Offsets>() == size_of::<u32>() * Offsets::PATHS.len());

fn take_map(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<aya::maps::Map, LoadError> {
    let missing = || LoadError::Map {
        name,
        error: MapError::InvalidName { name: name.into() },
    };
    ebpf.take_map(name).ok_or_else(missing)
}

/// An error and its causes in one line. aya's outer errors name the step, or repeat the inner ones, which name the reason.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if cause_text.contains(&text) || text.is_empty() {
            text = cause_text;
        } else if !text.contains(&cause_text) {
            let shared = text
                .rsplit(": ")
                .next()
                .is_some_and(|last| cause_text.starts_with(last));
            let kept = if shared {
                text.rsplit_once(": ").map_or("", |(kept, _)| kept)
            } else {
                &text
            };
            text = if kept.is_empty() {
                cause_text
            } else {
                format!("{kept}: {cause_text}")
            };
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_of_a_wrong_size_is_refused_with_one_that_works() {
        for bytes in [0, 4096, 100_000, Options::RING_BYTES + 1, u32::MAX] {
            let error = check_ring_bytes(bytes).expect_err("refused").to_string();
            assert!(
                error.contains(&bytes.to_string()) && error.ends_with("try 4194304"),
                "{error}"
            );
        }
        for bytes in [
            Options::RING_BYTES_MIN,
            Options::RING_BYTES,
            Options::RING_BYTES_MAX,
        ] {
            assert!(check_ring_bytes(bytes).is_ok());
        }
    }
}
