//! What both benchmarks need.

use std::{env, io, mem, str::FromStr};

/// Runs the calling thread, and whatever it starts, on one CPU only.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the macro's function only writes to the set, and checks the number against its size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives through the call, and its size is the one that is said.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::other(format!(
            "this thread cannot be moved to CPU {cpu}: {}; two CPUs are needed, 0 and 1",
            io::Error::last_os_error()
        ))),
    }
}

/// Nanoseconds on a CPU of this process and of its children that were waited for.
#[allow(dead_code, reason = "only one of the benchmarks has children")]
pub(crate) fn cpu_of_process_and_children_ns() -> io::Result<i64> {
    let mut sum = 0;
    for who in [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN] {
        // SAFETY: all zeros is a valid value.
        let mut usage: libc::rusage = unsafe { mem::zeroed() };
        // SAFETY: the struct lives through the call.
        if unsafe { libc::getrusage(who, &raw mut usage) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for time in [usage.ru_utime, usage.ru_stime] {
            sum += time.tv_sec * 1_000_000_000 + time.tv_usec * 1000;
        }
    }
    Ok(sum)
}

/// A number from the environment, or the default.
pub(crate) fn knob<T: FromStr>(name: &str, default: T) -> T {
    match env::var(name).map(|text| text.parse()) {
        Ok(Ok(value)) => value,
        Ok(Err(_)) | Err(_) => default,
    }
}

/// The value below which that part of all values lies; 0 for none.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

/// The kernel and the CPU, without the machine's name.
pub(crate) fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |rest| {
            rest.trim_start_matches([' ', '\t', ':'])
        });
    format!(
        "{}, {} CPUs, Linux {}, load {}",
        model,
        cpus.lines()
            .filter(|line| line.starts_with("processor"))
            .count(),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default()
    )
}
