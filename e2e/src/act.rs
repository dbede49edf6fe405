//! Where programs are found, and how the helper `act` is called.

use std::{
    env,
    ffi::OsStr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

/// The agent's binary: `DINLE_BIN`, or `dinle` near the test's own executable.
pub fn dinle() -> PathBuf {
    program("DINLE_BIN", "dinle", "cargo build -p dinle")
}

/// The helper's binary: `DINLE_ACT`, or `act` near the test's own executable.
pub fn act_path() -> PathBuf {
    program("DINLE_ACT", "act", "cargo build -p dinle-e2e")
}

fn program(variable: &str, name: &str, build: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        return path.into();
    }
    let own = env::current_exe().expect("the path of the test's executable");
    // Cargo puts tests into `deps` below the directory of the programs.
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!(
            "no `{name}` near {}: build it with `{build}`, or name it with {variable}",
            own.display()
        )
    })
}

/// `act` with these arguments.
pub fn act<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    act_as(&act_path(), args)
}

/// The same by another path, such as a link to `act`.
pub fn act_as<S: AsRef<OsStr>>(path: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(path);
    command
        // Not the path that it is found by: what argv says is up to the caller of execve.
        .arg0("act")
        .args(args)
        .stdin(Stdio::null());
    command
}

/// Copies a program, which can be executed at once. A process that has threads, as a test has, cannot write a program itself:
/// whatever another thread starts meanwhile holds the open file for a moment, and nobody may execute what is open for writing.
pub fn copy(from: &Path, to: &Path) {
    let mut command = act([OsStr::new("copy"), from.as_os_str(), to.as_os_str()]);
    let status = command.status();
    assert!(
        status.as_ref().is_ok_and(ExitStatus::success),
        "{command:?}: {status:?}"
    );
}
