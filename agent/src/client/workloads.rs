//! `dinle workloads`.

use std::process::ExitCode;

use dinle_proto::v1;

use super::{
    Screen,
    args::{Connection, Output, Selection},
    connect::{answer, connect},
    json::Json,
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
    /// How to print: text in columns, or protobuf JSON with one workload a line
    #[arg(short, long, value_enum, default_value_t = Output::Table, hide_possible_values = true, value_name = "table|json")]
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
            connection: Connection { address },
        } = self;
        let mut client = connect(&address).await?;
        let request = v1::ListWorkloadsRequest {
            selector: Some(selection.to_proto()),
        };
        let v1::ListWorkloadsResponse { workloads } =
            answer(&address, client.list_workloads(request)).await?;
        match output {
            Output::Table => pages::workloads(&workloads, screen.out)?,
            Output::Json => {
                let json = Json::of("Workload")?;
                for workload in &workloads {
                    json.line(workload, screen.out)?;
                }
            }
        }
        if workloads.is_empty() {
            screen.say("no workload on this node matches")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
