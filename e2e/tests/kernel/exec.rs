//! What an EXEC event says.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    time::{Duration, SystemTime},
};

use dinle_e2e::{
    act::{act, act_as, act_path, copy},
    agent::temporary,
    patience::patience,
};
use dinle_proto::v1::{Event, Process};
use prost_types::Timestamp;
use tempfile::TempDir;

use crate::{Lab, Named, run_some};

/// A copy of `act` in a directory that everyone may enter.
fn program() -> TempDir {
    let dir = temporary();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    copy(&act_path(), &dir.path().join("act"));
    dir
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// The directory without links.
fn real(dir: &TempDir) -> String {
    text(fs::canonicalize(dir.path()).unwrap())
}

#[test]
fn arguments_come_as_they_were_given() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let few = [
        "exit",
        "0",
        "two words",
        "",
        "tab\tand\nline",
        "ünï",
        "--flag=\"x\"",
    ];
    let many: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let many = [vec!["exit".to_owned(), "0".to_owned()], many].concat();
    let few_ran = lab.app.succeed(act(few));
    let many_ran = lab.app.succeed(act(&many));
    stream.through_exit(many_ran.pid);

    let few: Vec<String> = few.iter().map(|arg| arg.to_string()).collect();
    for (pid, args) in [(few_ran.pid, few), (many_ran.pid, many)] {
        let (_, _, exec) = stream.exec_of(pid);
        let args = [vec!["act".to_owned()], args].concat();
        assert_eq!(exec.args, args);
        let bytes: usize = args.iter().map(|arg| arg.len() + 1).sum();
        assert_eq!(
            (exec.args_bytes as usize, exec.args_truncated),
            (bytes, false)
        );
        assert_eq!(exec.filename, text(act_path()));
        assert!(!exec.filename_truncated);
    }
}

#[test]
fn long_arguments_are_cut_and_flagged() {
    /// What the contract grants, less the NUL that the kernel half keeps free.
    const KEPT: usize = 2047;
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let head = ["act", "exit", "0"];
    let head_bytes: usize = head.iter().map(|arg| arg.len() + 1).sum();
    // The last one that fits, the first that does not, and one far beyond.
    let sizes = [KEPT - head_bytes - 1, KEPT - head_bytes, 100_000];
    let pids = sizes.map(|size| {
        let long = "x".repeat(size);
        lab.app.succeed(act(["exit", "0", &long])).pid
    });
    stream.through_exit(pids[2]);

    for (pid, size) in pids.into_iter().zip(sizes) {
        let (_, _, exec) = stream.exec_of(pid);
        let bytes = head_bytes + size + 1;
        assert_eq!(exec.args_bytes as usize, bytes);
        assert_eq!(exec.args_truncated, bytes > KEPT, "{size}");
        assert_eq!(exec.args[..3], head);
        assert_eq!(exec.args[3], "x".repeat(size.min(KEPT - head_bytes)));
        assert_eq!(exec.args.len(), 4);
    }
}

#[test]
fn a_path_may_be_long() {
    /// Longest filename that is told.
    const KEPT: usize = 511;
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let dir = temporary();
    let link = dir.path().join("act");
    symlink(act_path(), &link).unwrap();
    let (dir, name) = (text(dir.path()), "/act");
    let path_of = |length: usize| {
        let filler = length - dir.len() - name.len();
        // Slashes in a row are one, and `.` is no step.
        format!(
            "{dir}{}{}{name}",
            "/.".repeat(filler / 2),
            "/".repeat(filler % 2)
        )
    };
    let pids = [KEPT, KEPT + 1, 2000].map(|length| {
        let path = path_of(length);
        assert_eq!(path.len(), length);
        let ran = lab.app.succeed(act_as(Path::new(&path), ["exit", "0"]));
        (ran.pid, path)
    });
    stream.through_exit(pids[2].0);

    for (pid, path) in pids {
        let (_, _, exec) = stream.exec_of(pid);
        assert_eq!(exec.filename, path[..path.len().min(KEPT)]);
        assert_eq!(exec.filename_truncated, path.len() > KEPT);
    }
}

#[test]
fn a_relative_path_goes_with_its_directory() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let dir = program();
    let name = "a name that is longer than a command's";
    fs::rename(dir.path().join("act"), dir.path().join(name)).unwrap();
    let relative = format!("./{name}");
    let ran = lab
        .app
        .succeed(act(["in", &text(dir.path()), &relative, "exit", "0"]));
    stream.through_exit(ran.pid);

    assert_eq!(stream.execs().count(), 2, "act, and what it executed");
    let (_, process, exec) = stream.exec_of(ran.pid);
    assert_eq!(exec.filename, relative);
    assert_eq!(exec.args, [&relative, "exit", "0"]);
    assert_eq!((&*exec.cwd, exec.cwd_truncated), (&*real(&dir), false));
    assert_eq!(process.comm, name[..15]);
    let (_, process, exec) = stream.execs().next().unwrap();
    assert_eq!((&*process.comm, &*exec.args[0]), ("act", "act"));
    assert_eq!(exec.cwd, text(std::env::current_dir().unwrap()));
}

#[test]
fn a_script_is_named_with_its_interpreter_in_the_arguments() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let dir = program();
    let text_file = dir.path().join("text");
    let script = dir.path().join("script");
    let interpreter = text(dir.path().join("act"));
    fs::write(&text_file, format!("#!{interpreter} any\n")).unwrap();
    fs::set_permissions(&text_file, fs::Permissions::from_mode(0o755)).unwrap();
    copy(&text_file, &script);
    let ran = lab
        .app
        .succeed(act(["in", "/", &text(&script), "one", "two"]));
    stream.through_exit(ran.pid);

    let (_, process, exec) = stream.exec_of(ran.pid);
    let script = text(script);
    assert_eq!(exec.filename, script);
    assert_eq!(exec.args, [&*interpreter, "any", &*script, "one", "two"]);
    assert_eq!((&*process.comm, &*exec.cwd), ("script", "/"));
}

#[test]
fn of_a_deep_directory_the_innermost_part_is_told() {
    const DEPTH: usize = 40;
    /// Components that the kernel half walks.
    const KEPT: usize = 24;
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let dir = temporary();
    let names: Vec<String> = (0..DEPTH).map(|n| format!("level-{n}")).collect();
    let deep = names
        .iter()
        .fold(dir.path().to_owned(), |path, name| path.join(name));
    fs::create_dir_all(&deep).unwrap();
    let ran = lab
        .app
        .succeed(act(["in", &text(&deep), &text(act_path()), "exit", "0"]));
    stream.through_exit(ran.pid);

    let (_, _, exec) = stream.exec_of(ran.pid);
    let innermost = names[DEPTH - KEPT..].join("/");
    assert_eq!(exec.cwd, format!("/{innermost}"));
    assert!(exec.cwd_truncated);
}

#[test]
fn the_directory_is_told_as_the_process_sees_it() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let root = program();
    fs::create_dir_all(root.path().join("srv/data")).unwrap();
    let root = text(root.path());
    let run = |way: &str, dir: &str| {
        lab.app
            .succeed(act([way, &root, dir, "/act", "exit", "0"]))
            .pid
    };
    let expected = [
        (run("chroot", "/srv/data"), "/srv/data"),
        (run("chroot", "/"), "/"),
        (run("pivot", "/srv/data"), "/srv/data"),
        (run("pivot", "/"), "/"),
    ];
    let last = run_some(&lab.app, 1);
    stream.through_exit(last);
    for (pid, cwd) in expected {
        let (_, _, exec) = stream.exec_of(pid);
        assert_eq!(
            (&*exec.filename, &*exec.cwd, exec.cwd_truncated),
            ("/act", cwd, false)
        );
    }
}

#[test]
fn a_process_is_named_on_the_host_and_in_its_pod() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let named = Named::new();
    let path = text(named.path());
    let ran = lab.app.succeed(act(["newpid", &path, "spawn", "1"]));
    stream.through_exit(ran.pid);

    // Who ran: act, the first process of the namespace, and its child.
    let execs: Vec<_> = stream.execs().map(|(_, process, _)| process).collect();
    let [outer, first, second] = execs[..] else {
        panic!("{execs:?}")
    };
    assert_eq!(
        (outer.pid, outer.pod_pid, outer.pod_tid),
        (ran.pid, ran.pid, ran.pid)
    );
    assert_eq!((first.pod_pid, first.pod_tid), (1, 1));
    assert_eq!(second.pod_pid, 2);
    for process in [outer, first, second] {
        assert_eq!(process.pid, process.tid);
        assert_eq!((process.uid, process.gid), (0, 0));
    }
    assert_eq!((first.ppid, second.ppid), (outer.pid, first.pid));
    assert_eq!((&*first.comm, &*first.parent_comm), (&*named.name, "act"));
    assert_eq!(second.parent_comm, named.name);
    let test = std::process::id();
    assert_eq!(outer.ppid, test);
    let thread = fs::read_to_string("/proc/thread-self/comm").unwrap();
    assert_eq!(outer.parent_comm, thread.trim_end());
    assert_eq!(outer.ancestors[0], test);
    assert_eq!(second.ancestors[..3], [first.pid, outer.pid, test]);
    assert_eq!(
        *second.ancestors.last().unwrap(),
        1,
        "{:?}",
        second.ancestors
    );
}

#[test]
fn a_process_is_the_same_from_its_exec_to_its_exit() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let before = boot_ns();
    let ran = lab.app.succeed(act(["exit", "0"]));
    let after = boot_ns();
    let now = SystemTime::now();
    stream.through_exit(ran.pid);

    let (exec_event, exec, _) = stream.exec_of(ran.pid);
    let (exit_event, exit, _) = stream.exit_of(ran.pid);
    assert_eq!(exec.start_boot_ns, exit.start_boot_ns);
    assert_eq!(
        (&exec.comm, exec.uid, exec.ppid),
        (&exit.comm, exit.uid, exit.ppid)
    );
    // The agent compares the clocks from time to time, so that only the times of one event are of one wall clock.
    let times = [
        before,
        exec.start_boot_ns,
        exec.start_boot_ns + age_ns(exec_event, exec),
        exit.start_boot_ns + age_ns(exit_event, exit),
        after,
    ];
    assert!(times.is_sorted(), "{times:?}");
    let told = wall(exit_event.time);
    let apart = told.duration_since(now);
    let apart = apart.unwrap_or_else(|told_is_earlier| told_is_earlier.duration());
    assert!(apart < patience(), "{told:?} should be about {now:?}");
}

/// Now, by the clock of `start_boot_ns`.
fn boot_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the struct is valid for writes.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(done, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as u64
}

fn wall(time: Option<Timestamp>) -> SystemTime {
    time.unwrap().try_into().unwrap()
}

/// How old the process was at the event.
fn age_ns(event: &Event, process: &Process) -> u64 {
    let age = wall(event.time).duration_since(wall(process.start_time));
    age.unwrap().as_nanos() as u64
}

#[test]
fn a_user_is_named_by_its_number() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let dir = program();
    let path = text(dir.path().join("act"));
    let ran = lab
        .app
        .succeed(act(["uid", "1234", "5678", &path, "exit", "0"]));
    stream.through_exit(ran.pid);
    let (_, exec, _) = stream.exec_of(ran.pid);
    let (_, exit, _) = stream.exit_of(ran.pid);
    for process in [exec, exit] {
        assert_eq!((process.uid, process.gid), (1234, 5678));
    }
}

#[test]
fn a_thread_that_executes_a_program_becomes_its_process() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let path = text(act_path());
    let ran = lab.app.run(act(["threadexec", &path, "exit", "6"]));
    assert_eq!(ran.status.code(), Some(6));
    stream.through_exit(ran.pid);
    let (_, process, exec) = stream.exec_of(ran.pid);
    assert_eq!((process.tid, process.pod_tid), (ran.pid, ran.pid));
    assert_eq!(exec.args, [&path, "exit", "6"]);
    assert_eq!(stream.execs().count(), 2);
    let (_, _, exit) = stream.exit_of(ran.pid);
    assert_eq!(exit.code, 6);
}

#[test]
fn an_exec_that_fails_is_not_told() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let ran = lab.app.run(act(["in", "/", "/no/such/program"]));
    assert!(!ran.status.success());
    stream.through_exit(ran.pid);
    assert_eq!(stream.execs().count(), 1);
}
