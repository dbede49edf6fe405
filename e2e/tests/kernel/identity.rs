//! Who an event's process is, and when that becomes known.

use dinle_e2e::{
    act::act_as,
    agent::Agent,
    cgroup::Tree,
    patience::eventually,
    pods::{Pod, container_id},
};
use dinle_proto::v1::{
    Filter, IdentityMode, IdentityState, StringMatch, SubscribeRequest, string_match::Pattern,
};

use crate::{Named, assert_complete, every_pod, run_some, shop};

#[test]
fn without_a_source_of_pods_there_are_ids() {
    let tree = Tree::new();
    let id = container_id();
    let pod = Pod::new("nobody-knows");
    let container = tree.container(&pod, &id);
    let agent = Agent::with(&["--pods", "none"]);
    let named = Named::new();
    let filter = Filter {
        comm: vec![StringMatch {
            pattern: Some(Pattern::Exact(named.name.clone())),
        }],
        ..Filter::default()
    };
    let request = SubscribeRequest {
        filter: Some(filter),
        identity_mode: IdentityMode::ByReference.into(),
        ..every_pod()
    };
    let mut stream = agent.subscribe(request);
    let nested = container.child("nested");
    let run = |cgroup: &dinle_e2e::cgroup::Cgroup| {
        cgroup.succeed(act_as(&named.path(), ["exit", "0"])).pid
    };
    let first = run(&container);
    run(&container);
    let last = run(&nested);
    stream.through_exit(last);

    assert_complete(&stream, 3);
    assert!(stream.events.iter().all(|event| event.workload.is_none()));
    assert_eq!(stream.exec_of(first).0.cgroup_id, container.id());
    assert_eq!(stream.exec_of(last).0.cgroup_id, nested.id());
    // Updates overtake events that are still gathering, and never follow what they explain.
    let [(0, of_container), (..=4, of_nested)] = &stream.updates[..] else {
        panic!(
            "one before the first event of each cgroup: {:?}",
            stream.updates
        )
    };
    for (workload, cgroup) in [(of_container, &container), (of_nested, &nested)] {
        assert_eq!(workload.cgroup_id, cgroup.id());
        assert!(
            cgroup
                .path
                .ends_with(workload.cgroup_path.trim_start_matches('/'))
        );
        assert_eq!(workload.state(), IdentityState::Pending);
        assert_eq!((&workload.pod_uid, &workload.container_id), (&pod.uid, &id));
        assert_eq!((&*workload.pod, &*workload.container), ("", ""));
        assert_eq!(workload.node, "test-node");
    }
}

#[test]
fn a_containers_name_is_told_when_it_becomes_known() {
    let tree = Tree::new();
    let id = container_id();
    let starting = Pod::new("web").starting("app");
    let mut running = starting.clone();
    running.containers = vec![("app".into(), Some(id.clone()))];
    let agent = Agent::with_pods(&[&starting], &[]);
    let mut stream = agent.subscribe(shop());
    let container = tree.container(&starting, &id);
    eventually("the pod and its container are in scope", || {
        agent.status().cgroups_in_scope == 2
    });
    let early = run_some(&container, 2);
    stream.through_exit(early);
    agent.set_pods(&[&running]);
    stream.until("the container's name", |stream| !stream.updates.is_empty());
    let late = run_some(&container, 2);
    stream.through_exit(late);

    assert_complete(&stream, 4);
    let [(4, update)] = &stream.updates[..] else {
        panic!("one, after the first four events: {:?}", stream.updates)
    };
    assert_eq!(update.cgroup_id, container.id());
    assert_eq!(update.state(), IdentityState::Container);
    assert_eq!((&*update.pod, &*update.container), ("web", "app"));
    for (pid, state, name) in [
        (early, IdentityState::Pod, ""),
        (late, IdentityState::Container, "app"),
    ] {
        let workload = stream.exec_of(pid).0.workload.as_ref().unwrap();
        assert_eq!((workload.state(), &*workload.container), (state, name));
        assert_eq!(workload.pod, "web");
    }
}

#[test]
fn a_pod_that_becomes_known_later_is_heard_from_then_on() {
    let tree = Tree::new();
    let (pod, container) = tree.app("late");
    let agent = Agent::with_pods(&[], &[]);
    let mut stream = agent.subscribe(shop());
    run_some(&container, 3);
    agent.set_pods(&[&pod]);
    eventually("the pod and its container are in scope", || {
        agent.status().cgroups_in_scope == 2
    });
    let last = run_some(&container, 2);
    stream.through_exit(last);
    assert_complete(&stream, 2);
    assert_eq!(agent.status().pod_source.unwrap().pods, 1);
}
