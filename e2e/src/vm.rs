//! The agent's programs and tests on kernels of other versions than the machine's, in QEMU.
//!
//! A virtual machine boots a kernel of Debian's with an initramfs of ours. Its `init` (src/bin/init.rs) lets the agent try each
//! of its programs, runs the tests and powers off; what it tells on the serial line is all that comes back.

pub mod cpio;
pub mod initramfs;
pub mod kernels;
pub mod qemu;
pub mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use kernels::Kernel;
use qemu::Accelerator;
use report::{Boot, CHECK, SETUP};

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
}

/// Runs everything on each kernel, one after the other, and prints the results. Whether all is well.
pub fn run(options: &Options) -> Result<bool> {
    let Options {
        kernels,
        names,
        binaries,
        only,
        cache,
        refresh,
        emulate,
        allow_missing,
        limit,
        table,
    } = options;
    qemu::installed()?;
    let logs = workspace().join("target/vm");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;

    let programs = initramfs::build(names)?;
    let mut tests: Vec<(String, PathBuf)> =
        names.iter().cloned().zip(programs.tests.clone()).collect();
    for binary in binaries {
        let name = binary
            .file_stem()
            .with_context(|| format!("{} is not a file", binary.display()))?;
        tests.push((name.to_string_lossy().into_owned(), binary.clone()));
    }
    let archive = logs.join("initramfs.cpio");
    initramfs::pack(&programs, &tests, only, &archive)?;
    let steps: Vec<String> = [SETUP, CHECK]
        .map(str::to_owned)
        .into_iter()
        .chain(tests.into_iter().map(|(name, _)| name))
        .collect();

    let mut boots = Vec::new();
    let mut results = Vec::new();
    let mut skipped = 0;
    let mut accelerator = emulate.then_some(Accelerator::Tcg);
    for kernel in kernels {
        let Kernel { name, .. } = kernel;
        let image = match kernel.image(cache, *refresh) {
            Ok(image) => image,
            Err(error) => {
                skipped += 1;
                results.push(format!("{name}: skipped: {error:#}"));
                continue;
            }
        };
        let log = logs.join(format!("{name}.log"));
        let accelerator = match accelerator {
            Some(accelerator) => accelerator,
            None => *accelerator.insert(Accelerator::best(&image, &log)?),
        };
        eprintln!("{name}: booting {} ({accelerator:?})", image.display());
        let begin = Instant::now();
        let own_archive = logs.join(format!("{name}.cpio"));
        initramfs::with_modules(&archive, &kernels::modules(&image), &own_archive)?;
        let disk = logs.join(format!("{name}.disk"));
        qemu::make_disk(&disk)?;
        let end = qemu::run(
            &image,
            Some(&own_archive),
            Some(&disk),
            &log,
            *limit,
            accelerator,
        )?;
        for file in [own_archive, disk] {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        let told = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let boot = Boot::read(&String::from_utf8_lossy(&told), &steps, end);
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
            begin.elapsed().as_secs()
        ));
        boots.push(boot);
    }

    let programs = report::table(&boots);
    if let Some(path) = table {
        fs::write(path, &programs).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !boots.is_empty() {
        println!("\n{programs}");
    }
    println!("{}", results.join("\n"));
    let passed: u32 = boots.iter().map(Boot::passed).sum();
    let failed: u32 = boots.iter().map(Boot::failed).sum();
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0 && (skipped == 0 || *allow_missing))
}

/// The directory of the repository.
fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}
