//! `dinle workloads`.

use std::process::ExitCode;

use dinle_proto::v1;

use super::{
    Screen,
    args::Selection,
    connect::{Client, Place, answer, connect},
    connection::{Connection, Reach},
    nodes::{every, in_context},
    output::{self, Output, parse_output},
    pages,
};

pub(super) const LONG_ABOUT: &str = "\
List who runs on the node, as far as the agent knows: one line for each cgroup.

A pod has a line for each container and one for its sandbox. \
STATE tells how much is known: host, pending, pod, container, sandbox or unknown.

Examples:
  dinle workloads -n shop
  dinle workloads --owner deploy/checkout -o json";

/// Arguments of `dinle workloads`.
#[derive(Clone, Debug, clap::Args)]
pub struct Workloads {
    #[arg(short, long, help = output::HELP, default_value = "table", value_parser = parse_output, value_name = output::VALUE)]
    output: Output,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    connection: Connection,
}

impl Workloads {
    pub(super) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self {
            output,
            selection,
            connection,
        } = self;
        selection.check()?;
        let json = output.json("Workload", screen)?;
        let selector = selection.to_proto();
        let list = async |client: &mut Client, place: &Place, selector: v1::Selector| {
            let request = v1::ListWorkloadsRequest {
                selector: Some(selector),
            };
            let answer = answer(place, client.list_workloads(request)).await?;
            anyhow::Ok(answer.workloads)
        };
        let (workloads, code) = match connection.reach().await? {
            Reach::Agent(address) => {
                let mut client = connect(&address).await?;
                let listed = list(&mut client, &Place::At(address), selector).await?;
                (listed, ExitCode::SUCCESS)
            }
            Reach::Cluster(cluster) => {
                let selector = in_context(selector, selection.all_namespaces(), &cluster);
                let ask = async |client: &mut Client, place: &Place| {
                    list(client, place, selector.clone()).await
                };
                let (lists, code) = every(&cluster, Some(&selector), screen, ask).await?;
                (lists.concat(), code)
            }
        };
        match json {
            None => {
                let look = if output.is_wide() {
                    screen.look.uncut()
                } else {
                    screen.look
                };
                pages::workloads(&workloads, output.is_wide(), look, screen.out)?;
            }
            Some(json) => {
                for workload in &workloads {
                    json.line(workload, screen.out)?;
                }
            }
        }
        if workloads.is_empty() {
            screen.say("no workload matches")?;
        }
        Ok(code)
    }
}
