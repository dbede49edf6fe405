//! Cgroups and pods, joined: what [`Index`](super::Index) guards with its lock. No I/O, and no clock of its own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use dinle_proto::v1::{IdentityState, PodSource, Workload, WorkloadName};
use tokio::time::Instant;

use super::cgroups::{self, Place};
use super::pod::Pod;
use super::{GRACE, Live};

/// Cgroups that are known at a time, those in their grace period included. A node with 250 pods has about 1,500.
pub const MAX_CGROUPS: usize = 65_536;

/// Pods that are known at a time, those in their grace period included. The largest nodes run about 500.
pub const MAX_PODS: usize = 8_192;

/// Cgroups and pods. Methods that return `bool` tell whether an answer may have changed.
#[derive(Default)]
pub(super) struct Table {
    node: String,
    cgroups: HashMap<u64, Cgroup>,
    /// Cgroups by [`Place::key`].
    by_key: HashMap<String, BTreeSet<u64>>,
    /// Pods by uid.
    pods: HashMap<String, Known>,
    /// Uids of pods by [`Pod::aliases`].
    aliases: HashMap<String, String>,
    /// Uids of pods by [`Pod::addresses`].
    addresses: HashMap<IpAddr, String>,
    /// Cgroups and pods for which there was no room.
    pub(super) refused: u64,
    /// Where pods come from; `pods` is counted when it is asked for.
    pub(super) source: PodSource,
}

/// A cgroup.
struct Cgroup {
    parent_id: u64,
    place: Place,
    /// The path was cut, so that `place` may be that of a directory above.
    path_cut: bool,
    released: Option<Instant>,
    workload: Arc<Workload>,
}

/// A pod that the source has told of.
struct Known {
    pod: Pod,
    deleted: Option<Instant>,
}

impl Table {
    pub(super) fn new(node: String) -> Self {
        Self {
            node,
            ..Self::default()
        }
    }

    pub(super) fn get(&self, id: u64) -> Option<&Arc<Workload>> {
        self.cgroups.get(&id).map(|cgroup| &cgroup.workload)
    }

    pub(super) fn pod_of_address(&self, address: IpAddr) -> Option<WorkloadName> {
        let Known { pod, .. } = self.pods.get(self.addresses.get(&address)?)?;
        Some(WorkloadName {
            node: self.node.clone(),
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: String::new(),
            state: IdentityState::Pod.into(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.cgroups.len()
    }

    pub(super) fn add(&mut self, id: u64, parent_id: u64, path: &str, path_cut: bool) -> bool {
        if let Some(known) = self.cgroups.get(&id) {
            // The tracker and a walk tell of the same cgroup in any order; only a whole path in place of a cut one is news.
            if path_cut || !known.path_cut || known.released.is_some() {
                return false;
            }
            self.forget(id);
        }
        if self.cgroups.len() >= MAX_CGROUPS {
            self.refused += 1;
            return false;
        }
        let parent = self.cgroups.get(&parent_id);
        let parsed = cgroups::parse(path);
        let place = match parent {
            Some(parent) if path_cut || parsed.is_empty() => parent.place.clone(),
            Some(_) | None => parsed,
        };
        let inherited = parent
            .filter(|parent| parent.place == place)
            .map(|parent| &parent.workload);
        let workload = match inherited {
            Some(workload) => Workload {
                cgroup_id: id,
                cgroup_path: path.to_owned(),
                ..Workload::clone(workload)
            },
            None => self.describe(id, path, &place, None),
        };
        // The first cgroup of a named container settles which of those before it is the sandbox.
        let settles = inherited.is_none() && workload.state() == IdentityState::Container;
        let key = place.key().map(str::to_owned);
        if let Some(key) = &key {
            self.by_key.entry(key.clone()).or_default().insert(id);
        }
        self.cgroups.insert(
            id,
            Cgroup {
                parent_id,
                place,
                path_cut,
                released: None,
                workload: Arc::new(workload),
            },
        );
        if let Some(key) = key.filter(|_| settles) {
            self.refresh(&key);
        }
        true
    }

    pub(super) fn release(&mut self, id: u64, now: Instant) -> bool {
        match self.cgroups.get_mut(&id) {
            Some(cgroup) if cgroup.released.is_none() => {
                cgroup.released = Some(now);
                true
            }
            Some(_) | None => false,
        }
    }

    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let is_over = |since: Option<Instant>| since.is_some_and(|since| since + GRACE <= now);
        let gone: Vec<u64> = self
            .cgroups
            .iter()
            .filter(|(_, cgroup)| is_over(cgroup.released))
            .map(|(id, _)| *id)
            .collect();
        for id in &gone {
            self.forget(*id);
        }
        let deleted: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, known)| is_over(known.deleted))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in deleted {
            self.drop_aliases(&uid);
            self.drop_addresses(&uid);
            // Its cgroups keep what they know: a name is never taken back.
            self.pods.remove(&uid);
        }
        !gone.is_empty()
    }

    pub(super) fn live_ids(&self) -> HashSet<u64> {
        self.cgroups
            .iter()
            .filter(|(_, cgroup)| cgroup.released.is_none())
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn live(&self) -> Vec<Live> {
        let mut live: Vec<_> = self
            .cgroups
            .iter()
            .filter(|(_, cgroup)| cgroup.released.is_none())
            .map(|(&id, cgroup)| {
                let live = Live {
                    id,
                    parent_id: cgroup.parent_id,
                    workload: Arc::clone(&cgroup.workload),
                };
                (self.depth(id), live)
            })
            .collect();
        live.sort_unstable_by_key(|(depth, live)| (*depth, live.id));
        live.into_iter().map(|(_, live)| live).collect()
    }

    /// Known cgroups above this one. Not counted from the path, which may be cut.
    fn depth(&self, id: u64) -> usize {
        std::iter::successors(self.cgroups.get(&id), |cgroup| {
            self.cgroups.get(&cgroup.parent_id)
        })
        // A cgroup that claims to be its own parent must not hang the agent.
        .take(self.cgroups.len())
        .count()
    }

    pub(super) fn apply(&mut self, pod: Pod) -> bool {
        let known = self.pods.get(&pod.uid);
        if known.is_some_and(|known| known.pod == pod && known.deleted.is_none()) {
            return false;
        }
        if known.is_none() && self.pods.len() >= MAX_PODS {
            self.refused += 1;
            return false;
        }
        self.drop_aliases(&pod.uid);
        let before = self.drop_addresses(&pod.uid);
        for address in &pod.addresses {
            // The next pod of an address is told before the end of the last, or after it: the news counts.
            self.addresses.insert(*address, pod.uid.clone());
        }
        let moved = before != pod.addresses;
        let aliases: Vec<String> = pod.aliases().cloned().collect();
        for alias in &aliases {
            self.aliases.insert(alias.clone(), pod.uid.clone());
        }
        let uid = pod.uid.clone();
        self.pods.insert(uid.clone(), Known { pod, deleted: None });
        let mut changed = self.refresh(&uid) || moved;
        for alias in aliases {
            changed |= self.refresh(&alias);
        }
        changed
    }

    pub(super) fn delete(&mut self, uid: &str, now: Instant) {
        if let Some(known) = self.pods.get_mut(uid) {
            known.deleted.get_or_insert(now);
        }
    }

    pub(super) fn replace(&mut self, pods: Vec<Pod>, now: Instant) -> bool {
        let told: HashSet<String> = pods.iter().map(|pod| pod.uid.clone()).collect();
        for (uid, known) in &mut self.pods {
            if !told.contains(uid) {
                known.deleted.get_or_insert(now);
            }
        }
        self.source.synced = true;
        let mut changed = false;
        for pod in pods {
            changed |= self.apply(pod);
        }
        changed
    }

    /// How many pods the source knows of now.
    pub(super) fn pods(&self) -> usize {
        let existing = |known: &&Known| known.deleted.is_none();
        self.pods.values().filter(existing).count()
    }

    fn forget(&mut self, id: u64) {
        let Some(cgroup) = self.cgroups.remove(&id) else {
            return;
        };
        let Some(key) = cgroup.place.key() else {
            return;
        };
        if let Some(ids) = self.by_key.get_mut(key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_key.remove(key);
            }
        }
    }

    /// The next mirror of a static pod may have taken over an alias: that one stays.
    fn drop_aliases(&mut self, uid: &str) {
        let Self { pods, aliases, .. } = self;
        if let Some(known) = pods.get(uid) {
            for alias in known.pod.aliases() {
                if aliases.get(alias).is_some_and(|owner| owner == uid) {
                    aliases.remove(alias);
                }
            }
        }
    }

    /// Returns those that the pod had.
    fn drop_addresses(&mut self, uid: &str) -> Vec<IpAddr> {
        let Self {
            pods, addresses, ..
        } = self;
        let own = pods.get(uid).map(|known| known.pod.addresses.clone());
        let own = own.unwrap_or_default();
        for address in &own {
            if addresses.get(address).is_some_and(|owner| owner == uid) {
                addresses.remove(address);
            }
        }
        own
    }

    fn pod(&self, key: &str) -> Option<&Pod> {
        let by_alias = || self.pods.get(self.aliases.get(key)?);
        Some(&self.pods.get(key).or_else(by_alias)?.pod)
    }

    /// Describes again the cgroups whose paths have this key.
    fn refresh(&mut self, key: &str) -> bool {
        let Some(ids) = self.by_key.get(key) else {
            return false;
        };
        let news: Vec<_> = ids
            .iter()
            .filter_map(|id| {
                let cgroup = self.cgroups.get(id)?;
                let known = &*cgroup.workload;
                let now = self.describe(*id, &known.cgroup_path, &cgroup.place, Some(known));
                (now != *known).then(|| (*id, Arc::new(now)))
            })
            .collect();
        let changed = !news.is_empty();
        for (id, workload) in news {
            if let Some(cgroup) = self.cgroups.get_mut(&id) {
                cgroup.workload = workload;
            }
        }
        changed
    }

    /// What is known of the cgroup now. `known` is what was known of it before: a container's name is never taken back, also
    /// not when a restart replaces its id in the pod's status.
    fn describe(&self, id: u64, path: &str, place: &Place, known: Option<&Workload>) -> Workload {
        let mut workload = Workload {
            cgroup_id: id,
            cgroup_path: path.to_owned(),
            node: self.node.clone(),
            container_id: place.container.clone().unwrap_or_default(),
            ..Workload::default()
        };
        let Some(key) = place.key() else {
            workload.set_state(IdentityState::Host);
            return workload;
        };
        let Some(pod) = self.pod(key) else {
            workload.set_state(if place.pod.is_some() {
                IdentityState::Pending
            } else {
                IdentityState::Host
            });
            workload.pod_uid = place.pod.clone().unwrap_or_default();
            return workload;
        };
        workload.namespace = pod.namespace.clone();
        workload.pod = pod.name.clone();
        workload.pod_uid = pod.uid.clone();
        workload.labels = pod.labels.clone();
        workload.owner = pod.owner.clone();
        let Some(container_id) = &place.container else {
            workload.set_state(IdentityState::Pod);
            return workload;
        };
        if let Some(container) = pod.container(container_id) {
            workload.container = container.name.clone();
            workload.image = container.image.clone();
            workload.set_container_type(container.container_type);
            workload.set_state(IdentityState::Container);
            return workload;
        }
        let settled = known.filter(|known| {
            known.state() == IdentityState::Container || known.state() == IdentityState::Sandbox
        });
        if let Some(known) = settled {
            workload.container = known.container.clone();
            workload.image = known.image.clone();
            workload.container_type = known.container_type;
            workload.set_state(known.state());
        } else if self.is_sandbox(id, key, pod) {
            workload.set_state(IdentityState::Sandbox);
        } else {
            workload.set_state(IdentityState::Pod);
        }
        workload
    }

    /// Whether this cgroup of a container that the pod does not list is its sandbox. The status of a pod whose container
    /// restarts still lists the old id, so that a list without gaps does not suffice. But a sandbox is there before the
    /// containers, and the kernel gives ids in order.
    fn is_sandbox(&self, id: u64, key: &str, pod: &Pod) -> bool {
        pod.is_complete()
            && self
                .by_key
                .get(key)
                .into_iter()
                .flat_map(|ids| ids.range(id + 1..))
                .filter_map(|later| self.cgroups.get(later)?.place.container.as_deref())
                .any(|container_id| pod.container(container_id).is_some())
    }
}
