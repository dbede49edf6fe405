//! WORKLOAD: who runs in a cgroup.
//!
//! The kernel's tracker and [`Index::walk`] tell which cgroups there are, a [`Source`] which pods. [`Index`] joins them
//! whenever either has news, so that an event only looks its cgroup up.

mod cgroups;
mod file;
mod pod;
mod table;
mod walk;
mod watch;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use dinle_proto::v1;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch as channel;
use tokio::time::Instant;
use tracing::{debug, warn};

pub use file::{Error as FileError, parse as parse_file};
pub use pod::{Container, Pod};
pub use table::{MAX_CGROUPS, MAX_PODS};
pub use watch::follow;

use table::Table;

/// How long a cgroup that was released, and a pod that was deleted, still answer: events about them may wait in a buffer.
pub const GRACE: Duration = Duration::from_secs(30);

/// Where pods come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The Kubernetes API server: a watch on the pods of this node.
    Kube,
    /// A file with the output of `kubectl get pods -A -o json`, read again when it changes.
    File(PathBuf),
    /// Nowhere: only the paths of cgroups tell of pods.
    None,
}

/// The text is not a [`Source`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pod source `{0}` is not known: use `kube` (watch the API server), \
     `file:PATH` (a file made by `kubectl get pods -A -o json`) or `none`"
)]
pub struct ParseSourceError(String);

impl FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "kube" => Ok(Self::Kube),
            None if text == "none" => Ok(Self::None),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
            Some(_) | None => Err(ParseSourceError(text.to_owned())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kube => f.write_str("kube"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::None => f.write_str("none"),
        }
    }
}

/// A cgroup that exists.
#[derive(Clone, Debug)]
pub struct Live {
    /// Its id.
    pub id: u64,
    /// Id of the cgroup above; 0 for the root.
    pub parent_id: u64,
    /// Who runs in it.
    pub workload: Arc<v1::Workload>,
}

/// Who runs in which cgroup. Clones are the same index.
///
/// Names are never taken back: a cgroup that was once known to be a container's stays that container's.
#[derive(Clone)]
pub struct Index(Arc<Inner>);

struct Inner {
    table: RwLock<Table>,
    epoch: channel::Sender<u64>,
}

impl Index {
    /// An index of the node of this name that knows nothing yet.
    pub fn new(node: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            table: RwLock::new(Table::new(node.into())),
            epoch: channel::Sender::new(0),
        }))
    }

    /// Grows whenever an answer of [`get`](Self::get), [`live`](Self::live) or
    /// [`pod_of_address`](Self::pod_of_address) may have changed. Whoever sees the new number
    /// gets the new answers.
    pub fn epoch(&self) -> u64 {
        *self.0.epoch.borrow()
    }

    /// Tells when [`epoch`](Self::epoch) grows.
    pub fn changes(&self) -> channel::Receiver<u64> {
        self.0.epoch.subscribe()
    }

    /// Who runs in a cgroup; for [`GRACE`] after its release, who ran there. `None` if its creation was not seen.
    pub fn get(&self, cgroup_id: u64) -> Option<Arc<v1::Workload>> {
        self.read(|table| table.get(cgroup_id).cloned())
    }

    /// The pod of this node that has an address; for [`GRACE`] after its deletion, who had it, unless another has it now.
    pub fn pod_of_address(&self, address: IpAddr) -> Option<v1::WorkloadName> {
        self.read(|table| table.pod_of_address(address))
    }

    /// A cgroup was made. `path` is below the root of the v2 hierarchy; `path_cut` if that is only the path's beginning, and
    /// then the cgroup is taken for a part of its parent.
    pub fn cgroup_created(&self, id: u64, parent_id: u64, path: &str, path_cut: bool) {
        self.change(|table| table.add(id, parent_id, path, path_cut));
    }

    /// A cgroup is gone. [`live`](Self::live) no longer lists it, [`get`](Self::get) answers for [`GRACE`].
    pub fn cgroup_released(&self, id: u64) {
        self.change(|table| table.release(id, Instant::now()));
    }

    /// Forgets what is past its [`GRACE`]. To be called every few seconds.
    pub fn expire(&self, now: Instant) {
        self.change(|table| table.expire(now));
    }

    /// Walks the cgroupfs at `root`, the mount point of a v2 hierarchy: adds the cgroups that are not known, and releases those
    /// that vanished. For the start, when the tracker already runs, and after a record of the tracker was lost. Returns how many
    /// it added. After an error nothing is released.
    pub fn walk(&self, root: &Path) -> io::Result<usize> {
        // Those that the tracker tells of from here on may be missing in what the walk finds.
        let mut vanished = self.read(Table::live_ids);
        let found = walk::directories(root)?;
        let mut added = 0;
        for directory in &found {
            let was_known = vanished.remove(&directory.id);
            let mut is_news = false;
            self.change(|table| {
                is_news = table.add(directory.id, directory.parent_id, &directory.path, false);
                is_news
            });
            if is_news && !was_known {
                added += 1;
                // The tracker may have told of its end before this index knew of it.
                if !directory.exists() {
                    self.cgroup_released(directory.id);
                }
            }
        }
        for id in vanished {
            self.cgroup_released(id);
        }
        Ok(added)
    }

    /// Every cgroup that exists, parents before children.
    pub fn live(&self) -> Vec<Live> {
        self.read(Table::live)
    }

    /// How many cgroups are known, those in their grace period included.
    pub fn cgroups(&self) -> usize {
        self.read(Table::len)
    }

    /// How many cgroups and pods were refused because the index was full. A cgroup that is refused is unknown to
    /// [`get`](Self::get) until a walk finds room for it.
    pub fn refused(&self) -> u64 {
        self.read(|table| table.refused)
    }

    /// A pod is new or changed.
    pub fn pod_applied(&self, pod: Pod) {
        self.change(|table| table.apply(pod));
    }

    /// A pod was deleted. For [`GRACE`] it still gives its name to new cgroups; the cgroups that it has keep it for good.
    pub fn pod_deleted(&self, uid: &str) {
        self.change(|table| {
            table.delete(uid, Instant::now());
            false
        });
    }

    /// These are all pods: others were deleted. From now on the source counts as synced.
    pub fn pods_replaced(&self, pods: Vec<Pod>) {
        self.change(|table| table.replace(pods, Instant::now()));
    }

    /// Where pods come from, and how that goes.
    pub fn status(&self) -> v1::PodSource {
        self.read(|table| v1::PodSource {
            pods: u32::try_from(table.pods()).unwrap_or(u32::MAX),
            ..table.source.clone()
        })
    }

    fn source_started(&self, source: &Source) {
        self.write().source.name = source.to_string();
    }

    /// Keeps the error for [`status`](Self::status), and logs it the first time.
    fn source_failed(&self, error: &str) {
        let mut table = self.write();
        // The text follows a timestamp.
        if table.source.error.ends_with(error) {
            debug!(error, "the pod source fails again");
        } else {
            warn!(error, "the pod source fails; it is tried again");
        }
        table.source.error = format!("{:.0}: {error}", Timestamp::now());
    }

    fn source_recovered(&self) {
        let mut table = self.write();
        if !table.source.error.is_empty() {
            table.source.error.clear();
            debug!("the pod source works again");
        }
    }

    fn read<T>(&self, question: impl FnOnce(&Table) -> T) -> T {
        question(&self.0.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, edit: impl FnOnce(&mut Table) -> bool) {
        let changed = edit(&mut self.write());
        if changed {
            // After the table, so that whoever sees the new number gets the new answers; and without its lock, so that whoever
            // holds a borrow of the channel may ask.
            self.0.epoch.send_modify(|epoch| *epoch += 1);
        }
    }
}

/// Keeps the index told of the pods of the node, for ever. Errors are logged, kept for [`Index::status`], and tried again.
pub async fn run(source: Source, index: Index, node: String) {
    index.source_started(&source);
    match source {
        Source::Kube => watch::run(&index, &node).await,
        Source::File(path) => file::run(&path, &index, &node).await,
        Source::None => {
            index.pods_replaced(Vec::new());
            std::future::pending().await
        }
    }
}
