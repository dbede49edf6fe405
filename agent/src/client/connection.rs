//! How to reach the agent of a node, or those of a cluster.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, FromArgMatches, error::ErrorKind, parser::ValueSource};

use super::connect::{Address, Agent, Tls, parse_address};
use crate::cluster::{self, Cluster, TokenFrom};

/// What was said of it. One agent and those of a cluster cannot both be meant.
#[derive(Clone, Debug)]
pub(super) struct Connection(Flags);

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
struct Flags {
    /// Address of the agent: `host:port`, `https://host:port` or `unix:/path`
    #[arg(
        long,
        env = "DINLE_ADDRESS",
        value_name = "ADDRESS",
        default_value = "http://127.0.0.1:4380",
        value_parser = parse_address
    )]
    address: Address,
    #[command(flatten)]
    tls: Tls,
    /// File with a token that tells agents who asks, where they want to know (agent --auth kube)
    #[arg(long, env = "DINLE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// With --kube: ask the API server for a token of this service account, and show agents that
    #[arg(
        long,
        value_name = "[NAMESPACE/]NAME",
        conflicts_with_all = ["token_file", "own_token"]
    )]
    service_account: Option<String>,
    /// With --service-account: for whom the token is meant, as agents want it
    #[arg(
        long,
        value_name = "AUDIENCE",
        default_value = "dinle",
        requires = "service_account"
    )]
    token_audience: String,
    /// With --kube: show agents your own token, of the kubeconfig. They could use it as you do, and must accept the API server's audience
    #[arg(long, conflicts_with = "token_file")]
    own_token: bool,
    /// Ask the agents of a cluster instead, those of all nodes that matter, through its API server; `kubectl dinle` does [default: no]
    #[arg(long)]
    kube: bool,
    /// With --kube, which this implies: kubeconfig of the cluster [default: as for kubectl, or the pod's service account]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// With --kube, which this implies: context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", visible_alias = "context")]
    kube_context: Option<String>,
    /// With --kube: namespace of the agents
    #[arg(
        long,
        env = "DINLE_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "dinle"
    )]
    agent_namespace: String,
    /// With --kube: labels of the agents' pods
    #[arg(
        long,
        value_name = "LABELS",
        default_value = "app.kubernetes.io/part-of=dinle,app.kubernetes.io/component=agent"
    )]
    agent_selector: String,
}

/// Where to ask.
pub(super) enum Reach {
    /// One agent.
    Agent(Agent),
    /// Those of a cluster.
    Cluster(Cluster),
}

impl Connection {
    /// Reads the cluster's configuration if there is one to ask.
    pub(super) async fn reach(self) -> anyhow::Result<Reach> {
        self.open(false).await
    }

    /// The same where nobody can be asked for a password.
    pub(super) async fn reach_unattended(self) -> anyhow::Result<Reach> {
        self.open(true).await
    }

    /// The kubeconfig that was named.
    pub(super) fn kubeconfig(&self) -> Option<&Path> {
        self.0.kubeconfig.as_deref()
    }

    async fn open(self, unattended: bool) -> anyhow::Result<Reach> {
        let Flags {
            address,
            tls,
            token_file,
            service_account,
            token_audience,
            own_token,
            kube,
            kubeconfig,
            kube_context,
            agent_namespace,
            agent_selector,
        } = self.0;
        if !kube && kubeconfig.is_none() && kube_context.is_none() {
            return Ok(Reach::Agent(Agent {
                address,
                tls,
                token_file,
            }));
        }
        let token = match (token_file, service_account) {
            (Some(file), _) => TokenFrom::File(file),
            (None, Some(account)) => {
                let (namespace, name) = match account.split_once('/') {
                    Some((namespace, name)) => (Some(namespace.to_owned()), name.to_owned()),
                    None => (None, account),
                };
                TokenFrom::ServiceAccount {
                    namespace,
                    name,
                    audience: token_audience,
                }
            }
            (None, None) if own_token => TokenFrom::User,
            (None, None) => TokenFrom::Nowhere,
        };
        let options = cluster::Options {
            token,
            kubeconfig,
            context: kube_context,
            agents_namespace: agent_namespace,
            agents_labels: agent_selector,
            unattended,
        };
        let cluster = Cluster::open(options).await;
        Ok(Reach::Cluster(cluster.map_err(anyhow::Error::msg)?))
    }
}

impl clap::Args for Connection {
    fn augment_args(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args_for_update(command)
    }
}

impl FromArgMatches for Connection {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        contradiction(matches)?;
        Flags::from_arg_matches(matches).map(Self)
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
        contradiction(matches)?;
        Flags::from_arg_matches_mut(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// One agent and a cluster were named on the command line. An address in the environment is for when nothing else is said, so that clap's
/// own conflicts, which take it for given, will not do.
fn contradiction(matches: &ArgMatches) -> Result<(), clap::Error> {
    let given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let tls = [
        "tls_ca",
        "tls_client_cert",
        "tls_client_key",
        "tls_server_name",
    ];
    let address = matches.get_one::<Address>("address");
    if let Some(id) = tls.iter().find(|id| given(id))
        && !address.is_some_and(Address::is_tls)
    {
        let flag = id.replace('_', "-");
        return Err(clap::Error::raw(
            ErrorKind::ArgumentConflict,
            format!("--{flag} is for an address with TLS: write `--address https://host:port`"),
        ));
    }
    let cluster = ["kube", "kubeconfig", "kube_context"];
    let named = cluster.iter().find(|id| given(id));
    if let Some(id) = ["service_account", "own_token"].iter().find(|id| given(id))
        && named.is_none()
    {
        let flag = id.replace('_', "-");
        return Err(clap::Error::raw(
            ErrorKind::ArgumentConflict,
            format!(
                "--{flag} is for the agents of a cluster: add --kube, or give the agent at --address a token with --token-file"
            ),
        ));
    }
    if !given(&"address") {
        return Ok(());
    }
    let Some(id) = named else {
        return Ok(());
    };
    let flag = id.replace('_', "-");
    Err(clap::Error::raw(
        ErrorKind::ArgumentConflict,
        format!(
            "--address names one agent, and --{flag} asks those of a cluster: leave one of them out"
        ),
    ))
}
