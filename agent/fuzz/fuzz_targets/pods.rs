//! Pods as JSON: what `kubectl get pods -o json` prints, or somebody writes.
#![no_main]

use std::collections::{BTreeMap, HashSet};

use dinle::workload::{Container, Index, Pod, parse_file};
use dinle_fuzz::{NODE, assert_is_a_sentence};
use dinle_proto::v1::IdentityState;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// The table forgets nobody below this number; libFuzzer does not write so many.
const PODS_MAX: usize = 8192;

fuzz_target!(|content: &[u8]| {
    let pods = match parse_file(content, NODE) {
        Ok(pods) => pods,
        Err(error) => {
            let told = error.to_string();
            assert_is_a_sentence(&told);
            assert!(told.contains("kubectl get pods -A -o json"), "{told}");
            return;
        }
    };
    for pod in &pods {
        assert!(!pod.uid.is_empty());
        assert!(pod.node.as_deref().is_none_or(|node| node == NODE));
        assert!(pod.addresses.len() <= 4);
        let ids = pod.containers.iter().flat_map(
            |Container {
                 id, previous_id, ..
             }| [id, previous_id],
        );
        assert!(
            ids.flatten()
                .all(|id| !id.is_empty() && !id.contains("://"))
        );
    }
    listed(content, &pods);
    if pods.len() < PODS_MAX {
        indexed(&pods);
    }
});

/// A pod alone and in a list is the same one.
fn listed(content: &[u8], pods: &[Pod]) {
    let document: Value = serde_json::from_slice(content).expect("it was read");
    if document["kind"] != "Pod" {
        return;
    }
    let list = json!({"kind": "List", "items": [document]}).to_string();
    assert_eq!(
        parse_file(list.as_bytes(), NODE).expect("a list of it"),
        pods
    );
}

/// The index answers with what it was told, and telling it again is no news.
fn indexed(pods: &[Pod]) {
    let index = Index::new(NODE);
    index.pods_replaced(pods.to_vec());
    let uids: HashSet<&str> = pods.iter().map(|pod| &*pod.uid).collect();
    assert_eq!(index.status().pods as usize, uids.len());
    assert!(index.status().synced);

    // Cgroups as runtimes make them, where the uid is one.
    let cgroups: Vec<(u64, String)> = (10..)
        .zip(uids.iter().map(|uid| format!("/kubepods/pod{uid}")))
        .collect();
    for (id, path) in &cgroups {
        index.cgroup_created(*id, 1, path, false);
    }
    // The last of a uid counts.
    let last: BTreeMap<&str, &Pod> = pods.iter().map(|pod| (&*pod.uid, pod)).collect();
    for (id, path) in &cgroups {
        let workload = index.get(*id).expect("it was told of");
        assert_eq!(workload.cgroup_path, *path);
        match workload.state() {
            // A uid that is none is a directory's name.
            IdentityState::Host | IdentityState::Pending => assert_eq!(workload.pod, ""),
            IdentityState::Pod => {
                let pod = last.get(&*workload.pod_uid).expect("one of them");
                assert_eq!(
                    (&workload.pod, &workload.namespace),
                    (&pod.name, &pod.namespace)
                );
                assert_eq!(
                    (&workload.labels, &workload.owner),
                    (&pod.labels, &pod.owner)
                );
            }
            // A name like a container's id may be in place of the uid.
            IdentityState::Container | IdentityState::Sandbox => {}
            state => panic!("{state:?}"),
        }
    }
    if uids.len() == pods.len() {
        let epoch = index.epoch();
        index.pods_replaced(pods.to_vec());
        assert_eq!(index.epoch(), epoch, "the same pods are news");
    }
    index.pods_replaced(Vec::new());
    assert_eq!(index.status().pods, 0);
}
