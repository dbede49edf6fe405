//! Cgroups and pods that come and go while somebody listens: nothing grows, nothing is lost, and nothing is taken for another.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    process::Stdio,
    time::Duration,
};

use dinle_e2e::{
    act::{act, act_path},
    agent::Agent,
    bpf,
    cgroup::{Cgroup, Tree},
    disk::Loop,
    patience::{after, eventually},
    pods::{Pod, container_id},
    stream::{Book, Stream},
};
use dinle_ebpf::drop::NETNS_MAX;
use dinle_proto::v1::{Kind, SubscribeRequest, event::Detail};

use super::{alone, memory, metric, shop};

/// Containers that come and go in all, and how many of them before the agent's memory is looked at for the first time.
const CONTAINERS: usize = 10_000;
const WARM: usize = 1000;

/// Containers of each pod, one after the other. Then the next pod begins.
const OF_A_POD: usize = 500;

/// One of so many does more than to execute a program: it leaves something in each table that the kernel keeps of cgroups, sockets and disks.
const BUSY: usize = 20;
/// Programs that it executes, and processes in which it does.
const BUSY_EXECS: usize = 4;
const BUSY_PROCESSES: usize = 3;

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
    /// Of the tables in the kernel that can: who is in scope, whose network namespace is whose, sums of disks and drops by cgroup, and what
    /// is known of open sockets and of requests under way.
    tables: BTreeMap<String, usize>,
    in_scope: u64,
    watched: u64,
    pods: u64,
}

impl Sizes {
    fn of(agent: &Agent) -> Self {
        let metrics = agent.get("/metrics").1;
        Self {
            tables: bpf::hashes(agent.pid()),
            in_scope: agent.status().cgroups_in_scope.into(),
            watched: metric(&metrics, "dinle_cgroups_watched"),
            pods: metric(&metrics, "dinle_pods"),
        }
    }
}

/// Makes a session with itself, has a packet dropped, and writes to a disk.
fn be_busy(container: &Cgroup, disk: &Loop) {
    container.succeed(act(["tcp", "unread"]));
    let (act_path, disk) = (act_path(), disk.path.to_string_lossy());
    let act_path = act_path.to_string_lossy();
    container.succeed(act(["newnet", &act_path, "udp", "1", "4499"]));
    let mut write = act(["block", &disk, "direct", "write", "1", "4096"]);
    write.stdout(Stdio::null());
    container.succeed(write);
}

/// Packets to nobody that were told.
fn packets(stream: &Stream) -> u64 {
    let rows = stream.rows(|detail| match detail {
        Detail::DropCount(row) if row.port == 4499 => Some(row),
        _ => None,
    });
    rows.map(|(_, row)| row.count).sum()
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
    let disk = Loop::attach(512).expect("a loop device");
    let kinds = [
        Kind::Exec,
        Kind::Exit,
        Kind::TcpSession,
        Kind::BlockLatency,
        Kind::DropCount,
    ];
    let mut stream = agent.subscribe(SubscribeRequest {
        kinds: kinds.map(Into::into).to_vec(),
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
    let names: Vec<&str> = before.tables.keys().map(String::as_str).collect();
    let known = [
        "BLOCK_LATENCY",
        "BLOCK_REQUESTS",
        "DROP_COUNT",
        "NETNS",
        "SCOPE",
        "SOCKETS",
    ];
    assert_eq!(
        names, known,
        "what is new here must be filled by busy containers, too"
    );
    let known_cgroups = metric(&agent.get("/metrics").1, "dinle_cgroups");
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
            // Of a pod that goes.
            if turn % BUSY == 1 {
                be_busy(&container, &disk);
            }
            last = container.succeed(act(["any", &pod.name])).pid;
            names.insert(container.id(), pod.name.clone());
            open.push(container);
            if open.len() == AT_ONCE {
                open.drain(..).for_each(|container| gone(&container));
            }
        }
        stream.until("the execs so far", |stream| {
            stream.execs().count() >= (number + 1) * (OF_A_POD + OF_A_POD / BUSY * BUSY_EXECS)
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
    let plain = stream.execs().filter(|(.., exec)| exec.args[1] == "any");
    for (event, _, exec) in plain {
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
    let busy = CONTAINERS / BUSY;
    for (kind, more) in [(Kind::Exec, BUSY_EXECS), (Kind::Exit, BUSY_PROCESSES)] {
        let events = CONTAINERS + busy * more;
        assert_eq!(stream.book(kind), Book::complete(events as u64));
    }
    let sessions = Book::complete(2 * busy as u64);
    assert_eq!(stream.book(Kind::TcpSession), sessions);
    let requests = |stream: &Stream| {
        let rows = stream.rows(|detail| match detail {
            Detail::BlockLatency(row) if row.disk == disk.name => Some(row),
            _ => None,
        });
        rows.map(|(_, row)| row.count).sum::<u64>()
    };
    stream.until("what the last of them did", |stream| {
        [packets(stream), requests(stream)] == [busy as u64; 2]
    });
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
    after(GRACE, "those that are gone are forgotten", || {
        metric(&agent.get("/metrics").1, "dinle_cgroups") < known_cgroups + OF_OTHERS
    });
    // While they are known, what is added up for them may be added to.
    let mut seen = None;
    eventually(&format!("everything is as before: {before:?}"), || {
        let now = Sizes::of(&agent);
        let same = now == before;
        if !same && seen.as_ref() != Some(&now) {
            println!("it is {now:?}");
            seen = Some(now);
        }
        same
    });
}

#[test]
fn network_namespaces_of_one_pod_take_no_room_from_others_when_they_are_gone() {
    const AT_A_TIME: u32 = 256;
    let _alone = alone();
    let tree = Tree::new();
    let pod = Pod::new("builds");
    tree.pod(&pod);
    let agent = Agent::with_pods(&[&pod], &[]);
    let container = tree.container(&pod, &container_id());
    let mut stream = agent.subscribe(SubscribeRequest {
        kinds: vec![Kind::DropCount.into()],
        ..shop()
    });
    eventually("the container is in scope", || {
        agent.status().cgroups_in_scope == 2
    });
    let known = || bpf::hashes(agent.pid())["NETNS"] as u32;
    assert_eq!(known(), 0, "the node's own says nothing");
    let mut made = 0;
    let mut make = |namespaces: u32| {
        for _ in 0..namespaces / AT_A_TIME {
            container.succeed(act(["newnets", &AT_A_TIME.to_string(), "4499"]));
        }
        made += u64::from(namespaces);
    };
    // As many as there is room for.
    make(NETNS_MAX);
    eventually("those that are gone are forgotten", || known() <= AT_A_TIME);
    make(2 * AT_A_TIME);
    stream.until("each packet", |stream| packets(stream) >= made);
    stream.heartbeat();
    assert_eq!(packets(&stream), made);
    eventually("it is not said that there is no room", || {
        stream.heartbeat();
        stream.notes.is_empty()
    });
}
