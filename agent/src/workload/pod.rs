//! What the agent keeps of a pod: a small part of what the API server tells.

use std::collections::HashMap;
use std::net::IpAddr;

use dinle_proto::v1::{ContainerType, Owner};
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

/// Annotations of a static pod with the hash of its configuration, which the kubelet uses as its uid on the node.
/// The first is that of the mirror pod in the API server.
const STATIC_HASH_ANNOTATIONS: [&str; 2] =
    ["kubernetes.io/config.mirror", "kubernetes.io/config.hash"];

/// Label that a Deployment puts on its ReplicaSets and their pods: the last part of the ReplicaSet's name.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// A pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    /// Uid as the API server knows it.
    pub uid: String,
    /// For a static pod: the hash that its cgroups carry in the uid's place.
    pub static_hash: Option<String>,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: HashMap<String, String>,
    /// Its controller, seen through ReplicaSets.
    pub owner: Option<Owner>,
    /// Node that it is bound to.
    pub node: Option<String>,
    /// Containers of all three lists of its spec.
    pub containers: Vec<Container>,
    /// Addresses that are its alone: none where it uses the node's, and none once it has ended, when others may have them.
    pub addresses: Vec<IpAddr>,
}

/// Addresses of a pod: one of each family, and room for what may come.
const MAX_ADDRESSES: usize = 4;

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    /// Name in the pod's spec.
    pub name: String,
    /// The runtime's id, without the `runtime://` in front; `None` until the pod's status tells it.
    pub id: Option<String>,
    /// The id before the last restart.
    pub previous_id: Option<String>,
    /// Image as the status names it; before it does, as the spec names it.
    pub image: String,
    /// The list of the spec that names it.
    pub container_type: ContainerType,
}

impl Pod {
    /// Takes what is needed. `None` for an object without a uid, which cannot come from an API server.
    pub fn from_api(pod: k8s::Pod) -> Option<Self> {
        let metadata = pod.metadata;
        let annotations = metadata.annotations.unwrap_or_default();
        let labels: HashMap<_, _> = metadata.labels.unwrap_or_default().into_iter().collect();
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let addresses = addresses(&spec, &status);
        let mut containers = Vec::new();
        containers.extend(join(
            ContainerType::Standard,
            spec.containers.into_iter().map(|c| (c.name, c.image)),
            status.container_statuses,
        ));
        containers.extend(join(
            ContainerType::Init,
            spec.init_containers
                .unwrap_or_default()
                .into_iter()
                .map(|c| (c.name, c.image)),
            status.init_container_statuses,
        ));
        containers.extend(join(
            ContainerType::Ephemeral,
            spec.ephemeral_containers
                .unwrap_or_default()
                .into_iter()
                .map(|c| (c.name, c.image)),
            status.ephemeral_container_statuses,
        ));
        Some(Self {
            uid: metadata.uid.filter(|uid| !uid.is_empty())?,
            static_hash: STATIC_HASH_ANNOTATIONS
                .iter()
                .find_map(|name| annotations.get(*name))
                .cloned(),
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            owner: owner(metadata.owner_references.unwrap_or_default(), &labels),
            labels,
            node: spec.node_name.filter(|node| !node.is_empty()),
            containers,
            addresses,
        })
    }

    /// The container that has or had this id.
    pub(super) fn container(&self, id: &str) -> Option<&Container> {
        self.containers.iter().find(|container| {
            [&container.id, &container.previous_id]
                .into_iter()
                .flatten()
                .any(|known| known == id)
        })
    }

    /// The status tells an id of each container, so that another id is none of them.
    pub(super) fn is_complete(&self) -> bool {
        !self.containers.is_empty() && self.containers.iter().all(|c| c.id.is_some())
    }

    /// What a cgroup's path may call this pod instead of by its uid.
    pub(super) fn aliases(&self) -> impl Iterator<Item = &String> {
        self.static_hash
            .iter()
            .chain(self.containers.iter().flat_map(|c| &c.id))
            .chain(self.containers.iter().flat_map(|c| &c.previous_id))
    }
}

fn addresses(spec: &k8s::PodSpec, status: &k8s::PodStatus) -> Vec<IpAddr> {
    let ended = ["Succeeded", "Failed"].map(Some);
    if spec.host_network == Some(true) || ended.contains(&status.phase.as_deref()) {
        return Vec::new();
    }
    let listed = status.pod_ips.iter().flatten().map(|one| one.ip.as_str());
    listed
        .chain(status.pod_ip.as_deref())
        .filter_map(|address| address.parse().ok())
        .take(MAX_ADDRESSES)
        .collect()
}

/// The containers of one list of the spec, with what the status says of them.
fn join(
    container_type: ContainerType,
    spec: impl Iterator<Item = (String, Option<String>)>,
    statuses: Option<Vec<k8s::ContainerStatus>>,
) -> impl Iterator<Item = Container> {
    let mut statuses: HashMap<_, _> = statuses
        .unwrap_or_default()
        .into_iter()
        .map(|status| (status.name.clone(), status))
        .collect();
    spec.map(move |(name, image)| {
        let status = statuses.remove(&name);
        let mut container = Container {
            name,
            image: image.unwrap_or_default(),
            container_type,
            ..Container::default()
        };
        if let Some(status) = status {
            container.id = bare_id(status.container_id);
            container.previous_id = bare_id(
                status
                    .last_state
                    .and_then(|state| state.terminated)
                    .and_then(|terminated| terminated.container_id),
            );
            if !status.image.is_empty() {
                container.image = status.image;
            }
        }
        container
    })
}

/// `containerd://4c01…` without its runtime. The status has an empty string before the container is made.
fn bare_id(id: Option<String>) -> Option<String> {
    let id = id?;
    let bare = id.rsplit_once("://").map_or(id.as_str(), |(_, bare)| bare);
    (!bare.is_empty()).then(|| bare.to_owned())
}

fn owner(references: Vec<OwnerReference>, labels: &HashMap<String, String>) -> Option<Owner> {
    let controller = references
        .iter()
        .position(|reference| reference.controller == Some(true))
        .unwrap_or(0);
    let reference = references.into_iter().nth(controller)?;
    let deployment = labels
        .get(TEMPLATE_HASH_LABEL)
        .filter(|hash| reference.kind == "ReplicaSet" && !hash.is_empty())
        .and_then(|hash| {
            reference
                .name
                .strip_suffix(hash.as_str())?
                .strip_suffix('-')
        });
    Some(match deployment {
        Some(name) => Owner {
            kind: "Deployment".to_owned(),
            name: name.to_owned(),
        },
        None => Owner {
            kind: reference.kind,
            name: reference.name,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Option<Pod> {
        Pod::from_api(serde_json::from_value(value).expect("a pod"))
    }

    fn owner_of(references: Value, labels: Value) -> Option<(String, String)> {
        let metadata = json!({"uid": "u", "ownerReferences": references, "labels": labels});
        let owner = pod(json!({ "metadata": metadata }))
            .expect("has a uid")
            .owner?;
        Some((owner.kind, owner.name))
    }

    #[test]
    fn owners() {
        let reference = |kind: &str, name: &str, controller: bool| json!({"apiVersion": "x/v1", "kind": kind, "name": name, "uid": "o", "controller": controller});
        let hash = json!({"pod-template-hash": "5d4f8c7b9"});
        let owned = |kind: &str, name: &str| Some((kind.to_owned(), name.to_owned()));
        for (references, labels, expected) in [
            (
                json!([reference("ReplicaSet", "checkout-5d4f8c7b9", true)]),
                hash.clone(),
                owned("Deployment", "checkout"),
            ),
            // A ReplicaSet that no Deployment made.
            (
                json!([reference("ReplicaSet", "checkout", true)]),
                json!({}),
                owned("ReplicaSet", "checkout"),
            ),
            (
                json!([reference("ReplicaSet", "checkout5d4f8c7b9", true)]),
                hash.clone(),
                owned("ReplicaSet", "checkout5d4f8c7b9"),
            ),
            (
                json!([reference("Job", "backup-28391", true)]),
                hash,
                owned("Job", "backup-28391"),
            ),
            (
                json!([reference("StatefulSet", "db", true)]),
                json!({}),
                owned("StatefulSet", "db"),
            ),
            (
                json!([reference("Node", "n1", true)]),
                json!({}),
                owned("Node", "n1"),
            ),
            // The controller, wherever it stands.
            (
                json!([
                    reference("Game", "g", false),
                    reference("DaemonSet", "agent", true)
                ]),
                json!({}),
                owned("DaemonSet", "agent"),
            ),
            (
                json!([reference("Game", "g", false)]),
                json!({}),
                owned("Game", "g"),
            ),
            (json!([]), json!({}), None),
        ] {
            assert_eq!(
                owner_of(references.clone(), labels),
                expected,
                "{references}"
            );
        }
    }

    #[test]
    fn containers_of_all_three_lists() {
        let pod = pod(json!({
            "metadata": {"uid": "u"},
            "spec": {
                "containers": [{"name": "app", "image": "app:1"}, {"name": "side", "image": "side:1"}],
                "initContainers": [{"name": "setup", "image": "setup:1"}],
                "ephemeralContainers": [{"name": "debugger", "image": "busybox"}]
            },
            "status": {
                "containerStatuses": [
                    {"name": "side", "image": "", "imageID": "", "ready": false, "restartCount": 0, "containerID": ""},
                    {"name": "app", "image": "docker.io/library/app:1", "imageID": "", "ready": true, "restartCount": 1,
                     "containerID": "containerd://aa", "lastState": {"terminated": {"exitCode": 1, "containerID": "containerd://a0"}}}
                ],
                "initContainerStatuses": [
                    {"name": "setup", "image": "setup:1", "imageID": "", "ready": true, "restartCount": 0, "containerID": "cri-o://bb"}
                ],
                "ephemeralContainerStatuses": [
                    {"name": "debugger", "image": "busybox", "imageID": "", "ready": true, "restartCount": 0, "containerID": "docker://cc"}
                ]
            }
        }))
        .expect("has a uid");
        let container = |name: &str, id: Option<&str>, image: &str, container_type| Container {
            name: name.to_owned(),
            id: id.map(str::to_owned),
            previous_id: (name == "app").then(|| "a0".to_owned()),
            image: image.to_owned(),
            container_type,
        };
        assert_eq!(
            pod.containers,
            [
                container(
                    "app",
                    Some("aa"),
                    "docker.io/library/app:1",
                    ContainerType::Standard
                ),
                container("side", None, "side:1", ContainerType::Standard),
                container("setup", Some("bb"), "setup:1", ContainerType::Init),
                container("debugger", Some("cc"), "busybox", ContainerType::Ephemeral),
            ]
        );
        assert!(!pod.is_complete(), "side has no id yet");
    }

    #[test]
    fn a_static_pod_has_a_hash() {
        for annotation in ["kubernetes.io/config.mirror", "kubernetes.io/config.hash"] {
            let pod = pod(json!({"metadata": {"uid": "u", "annotations": {annotation: "be84"}}}))
                .expect("has a uid");
            assert_eq!(pod.static_hash.as_deref(), Some("be84"));
        }
    }

    #[test]
    fn an_object_without_a_uid_is_refused() {
        assert_eq!(pod(json!({"metadata": {"name": "x"}})), None);
        assert_eq!(pod(json!({"metadata": {"name": "x", "uid": ""}})), None);
    }
}
