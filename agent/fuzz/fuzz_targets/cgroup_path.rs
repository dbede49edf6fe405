//! Paths of cgroups, as the tracker tells them or a walk finds them: which pod and container is that?
#![no_main]

use dinle::workload::{Container, Index, Pod};
use dinle_fuzz::NODE;
use dinle_proto::v1::{IdentityState, Workload};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|path: &str| {
    let index = Index::new(NODE);
    let place = described(&index, 10, 1, path);
    well_formed(path, &place);
    inherited(&index, path, &place);
    if !place.pod_uid.is_empty() {
        named(&index, path, &place);
    }
});

fn described(index: &Index, id: u64, parent: u64, path: &str) -> Workload {
    index.cgroup_created(id, parent, path, false);
    let workload = index.get(id).expect("it was told of");
    assert_eq!(workload.cgroup_path, path);
    assert_eq!((workload.cgroup_id, &*workload.node), (id, NODE));
    (*workload).clone()
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whoever is named has a name that is one, and the path says it.
fn well_formed(path: &str, place: &Workload) {
    let Workload {
        pod_uid,
        container_id,
        ..
    } = place;
    if !container_id.is_empty() {
        assert!(
            container_id.len() == 64 && is_hex(container_id),
            "{container_id:?}"
        );
        assert!(path.contains(&**container_id));
    }
    match (place.state(), pod_uid.len()) {
        (IdentityState::Host, 0) => {}
        (IdentityState::Pending, 32) => {
            assert!(is_hex(pod_uid), "{pod_uid:?}");
            assert!(path.contains(&**pod_uid));
        }
        (IdentityState::Pending, 36) => {
            let parts: Vec<&str> = pod_uid.split('-').collect();
            assert_eq!(
                parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
                [8, 4, 4, 4, 12]
            );
            assert!(parts.iter().all(|part| is_hex(part)), "{pod_uid:?}");
            assert!(path.replace('_', "-").contains(&**pod_uid));
        }
        (state, _) => panic!("{pod_uid:?} in state {state:?}"),
    }
}

/// What is below and has no name of its own belongs to the same; and so does what has a path that was cut.
fn inherited(index: &Index, path: &str, place: &Workload) {
    let who = |workload: &Workload| {
        (
            workload.pod_uid.clone(),
            workload.container_id.clone(),
            workload.state,
        )
    };
    let below = described(index, 11, 10, &format!("{path}/init.scope"));
    assert_eq!(who(&below), who(place));
    // Without its parent, too: a walk may not know that any more.
    let alone = described(&Index::new(NODE), 11, 10, &format!("{path}/init.scope"));
    assert_eq!(who(&alone), who(place));
    index.cgroup_created(12, 10, path, true);
    assert_eq!(who(&index.get(12).expect("it was told of")), who(place));
}

/// Once the pod is known, so is its cgroup, and those below it.
fn named(index: &Index, path: &str, place: &Workload) {
    let container = Container {
        name: "server".to_owned(),
        id: Some(place.container_id.clone()),
        ..Container::default()
    };
    index.pod_applied(Pod {
        uid: place.pod_uid.clone(),
        name: "checkout".to_owned(),
        containers: vec![container],
        ..Pod::default()
    });
    for id in [10, 11, 12] {
        let workload = index.get(id).expect("it was told of");
        assert_eq!(
            (&*workload.pod, &workload.pod_uid),
            ("checkout", &place.pod_uid),
            "{path:?}"
        );
        let (state, name) = match place.container_id.is_empty() {
            true => (IdentityState::Pod, ""),
            false => (IdentityState::Container, "server"),
        };
        assert_eq!(
            (workload.state(), &*workload.container),
            (state, name),
            "{path:?}"
        );
    }
}
