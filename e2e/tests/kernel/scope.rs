//! Which cgroups are heard.

use std::collections::BTreeSet;

use dinle_e2e::{
    act::act,
    agent::Agent,
    cgroup::Tree,
    patience::eventually,
    pods::{Pod, container_id},
};
use dinle_proto::v1::{IdentityState, WorkloadName};

use crate::{Lab, assert_complete, run_some, shop};

/// What the pod's 23 processes say, of 52 that run.
pub(crate) fn only_the_pod_is_heard(flags: &[&str]) {
    let lab = Lab::with(&[flags, &["--sensors", "process"]].concat());
    let (_, elsewhere) = lab.tree.app("unknown");
    let host = lab.tree.host("cron.service");
    let mut stream = lab.listen();
    let mut inside = Vec::new();
    for turn in 0..29 {
        let outside = if turn % 2 == 0 { &elsewhere } else { &host };
        outside.succeed(act(["exit", "0"]));
        if turn < 23 {
            inside.push(lab.app.succeed(act(["exit", "0"])).pid);
        }
    }
    stream.through_exit(inside[22]);

    assert_complete(&stream, 23);
    let name = WorkloadName {
        node: "test-node".into(),
        namespace: "shop".into(),
        pod: "web".into(),
        container: "app".into(),
        state: IdentityState::Container.into(),
    };
    for event in &stream.events {
        assert_eq!(event.workload.as_ref(), Some(&name));
        assert_eq!(event.cgroup_id, lab.app.id());
    }
    let told: Vec<u32> = stream.execs().map(|(_, process, _)| process.pid).collect();
    assert_eq!(told, inside);
    assert_eq!(stream.plan.node, "test-node");
    assert_eq!(
        stream.plan.workloads_total, 2,
        "{:?}",
        stream.plan.workloads
    );
    let paths: Vec<_> = stream
        .plan
        .workloads
        .iter()
        .map(|workload| workload.cgroup_path.as_str())
        .collect();
    assert!(
        paths
            .iter()
            .all(|path| lab.app.path.to_string_lossy().contains(path)),
        "{paths:?}"
    );
}

#[test]
fn only_the_pod_that_was_asked_for_is_heard() {
    only_the_pod_is_heard(&[]);
}

#[test]
fn what_is_below_a_container_is_the_containers() {
    let lab = Lab::of("process");
    let before = lab.app.child("init.scope").child("deep");
    let mut stream = lab.listen();
    let after = lab.app.child("system.slice").child("new.service");
    let first = run_some(&before, 1);
    let last = run_some(&after, 1);
    stream.through_exit(last);

    assert_complete(&stream, 2);
    for (pid, cgroup) in [(first, &before), (last, &after)] {
        let (event, _, _) = stream.exec_of(pid);
        let name = event.workload.as_ref().unwrap();
        assert_eq!((&*name.pod, &*name.container), ("web", "app"));
        assert_eq!(event.cgroup_id, cgroup.id());
    }
}

#[test]
fn the_first_program_of_a_new_container_is_heard() {
    const CONTAINERS: usize = 50;
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    let mut ids = BTreeSet::new();
    let mut last = 0;
    for _ in 0..CONTAINERS {
        let container = lab.tree.container(&lab.pod, &container_id());
        last = container.succeed(act(["exit", "0"])).pid;
        ids.insert(container.id());
    }
    stream.through_exit(last);

    assert_complete(&stream, CONTAINERS as u64);
    let told: BTreeSet<u64> = stream
        .execs()
        .map(|(event, _, _)| event.cgroup_id)
        .collect();
    assert_eq!(told, ids);
    for event in &stream.events {
        let name = event.workload.as_ref().unwrap();
        assert_eq!((&*name.namespace, &*name.pod), ("shop", "web"));
    }
}

#[test]
fn a_container_that_lives_for_a_moment_is_heard_to_its_end() {
    const CONTAINERS: usize = 20;
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    for _ in 0..CONTAINERS {
        let container = lab.tree.container(&lab.pod, &container_id());
        run_some(&container, 1);
        eventually("the container is removed", || {
            std::fs::remove_dir(&container.path).is_ok()
        });
    }
    let last = run_some(&lab.app, 1);
    stream.through_exit(last);

    assert_complete(&stream, CONTAINERS as u64 + 1);
    for event in &stream.events {
        assert_eq!(event.workload.as_ref().unwrap().pod, "web");
    }
}

#[test]
fn a_pod_that_starts_later_is_heard() {
    let tree = Tree::new();
    let id = container_id();
    let pod = Pod::new("late").container("app", &id);
    let agent = Agent::with_pods(&[&pod], &[]);
    let mut stream = agent.subscribe(shop());
    assert_eq!(stream.plan.workloads_total, 0);
    assert!(
        stream
            .plan
            .notes
            .iter()
            .any(|note| note.contains("nothing matches")),
        "{:?}",
        stream.plan.notes
    );
    assert_eq!(agent.status().cgroups_in_scope, 0);

    let container = tree.container(&pod, &id);
    eventually("the pod and its container are in scope", || {
        agent.status().cgroups_in_scope == 2
    });
    let last = run_some(&container, 3);
    stream.through_exit(last);
    assert_complete(&stream, 3);
}

#[test]
fn a_cgroup_that_is_gone_leaves_the_scope() {
    let lab = Lab::of("process");
    let mut stream = lab.listen();
    eventually("the pod and its container are in scope", || {
        lab.agent.status().cgroups_in_scope == 2
    });
    let more = lab.tree.container(&lab.pod, &container_id());
    run_some(&more, 1);
    eventually("the new container is in scope", || {
        lab.agent.status().cgroups_in_scope == 3
    });
    eventually("the container is removed", || {
        std::fs::remove_dir(&more.path).is_ok()
    });
    eventually("it is out of scope", || {
        lab.agent.status().cgroups_in_scope == 2
    });
    let last = run_some(&lab.app, 1);
    stream.through_exit(last);
    assert_complete(&stream, 2);
}
