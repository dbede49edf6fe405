//! Pods from the API server: one watch on the pods of this node.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1 as k8s;
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Api, Client};
use tokio::time::{sleep, timeout};

use super::Index;
use super::pod::Pod;
use crate::apiserver;

#[cfg(test)]
mod tests;

/// How long the API server keeps a watch open, in seconds. A connection that dies without a word is noticed 5 s later, and
/// until then new pods have no names. Much shorter ones would burden the API server of a large cluster.
const WATCH_SECONDS: u32 = 120;

/// How long the API server may take to list the pods of one node.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a connection may be silent. More than a watch without news lasts, or each would end in an error.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 15);

/// Delay after an error should the backoff ever end: its largest.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// HTTP status codes that need more than another try.
const UNAUTHORIZED: u16 = 401;
const FORBIDDEN: u16 = 403;
const GONE: u16 = 410;

/// Connects to the API server and follows the pods, for ever.
pub(super) async fn run(index: &Index, node: &str) {
    let mut backoff = DefaultBackoff::default();
    loop {
        match apiserver::connect(READ_TIMEOUT).await {
            Ok(client) => return follow(client, index, node).await,
            Err(error) => index.source_failed(&format!(
                "find the API server: {error}; run in a pod with a service account, \
                 set KUBECONFIG, or choose another pod source"
            )),
        }
        sleep(backoff.next().unwrap_or(MAX_BACKOFF)).await;
    }
}

/// Follows the pods of the node, for ever. Errors are kept for [`Index::status`] and tried again, with growing delays.
pub async fn follow(client: Client, index: &Index, node: &str) {
    let pods = Api::<k8s::Pod>::all(client);
    let config = watcher::Config {
        // The pods of a node fit in one page, and the API server's cache, which `any_semantic` asks for, knows no pages.
        page_size: None,
        ..watcher::Config::default()
            .fields(&format!("spec.nodeName={node}"))
            .timeout(WATCH_SECONDS)
            .any_semantic()
    };
    let start = || watcher(pods.clone(), config.clone()).boxed();

    let mut events = start();
    let mut backoff = DefaultBackoff::default();
    let mut progress = Progress::Listing(Vec::new());
    loop {
        let fault = match timeout(progress.patience(), events.next()).await {
            Ok(Some(Ok(event))) => {
                progress = progress.after(event, index, node);
                continue;
            }
            Ok(Some(Err(error))) => Fault::from(error),
            Ok(None) => Fault::relist("the watch ended".to_owned()),
            Err(_) => match progress {
                Progress::Listing(_) => Fault::relist(format!(
                    "the API server did not list them within {} s",
                    LIST_TIMEOUT.as_secs()
                )),
                Progress::Recovering | Progress::Following => {
                    index.source_recovered();
                    progress = Progress::Following;
                    continue;
                }
            },
        };
        index.source_failed(&format!("watch the pods of node {node}: {}", fault.text));
        if fault.relist {
            events = start();
            progress = Progress::Listing(Vec::new());
        } else {
            progress = progress.after_fault();
        }
        let delay = backoff.next().unwrap_or(MAX_BACKOFF);
        sleep(delay.max(fault.retry_after)).await;
    }
}

/// What the watcher is doing, as far as it shows.
enum Progress {
    /// It lists: these so far.
    Listing(Vec<Pod>),
    /// It failed, and starts to watch again.
    Recovering,
    /// It watches.
    Following,
}

impl Progress {
    /// How long to wait for the next event.
    fn patience(&self) -> Duration {
        match self {
            Self::Listing(_) => LIST_TIMEOUT,
            // That a watch started shows only in its first event. One that did not has failed by then.
            Self::Recovering => READ_TIMEOUT,
            // The watcher itself starts a watch that is silent for too long again.
            Self::Following => Duration::MAX,
        }
    }

    fn after(mut self, event: Event<k8s::Pod>, index: &Index, node: &str) -> Self {
        // Only such were asked for. One of another node would be counted here, and its address named.
        let ours = |pod: &Pod| pod.node.as_deref().is_none_or(|of| of == node);
        match event {
            // Nothing was heard of the API server yet.
            Event::Init => return Self::Listing(Vec::new()),
            Event::InitApply(pod) => {
                if let Self::Listing(pods) = &mut self {
                    // At once: the slim pod is a small part of what the API server sends.
                    pods.extend(Pod::from_api(pod).filter(ours));
                }
                return self;
            }
            Event::InitDone => {
                if let Self::Listing(pods) = self {
                    index.pods_replaced(pods);
                }
            }
            Event::Apply(pod) => {
                if let Some(pod) = Pod::from_api(pod).filter(ours) {
                    index.pod_applied(pod);
                }
            }
            Event::Delete(pod) => index.pod_deleted(&pod.metadata.uid.unwrap_or_default()),
        }
        index.source_recovered();
        Self::Following
    }

    fn after_fault(self) -> Self {
        match self {
            Self::Listing(_) => self,
            Self::Recovering | Self::Following => Self::Recovering,
        }
    }
}

/// What went wrong, and what helps.
struct Fault {
    text: String,
    /// The watcher would go on without what it missed.
    relist: bool,
    /// The API server asked for this delay.
    retry_after: Duration,
}

impl Fault {
    fn relist(text: String) -> Self {
        Self {
            text,
            relist: true,
            retry_after: Duration::ZERO,
        }
    }
}

impl From<watcher::Error> for Fault {
    fn from(error: watcher::Error) -> Self {
        use watcher::Error as W;
        let relist = match &error {
            // A watcher takes "gone" only as an event. As the answer to its request it would ask again for ever.
            W::WatchStartFailed(kube::Error::Api(status)) => status.code == GONE,
            // A line that is no event may have been one.
            W::WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_)) => true,
            _ => false,
        };
        let status = match &error {
            W::InitialListFailed(kube::Error::Api(status))
            | W::WatchStartFailed(kube::Error::Api(status))
            | W::WatchFailed(kube::Error::Api(status))
            | W::WatchError(status) => Some(status),
            _ => None,
        };
        let hint = match status.map(|status| status.code) {
            Some(UNAUTHORIZED) => "; is the token or the kubeconfig of the agent still valid?",
            Some(FORBIDDEN) => "; let a ClusterRole give the agent `list` and `watch` on pods",
            _ => "",
        };
        let seconds = status
            .and_then(|status| status.details.as_ref())
            .map_or(0, |details| details.retry_after_seconds);
        Self {
            text: format!("{error}{hint}"),
            relist,
            retry_after: Duration::from_secs(seconds.into()),
        }
    }
}
