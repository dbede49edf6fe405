//! CLUSTER: where the agents of a cluster are, on which nodes the pods run that somebody asks for, and the way to an agent through the API
//! server. For the command line; the agent itself knows its own node only.

mod names;
mod pods;
mod token;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use dinle_proto::v1;
use futures::TryFutureExt as _;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1 as k8s;
use kube::{
    Api, Client, Config,
    client::UpgradeConnectionError,
    config::{ExecInteractiveMode, KubeConfigOptions, Kubeconfig},
};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::filter::{Limits, Selector};

pub use names::contexts;
pub use token::{TokenFrom, token_in};

/// How people write a kind of owners, as in `deploy/checkout`.
pub fn short_kind(kind: &str) -> String {
    crate::filter::short_kind(kind)
}

/// Where agents listen, on the loopback of their pod.
const PORT: u16 = 4380;

/// How to get into a cluster.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A kubeconfig; otherwise that of `KUBECONFIG`, of the home directory, or a pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// One of its contexts; otherwise the current one.
    pub context: Option<String>,
    /// Namespace of the agents.
    pub agents_namespace: String,
    /// Labels of the agents.
    pub agents_labels: String,
    /// How agents are told who asks.
    pub token: TokenFrom,
    /// Nobody is there to be asked for a password.
    pub unattended: bool,
}

/// A cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    config: Arc<Config>,
    token: token::Kept,
    namespace: String,
    options: Options,
}

/// What is known by now of something that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known<T> {
    /// The first list is in.
    pub synced: bool,
    /// What keeps it from being up to date, as a sentence.
    pub fault: Option<String>,
    /// What is known.
    pub value: T,
}

impl<T: Default> Default for Known<T> {
    fn default() -> Self {
        Self {
            synced: false,
            fault: None,
            value: T::default(),
        }
    }
}

/// The pod of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// It takes streams.
    pub ready: bool,
}

/// Agents by node.
pub type Agents = watch::Receiver<Known<BTreeMap<String, Agent>>>;

/// Names of nodes.
pub type Nodes = watch::Receiver<Known<BTreeSet<String>>>;

impl Cluster {
    /// Reads the configuration. Nobody is asked anything yet.
    ///
    /// # Errors
    /// A sentence for the user.
    pub async fn open(options: Options) -> Result<Self, String> {
        let config = configuration(&options).await?;
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config.clone())
            .map_err(|error| format!("the cluster's configuration cannot be used: {error}"))?;
        Ok(Self {
            client,
            config: Arc::new(config),
            token: token::Kept::default(),
            namespace,
            options,
        })
    }

    /// The namespace that is meant where none is named, as kubectl has it.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What to tell whoever finds no agent.
    pub fn no_agents(&self) -> String {
        let Options {
            agents_namespace,
            agents_labels,
            ..
        } = &self.options;
        format!(
            "no pod in namespace {agents_namespace} has the labels {agents_labels}: is Dinle installed there? --agent-namespace names another one"
        )
    }

    /// Follows the agents.
    pub fn agents(&self) -> Agents {
        let Options {
            agents_namespace,
            agents_labels,
            ..
        } = &self.options;
        pods::agents(self.client.clone(), agents_namespace, agents_labels)
    }

    /// Follows the nodes on which selected pods run, with an agent or without. `None` if every node is meant: what is no pod is wanted.
    ///
    /// # Errors
    /// The selector is wrong: a sentence for each part of it.
    pub fn nodes(&self, selector: &v1::Selector) -> Result<Option<Nodes>, String> {
        // How much one may ask for is the agents' to say.
        let limits = Limits {
            elements_max: usize::MAX,
            ..Limits::default()
        };
        let parsed =
            Selector::parse(Some(selector), &limits).map_err(|invalid| invalid.to_string())?;
        let v1::Selector {
            namespaces,
            label_selector,
            // What is parsed has them. Which containers run is known on the node.
            pods: _,
            owners: _,
            containers: _,
            host_processes: _,
        } = selector;
        match selector.host_processes() {
            v1::HostProcesses::Unspecified | v1::HostProcesses::Exclude => {}
            v1::HostProcesses::Include | v1::HostProcesses::Only => return Ok(None),
        }
        let client = self.client.clone();
        Ok(Some(pods::nodes(
            client,
            namespaces,
            label_selector,
            parsed,
        )))
    }

    /// Connects to an agent through the API server, as `kubectl port-forward` does.
    ///
    /// # Errors
    /// A sentence for the user.
    pub async fn dial(&self, agent: &Agent) -> Result<Channel, String> {
        let Agent { namespace, pod, .. } = agent.clone();
        let pods: Api<k8s::Pod> = Api::namespaced(self.client.clone(), &namespace);
        // The first try tells why it fails in words of its own; tonic would hide them.
        let (told, why) = std::sync::mpsc::channel();
        let connector = tower::service_fn(move |_: Uri| {
            let (pods, pod, told) = (pods.clone(), pod.clone(), told.clone());
            async move {
                let mut forward = pods
                    .portforward(&pod, &[PORT])
                    .map_err(|error| {
                        // Nobody asks why after the first try.
                        _ = told.send(refusal(&error));
                        std::io::Error::other(error)
                    })
                    .await?;
                let stream = forward.take_stream(PORT);
                // It is there: it was asked for above.
                stream
                    .map(TokioIo::new)
                    .ok_or_else(|| std::io::Error::other("no stream"))
            }
        });
        let endpoint = Endpoint::from_static("http://agent")
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT);
        let connected = endpoint.connect_with_connector(connector).await;
        connected.map_err(|error| {
            let why = why.try_recv().unwrap_or_else(|_| root_cause(&error));
            let Agent { namespace, pod, .. } = agent;
            format!("no port-forward to pod {namespace}/{pod}: {why}")
        })
    }
}

/// A connection through several proxies may break without a word.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// The API server asks the kubelet, which enters the pod's network.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

async fn configuration(options: &Options) -> Result<Config, String> {
    let Options {
        kubeconfig,
        context,
        unattended,
        agents_namespace: _,
        agents_labels: _,
        token: _,
    } = options;
    let chosen = KubeConfigOptions {
        context: context.clone(),
        ..KubeConfigOptions::default()
    };
    let from = |mut kubeconfig: Kubeconfig| {
        if *unattended {
            ask_nobody(&mut kubeconfig);
        }
        Config::from_custom_kubeconfig(kubeconfig, &chosen)
    };
    if let Some(path) = kubeconfig {
        let read = Kubeconfig::read_from(path);
        let read = read.map_err(|error| format!("--kubeconfig {}: {error}", path.display()))?;
        return from(read)
            .await
            .map_err(|error| format!("--kubeconfig {}: {error}", path.display()));
    }
    match Kubeconfig::read() {
        Ok(read) => from(read)
            .await
            .map_err(|error| format!("the kubeconfig cannot be used: {error}")),
        // As in a pod.
        Err(_) if context.is_none() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            Config::incluster().map_err(|error| format!("the pod's service account: {error}"))
        }
        Err(error) => Err(format!(
            "there is no cluster to ask: {error}; set KUBECONFIG or give --kubeconfig"
        )),
    }
}

/// Programs that give credentials neither ask for any nor write to the terminal.
fn ask_nobody(kubeconfig: &mut Kubeconfig) {
    let users = kubeconfig.auth_infos.iter_mut();
    let programs = users
        .filter_map(|user| user.auth_info.as_mut())
        .filter_map(|user| user.exec.as_mut());
    for program in programs {
        program.interactive_mode = Some(ExecInteractiveMode::Never);
    }
}

/// Why a port-forward was refused.
fn refusal(error: &kube::Error) -> String {
    use UpgradeConnectionError::ProtocolSwitch;
    let status = match error {
        kube::Error::UpgradeConnection(ProtocolSwitch(status)) => Some(status.as_u16()),
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    };
    match status {
        // What kubectl posts is asked for with GET over a WebSocket. Newer servers want both.
        Some(403) => "you may not: it takes the permission to `get` and `create` `pods/portforward` in that namespace".to_owned(),
        Some(401) => {
            "the API server does not know you: are the credentials still good?".to_owned()
        }
        Some(404) => "the pod is gone".to_owned(),
        _ => root_cause(error),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::client::Body;
    use tower_test::mock::{Handle, pair};

    type Server = Handle<http::Request<Body>, http::Response<axum::body::Body>>;

    fn cluster() -> (Cluster, Server) {
        let (service, server) = pair();
        let cluster = Cluster {
            client: Client::new(service, "default"),
            config: Arc::new(Config::new(Uri::from_static("http://127.0.0.1:9"))),
            token: token::Kept::default(),
            namespace: "default".to_owned(),
            options: Options::default(),
        };
        (cluster, server)
    }

    #[tokio::test]
    async fn nodes_of_all_pods_are_followed_too_but_what_is_no_pod_is_on_every_node() {
        let (cluster, mut server) = cluster();
        for host in [v1::HostProcesses::Include, v1::HostProcesses::Only] {
            let selector = v1::Selector {
                host_processes: host.into(),
                ..v1::Selector::default()
            };
            assert!(cluster.nodes(&selector).expect("a selector").is_none());
        }
        let followed = cluster.nodes(&v1::Selector::default());
        let _followed = followed.expect("a selector").expect("they are followed");
        let (request, _) = server.next_request().await.expect("it lists");
        assert_eq!(request.uri().path(), "/api/v1/pods");
    }
}
