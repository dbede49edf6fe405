//! `dinle selftest`: whether the agent hears what runs right here.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow, bail};
use dinle_proto::v1::{self, event::Detail, subscribe_response::Message};
use tokio::time::{Instant, interval, timeout_at};

use super::{
    Refused, Screen,
    args::parse_duration,
    connect::{Client, HEARTBEAT, Place, answer, connect},
    connection::{Connection, Reach},
    nodes, text,
};

pub(super) const LONG_ABOUT: &str = "\
Check that the agent of this node hears what runs right here: listen, execute this program once more, and wait for the event.

In a pod, say which one with --pod and --namespace, or by the downward API in POD_NAME and POD_NAMESPACE: the event must name it. Outside of \
pods, processes of the host are listened to. With --kube, --node or NODE_NAME says which node's agent to ask; `helm test` does that.

Examples:
  dinle selftest
  dinle selftest --kube --node node-1 -n dinle --pod dinle-test";

/// Processes that are executed until one is heard are so far apart.
const AGAIN: Duration = Duration::from_secs(1);

/// Arguments of `dinle selftest`.
#[derive(Clone, Debug, clap::Args)]
pub struct Selftest {
    /// Name of the pod that this runs in [default: none, it runs outside of pods]
    #[arg(
        short,
        long,
        env = "POD_NAME",
        value_name = "POD",
        requires = "namespace"
    )]
    pod: Option<String>,
    /// Namespace of that pod
    #[arg(short, long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// With --kube: node that this runs on
    #[arg(long, env = "NODE_NAME", value_name = "NODE")]
    node: Option<String>,
    /// Give up after this time
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    timeout: prost_types::Duration,
    #[command(flatten)]
    connection: Connection,
}

impl Selftest {
    pub(super) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self {
            pod,
            namespace,
            node,
            timeout,
            connection,
        } = self;
        let patience = Duration::try_from(timeout).unwrap_or_default();
        let deadline = Instant::now()
            .checked_add(patience)
            .ok_or_else(|| Refused("--timeout is too long".to_owned()))?;
        let (client, place) = match connection.reach().await? {
            Reach::Agent(address) => (connect(&address).await?, Place::At(address)),
            Reach::Cluster(cluster) => {
                let node = node.ok_or_else(|| {
                    Refused("with --kube, --node says on which node this runs".to_owned())
                })?;
                let client = nodes::of_node(&cluster, &node, deadline).await?;
                (client, Place::On(node))
            }
        };
        let selector = match (&pod, namespace) {
            (Some(pod), Some(namespace)) => v1::Selector {
                namespaces: vec![namespace],
                pods: vec![pod.clone()],
                ..Default::default()
            },
            _ => v1::Selector {
                host_processes: v1::HostProcesses::Include.into(),
                ..Default::default()
            },
        };
        let Heard { event, after } = hear(client, &place, selector, deadline).await?;
        let process = event.process.unwrap_or_default();
        let v1::WorkloadName {
            node,
            namespace,
            pod: name,
            container,
            ..
        } = event.workload.unwrap_or_default();
        let [node, namespace, name, container] =
            [node, namespace, name, container].map(|text| text::or_none(&text).to_owned());
        if let Some(pod) = pod
            && name != pod
        {
            bail!("{place} heard this process, but in pod {namespace}/{name} instead of {pod}");
        }
        writeln!(
            screen.out,
            "heard on node {node}: pod {namespace}/{name}, container {container} executed this program as process {}; the event came {:.1} ms later",
            process.pid,
            after.as_secs_f64() * 1e3,
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

struct Heard {
    event: v1::Event,
    /// From the execution to here.
    after: Duration,
}

/// Listens, executes, and waits for the event.
async fn hear(
    mut client: Client,
    place: &Place,
    selector: v1::Selector,
    deadline: Instant,
) -> anyhow::Result<Heard> {
    let request = v1::SubscribeRequest {
        selector: Some(selector),
        kinds: vec![v1::Kind::Exec.into()],
        identity_mode: v1::IdentityMode::Inline.into(),
        heartbeat_interval: prost_types::Duration::try_from(HEARTBEAT).ok(),
        ..Default::default()
    };
    let mut stream = answer(place, client.subscribe(request)).await?;
    // Nobody else has this name.
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let token = format!("dinle-selftest-{}-{}", std::process::id(), now.as_nanos());
    let mut again = interval(AGAIN);
    loop {
        let message = tokio::select! {
            // At once, and then until the pod of this process is known to the agent.
            _ = again.tick() => {
                execute(&token)?;
                continue;
            }
            message = timeout_at(deadline, stream.message()) => message,
        };
        let response = message
            .map_err(|_| {
                anyhow!(
                    "{place} listens, but did not tell of this process in time: is this the node and the pod that were named, and does \
                     `dinle status` say that exec is available?"
                )
            })?
            .map_err(|status| super::connect::failure(place, &status))?
            .ok_or_else(|| anyhow!("{place} ended the stream"))?;
        let Some(Message::Batch(batch)) = response.message else {
            continue;
        };
        let ours = |event: &v1::Event| match &event.detail {
            Some(Detail::Exec(exec)) => exec.args.first() == Some(&token),
            _ => false,
        };
        if let Some(event) = batch.events.into_iter().find(ours) {
            let time = event.time.and_then(|time| SystemTime::try_from(time).ok());
            let after = time.and_then(|time| SystemTime::now().duration_since(time).ok());
            return Ok(Heard {
                event,
                after: after.unwrap_or_default(),
            });
        }
    }
}

/// Executes this program under that name. It prints its version and ends.
fn execute(name: &str) -> anyhow::Result<()> {
    let status = Command::new("/proc/self/exe")
        .arg0(name)
        .arg("version")
        .stdout(Stdio::null())
        .status()
        .context("this program cannot be executed")?;
    anyhow::ensure!(
        status.success(),
        "this program, executed, ended with {status}"
    );
    Ok(())
}
