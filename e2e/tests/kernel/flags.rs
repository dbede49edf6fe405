//! What the agent is told when it starts, and what it says of it.

use std::process::{Command, Output};

use dinle_e2e::{
    act::dinle,
    agent::{Agent, command, temporary},
    bpf, cgroup,
    stream::Window,
};
use dinle_proto::v1::{Kind, SubscribeRequest};
use tonic::Code;

use crate::{Lab, run_some, scope::only_the_pod_is_heard, shop};

fn run(flags: &[&str]) -> Output {
    let (mut command, _, _) = command(flags);
    command.output().unwrap()
}

/// The agent ends at once, and says that in one line, which has all of these.
fn refused(flags: &[&str], hints: &[&str]) {
    let output = run(flags);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{flags:?}: {}",
        output.status
    );
    let sentence = text.lines().next().unwrap_or_default();
    for hint in hints {
        assert!(sentence.contains(hint), "{flags:?}: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn what_cannot_work_is_refused_with_what_would() {
    let pods = ["--pods", "none"];
    let refused = |flags: &[&str], hints: &[&str]| refused(&[&pods, flags].concat(), hints);
    refused(
        &["--listen", "0.0.0.0:4380"],
        &["--listen 0.0.0.0:4380", "loopback", "--insecure"],
    );
    refused(
        &["--ring-bytes", "100000"],
        &["100000", "power of two", "65536"],
    );
    refused(&["--ring-bytes", "4096"], &["4096", "65536"]);
    refused(&["--ways", "ftrace"], &["ftrace", "--ways"]);
    refused(
        &["--sensors", "tpc"],
        &["tpc", "process, file, tcp, block, drop"],
    );
    refused(&["--linger", "soon"], &["soon", "--linger"]);

    let lab = Lab::new();
    let (listen, http) = (lab.agent.listen.to_string(), lab.agent.http.to_string());
    refused(
        &["--listen", &listen],
        &["--listen", &listen, "another agent"],
    );
    refused(&["--http", &http], &["--http", &http, "another agent"]);
}

#[test]
fn a_tree_that_is_none_is_refused() {
    let dir = temporary();
    let path = dir.path().to_str().unwrap();
    refused(
        &["--pods", "none", "--cgroup-root", path],
        &[path, "no cgroup2 tree", "--cgroup-root"],
    );
}

#[test]
fn a_file_of_pods_that_is_missing_is_waited_for() {
    let dir = temporary();
    let file = dir.path().join("pods.json");
    let source = format!("file:{}", file.display());
    let agent = Agent::with(&["--pods", &source]);
    dinle_e2e::patience::eventually("the error is told", || {
        !agent.status().pod_source.unwrap().error.is_empty()
    });
    let told = agent.status().pod_source.unwrap();
    assert_eq!((&*told.name, told.synced, told.pods), (&*source, false, 0));
    assert!(
        told.error.contains(file.to_str().unwrap()),
        "{}",
        told.error
    );
    let (status, body) = agent.get("/readyz");
    assert_eq!(status, 503);
    assert!(body.contains(file.to_str().unwrap()), "{body}");
    assert_eq!(agent.get("/healthz").0, 200);

    std::fs::write(&file, dinle_e2e::pods::list(&[])).unwrap();
    dinle_e2e::patience::eventually("the agent is ready", || agent.get("/readyz").0 == 200);
    let told = agent.status().pod_source.unwrap();
    assert_eq!((told.synced, &*told.error), (true, ""));
}

#[test]
fn raw_tracepoints_tell_the_same() {
    only_the_pod_is_heard(&["--ways", "raw_tracepoint"]);
}

#[test]
fn sensors_that_are_left_out_have_no_programs_and_are_named() {
    let all = Lab::new();
    // A hook of drop's is one that the kind exec needs.
    let lab = Lab::of("drop");
    let programs = |lab: &Lab| bpf::count(&lab.agent.held(), bpf::Object::Program);
    assert!(programs(&lab) * 2 < programs(&all), "{}", programs(&lab));
    for capability in lab.agent.capabilities() {
        let offered = matches!(capability.kind(), Kind::Drop | Kind::DropCount);
        assert_eq!(capability.available, offered, "{capability:?}");
        assert_eq!(
            capability.reason.ends_with("left out by --sensors"),
            !offered,
            "{capability:?}"
        );
    }
    let refused = lab
        .agent
        .try_subscribe(Window::Usual, shop())
        .err()
        .expect("no kind that was asked for is there");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused
            .message()
            .contains("process is left out by --sensors"),
        "{refused}"
    );

    let mut stream = lab.agent.subscribe(SubscribeRequest {
        kinds: vec![Kind::Exec.into(), Kind::Drop.into()],
        ..shop()
    });
    let told = stream
        .plan
        .notes
        .iter()
        .any(|note| note.contains("KIND_EXEC: unavailable"));
    assert!(told, "{:?}", stream.plan.notes);
    run_some(&lab.app, 3);
    stream.heartbeat();
    stream.heartbeat();
    assert_eq!(stream.execs().count(), 0);
}

#[test]
fn ways_that_are_left_out_are_named() {
    let lab = Lab::with(&["--ways", "raw_tracepoint"]);
    let capabilities = lab.agent.capabilities();
    let kinds: Vec<Kind> = capabilities.iter().map(|one| one.kind()).collect();
    let first = [Kind::Exec, Kind::Exit, Kind::Fork];
    assert_eq!(kinds[..first.len()], first);
    for capability in &capabilities[..first.len()] {
        assert!(capability.available, "{capability:?}");
        let [hook] = &capability.hooks[..] else {
            panic!("{capability:?}")
        };
        assert_eq!(hook.chosen, "raw_tracepoint");
        let ways: Vec<_> = hook
            .ways
            .iter()
            .map(|way| (&*way.name, &*way.reason))
            .collect();
        assert_eq!(
            ways,
            [("raw_tracepoint", ""), ("tp_btf", "left out by --ways")]
        );
    }
    let plan = lab.listen().plan;
    assert_eq!(
        plan.capabilities,
        capabilities[..2],
        "those that were asked for"
    );
    let mut programs = lab.agent.status().programs;
    programs.retain(|program| program.attached);
    let names: Vec<_> = programs.iter().map(|program| &*program.name).collect();
    assert_eq!(
        names,
        [
            "raw_tracepoint__cgroup_mkdir",
            "raw_tracepoint__cgroup_release",
            "raw_tracepoint__sched_process_exec",
            "raw_tracepoint__sched_process_exit"
        ]
    );
}

#[test]
fn a_check_says_what_the_kernel_takes() {
    let output = run(&["--check"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    assert!(lines.len() > 10, "{text}");
    for hook in [
        "cgroup_mkdir",
        "cgroup_release",
        "sched_process_exec",
        "sched_process_exit",
        "sched_process_fork",
    ] {
        let mut usable = 0;
        for way in ["tp_btf", "raw_tracepoint"] {
            let name = format!("{way}__{hook}");
            let line = lines.iter().find(|line| line.get(1) == Some(&&*name));
            let Some(["PROGRAM", _, state, detail]) = line.map(|line| &line[..]) else {
                panic!("no {name}: {text}")
            };
            match *state {
                "ok" => {
                    assert!(detail.parse::<u32>().is_ok(), "{line:?}");
                    usable += 1;
                }
                // Older kernels may lack a way.
                "unavailable" => assert!(!detail.is_empty(), "{line:?}"),
                other => panic!("{other}: {text}"),
            }
        }
        assert!(usable > 0, "{text}");
    }
    // What of it the kinds use.
    for kind in ["exec", "exit", "fork"] {
        let line = lines.iter().find(|line| line[..2] == ["KIND", kind]);
        let ways = line.map(|line| (line[2], line[3]));
        assert!(
            matches!(ways, Some(("ok", "tp_btf" | "raw_tracepoint"))),
            "{kind}: {text}"
        );
    }
}

/// What `dinle doctor` says, a line each, and whether it is content.
fn doctor(flags: &[&str]) -> (bool, Vec<String>) {
    let output = Command::new(dinle())
        .args(["doctor", "--node-name", "test-node", "--cgroup-root"])
        .arg(cgroup::root())
        .args(flags)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    (
        output.status.success(),
        said.lines().map(str::to_owned).collect(),
    )
}

#[test]
fn a_doctor_finds_what_works_and_what_is_missing() {
    let lab = Lab::new();
    let pods = format!("file:{}", lab.agent.pods_file().display());
    let (content, said) = doctor(&["--pods", &pods]);
    assert!(content, "{said:#?}");
    let finds = |said: &[String], words: &[&str]| {
        said.iter().any(|line| {
            line.split_whitespace()
                .take(words.len())
                .eq(words.iter().copied())
        })
    };
    for words in [
        &["ok", "types", "/sys/kernel/btf/vmlinux,"][..],
        &["ok", "cgroups"],
        &["ok", "pods", &pods, "tells", "of", "1", "pods"],
        &["ok", "exec", "sched_process_exec"],
        &["ok", "tcp_session"],
    ] {
        assert!(finds(&said, words), "{words:?}: {said:#?}");
    }
    let (content, said) = doctor(&["--pods", "file:/no/such/file"]);
    assert!(!content && finds(&said, &["MISSING", "pods"]), "{said:#?}");
    assert!(
        said.iter().any(|line| line.contains("-> ")),
        "how to mend it: {said:#?}"
    );
}
