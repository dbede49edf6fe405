//! The agent's programs and tests on kernels of other versions than the machine's, in QEMU.
//!
//! A virtual machine boots a kernel of Debian's with an initramfs of ours. Its `init` (src/bin/init.rs) lets the agent try each
//! of its programs, runs the tests and powers off; what it tells on the serial line is all that comes back.

mod apt;
pub mod arch;
pub mod cpio;
pub mod initramfs;
pub mod kernels;
pub mod qemu;
pub mod report;
pub mod verified;

use std::collections::{BTreeMap, btree_map::Entry};
use std::fs;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use arch::Arch;
use kernels::{KERNELS, Kernel};
use qemu::{Accelerator, Machine};
use report::{Boot, CHECK, SETUP};
use verified::Verified;

/// Where the table of kinds and kernels is kept.
const DOCUMENT: &str = "docs/kernels.md";

/// Where counts of the verifier are kept.
const VERIFIED: &str = "e2e/verified.tsv";

/// What to run.
#[derive(Debug)]
pub struct Options {
    /// The kernels.
    pub kernels: Vec<&'static Kernel>,
    /// Tests of this package, by name.
    pub names: Vec<String>,
    /// Test binaries that are built already, linked statically.
    pub binaries: Vec<PathBuf>,
    /// Beginnings of the names of the tests to run in them; empty for those that depend on the kernel.
    pub only: Vec<String>,
    /// Where kernels are kept.
    pub cache: PathBuf,
    /// Whether to look for newer kernels than the cache has.
    pub refresh: bool,
    /// Whether to leave KVM alone.
    pub emulate: bool,
    /// A kernel that cannot be had is no failure.
    pub allow_missing: bool,
    /// How long one machine may take.
    pub limit: Duration,
    /// Where to write the table, too.
    pub table: Option<PathBuf>,
    /// Keep what the verifier counts now, and the table of kinds, if it is of all kernels.
    pub accept: bool,
}

/// Runs everything on each kernel and prints the results. Whether all is well.
pub fn run(options: &Options) -> Result<bool> {
    let Options {
        kernels,
        names,
        binaries,
        only: _,
        cache,
        refresh,
        emulate,
        allow_missing,
        limit,
        table,
        accept,
    } = options;
    let counts = workspace().join(VERIFIED);
    let mut verified = Verified::read(&counts)?;
    let mut grown = Vec::new();
    let logs = workspace().join("target/vm");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;

    let mut names = names.clone();
    for binary in binaries {
        let name = binary
            .file_stem()
            .with_context(|| format!("{} is not a file", binary.display()))?;
        names.push(name.to_string_lossy().into_owned());
    }
    let steps: Vec<String> = [SETUP, CHECK]
        .map(str::to_owned)
        .into_iter()
        .chain(names.iter().cloned())
        .collect();
    let archives = archives(options, &names, &logs)?;

    let mut results = Vec::new();
    let mut skipped = 0;
    let mut accelerators = BTreeMap::new();
    let mut machines = Vec::new();
    for &kernel in kernels {
        let Kernel { name, arch, .. } = kernel;
        let image = match kernel.image(cache, *refresh) {
            Ok(image) => image,
            Err(error) => {
                skipped += 1;
                results.push(format!("{name}: skipped: {error:#}"));
                continue;
            }
        };
        let log = logs.join(format!("{name}.log"));
        let accelerator = match emulate.then_some(Accelerator::Tcg) {
            Some(accelerator) => accelerator,
            None => match accelerators.entry(*arch) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => *new.insert(Accelerator::best(*arch, &image, &log)?),
            },
        };
        machines.push(ToBoot {
            kernel,
            image,
            accelerator,
            archive: &archives[arch],
            log,
        });
    }
    let mut boots = Vec::new();
    for (machine, boot) in machines.iter().zip(boot_all(&machines, &steps, *limit)) {
        let (boot, took) = boot?;
        let ToBoot {
            kernel: Kernel { name, .. },
            image,
            log,
            ..
        } = machine;
        if boot.failed() > 0 {
            println!(
                "\n{name}: {} (all of it: {})\n{}",
                image.display(),
                log.display(),
                boot.story()
            );
        }
        results.push(format!(
            "{name}: {}: {} passed, {} failed, {} s",
            boot.release.as_deref().unwrap_or("did not start"),
            boot.passed(),
            boot.failed(),
            took.as_secs()
        ));
        grown.extend(verified.grown(name, &boot.programs));
        // A machine that did not come so far says nothing of its programs.
        if !boot.programs.is_empty() {
            verified.accept(name, &boot.programs);
        }
        boots.push(boot);
    }
    if *accept {
        verified.write(&counts)?;
        if is_whole(kernels, &boots) {
            document(&boots)?;
        } else {
            results.push(format!(
                "{DOCUMENT} is left as it is, since its table is of all kernels: `vm --accept all` renews it"
            ));
        }
    }

    let programs = report::table(&boots);
    if let Some(path) = table {
        fs::write(path, &programs).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !boots.is_empty() {
        println!("\n{programs}\n{}", report::kinds(&boots));
    }
    println!("{}", results.join("\n"));
    let passed: u32 = boots.iter().map(Boot::passed).sum();
    let failed: u32 = boots.iter().map(Boot::failed).sum();
    let grew = !grown.is_empty() && !accept;
    if grew {
        println!(
            "{}\nif that is worth it: `vm --accept KERNEL...` keeps the new counts in {VERIFIED}",
            grown.join("\n")
        );
    }
    let failed = failed + u32::from(grew);
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0 && (skipped == 0 || *allow_missing))
}

/// A machine, and where it tells what happens.
struct ToBoot<'a> {
    kernel: &'static Kernel,
    image: PathBuf,
    accelerator: Accelerator,
    archive: &'a Path,
    log: PathBuf,
}

/// Boots all of them, as many at a time as there are processors: one that is emulated takes one. In their order, what each told, and how long it took.
fn boot_all(
    machines: &[ToBoot],
    steps: &[String],
    limit: Duration,
) -> Vec<Result<(Boot, Duration)>> {
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(machine) = machines.get(number) else {
                return done;
            };
            done.push((number, machine.boot(steps, limit)));
        }
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
        let done = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        done.flatten().collect()
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, boot)| boot).collect()
}

impl ToBoot<'_> {
    fn boot(&self, steps: &[String], limit: Duration) -> Result<(Boot, Duration)> {
        let Self {
            kernel: Kernel { name, arch, .. },
            image,
            accelerator,
            archive,
            log,
        } = self;
        eprintln!("{name}: booting {} ({accelerator:?})", image.display());
        let begin = Instant::now();
        let own_archive = log.with_extension("cpio");
        initramfs::with_modules(archive, &kernels::modules(image), &own_archive)?;
        let disk = log.with_extension("disk");
        qemu::make_disk(&disk)?;
        let machine = Machine {
            arch: *arch,
            accelerator: *accelerator,
            kernel: image,
            initramfs: Some(&own_archive),
            disk: Some(&disk),
        };
        let end = machine.run(log, limit)?;
        for file in [own_archive, disk] {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        let told = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
        let boot = Boot::read(&String::from_utf8_lossy(&told), steps, end);
        Ok((boot, begin.elapsed()))
    }
}

/// Whether the table has its column for each kernel that is known.
fn is_whole(kernels: &[&Kernel], boots: &[Boot]) -> bool {
    kernels.iter().copied().eq(KERNELS)
        && boots.len() == kernels.len()
        && boots.iter().all(|boot| !boot.programs.is_empty())
}

/// Writes the table of kinds.
fn document(boots: &[Boot]) -> Result<()> {
    let path = workspace().join(DOCUMENT);
    let text = fs::read_to_string(&path);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    let text = report::replace_table(&text, &report::kinds(boots))
        .with_context(|| format!("{} has no place for the table", path.display()))?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// An initramfs for each architecture that is asked for, with the tests of these names.
fn archives(options: &Options, names: &[String], logs: &Path) -> Result<BTreeMap<Arch, PathBuf>> {
    let mut archives = BTreeMap::new();
    for Kernel { arch, .. } in &options.kernels {
        if archives.contains_key(arch) {
            continue;
        }
        qemu::installed(*arch)?;
        let programs = initramfs::build(*arch, &options.names)?;
        let built = programs.tests.iter().chain(&options.binaries);
        let tests: Vec<(String, PathBuf)> = names.iter().cloned().zip(built.cloned()).collect();
        let archive = logs.join(format!("initramfs-{}.cpio", arch.debian()));
        initramfs::pack(*arch, &programs, &tests, &options.only, &archive)?;
        archives.insert(*arch, archive);
    }
    Ok(archives)
}

/// The directory of the repository.
fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

#[cfg(test)]
mod tests {
    use super::*;
    use report::End;

    #[test]
    fn a_table_without_some_kernel_is_not_whole() {
        let all: Vec<&Kernel> = KERNELS.iter().collect();
        let boots = |last: &str| -> Vec<Boot> {
            let log = "DINLE-VM start=check\nPROGRAM\tvfs_open\tok\t99\n";
            let mut logs = vec![log; all.len() - 1];
            logs.push(last);
            let read = |log: &str| Boot::read(log, &[], End::Off);
            logs.into_iter().map(read).collect()
        };
        let whole = boots("DINLE-VM start=check\nPROGRAM\tvfs_open\tunavailable\tno BTF\n");
        assert!(is_whole(&all, &whole));
        assert!(!is_whole(&all[1..], &whole[1..]), "not asked for");
        assert!(!is_whole(&all, &whole[1..]), "not to be had");
        assert!(!is_whole(&all, &boots("")), "did not start");
    }
}
