//! Which events of which workloads.

use std::process::{Child, Stdio};

use dinle_e2e::{
    act::{act, act_as, act_path},
    agent::Agent,
    cgroup::{Cgroup, Tree},
    pods::{Pod, container_id},
    stream::{Book, Stream, assert_invalid},
};
use dinle_proto::v1::{
    Filter, HostProcesses, Kind, PidMatch, Selector, StringMatch, SubscribeRequest,
    string_match::Pattern,
};

use crate::{Lab, Named, every_pod, only, run_some, shop};

fn matching(pattern: Pattern) -> StringMatch {
    StringMatch {
        pattern: Some(pattern),
    }
}

fn filtered(filter: Filter, request: SubscribeRequest) -> SubscribeRequest {
    SubscribeRequest {
        filter: Some(filter),
        ..request
    }
}

fn selected(selector: Selector) -> SubscribeRequest {
    SubscribeRequest {
        selector: Some(selector),
        ..every_pod()
    }
}

/// `act` that runs a program when it is let go.
struct Gate(Child);

impl Gate {
    fn new(cgroup: &Cgroup, program: &[&str]) -> Self {
        let path = act_path();
        let words = [&["gate", path.to_str().unwrap()], program].concat();
        let mut command = act(words);
        command.stdin(Stdio::piped());
        Self(cgroup.spawn(command))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// To its end.
    fn go(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

#[test]
fn by_command_name_program_and_user() {
    let lab = Lab::of("process");
    let named = Named::new();
    let path = named.path().to_str().unwrap().to_owned();
    let comm = Filter {
        comm: vec![matching(Pattern::Exact(named.name.clone()))],
        ..Filter::default()
    };
    let binary = Filter {
        binary: vec![matching(Pattern::Glob(format!("*/{}", named.name)))],
        ..Filter::default()
    };
    let user = Filter {
        uids: vec![1234],
        ..Filter::default()
    };
    let mut by_comm = lab.agent.subscribe(filtered(comm, shop()));
    let mut by_binary = lab
        .agent
        .subscribe(only(Kind::Exec, filtered(binary, shop())));
    let mut by_user = lab.agent.subscribe(filtered(user, shop()));
    let mut all = lab.listen();

    run_some(&lab.app, 4);
    let hits: Vec<u32> = (0..3)
        .map(|_| {
            lab.app
                .succeed(act_as(named.path().as_path(), ["exit", "0"]))
                .pid
        })
        .collect();
    // Becomes another user, and stays `act`: its exec was root's, its exit is not.
    let user = lab
        .app
        .run(act(["uid", "1234", "1234", "/no/such/program"]))
        .pid;
    let last = run_some(&lab.app, 1);
    all.through_exit(last);
    by_comm.through_exit(hits[2]);
    by_binary.through_exec(hits[2]);
    by_user.through_exit(user);

    let pids = |stream: &Stream| -> Vec<u32> {
        stream
            .events
            .iter()
            .map(|event| event.process.as_ref().unwrap().pid)
            .collect()
    };
    assert_eq!(
        pids(&by_comm),
        [hits[0], hits[0], hits[1], hits[1], hits[2], hits[2]]
    );
    assert_eq!(by_comm.book(Kind::Exec), Book::complete(3));
    assert_eq!(by_comm.book(Kind::Exit), Book::complete(3));
    assert_eq!(pids(&by_binary), hits);
    assert!(by_binary.execs().all(|(_, _, exec)| exec.filename == path));
    assert_eq!(pids(&by_user), [user]);
    assert_eq!((by_user.exits().count(), all.execs().count()), (1, 9));
}

#[test]
fn by_how_a_process_ended() {
    let lab = Lab::of("process");
    let filter = Filter {
        exit_failed: true,
        ..Filter::default()
    };
    let mut failed = lab
        .agent
        .subscribe(only(Kind::Exit, filtered(filter, shop())));
    run_some(&lab.app, 3);
    let by_code = lab.app.run(act(["exit", "3"]));
    let by_signal = lab.app.run(act(["kill", "9"]));
    run_some(&lab.app, 3);
    let last = lab.app.run(act(["exit", "1"]));
    failed.through_exit(last.pid);
    let told: Vec<u32> = failed.exits().map(|(_, process, _)| process.pid).collect();
    assert_eq!(told, [by_code.pid, by_signal.pid, last.pid]);
    assert_eq!(failed.book(Kind::Exit), Book::complete(3));
}

#[test]
fn by_process_and_what_it_started() {
    let lab = Lab::of("process");
    let gate = Gate::new(&lab.app, &["orphan"]);
    let alone = Gate::new(&lab.app, &["exit", "0"]);
    let rule = |pid, descendants| Filter {
        pids: vec![PidMatch { pid, descendants }],
        ..Filter::default()
    };
    let mut family = lab
        .agent
        .subscribe(filtered(rule(gate.pid(), true), shop()));
    let mut process = lab
        .agent
        .subscribe(filtered(rule(alone.pid(), false), shop()));
    let (gate_pid, alone_pid) = (gate.pid(), alone.pid());
    run_some(&lab.app, 2);
    gate.go();
    alone.go();
    run_some(&lab.app, 2);
    family.through_exit(gate_pid);
    process.through_exit(alone_pid);

    // The gate's exec was before the stream.
    let words: Vec<&str> = family.execs().map(|(_, _, exec)| &*exec.args[1]).collect();
    assert_eq!(words, ["orphan", "orphan-parent", "orphan-child", "exit"]);
    let last = family.execs().last().unwrap().1;
    assert!(
        !last.ancestors.contains(&gate_pid),
        "its parent was adopted: {last:?}"
    );
    assert_eq!(family.book(Kind::Exec), Book::complete(4));
    assert_eq!(family.book(Kind::Exit), Book::complete(5));

    // Its child is not asked for.
    assert_eq!(process.book(Kind::Exec), Book::complete(0));
    assert_eq!(process.book(Kind::Exit), Book::complete(1));
}

#[test]
fn by_label_namespace_pod_and_container() {
    let tree = Tree::new();
    let (web_app, web_log, api_app) = (container_id(), container_id(), container_id());
    let web = Pod::new("web-1")
        .label("app", "web")
        .label("tier", "front")
        .container("app", &web_app)
        .container("log", &web_log);
    let api = Pod::new("api-1")
        .namespace("back")
        .label("app", "api")
        .container("app", &api_app);
    let cgroups = [(&web, &web_app), (&web, &web_log), (&api, &api_app)]
        .map(|(pod, id)| tree.container(pod, id));
    let agent = Agent::with_pods(&[&web, &api], &[]);
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| word.to_string())
            .collect::<Vec<_>>()
    };

    let selectors = [
        (
            Selector {
                label_selector: "app=web".into(),
                ..Selector::default()
            },
            [1, 1, 0],
        ),
        (
            Selector {
                label_selector: "tier,app in (web,api)".into(),
                ..Selector::default()
            },
            [1, 1, 0],
        ),
        (
            Selector {
                label_selector: "app!=web".into(),
                ..Selector::default()
            },
            [0, 0, 1],
        ),
        (
            Selector {
                namespaces: words(&["back"]),
                ..Selector::default()
            },
            [0, 0, 1],
        ),
        (
            Selector {
                namespaces: words(&["back", "shop"]),
                ..Selector::default()
            },
            [1, 1, 1],
        ),
        (
            Selector {
                pods: words(&["web-*"]),
                ..Selector::default()
            },
            [1, 1, 0],
        ),
        (
            Selector {
                containers: words(&["app"]),
                pods: words(&["*"]),
                ..Selector::default()
            },
            [1, 0, 1],
        ),
        (
            Selector {
                containers: words(&["app"]),
                namespaces: words(&["shop"]),
                ..Selector::default()
            },
            [1, 0, 0],
        ),
        (
            Selector {
                namespaces: words(&["nowhere"]),
                ..Selector::default()
            },
            [0, 0, 0],
        ),
    ];
    let mut streams: Vec<_> = selectors
        .iter()
        .map(|(selector, _)| agent.subscribe(selected(selector.clone())))
        .collect();
    // Different numbers, so that a mix-up shows.
    for (cgroup, times) in cgroups.iter().zip([3, 5, 7]) {
        run_some(cgroup, times);
    }
    for (stream, (selector, wanted)) in streams.iter_mut().zip(&selectors) {
        let expected: u64 = [3, 5, 7]
            .iter()
            .zip(wanted)
            .map(|(times, wanted)| times * wanted)
            .sum();
        stream.until("all exits", |stream| {
            stream.exits().count() as u64 >= expected
        });
        stream.heartbeat();
        for kind in [Kind::Exec, Kind::Exit] {
            assert_eq!(stream.book(kind), Book::complete(expected), "{selector:?}");
        }
    }
}

#[test]
fn of_pods_of_the_host_or_of_both() {
    let lab = Lab::of("process");
    let host = lab.tree.host("cron.service");
    // The rest of the machine is the host, too.
    let named = Named::new();
    let request = |host_processes: HostProcesses| {
        let selector = Selector {
            host_processes: host_processes.into(),
            ..Selector::default()
        };
        let filter = Filter {
            comm: vec![matching(Pattern::Exact(named.name.clone()))],
            ..Filter::default()
        };
        filtered(filter, selected(selector))
    };
    use HostProcesses::{Exclude, Include, Only, Unspecified};
    let mut streams = [
        (Unspecified, true, false),
        (Exclude, true, false),
        (Only, false, true),
        (Include, true, true),
    ]
    .map(|(which, pods, hosts)| (lab.agent.subscribe(request(which)), pods, hosts));
    let run = |cgroup: &Cgroup| cgroup.succeed(act_as(&named.path(), ["exit", "0"])).pid;
    let in_pod = [run(&lab.app), run(&lab.app)];
    let on_host = [run(&host), run(&host), run(&host)];

    for (stream, pods, hosts) in &mut streams {
        let wanted = |wanted: bool, pids: &[u32]| if wanted { pids.to_vec() } else { Vec::new() };
        let expected = [wanted(*pods, &in_pod), wanted(*hosts, &on_host)].concat();
        stream.through_exit(*expected.last().unwrap());
        let told: Vec<u32> = stream.execs().map(|(_, process, _)| process.pid).collect();
        assert_eq!(told, expected);
        for (event, process, _) in stream.execs() {
            let name = event.workload.as_ref().unwrap();
            let pod = if on_host.contains(&process.pid) {
                ""
            } else {
                "web"
            };
            assert_eq!((&*name.pod, &*name.node), (pod, "test-node"));
        }
    }
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let lab = Lab::of("process");
    let refused = |request: SubscribeRequest, field: &str| {
        assert_invalid(
            lab.agent
                .try_subscribe(dinle_e2e::stream::Window::Usual, request.clone()),
            field,
        );
        assert_invalid(lab.agent.explain(request), &format!("request.{field}"));
    };
    refused(SubscribeRequest::default(), "kinds");
    refused(
        SubscribeRequest {
            queue_bytes: 1,
            ..shop()
        },
        "queue_bytes",
    );
    let filter = Filter {
        exit_failed: true,
        ..Filter::default()
    };
    refused(filtered(filter, shop()), "filter.exit_failed");
    let filter = Filter {
        comm: vec![matching(Pattern::Glob("[".into()))],
        ..Filter::default()
    };
    refused(filtered(filter, shop()), "filter.comm[0].glob");
    let selector = Selector {
        label_selector: "app in (".into(),
        ..Selector::default()
    };
    refused(selected(selector), "selector.label_selector");
    assert!(lab.agent.status().subscriptions.is_empty());
    assert_eq!(lab.agent.attached(), 2);
}
