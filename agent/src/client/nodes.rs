//! The agents of a cluster's nodes, as if they were one.

mod attend;
mod listen;

use std::{collections::BTreeSet, future::pending, process::ExitCode, time::Duration};

use anyhow::anyhow;
use dinle_proto::v1;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    EXIT_PARTLY, Refused, Screen,
    connect::{Client, Place, client_on},
    look::Tone,
};
use crate::cluster::{Agent, Agents, Cluster, Known, Nodes};

pub(super) use self::listen::{Asked, listen};

/// How long the API server may take for its first lists.
const LISTS_MAX: Duration = Duration::from_secs(20);
/// How long to wait before a node is tried again, at first.
const RETRY: Duration = Duration::from_millis(500);

/// Nodes that matter, and where their agents are.
struct Wanted {
    agents: Agents,
    /// `None`: every node that has an agent.
    nodes: Option<Nodes>,
}

impl Wanted {
    /// Looks for the nodes of selected pods, or for all that have an agent, and waits until there is something to see.
    async fn look(
        cluster: &Cluster,
        selector: Option<&v1::Selector>,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<Self> {
        let nodes = match selector {
            Some(selector) => cluster.nodes(selector).map_err(Refused)?,
            None => None,
        };
        let mut wanted = Self {
            agents: cluster.agents(),
            nodes,
        };
        let everywhere = selector.is_some_and(|selector| selector.namespaces.is_empty());
        wanted.listed(everywhere, screen).await?;
        if wanted.agents.borrow().value.is_empty() {
            anyhow::bail!("{}", cluster.no_agents());
        }
        Ok(wanted)
    }

    /// Waits for the first lists. Where the pods are `everywhere`, it will do to know the agents: that takes no permission in namespaces of
    /// others.
    async fn listed(&mut self, everywhere: bool, screen: &mut Screen<'_>) -> anyhow::Result<()> {
        let until = Instant::now() + LISTS_MAX;
        let agents = in_time(until, first(&mut self.agents)).await;
        agents.map_err(anyhow::Error::msg)?;
        let Some(nodes) = &mut self.nodes else {
            return Ok(());
        };
        match in_time(until, first(nodes)).await {
            Ok(()) => Ok(()),
            Err(fault) if everywhere => {
                self.nodes = None;
                screen.say(&format!("{fault}; only nodes with an agent are asked"))?;
                Ok(())
            }
            Err(fault) => Err(anyhow::Error::msg(fault)),
        }
    }

    fn names(&self) -> BTreeSet<String> {
        match &self.nodes {
            Some(nodes) => nodes.borrow().value.clone(),
            None => self.agents.borrow().value.keys().cloned().collect(),
        }
    }

    /// Something that is asked for is there. What is no pod is on every node, also while the agent is not there.
    fn matters(&self, name: &str) -> bool {
        let nodes = self.nodes.as_ref();
        nodes.is_none_or(|nodes| nodes.borrow().value.contains(name))
    }

    /// What keeps either from being up to date.
    fn faults(&self) -> Vec<String> {
        let of_agents = self.agents.borrow().fault.clone();
        let of_nodes = self
            .nodes
            .as_ref()
            .and_then(|nodes| nodes.borrow().fault.clone());
        of_agents.into_iter().chain(of_nodes).collect()
    }

    async fn changed(&mut self) {
        let Self { agents, nodes } = self;
        let of_nodes = async {
            match nodes {
                Some(nodes) => nodes.changed().await.is_ok(),
                None => pending().await,
            }
        };
        let alive = tokio::select! {
            changed = agents.changed() => changed.is_ok(),
            alive = of_nodes => alive,
        };
        if !alive {
            // What follows them is gone only with the runtime.
            pending().await
        }
    }
}

async fn in_time(
    until: Instant,
    listed: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let seconds = LISTS_MAX.as_secs();
    let late = |_| format!("the API server did not list pods within {seconds} s");
    timeout_at(until, listed).await.map_err(late)?
}

/// Waits for the first list.
pub(super) async fn first<T>(
    known: &mut tokio::sync::watch::Receiver<Known<T>>,
) -> Result<(), String> {
    let listed = known
        .wait_for(|known| known.synced || known.fault.is_some())
        .await;
    match listed {
        Ok(known) if !known.synced => Err(known.fault.clone().unwrap_or_default()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The client of a node's agent; or why there is none.
async fn reach(cluster: &Cluster, node: &str, agents: &Agents) -> Result<Client, String> {
    let agent: Option<Agent> = agents.borrow().value.get(node).cloned();
    let agent = agent.ok_or("no agent runs there")?;
    if !agent.ready {
        let Agent { namespace, pod, .. } = agent;
        return Err(format!("its agent, pod {namespace}/{pod}, is not ready"));
    }
    let token = cluster.token().await?;
    client_on(cluster.dial(&agent).await?, token)
}

/// The client of a node's agent, once that is ready.
pub(super) async fn of_node(
    cluster: &Cluster,
    node: &str,
    deadline: Instant,
) -> anyhow::Result<Client> {
    let mut agents = cluster.agents();
    first(&mut agents).await.map_err(anyhow::Error::msg)?;
    loop {
        let why = match reach(cluster, node, &agents).await {
            Ok(client) => return Ok(client),
            Err(why) => why,
        };
        if Instant::now() >= deadline {
            anyhow::bail!("node {node}: {why}");
        }
        sleep(RETRY).await;
    }
}

/// Asks the agent of each node of selected pods once, or of each that has one. Which nodes did not answer is told, and makes for the exit
/// status.
pub(super) async fn every<T>(
    cluster: &Cluster,
    selector: Option<&v1::Selector>,
    screen: &mut Screen<'_>,
    ask: impl AsyncFn(&mut Client, &Place) -> anyhow::Result<T>,
) -> anyhow::Result<(Vec<T>, ExitCode)> {
    let wanted = Wanted::look(cluster, selector, screen).await?;
    let mut answers = Vec::new();
    let mut silent = 0;
    for node in wanted.names() {
        let place = Place::On(node.clone());
        let answered = match reach(cluster, &node, &wanted.agents).await {
            Ok(mut client) => ask(&mut client, &place).await,
            Err(why) => Err(anyhow!(why)),
        };
        match answered {
            Ok(answer) => answers.push(answer),
            Err(error) if error.is::<Refused>() => return Err(error),
            Err(error) => {
                silent += 1;
                screen.tell(Tone::Alarm, &format!("{node}: {error:#}"))?;
            }
        }
    }
    if answers.is_empty() && silent > 0 {
        anyhow::bail!("no node answered");
    }
    let code = match silent {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(EXIT_PARTLY),
    };
    Ok((answers, code))
}

/// The selector with the namespace that is meant where none is named.
pub(super) fn in_context(
    mut selector: v1::Selector,
    all_namespaces: bool,
    cluster: &Cluster,
) -> v1::Selector {
    let pods = selector.host_processes() != v1::HostProcesses::Only;
    if pods && selector.namespaces.is_empty() && !all_namespaces {
        selector.namespaces = vec![cluster.namespace().to_owned()];
    }
    selector
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::client::look::Look;

    /// What is written on a screen.
    #[derive(Default)]
    pub(super) struct Paper {
        out: Vec<u8>,
        err: Vec<u8>,
    }

    impl Paper {
        pub(super) fn screen(&mut self) -> Screen<'_> {
            Screen {
                look: Look::default(),
                err_colored: false,
                out: &mut self.out,
                err: &mut self.err,
            }
        }

        pub(super) fn out(&self) -> String {
            String::from_utf8_lossy(&self.out).into_owned()
        }

        pub(super) fn err(&self) -> String {
            String::from_utf8_lossy(&self.err).into_owned()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_of_all_namespaces_need_not_be_listed() -> anyhow::Result<()> {
        let asked = |fault: Option<&str>| {
            let agents = Known {
                synced: true,
                fault: None,
                value: BTreeMap::default(),
            };
            let nodes = Known {
                fault: fault.map(str::to_owned),
                ..Known::default()
            };
            let (nodes, followed) = tokio::sync::watch::channel(nodes);
            let wanted = Wanted {
                agents: tokio::sync::watch::channel(agents).1,
                nodes: Some(followed),
            };
            (wanted, nodes)
        };
        let slow = "the API server did not list pods within 20 s";
        for (fault, why) in [(Some("you may not"), "you may not"), (None, slow)] {
            let mut paper = Paper::default();
            let (mut wanted, _nodes) = asked(fault);
            let error = wanted
                .listed(false, &mut paper.screen())
                .await
                .expect_err(why);
            assert_eq!(error.to_string(), why);
            let (mut wanted, _nodes) = asked(fault);
            wanted.listed(true, &mut paper.screen()).await?;
            assert!(wanted.nodes.is_none());
            let said = format!("{why}; only nodes with an agent are asked\n");
            assert_eq!(paper.err(), said);
        }
        Ok(())
    }
}
