//! What an EXIT event says, and that there is one for each process.

use std::{
    collections::HashSet,
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    time::{Duration, Instant},
};

use dinle_e2e::{act::act, agent::temporary, stream::Stream};
use dinle_proto::v1::{Exit, Kind, LossStage};

use crate::{Lab, assert_complete, run_some};

/// Code, signal and core, as the parent was told.
fn as_waited(status: ExitStatus) -> (u32, u32, bool) {
    (
        status.code().unwrap_or(0) as u32,
        status.signal().unwrap_or(0) as u32,
        status.core_dumped(),
    )
}

fn as_told(exit: &Exit) -> (u32, u32, bool) {
    (exit.code, exit.signal, exit.core_dumped)
}

/// No process ended twice, and none is missing untold. Where tracepoints can be preempted (7.x), the kernel skips a program that
/// already runs on the CPU, as it does when threads end at once. It counts what it skips, and the stream is told.
fn assert_each_ended_once(stream: &mut Stream, processes: u64) {
    let told = |stream: &Stream| {
        let skipped = stream.told_lost(Kind::Exit, LossStage::KernelSkipped);
        (stream.exits().count() as u64, skipped)
    };
    stream.until("each exit, or that it was skipped", |stream| {
        let (ended, skipped) = told(stream);
        ended + skipped >= processes
    });
    let (ended, skipped) = told(stream);
    let pids: HashSet<u32> = stream.exits().map(|(_, process, _)| process.pid).collect();
    assert_eq!(pids.len() as u64, ended, "each process once");
    assert!(
        ended == processes || ended < processes && skipped > 0,
        "{ended} of {processes}"
    );
}

#[test]
fn an_exit_says_what_the_parent_is_told() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let dir = temporary();
    let dir = dir.path().to_str().unwrap();
    let expected = [
        (vec!["exit", "0"], (0, 0)),
        (vec!["exit", "3"], (3, 0)),
        (vec!["exit", "255"], (255, 0)),
        (vec!["kill", "9"], (0, 9)),
        (vec!["kill", "15"], (0, 15)),
        (vec!["kill", "6"], (0, 6)),
        (vec!["core", dir], (0, 6)),
    ]
    .map(|(args, how)| (lab.app.run(act(&args)), args, how));
    let last = run_some(&lab.app, 1);
    stream.through_exit(last);

    assert_complete(&stream, 8);
    for (ran, args, (code, signal)) in expected {
        let (_, _, exit) = stream.exit_of(ran.pid);
        let told = as_told(exit);
        assert_eq!(told, as_waited(ran.status), "{args:?}");
        assert_eq!((told.0, told.1), (code, signal), "{args:?}");
        // Whether a core is made where it may be is up to the machine.
        assert!(args[0] == "core" || !told.2, "{args:?}");
    }
}

#[test]
fn an_exit_says_how_long_the_process_lived() {
    const SLEEP: Duration = Duration::from_millis(150);
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let began = Instant::now();
    let ran = lab.app.succeed(act(["sleep", "150"]));
    let waited = began.elapsed();
    stream.through_exit(ran.pid);
    let (_, _, exit) = stream.exit_of(ran.pid);
    let lived = Duration::try_from(exit.duration.unwrap()).unwrap();
    assert!(
        SLEEP <= lived && lived <= waited,
        "{SLEEP:?} {lived:?} {waited:?}"
    );
}

#[test]
fn a_process_of_many_threads_ends_once() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    for _ in 0..20 {
        lab.app.succeed(act(["threads", "8"]));
    }
    run_some(&lab.app, 1);
    assert_each_ended_once(&mut stream, 21);
}

#[test]
fn a_process_whose_leading_thread_ends_first_ends_with_the_last() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let ran = lab.app.run(act(["threadexit", "7"]));
    stream.through_exit(ran.pid);
    assert_complete(&stream, 1);
    let (_, process, exit) = stream.exit_of(ran.pid);
    assert_eq!(as_told(exit), (7, 0, false));
    assert_eq!(as_told(exit), as_waited(ran.status));
    assert_ne!(process.tid, process.pid, "another thread was the last");
}

#[test]
fn a_process_whose_threads_end_at_once_ends_once() {
    const PROCESSES: u64 = 200;
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    for _ in 0..PROCESSES {
        let ran = lab.app.run(act(["race", "5"]));
        assert_eq!(ran.status.code(), Some(5));
    }
    assert_each_ended_once(&mut stream, PROCESSES);
    for (_, process, exit) in stream.exits() {
        assert_eq!(as_told(exit), (5, 0, false), "{process:?}");
    }
}
