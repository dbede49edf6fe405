use std::fs;
use std::os::unix::fs::MetadataExt as _;

use dinle_proto::v1::{ContainerType, IdentityState, Owner, Workload};
use tempfile::TempDir;

use super::*;

const UID: &str = "2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e11";
const OTHER_UID: &str = "77aa01cf-7f5c-4f0e-9b0b-0d5c3a9d8e11";
const HASH: &str = "be84997637164a52d9f1fd6acfbda804";

/// The id of a container, 64 hex digits that begin with these.
fn cid(start: &str) -> String {
    format!("{start:0<64}")
}

fn container(name: &str, id: Option<&str>) -> Container {
    Container {
        name: name.to_owned(),
        id: id.map(cid),
        previous_id: None,
        image: format!("{name}:1"),
        container_type: ContainerType::Standard,
    }
}

fn pod(uid: &str, name: &str, containers: Vec<Container>) -> Pod {
    Pod {
        uid: uid.to_owned(),
        static_hash: None,
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        labels: [("app".to_owned(), "checkout".to_owned())].into(),
        owner: Some(Owner {
            kind: "Deployment".to_owned(),
            name: "checkout".to_owned(),
        }),
        node: Some("n1".to_owned()),
        containers,
        addresses: Vec::new(),
    }
}

/// Cgroup ids of a pod with its directory, its sandbox and one container.
const POD: u64 = 10;
const SANDBOX: u64 = 11;
const APP: u64 = 12;

fn pod_path(uid: &str) -> String {
    format!("/kubepods/burstable/pod{uid}")
}

fn container_path(uid: &str, start: &str) -> String {
    format!("{}/{}", pod_path(uid), cid(start))
}

/// An index with the cgroups of one pod, in the order in which a runtime makes them.
fn index_with_cgroups() -> Index {
    let index = Index::new("n1");
    index.cgroup_created(1, 0, "/", false);
    index.cgroup_created(2, 1, "/kubepods", false);
    index.cgroup_created(3, 2, "/kubepods/burstable", false);
    index.cgroup_created(POD, 3, &pod_path(UID), false);
    index.cgroup_created(SANDBOX, POD, &container_path(UID, "5a"), false);
    index.cgroup_created(APP, POD, &container_path(UID, "aa"), false);
    index
}

fn get(index: &Index, id: u64) -> Arc<Workload> {
    index.get(id).expect("the cgroup is known")
}

/// State, pod and container.
fn name(index: &Index, id: u64) -> (IdentityState, String, String) {
    let workload = get(index, id);
    (
        workload.state(),
        workload.pod.clone(),
        workload.container.clone(),
    )
}

fn is(state: IdentityState, pod: &str, container: &str) -> (IdentityState, String, String) {
    (state, pod.to_owned(), container.to_owned())
}

/// Whether this makes the epoch grow.
fn is_news(index: &Index, change: impl FnOnce()) -> bool {
    let before = index.epoch();
    change();
    index.epoch() > before
}

#[test]
fn sources() {
    for (text, source) in [
        ("kube", Source::Kube),
        ("none", Source::None),
        ("file:/etc/pods.json", Source::File("/etc/pods.json".into())),
        ("file:a:b", Source::File("a:b".into())),
    ] {
        assert_eq!(text.parse(), Ok(source.clone()));
        assert_eq!(source.to_string(), text);
    }
    for text in ["", "Kube", "kube:", "file", "file:", "none:x", "http://x"] {
        let error = Source::from_str(text).expect_err("refused").to_string();
        assert!(error.contains(&format!("`{text}`")), "{error}");
        assert!(error.contains("`file:PATH`"), "{error}");
    }
}

#[test]
fn a_pod_gets_its_names_as_they_become_known() {
    let index = index_with_cgroups();
    assert_eq!(name(&index, 1), is(IdentityState::Host, "", ""));
    assert_eq!(name(&index, 3), is(IdentityState::Host, "", ""));
    for id in [POD, SANDBOX, APP] {
        assert_eq!(name(&index, id), is(IdentityState::Pending, "", ""));
        assert_eq!(get(&index, id).pod_uid, UID);
    }
    assert_eq!(get(&index, APP).container_id, cid("aa"));
    assert_eq!(get(&index, APP).node, "n1");

    // As the API server tells it first: no container has an id.
    let early = pod(UID, "checkout-1", vec![container("app", None)]);
    assert!(is_news(&index, || index.pod_applied(early.clone())));
    for id in [POD, SANDBOX, APP] {
        assert_eq!(name(&index, id), is(IdentityState::Pod, "checkout-1", ""));
    }
    assert!(!is_news(&index, || index.pod_applied(early.clone())));

    // 200 ms later.
    let late = pod(UID, "checkout-1", vec![container("app", Some("aa"))]);
    let held = get(&index, APP);
    assert!(is_news(&index, || index.pod_applied(late.clone())));
    assert_eq!(name(&index, POD), is(IdentityState::Pod, "checkout-1", ""));
    assert_eq!(
        name(&index, SANDBOX),
        is(IdentityState::Sandbox, "checkout-1", "")
    );
    assert_eq!(
        *get(&index, APP),
        Workload {
            cgroup_id: APP,
            cgroup_path: container_path(UID, "aa"),
            state: IdentityState::Container.into(),
            node: "n1".to_owned(),
            namespace: "shop".to_owned(),
            pod: "checkout-1".to_owned(),
            pod_uid: UID.to_owned(),
            labels: late.labels.clone(),
            owner: late.owner.clone(),
            container: "app".to_owned(),
            container_id: cid("aa"),
            image: "app:1".to_owned(),
            container_type: ContainerType::Standard.into(),
        }
    );
    assert_eq!(held.container, "", "who holds an answer keeps it");
    assert!(!is_news(&index, || index.pod_applied(late)));
}

#[test]
fn a_pod_that_is_known_first_names_its_cgroups_at_once() {
    let index = Index::new("n1");
    index.pod_applied(pod(UID, "checkout-1", vec![container("app", Some("aa"))]));
    index.cgroup_created(APP, POD, &container_path(UID, "aa"), false);
    assert_eq!(
        name(&index, APP),
        is(IdentityState::Container, "checkout-1", "app")
    );
}

#[test]
fn an_address_names_the_pod_that_has_it() {
    let index = Index::new("n1");
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let (four, six) = (address("10.0.0.7"), address("fd00::7"));
    let at = |uid: &str, name: &str, addresses: &[IpAddr]| Pod {
        addresses: addresses.to_vec(),
        ..pod(uid, name, Vec::new())
    };
    let owner = |address| index.pod_of_address(address).map(|name| name.pod);
    let named = |name: &str| Some(name.to_owned());

    assert_eq!(owner(four), None);
    let old = at(UID, "old", &[four, six]);
    assert!(is_news(&index, || index.pod_applied(old.clone())));
    assert!(!is_news(&index, || index.pod_applied(old)));
    let name = index.pod_of_address(four).expect("it is known");
    assert_eq!(
        (name.node.as_str(), name.namespace.as_str()),
        ("n1", "shop")
    );
    assert_eq!((owner(four), owner(six)), (named("old"), named("old")));

    // Who is deleted answers for a while, and not once another has the address.
    index.pod_deleted(UID);
    assert_eq!(owner(four), named("old"));
    let new = at(OTHER_UID, "new", &[four]);
    assert!(is_news(&index, || index.pod_applied(new)));
    assert_eq!((owner(four), owner(six)), (named("new"), named("old")));
    index.expire(Instant::now() + GRACE + Duration::from_secs(1));
    assert_eq!((owner(four), owner(six)), (named("new"), None));

    // One that has ended gives its addresses back.
    assert!(is_news(&index, || index.pod_applied(at(
        OTHER_UID,
        "new",
        &[]
    ))));
    assert_eq!(owner(four), None);
}

#[test]
fn only_addresses_of_its_own_are_a_pods() {
    let addresses = |host_network: bool, phase: &str| {
        let told = serde_json::json!({
            "metadata": {"uid": UID, "name": "web"},
            "spec": {"containers": [], "hostNetwork": host_network},
            "status": {
                "phase": phase, "podIP": "10.0.0.7",
                "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}, {"ip": "nonsense"}]
            }
        });
        let pod = serde_json::from_value(told).expect("a pod");
        let pod = Pod::from_api(pod).expect("it has a uid");
        pod.addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let own = ["10.0.0.7", "fd00::7", "10.0.0.7"];
    assert_eq!(addresses(false, "Running"), own);
    assert_eq!(addresses(false, "Pending"), own);
    assert_eq!(addresses(true, "Running"), [""; 0]);
    assert_eq!(addresses(false, "Succeeded"), [""; 0]);
    assert_eq!(addresses(false, "Failed"), [""; 0]);
}

#[test]
fn init_and_ephemeral_containers() {
    let index = index_with_cgroups();
    let typed = |name, id, container_type| Container {
        container_type,
        ..container(name, id)
    };
    let setup = typed("setup", Some("bb"), ContainerType::Init);
    let debugger = |id| typed("debugger", id, ContainerType::Ephemeral);
    index.cgroup_created(13, POD, &container_path(UID, "bb"), false);

    index.pod_applied(pod(
        UID,
        "checkout-1",
        vec![container("app", None), setup.clone()],
    ));
    assert_eq!(
        name(&index, 13),
        is(IdentityState::Container, "checkout-1", "setup")
    );
    assert_eq!(get(&index, 13).container_type(), ContainerType::Init);
    // Not every container has an id: no guess.
    assert_eq!(
        name(&index, SANDBOX),
        is(IdentityState::Pod, "checkout-1", "")
    );

    index.pod_applied(pod(
        UID,
        "checkout-1",
        vec![container("app", Some("aa")), setup.clone()],
    ));
    assert_eq!(
        name(&index, SANDBOX),
        is(IdentityState::Sandbox, "checkout-1", "")
    );

    index.pod_applied(pod(
        UID,
        "checkout-1",
        vec![container("app", Some("aa")), setup.clone(), debugger(None)],
    ));
    index.cgroup_created(14, POD, &container_path(UID, "dd"), false);
    assert_eq!(name(&index, 14), is(IdentityState::Pod, "checkout-1", ""));
    assert_eq!(
        name(&index, SANDBOX),
        is(IdentityState::Sandbox, "checkout-1", ""),
        "what is known is not taken back"
    );
    index.pod_applied(pod(
        UID,
        "checkout-1",
        vec![container("app", Some("aa")), setup, debugger(Some("dd"))],
    ));
    assert_eq!(
        name(&index, 14),
        is(IdentityState::Container, "checkout-1", "debugger")
    );
    assert_eq!(get(&index, 14).container_type(), ContainerType::Ephemeral);
}

#[test]
fn a_container_that_restarts_is_no_sandbox() {
    let index = index_with_cgroups();
    index.pod_applied(pod(UID, "checkout-1", vec![container("app", Some("aa"))]));

    // The new one runs, the status still has the old id.
    index.cgroup_released(APP);
    index.cgroup_created(20, POD, &container_path(UID, "ab"), false);
    assert_eq!(name(&index, 20), is(IdentityState::Pod, "checkout-1", ""));

    index.pod_applied(pod(UID, "checkout-1", vec![container("app", Some("ab"))]));
    assert_eq!(
        name(&index, 20),
        is(IdentityState::Container, "checkout-1", "app")
    );
    assert_eq!(
        name(&index, APP),
        is(IdentityState::Container, "checkout-1", "app"),
        "late events of the old one have its name"
    );
    assert_eq!(
        name(&index, SANDBOX),
        is(IdentityState::Sandbox, "checkout-1", "")
    );

    // One that failed before the API server told of it is named by the next one's status.
    index.cgroup_created(21, POD, &container_path(UID, "ac"), false);
    let failed_once = Container {
        previous_id: Some(cid("ac")),
        ..container("app", Some("ad"))
    };
    index.pod_applied(pod(UID, "checkout-1", vec![failed_once]));
    assert_eq!(
        name(&index, 21),
        is(IdentityState::Container, "checkout-1", "app")
    );
}

#[test]
fn a_sandbox_is_recognized_in_any_order() {
    let index = Index::new("n1");
    index.pod_applied(pod(UID, "checkout-1", vec![container("app", Some("aa"))]));
    index.cgroup_created(SANDBOX, POD, &container_path(UID, "5a"), false);
    assert_eq!(
        name(&index, SANDBOX),
        is(IdentityState::Pod, "checkout-1", "")
    );
    index.cgroup_created(APP, POD, &container_path(UID, "aa"), false);
    assert_eq!(
        name(&index, SANDBOX),
        is(IdentityState::Sandbox, "checkout-1", "")
    );
}

#[test]
fn a_static_pod_has_the_uid_of_its_mirror() {
    let index = Index::new("n1");
    index.cgroup_created(POD, 3, &pod_path(HASH), false);
    index.cgroup_created(APP, POD, &container_path(HASH, "aa"), false);
    assert_eq!(name(&index, APP), is(IdentityState::Pending, "", ""));
    assert_eq!(get(&index, APP).pod_uid, HASH);

    let mirror = |uid| Pod {
        static_hash: Some(HASH.to_owned()),
        ..pod(uid, "etcd-n1", vec![container("etcd", Some("aa"))])
    };
    index.pod_applied(mirror(UID));
    assert_eq!(
        name(&index, APP),
        is(IdentityState::Container, "etcd-n1", "etcd")
    );
    assert_eq!(get(&index, POD).pod_uid, UID);

    // Somebody deletes the mirror; the kubelet makes another one, the pod runs on.
    index.pod_deleted(UID);
    index.pod_applied(mirror(OTHER_UID));
    assert_eq!(get(&index, APP).pod_uid, OTHER_UID);
    index.expire(Instant::now() + GRACE);
    assert_eq!(index.status().pods, 1);
    index.cgroup_created(13, POD, &container_path(HASH, "ab"), false);
    assert_eq!(get(&index, 13).pod_uid, OTHER_UID);
}

#[test]
fn what_runs_below_a_container_belongs_to_it() {
    let index = index_with_cgroups();
    let app = container_path(UID, "aa");
    index.cgroup_created(30, APP, &format!("{app}/container"), false);
    index.cgroup_created(31, 30, &format!("{app}/container/init.scope"), false);
    index.pod_applied(pod(UID, "checkout-1", vec![container("app", Some("aa"))]));
    index.cgroup_created(
        32,
        30,
        &format!("{app}/container/docker/{}", cid("ee")),
        false,
    );
    for id in [30, 31, 32] {
        assert_eq!(
            name(&index, id),
            is(IdentityState::Container, "checkout-1", "app")
        );
        assert_eq!(get(&index, id).container_id, cid("aa"));
        assert_eq!(get(&index, id).cgroup_id, id);
    }
}

#[test]
fn monitors_are_no_containers() {
    let index = Index::new("n1");
    index.pod_applied(pod(UID, "checkout-1", vec![container("app", Some("aa"))]));
    index.cgroup_created(
        40,
        POD,
        &format!("{}/crio-conmon-{}.scope", pod_path(UID), cid("aa")),
        false,
    );
    assert_eq!(name(&index, 40), is(IdentityState::Pod, "checkout-1", ""));
    index.cgroup_created(
        41,
        1,
        &format!("/machine.slice/libpod-conmon-{}.scope", cid("aa")),
        false,
    );
    assert_eq!(name(&index, 41), is(IdentityState::Host, "", ""));
    assert_eq!(get(&index, 41).container_id, "");
}

#[test]
fn a_container_outside_every_pod() {
    let index = Index::new("n1");
    let path = format!("/system.slice/docker-{}.scope", cid("aa"));
    index.cgroup_created(50, 1, &path, false);
    assert_eq!(name(&index, 50), is(IdentityState::Host, "", ""));
    assert_eq!(get(&index, 50).container_id, cid("aa"));
    assert_eq!(get(&index, 50).pod_uid, "");
    // A runtime may put a pod's container elsewhere than below the pod.
    index.pod_applied(pod(UID, "checkout-1", vec![container("app", Some("aa"))]));
    assert_eq!(
        name(&index, 50),
        is(IdentityState::Container, "checkout-1", "app")
    );
}

#[test]
fn a_cut_path_takes_its_parent_for_its_own() {
    let index = index_with_cgroups();
    index.pod_applied(pod(UID, "checkout-1", vec![container("app", Some("aa"))]));
    let deep = format!("{}/very/dee", container_path(UID, "aa"));
    index.cgroup_created(60, APP, &deep, true);
    index.cgroup_created(61, 60, "/kubepods/burstable/po", true);
    for id in [60, 61] {
        assert_eq!(
            name(&index, id),
            is(IdentityState::Container, "checkout-1", "app")
        );
    }
    index.cgroup_created(62, 99, "/kubepods/burstable/po", true);
    assert_eq!(name(&index, 62), is(IdentityState::Host, "", ""));
    // A walk knows the whole path.
    index.cgroup_created(62, 99, &container_path(UID, "aa"), false);
    assert_eq!(
        name(&index, 62),
        is(IdentityState::Container, "checkout-1", "app")
    );
    assert_eq!(index.cgroups(), 9);
}

#[test]
fn telling_of_a_cgroup_twice_is_no_news() {
    let index = index_with_cgroups();
    assert!(!is_news(&index, || index.cgroup_created(
        APP,
        POD,
        "/elsewhere",
        false
    )));
    assert_eq!(get(&index, APP).cgroup_path, container_path(UID, "aa"));
    assert!(is_news(&index, || index.cgroup_released(APP)));
    assert!(!is_news(&index, || index.cgroup_released(APP)));
    assert!(!is_news(&index, || index.cgroup_released(4_711)));
    // A walk that read the directory before it went away.
    assert!(!is_news(&index, || index.cgroup_created(
        APP,
        POD,
        &container_path(UID, "aa"),
        false
    )));
    assert_eq!(index.live().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_released_cgroup_answers_for_its_grace() {
    let index = index_with_cgroups();
    index.pod_applied(pod(UID, "checkout-1", vec![container("app", Some("aa"))]));
    let mut changes = index.changes();
    changes.mark_unchanged();
    index.cgroup_released(APP);
    assert!(changes.has_changed().expect("the index lives"));
    assert!(index.live().iter().all(|live| live.id != APP));

    tokio::time::advance(GRACE - Duration::from_millis(1)).await;
    assert!(!is_news(&index, || index.expire(Instant::now())));
    assert_eq!(
        name(&index, APP),
        is(IdentityState::Container, "checkout-1", "app")
    );

    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(is_news(&index, || index.expire(Instant::now())));
    assert_eq!(index.get(APP), None);
    assert_eq!(index.cgroups(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_answers_for_its_grace() {
    let index = index_with_cgroups();
    let checkout = pod(UID, "checkout-1", vec![container("app", Some("aa"))]);
    index.pod_applied(checkout.clone());
    assert!(!is_news(&index, || index.pod_deleted(UID)));
    assert_eq!(index.status().pods, 0);

    tokio::time::advance(GRACE - Duration::from_millis(1)).await;
    index.expire(Instant::now());
    index.cgroup_created(70, POD, &container_path(UID, "ab"), false);
    assert_eq!(name(&index, 70), is(IdentityState::Pod, "checkout-1", ""));

    tokio::time::advance(Duration::from_millis(1)).await;
    index.expire(Instant::now());
    assert_eq!(
        name(&index, APP),
        is(IdentityState::Container, "checkout-1", "app"),
        "a cgroup that outlives its pod keeps its name"
    );
    index.cgroup_created(71, POD, &container_path(UID, "ac"), false);
    assert_eq!(name(&index, 71), is(IdentityState::Pending, "", ""));

    // It was there all the time.
    index.pod_applied(checkout);
    assert_eq!(name(&index, 71), is(IdentityState::Pod, "checkout-1", ""));
    assert_eq!(index.status().pods, 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_back_stays() {
    let index = Index::new("n1");
    let checkout = pod(UID, "checkout-1", vec![]);
    index.pod_applied(checkout.clone());
    index.pod_deleted(UID);
    index.pod_applied(checkout);
    index.expire(Instant::now() + GRACE);
    assert_eq!(index.status().pods, 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_list_deletes_what_vanished() {
    let index = index_with_cgroups();
    assert!(!index.status().synced);
    index.pods_replaced(vec![
        pod(UID, "checkout-1", vec![]),
        pod(OTHER_UID, "cart-1", vec![]),
    ]);
    assert!(index.status().synced);
    assert_eq!(index.status().pods, 2);

    index.pods_replaced(vec![pod(OTHER_UID, "cart-1", vec![])]);
    assert_eq!(index.status().pods, 1);
    index.expire(Instant::now() + GRACE);
    index.cgroup_created(80, 3, &pod_path(OTHER_UID), false);
    assert_eq!(name(&index, 80), is(IdentityState::Pod, "cart-1", ""));
    index.cgroup_created(81, POD, &container_path(UID, "ab"), false);
    assert_eq!(get(&index, 81).state(), IdentityState::Pending);
}

#[test]
fn live_lists_parents_before_children() {
    let index = Index::new("n1");
    // A child that the tracker tells of before a walk finds the directories above it.
    index.cgroup_created(5, 40, "/a/b/c", false);
    index.cgroup_created(40, 30, "/a/b", false);
    index.cgroup_created(1, 0, "/", false);
    index.cgroup_created(30, 1, "/a", false);
    index.cgroup_created(2, 1, "/z", false);
    let live = index.live();
    let ids: Vec<_> = live.iter().map(|live| (live.id, live.parent_id)).collect();
    assert_eq!(ids, [(1, 0), (2, 1), (30, 1), (40, 30), (5, 40)]);
    assert_eq!(live[4].workload.cgroup_path, "/a/b/c");
}

#[test]
fn a_cgroup_that_claims_to_be_its_own_parent_hangs_nobody() {
    let index = Index::new("n1");
    index.cgroup_created(7, 7, "/x", false);
    assert_eq!(index.live().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_index_is_bounded() {
    const CGROUPS: u64 = 65_536;
    const PODS: u64 = 8_192;
    let index = Index::new("n1");
    for id in 1..=CGROUPS {
        index.cgroup_created(id, 0, "/x", false);
    }
    assert_eq!(index.refused(), 0);
    index.cgroup_created(CGROUPS + 1, 0, "/x", false);
    assert_eq!(index.refused(), 1);
    assert_eq!(index.get(CGROUPS + 1), None);
    assert!(index.get(CGROUPS).is_some());

    index.cgroup_released(1);
    index.expire(Instant::now() + GRACE);
    index.cgroup_created(CGROUPS + 1, 0, "/x", false);
    assert_eq!(index.refused(), 1);
    assert!(index.get(CGROUPS + 1).is_some());

    let nth = |n: u64| pod(&format!("uid-{n}"), "p", vec![]);
    for n in 1..=PODS + 2 {
        index.pod_applied(nth(n));
    }
    assert_eq!(index.refused(), 3);
    assert_eq!(u64::from(index.status().pods), PODS);
    // One that is known may still change.
    index.pod_applied(Pod {
        name: "q".to_owned(),
        ..nth(PODS)
    });
    assert_eq!(index.refused(), 3);
}

#[tokio::test]
async fn no_source_is_synced_at_once() {
    let index = Index::new("n1");
    let source = tokio::spawn(run(Source::None, index.clone(), "n1".to_owned()));
    let synced = async {
        while !index.status().synced {
            tokio::task::yield_now().await;
        }
    };
    let synced = tokio::time::timeout(Duration::from_secs(30), synced).await;
    synced.expect("it is synced");
    let expected = v1::PodSource {
        name: "none".to_owned(),
        synced: true,
        pods: 0,
        error: String::new(),
    };
    assert_eq!(index.status(), expected);
    assert!(!source.is_finished());
}

/// A tree of plain directories: their inode numbers serve as well.
struct Tree(TempDir);

impl Tree {
    fn new(paths: &[&str]) -> Self {
        let tree = Self(TempDir::new().expect("a temporary directory"));
        for path in paths {
            tree.add(path);
        }
        tree
    }

    fn add(&self, path: &str) -> u64 {
        fs::create_dir_all(self.0.path().join(path)).expect("made");
        self.id(path)
    }

    fn remove(&self, path: &str) {
        fs::remove_dir_all(self.0.path().join(path)).expect("removed");
    }

    fn id(&self, path: &str) -> u64 {
        let path = self.0.path().join(path);
        fs::metadata(path).expect("is there").ino()
    }
}

#[test]
fn a_walk_finds_what_exists() {
    let app = &container_path(UID, "aa")[1..];
    let tree = Tree::new(&["system.slice/sshd.service", app]);
    fs::write(tree.0.path().join("cgroup.procs"), "1\n").expect("written");
    let index = Index::new("n1");
    index.pod_applied(pod(UID, "checkout-1", vec![container("app", Some("aa"))]));

    assert_eq!(index.walk(tree.0.path()).expect("walked"), 7);
    let live = index.live();
    let paths: Vec<_> = live
        .iter()
        .map(|live| live.workload.cgroup_path.as_str())
        .collect();
    assert_eq!(paths[0], "/");
    assert_eq!(live[0].id, tree.id(""));
    assert_eq!(live[0].parent_id, 0);
    for live in &live[1..] {
        let (above, _) = live.workload.cgroup_path.rsplit_once('/').expect("a path");
        assert_eq!(live.parent_id, tree.id(above.trim_start_matches('/')));
    }
    assert_eq!(
        name(&index, tree.id(app)),
        is(IdentityState::Container, "checkout-1", "app")
    );

    // The same again is no news.
    assert!(!is_news(&index, || {
        assert_eq!(index.walk(tree.0.path()).expect("walked"), 0);
    }));
}

#[test]
fn a_walk_mends_what_lost_records_left() {
    let tree = Tree::new(&["system.slice/old.service", "system.slice/stays.service"]);
    let index = Index::new("n1");
    index.walk(tree.0.path()).expect("walked");
    let old = tree.id("system.slice/old.service");
    let new = tree.add("system.slice/new.service");
    // The tracker told of this one, with a path that was too long for it.
    let long = tree.add(&pod_path(UID)[1..]);
    // Last: other than a cgroup's, its number may be given again.
    tree.remove("system.slice/old.service");
    index.cgroup_created(long, 0, "/kubepods/bur", true);
    assert_eq!(get(&index, long).state(), IdentityState::Host);

    assert_eq!(
        index.walk(tree.0.path()).expect("walked"),
        3,
        "the new one, and two above the long one"
    );
    let live: Vec<_> = index.live().iter().map(|live| live.id).collect();
    assert_eq!(live.len(), 7);
    assert!(live.contains(&new));
    assert!(!live.contains(&old));
    assert!(index.get(old).is_some(), "in its grace period");
    assert_eq!(get(&index, long).pod_uid, UID);
    assert_eq!(get(&index, long).cgroup_path, pod_path(UID));
}

#[test]
fn a_walk_of_nothing_says_so_and_releases_nothing() {
    let tree = Tree::new(&["a"]);
    let index = Index::new("n1");
    index.walk(tree.0.path()).expect("walked");
    let nowhere = tree.0.path().join("nowhere");
    let error = index.walk(&nowhere).expect_err("refused");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(
        error.to_string().contains(&nowhere.display().to_string()),
        "{error}"
    );
    assert_eq!(index.live().len(), 2);
}
