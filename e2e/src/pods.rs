//! Pods as the API server tells of them, without an API server.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A number that no other test of this machine uses at the same time: the process's id and one of its own.
pub(crate) fn unique() -> (u32, u32) {
    (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A container's id: 64 hex digits, each time others.
pub fn container_id() -> String {
    let (process, number) = unique();
    format!("c0{process:030x}{number:032x}")
}

/// A pod with one namespace, `shop`, unless told otherwise.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Names of its containers, and their ids where they are known.
    pub containers: Vec<(String, Option<String>)>,
    /// Its addresses.
    pub addresses: Vec<String>,
}

impl Pod {
    /// A pod without labels and containers.
    pub fn new(name: &str) -> Self {
        let (process, number) = unique();
        Self {
            namespace: "shop".into(),
            name: name.into(),
            uid: format!("{process:08x}-0000-4000-8000-{number:012x}"),
            labels: Vec::new(),
            containers: Vec::new(),
            addresses: Vec::new(),
        }
    }

    /// In that namespace.
    pub fn namespace(self, namespace: &str) -> Self {
        Self {
            namespace: namespace.into(),
            ..self
        }
    }

    /// With one more label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// With one more container.
    pub fn container(mut self, name: &str, id: &str) -> Self {
        self.containers.push((name.into(), Some(id.into())));
        self
    }

    /// With one more container, whose id is not known yet.
    pub fn starting(mut self, name: &str) -> Self {
        self.containers.push((name.into(), None));
        self
    }

    /// With one more address.
    pub fn address(mut self, address: &str) -> Self {
        self.addresses.push(address.into());
        self
    }

    fn json(&self) -> Value {
        let Self {
            namespace,
            name,
            uid,
            labels,
            containers,
            addresses,
        } = self;
        let labels: serde_json::Map<_, _> = labels
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        let spec: Vec<Value> = containers
            .iter()
            .map(|(name, _)| json!({"name": name, "image": "example.org/app:1"}))
            .collect();
        let statuses: Vec<Value> = containers
            .iter()
            .filter_map(|(name, id)| {
                Some(json!({
                    "name": name, "containerID": format!("containerd://{}", id.as_ref()?),
                    "image": "example.org/app:1", "imageID": "", "ready": true, "restartCount": 0
                }))
            })
            .collect();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "uid": uid, "labels": labels},
            "spec": {"containers": spec},
            "status": {
                "containerStatuses": statuses,
                "podIPs": addresses.iter().map(|address| json!({"ip": address})).collect::<Vec<_>>()
            }
        })
    }
}

/// What `kubectl get pods -o json` prints.
pub fn list(pods: &[&Pod]) -> String {
    let items: Vec<Value> = pods.iter().map(|pod| pod.json()).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}
