//! What programs cost: counts of the kernel's own, which aya does not show.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use aya::programs::Program;

/// What the kernel counted of one program since it was loaded. Runs are counted only while somebody measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How often it ran.
    pub count: u64,
    /// How long that took.
    pub ns: u64,
    /// How often it was skipped because it already ran on that CPU (since Linux 5.12).
    pub skipped: u64,
}

/// Counts of a program's `bpf_prog_info` (include/uapi/linux/bpf.h); `None` where the kernel does not tell.
pub(super) fn runs(program: &Program) -> Option<Runs> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    /// Places of the fields in units of u64, and of the struct's end as of 5.12.
    const RUN_TIME_NS: usize = 24;
    const RUN_CNT: usize = 25;
    const RECURSION_MISSES: usize = 26;
    let fd = program.fd().ok()?;
    let mut info = [0u64; RECURSION_MISSES + 1];
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut attr = Attr {
        fd: fd.as_fd().as_raw_fd() as u32,
        len: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: `attr` is what this command reads; the kernel writes at most `len` bytes to `info`, and reads nothing of it but
    // the sizes of arrays that we do not ask for, which are 0.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw mut attr,
            size_of::<Attr>(),
        )
    };
    // What an older kernel does not write stays 0.
    (result == 0).then_some(Runs {
        count: info[RUN_CNT],
        ns: info[RUN_TIME_NS],
        skipped: info[RECURSION_MISSES],
    })
}

/// While one is held, the kernel measures every program's runs, of whomever: some 20 ns for each.
#[derive(Debug)]
pub struct Meter(#[expect(dead_code, reason = "held for its drop")] Option<OwnedFd>);

impl Meter {
    /// Makes the kernel measure: BPF_ENABLE_STATS, which takes CAP_SYS_ADMIN (kernel/bpf/syscall.c). The error says what to do.
    pub fn start() -> Result<Self, String> {
        /// Set where the node's operator has the kernel measure all the time.
        const SYSCTL: &str = "/proc/sys/kernel/bpf_stats_enabled";
        const BPF_ENABLE_STATS: libc::c_long = 32;
        const BPF_STATS_RUN_TIME: u32 = 0;
        if fs::read_to_string(SYSCTL).is_ok_and(|set| set.trim() == "1") {
            return Ok(Self(None));
        }
        let attr = BPF_STATS_RUN_TIME;
        // SAFETY: the command reads one u32.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_ENABLE_STATS,
                &raw const attr,
                size_of_val(&attr),
            )
        };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(format!(
                "the kernel does not measure programs ({error}): give the agent CAP_SYS_ADMIN, or set the node's sysctl kernel.bpf_stats_enabled=1"
            ));
        }
        // SAFETY: a new descriptor that nobody else has.
        Ok(Self(Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })))
    }
}
