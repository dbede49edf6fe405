//! What is attached and when, and how streams and the agent end.

use std::{
    env, fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use dinle_e2e::{
    act::{act, dinle},
    agent::Agent,
    bpf,
    patience::eventually,
    pods::Pod,
    stream::Book,
};
use dinle_proto::v1::{EndReason, Kind, SubscribeRequest, observer_client::ObserverClient};

use crate::{Lab, assert_complete, only, run_some, shop, span};

/// Programs of the tracker, which always runs.
const TRACKER: usize = 2;

/// Names of the hooks of sensors that are attached, by the agent's own account.
fn attached(agent: &Agent) -> Vec<String> {
    let programs = agent.status().programs;
    let sensors = programs
        .into_iter()
        .filter(|program| !program.hook.starts_with("cgroup_"));
    let attached = sensors.filter(|program| program.attached);
    attached.map(|program| program.hook).collect()
}

fn detached(agent: &Agent) {
    eventually("no sensor is attached", || {
        attached(agent).is_empty() && agent.attached() == TRACKER
    });
}

#[test]
fn subscribers_share_what_is_attached_and_the_last_one_takes_it_along() {
    let lab = Lab::new();
    let agent = &lab.agent;
    assert_eq!((attached(agent).len(), agent.attached()), (0, TRACKER));
    let loaded = bpf::count(&agent.held(), bpf::Object::Program);

    let mut first = agent.subscribe(only(Kind::Exit, shop()));
    assert_eq!(attached(agent), ["sched_process_exit"]);
    assert_eq!(agent.attached(), TRACKER + 1);
    let mut second = lab.listen();
    let mut third = lab.listen();
    assert_eq!(
        attached(agent),
        ["sched_process_exec", "sched_process_exit"]
    );
    assert_eq!(agent.attached(), TRACKER + 2);
    assert_eq!(bpf::count(&agent.held(), bpf::Object::Program), loaded);
    assert_eq!(agent.status().subscriptions.len(), 3);

    let last = run_some(&lab.app, 10);
    first.through_exit(last);
    assert_eq!(first.book(Kind::Exit), Book::complete(10));
    assert_eq!((first.execs().count(), first.exits().count()), (0, 10));
    for stream in [&mut second, &mut third] {
        stream.through_exit(last);
        assert_complete(stream, 10);
    }

    drop((second, third));
    eventually("only exits are attached", || {
        attached(agent) == ["sched_process_exit"] && agent.attached() == TRACKER + 1
    });
    let last = run_some(&lab.app, 1);
    first.through_exit(last);
    assert_eq!(first.book(Kind::Exit), Book::complete(11));
    drop(first);
    detached(agent);
    assert!(agent.status().subscriptions.is_empty());
    assert_eq!(agent.status().cgroups_in_scope, 0);
}

#[test]
fn explain_attaches_nothing() {
    let lab = Lab::new();
    let plan = lab.agent.explain(shop()).unwrap();
    assert_eq!((plan.stream_id, plan.workloads_total), (0, 2));
    assert_eq!(plan.capabilities.len(), 2);
    assert!(
        plan.capabilities.iter().all(|kind| kind.available),
        "{:?}",
        plan.capabilities
    );
    assert_eq!(
        (attached(&lab.agent).len(), lab.agent.attached()),
        (0, TRACKER)
    );
}

#[test]
fn a_subscriber_can_come_back() {
    let lab = Lab::new();
    for turn in 1..=3 {
        let mut stream = lab.listen();
        assert_eq!(stream.plan.stream_id, turn);
        let last = run_some(&lab.app, 4);
        stream.through_exit(last);
        assert_complete(&stream, 4);
        drop(stream);
        detached(&lab.agent);
        run_some(&lab.app, 2);
    }
}

/// Address and marker of [`a_subscriber_in_a_process_of_its_own`].
const SUBSCRIBE_TO: &str = "DINLE_TEST_SUBSCRIBE_TO";

#[test]
#[ignore = "another test runs it as a process, and kills it"]
fn a_subscriber_in_a_process_of_its_own() {
    let address = env::var(SUBSCRIBE_TO).expect("whom to subscribe to");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut client = ObserverClient::connect(format!("http://{address}"))
            .await
            .unwrap();
        let mut messages = client.subscribe(shop()).await.unwrap().into_inner();
        while messages.message().await.unwrap().is_some() {}
    });
}

#[test]
fn a_subscriber_that_is_killed_is_gone() {
    let lab = Lab::new();
    let mut child = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "life::a_subscriber_in_a_process_of_its_own",
            "--ignored",
        ])
        .env(SUBSCRIBE_TO, lab.agent.listen.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it has subscribed", || attached(&lab.agent).len() == 2);
    run_some(&lab.app, 3);
    assert_eq!(lab.agent.status().subscriptions.len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("its stream is gone", || {
        lab.agent.status().subscriptions.is_empty()
    });
    detached(&lab.agent);
}

#[test]
fn an_agent_that_is_told_to_stop_ends_its_streams_with_their_books() {
    let mut lab = Lab::new();
    let mut stream = lab.listen();
    let mut other = lab.agent.subscribe(only(Kind::Exec, shop()));
    let held = lab.agent.held();
    assert_eq!(bpf::alive(&held), held);
    let last = run_some(&lab.app, 7);
    lab.agent.signal(libc::SIGTERM);

    assert_eq!(stream.to_end(), EndReason::Shutdown);
    assert_complete(&stream, 7);
    stream.exit_of(last);
    assert_eq!(other.to_end(), EndReason::Shutdown);
    assert_eq!(other.book(Kind::Exec), Book::complete(7));
    assert_eq!(other.books.len(), 1);
    assert!(lab.agent.wait().success());
    eventually("nothing is left in the kernel", || {
        bpf::alive(&held).is_empty()
    });
}

#[test]
fn an_agent_that_is_killed_leaves_nothing_behind() {
    let mut lab = Lab::new();
    let stream = lab.listen();
    let held = lab.agent.held();
    assert_eq!(bpf::count(&held, bpf::Object::Link), TRACKER + 2);
    assert_eq!(bpf::alive(&held), held);
    lab.agent.signal(libc::SIGKILL);
    lab.agent.wait();
    eventually("nothing is left in the kernel", || {
        bpf::alive(&held).is_empty()
    });
    drop(stream);
    // Its place is free for the next one.
    let next = Agent::with_pods(&[&lab.pod], &["--listen", &lab.agent.listen.to_string()]);
    let mut stream = next.subscribe(shop());
    let last = run_some(&lab.app, 2);
    stream.through_exit(last);
    assert_complete(&stream, 2);
}

#[test]
fn a_hangup_does_nothing() {
    let lab = Lab::new();
    let mut stream = lab.listen();
    lab.agent.signal(libc::SIGHUP);
    eventually("the signal is seen", || lab.agent.log().contains("SIGHUP"));
    let last = run_some(&lab.app, 2);
    stream.through_exit(last);
    assert_complete(&stream, 2);
}

#[test]
fn a_stream_ends_after_as_many_events_as_were_asked_for() {
    let lab = Lab::new();
    let request = SubscribeRequest {
        max_events: 5,
        ..only(Kind::Exec, shop())
    };
    let mut stream = lab.agent.subscribe(request);
    let pids: Vec<u32> = (0..9).map(|_| run_some(&lab.app, 1)).collect();
    assert_eq!(stream.to_end(), EndReason::MaxEvents);
    let told: Vec<u32> = stream.execs().map(|(_, process, _)| process.pid).collect();
    assert_eq!(told, pids[..5]);
    assert_eq!(stream.book(Kind::Exec), Book::complete(5));
}

#[test]
fn a_stream_ends_after_the_time_that_was_asked_for() {
    const TIME: Duration = Duration::from_secs(2);
    let lab = Lab::new();
    let began = Instant::now();
    let request = SubscribeRequest {
        max_duration: Some(span(TIME)),
        ..shop()
    };
    let mut stream = lab.agent.subscribe(request);
    // Across its end: what happened before is told, whatever of it that is.
    let ran = thread::scope(|scope| {
        let reading = scope.spawn(|| stream.to_end());
        let mut ran = Vec::new();
        while !reading.is_finished() {
            ran.push(run_some(&lab.app, 1));
        }
        ran.push(run_some(&lab.app, 1));
        assert_eq!(reading.join().unwrap(), EndReason::MaxDuration);
        ran
    });
    assert!(began.elapsed() >= TIME);
    let execs: Vec<u32> = stream.execs().map(|(_, process, _)| process.pid).collect();
    assert!(!execs.is_empty());
    assert_eq!(execs, ran[..execs.len()]);
    assert_eq!(stream.book(Kind::Exec), Book::complete(execs.len() as u64));
    let exits = stream.exits().count();
    assert!(
        exits == execs.len() || exits + 1 == execs.len(),
        "{exits} of {}",
        execs.len()
    );
    assert_eq!(stream.book(Kind::Exit), Book::complete(exits as u64));
}

#[test]
fn the_agents_health_is_told_over_http() {
    let lab = Lab::new();
    let mut stream = lab.listen();
    let last = run_some(&lab.app, 6);
    stream.through_exit(last);
    assert_eq!(lab.agent.get("/healthz"), (200, "ok\n".into()));
    assert_eq!(lab.agent.get("/readyz"), (200, "ok\n".into()));
    let (status, metrics) = lab.agent.get("/metrics");
    assert_eq!(status, 200);
    for line in [
        "dinle_events_delivered_total{kind=\"exec\"} 6",
        "dinle_events_delivered_total{kind=\"exit\"} 6",
        "dinle_frames_total{kind=\"exec\"} 6",
        "dinle_subscriptions 1",
        "dinle_pods 1",
        "dinle_cgroups_watched 2",
    ] {
        assert!(
            metrics.lines().any(|metric| metric == line),
            "no `{line}` in\n{metrics}"
        );
    }
    let program = lab
        .agent
        .status()
        .programs
        .into_iter()
        .find(|one| one.hook == "sched_process_exec");
    let program = program.unwrap();
    assert!(program.attached);
    assert_eq!(program.name, format!("{}__{}", program.way, program.hook));
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(lab.agent.status().kernel_release, version.trim_end());
}

#[test]
fn a_tree_of_cgroups_that_was_there_before_the_agent_is_known() {
    let lab = Lab::new();
    let workloads = lab.agent.workloads(shop().selector);
    let ids: Vec<u64> = workloads
        .iter()
        .map(|workload| workload.cgroup_id)
        .collect();
    let pod = lab.tree.pod(&lab.pod);
    assert_eq!(ids, [pod.id(), lab.app.id()]);
    let app = &workloads[1];
    assert_eq!((&*app.container, &*app.pod_uid), ("app", &*lab.pod.uid));
    assert_eq!(app.image, "example.org/app:1");
    assert!(
        lab.app
            .path
            .ends_with(app.cgroup_path.trim_start_matches('/'))
    );

    // And what runs there already is heard.
    let mut waiting = act([
        "gate",
        dinle_e2e::act::act_path().to_str().unwrap(),
        "exit",
        "0",
    ]);
    waiting.stdin(Stdio::piped());
    let mut waiting = lab.app.spawn(waiting);
    let mut stream = lab.listen();
    drop(waiting.stdin.take());
    assert!(waiting.wait().unwrap().success());
    stream.through_exit(waiting.id());
    let exits: Vec<_> = stream.exits().collect();
    assert_eq!(exits.len(), 2);
}

#[test]
fn a_selftest_hears_itself_where_it_runs_and_nowhere_else() {
    let lab = Lab::new();
    let selftest = |arguments: &[&str]| {
        let mut command = Command::new(dinle());
        command
            .args(["selftest", "--address", &lab.agent.listen.to_string()])
            .args(arguments);
        command
    };
    let Pod {
        namespace, name, ..
    } = &lab.pod;
    let here = ["--namespace", namespace, "--pod", name];
    let mut command = selftest(&here);
    let output = lab.app.enter(&mut command).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    let expected = format!(
        "heard on node test-node: pod {namespace}/{name}, container app executed this program"
    );
    assert!(said.starts_with(&expected), "{said}");
    // Outside of the pod nothing of it is heard.
    let output = selftest(&[here.as_slice(), &["--timeout", "2s"]].concat())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("did not tell of this process in time"),
        "{said}"
    );
}
