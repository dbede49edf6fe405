//! Cgroups as a kubelet makes them, of pods that do not exist.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::json;

/// The pod that the workload runs in: its name.
pub(crate) const WATCHED: &str = "bench-watched";
/// The pod that nothing runs in.
pub(crate) const OTHER: &str = "bench-other";

/// Names and uids of the pods.
const PODS: [(&str, &str); 2] = [
    (WATCHED, "5eac37a6-0f0b-4c9d-8a55-6f3f1d6b7c01"),
    (OTHER, "5eac37a6-0f0b-4c9d-8a55-6f3f1d6b7c02"),
];

/// Digits of a container's id.
const ID_LEN: usize = 64;

/// The tree. It is removed when this is dropped.
pub(crate) struct Cgroups {
    top: PathBuf,
    /// Directories in the order in which they were made.
    made: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes the tree.
    pub(crate) fn make() -> anyhow::Result<Self> {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("cgroup.controllers").exists())
            .context("there is no cgroup2 tree at /sys/fs/cgroup or /sys/fs/cgroup/unified")?;
        let mut cgroups = Self {
            top: root.join(format!("dinle-bench-{}", std::process::id())),
            made: Vec::new(),
        };
        cgroups.add(cgroups.top.clone())?;
        cgroups.add(cgroups.top.join("kubepods"))?;
        for (name, _) in PODS {
            let container = cgroups.of(name);
            cgroups.add(container.parent().unwrap_or(&container).to_owned())?;
            cgroups.add(container)?;
        }
        Ok(cgroups)
    }

    fn add(&mut self, directory: PathBuf) -> anyhow::Result<()> {
        fs::create_dir(&directory)
            .with_context(|| format!("{} cannot be made; run this as root", directory.display()))?;
        self.made.push(directory);
        Ok(())
    }

    /// The cgroup of a pod's container.
    pub(crate) fn of(&self, pod: &str) -> PathBuf {
        let uid = PODS
            .iter()
            .find(|(name, _)| *name == pod)
            .map_or("", |pod| pod.1);
        self.top
            .join("kubepods")
            .join(format!("pod{uid}"))
            .join(container_id(uid))
    }

    /// What `kubectl get pods -o json` would say.
    pub(crate) fn pods() -> String {
        let pods = PODS.map(|(name, uid)| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "namespace": "bench", "uid": uid },
                "spec": { "nodeName": "bench", "containers": [{ "name": "app", "image": "registry/app:1" }] },
                "status": { "containerStatuses": [{
                    "name": "app", "image": "registry/app:1", "imageID": "", "ready": true, "restartCount": 0,
                    "containerID": format!("containerd://{}", container_id(uid)),
                }] },
            })
        });
        json!({ "apiVersion": "v1", "kind": "List", "items": pods }).to_string()
    }
}

fn container_id(uid: &str) -> String {
    uid.replace('-', "").chars().cycle().take(ID_LEN).collect()
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // A process that was killed stays in its cgroup until it is gone.
        for directory in self.made.iter().rev() {
            for _ in 0..1000 {
                match fs::remove_dir(directory) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        sleep(Duration::from_millis(1));
                    }
                    Ok(()) | Err(_) => break,
                }
            }
        }
    }
}
