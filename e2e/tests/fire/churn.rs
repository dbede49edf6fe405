//! Cgroups and pods that come and go while somebody listens: nothing grows, nothing is lost, and nothing is taken for another.

use std::{collections::HashMap, fs, time::Duration};

use dinle_e2e::{
    act::act,
    agent::Agent,
    bpf,
    cgroup::{Cgroup, Tree},
    patience::{after, eventually},
    pods::{Pod, container_id},
    stream::Book,
};
use dinle_proto::v1::{Kind, SubscribeRequest};

use super::{alone, memory, metric, shop};

/// Containers that come and go in all, and how many of them before the agent's memory is looked at for the first time.
const CONTAINERS: usize = 10_000;
const WARM: usize = 1000;

/// Containers of each pod, one after the other. Then the next pod begins.
const OF_A_POD: usize = 500;

/// Containers that are there at a time.
const AT_ONCE: usize = 16;

/// How much more the agent may have at the end than then: what it takes to remember those that are gone for [`GRACE`], of which
/// there are more then, and what its allocator does not give back. A leak of 1 KiB for each container would be 9 MiB.
const GROWTH_KIB: u64 = 5 << 10;

/// And than halfway, when it remembers as many as at the end. Such a leak would be 5 MiB.
const LATER_GROWTH_KIB: u64 = 3 << 10;
/// What a cgroup takes that is known.
const KEPT_KIB: u64 = 2;

/// How long the agent remembers a cgroup that is gone, for what is still on its way.
const GRACE: Duration = Duration::from_secs(30);

/// Cgroups that others of this machine have come and go meanwhile, at most.
const OF_OTHERS: u64 = 500;

/// What must not grow.
#[derive(Debug, PartialEq, Eq)]
struct Sizes {
    scope: usize,
    namespaces: usize,
    in_scope: u64,
    watched: u64,
    pods: u64,
}

impl Sizes {
    fn of(agent: &Agent) -> Self {
        let metrics = agent.get("/metrics").1;
        Self {
            scope: bpf::entries(agent.pid(), "SCOPE"),
            namespaces: bpf::entries(agent.pid(), "NETNS"),
            in_scope: agent.status().cgroups_in_scope.into(),
            watched: metric(&metrics, "dinle_cgroups_watched"),
            pods: metric(&metrics, "dinle_pods"),
        }
    }
}

fn gone(cgroup: &Cgroup) {
    eventually("a cgroup is removed", || {
        fs::remove_dir(&cgroup.path).is_ok()
    });
}

#[test]
fn ten_thousand_cgroups_come_and_go_and_nothing_is_left_of_them() {
    let _alone = alone();
    let tree = Tree::new();
    let stays = Pod::new("stays");
    tree.pod(&stays);
    let agent = Agent::with_pods(&[&stays], &[]);
    let mut stream = agent.subscribe(SubscribeRequest {
        kinds: vec![Kind::Exec.into(), Kind::Exit.into()],
        heartbeat_interval: Some(Duration::from_millis(100).try_into().unwrap()),
        ..shop()
    });
    let knows = |pods: &[&Pod]| {
        agent.set_pods(pods);
        let uids: Vec<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
        eventually("the pods are known", || {
            let known = agent.workloads(shop().selector);
            let status = agent.status().pod_source.unwrap();
            status.pods as usize == uids.len()
                && uids
                    .iter()
                    .all(|uid| known.iter().any(|known| known.pod_uid == *uid))
        });
    };
    eventually("the pod is in scope", || {
        agent.status().cgroups_in_scope == 1
    });
    let before = Sizes::of(&agent);
    let known = metric(&agent.get("/metrics").1, "dinle_cgroups");
    let mut resident = Vec::new();
    let mut names = HashMap::new();
    let mut last = 0;
    for number in 0..CONTAINERS / OF_A_POD {
        let pod = Pod::new(&format!("pod-{number}"));
        let directory = tree.pod(&pod);
        knows(&[&stays, &pod]);
        let mut open = Vec::new();
        for turn in 0..OF_A_POD {
            // Some of a pod that is new, some of one that has been there all the time.
            let pod = if turn % 4 == 0 { &stays } else { &pod };
            let container = tree.container(pod, &container_id());
            last = container.succeed(act(["any", &pod.name])).pid;
            names.insert(container.id(), pod.name.clone());
            open.push(container);
            if open.len() == AT_ONCE {
                open.drain(..).for_each(|container| gone(&container));
            }
        }
        stream.until("the execs so far", |stream| {
            stream.execs().count() >= (number + 1) * OF_A_POD
        });
        open.iter().for_each(gone);
        gone(&directory);
        if ((number + 1) * OF_A_POD).is_multiple_of(WARM) {
            let kept = metric(&agent.get("/metrics").1, "dinle_cgroups");
            resident.push((memory(&agent, "VmRSS"), kept));
        }
    }
    knows(&[&stays]);
    stream.through_exit(last);

    let mut wrong = Vec::new();
    for (event, _, exec) in stream.execs() {
        let says = exec.args.last().unwrap();
        let name = &event.workload.as_ref().unwrap().pod;
        if says != name || names.get(&event.cgroup_id) != Some(name) {
            wrong.push((says.clone(), name.clone()));
        }
    }
    assert_eq!(
        wrong,
        [],
        "what processes are, and what they are told to be"
    );
    for kind in [Kind::Exec, Kind::Exit] {
        assert_eq!(stream.book(kind), Book::complete(CONTAINERS as u64));
    }
    assert_eq!((stream.losses.len(), stream.skipped), (0, 0));
    println!(
        "memory of the agent in KiB, and cgroups that it knows, after each {WARM} of {CONTAINERS} containers: {resident:?}"
    );
    // Those that are gone are known for a while longer: on a fast machine that is all of them.
    let (last, last_kept) = resident[resident.len() - 1];
    for (number, growth) in [(0, GROWTH_KIB), (resident.len() / 2, LATER_GROWTH_KIB)] {
        let (then, then_kept) = resident[number];
        let kept = last_kept.saturating_sub(then_kept) * KEPT_KIB;
        assert!(last <= then + growth + kept, "{resident:?}");
    }
    eventually(&format!("everything is as before: {before:?}"), || {
        Sizes::of(&agent) == before
    });
    after(GRACE, "those that are gone are forgotten", || {
        metric(&agent.get("/metrics").1, "dinle_cgroups") < known + OF_OTHERS
    });
}
