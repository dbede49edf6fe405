//! Boots kernels in QEMU and runs the agent's check and tests in them. `vm --help` tells how.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dinle_e2e::vm::kernels::KERNELS;
use dinle_e2e::vm::{self, Options};

/// How long one machine may take, in seconds: about ten times what the tests need where there is no KVM.
const LIMIT_SECONDS: u64 = 2400;

/// Tests that run when none is named.
const TESTS: [&str; 2] = ["vm_smoke", "kernel"];

/// Tests that show for each sensor whether its programs load, attach, and find what they look for.
const QUICK: &[&str] = &[
    "block::each_request",
    "block::latencies_add_up",
    // The only place where they can run.
    "clock::",
    "drop::every_drop",
    "drop::samples_tell",
    "exec::arguments_come",
    "exec::the_directory",
    "exit::a_process_whose_threads",
    "file::deletions::every_way",
    "file::probes_tell",
    "file::system_calls_tell",
    "file::what_io_uring",
    "fork::",
    "scope::the_first_program",
    "tcp::a_connect_without",
    "tcp::a_connection_of",
    "tcp::a_reset",
    "tcp::a_session_that_was_open",
    "tcp::connects_that_fail",
    "tcp::each_segment",
];

const HELP: &str = "\
usage: vm [OPTION]... [KERNEL]...

Runs the agent's check and tests on other kernels, in QEMU. KERNEL is 5.10, 6.1, 6.12, 6.18, 7.x,
6.12-arm64 (take e2e/setup arm64 first) or all of them.
Without one: 5.10 and 7.x, the oldest and the newest. Logs are in target/vm.

  --test PATH        run this test binary instead of the tests in e2e/tests; may be given again
  --quick            run only a few tests of each sensor, by every way: enough to see that a kernel is understood
  --only PREFIX      run only tests whose names begin so, such as file::; may be given again
  --table FILE       write the table of programs to FILE, as markdown
  --accept           write what the verifier counts to e2e/verified.tsv: growth of more than a tenth over that fails otherwise;
                     if all kernels started, also what was found to docs/kernels.md
  --allow-missing    a kernel that cannot be had is no failure
  --refresh          look for newer kernels than the cache has
  --emulate          do not use KVM, as on a machine without it
  --timeout SECONDS  how long one machine may take (2400)

Kernels are kept in ~/.cache/dinle/kernels; DINLE_KERNELS names another place.";

fn main() -> Result<ExitCode> {
    let Some(options) = parse(std::env::args().skip(1))? else {
        println!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    Ok(if vm::run(&options)? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `None` when help is wanted.
fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options {
        kernels: Vec::new(),
        names: Vec::new(),
        binaries: Vec::new(),
        only: Vec::new(),
        cache: cache()?,
        refresh: false,
        emulate: false,
        allow_missing: false,
        limit: Duration::from_secs(LIMIT_SECONDS),
        table: None,
        accept: false,
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--help" | "-h" => return Ok(None),
            "--test" => options.binaries.push(value()?.into()),
            "--only" => options.only.push(value()?),
            "--quick" => options
                .only
                .extend(QUICK.iter().map(|name| (*name).to_owned())),
            "--table" => options.table = Some(value()?.into()),
            "--accept" => options.accept = true,
            "--allow-missing" => options.allow_missing = true,
            "--refresh" => options.refresh = true,
            "--emulate" => options.emulate = true,
            "--timeout" => {
                let seconds = value()?;
                let seconds = seconds
                    .parse()
                    .with_context(|| format!("--timeout {seconds}: not a number of seconds"))?;
                options.limit = Duration::from_secs(seconds);
            }
            "all" => options.kernels.extend(KERNELS),
            name => {
                let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
                match KERNELS.iter().find(|kernel| kernel.name == name) {
                    Some(kernel) => options.kernels.push(kernel),
                    None => bail!(
                        "{name} is neither an option nor a kernel. Kernels are {} and all",
                        names.join(", ")
                    ),
                }
            }
        }
    }
    if options.kernels.is_empty() {
        options
            .kernels
            .extend(KERNELS.iter().filter(|kernel| kernel.by_default));
    }
    if options.binaries.is_empty() {
        options.names = TESTS.map(str::to_owned).to_vec();
    }
    Ok(Some(options))
}

fn cache() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("DINLE_KERNELS") {
        return Ok(directory.into());
    }
    let home = std::env::home_dir().context("there is no home directory: set DINLE_KERNELS")?;
    Ok(home.join(".cache/dinle/kernels"))
}
