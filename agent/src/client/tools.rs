//! Tools that read as those of bcc: one question each, its columns, and the pod on every line.

pub(super) mod block;
pub(super) mod drop;
pub(super) mod file;
pub(super) mod tcp;

use std::process::ExitCode;

use dinle_proto::v1;

pub use block::{Biolatency, Biosnoop};
pub use drop::Pktdrop;
pub use file::{Filesnoop, Opensnoop};
pub use tcp::{Tcplife, Tcpreset, Tcpretrans};

use super::{
    Screen,
    args::{Bounds, Connection, EventOutput, Selection},
    columns::{Column, EventTable},
    json::Json,
    stream::Format,
    watch::{listen, request},
};

/// Arguments of every tool.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Common {
    /// How to print: text in columns, with more columns, or protobuf JSON with one event a line
    #[arg(short, long, value_enum, default_value_t = EventOutput::Table, hide_possible_values = true, value_name = "table|wide|json")]
    pub(super) output: EventOutput,
    /// Print no header [default: print it once]
    #[arg(long)]
    no_header: bool,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    connection: Connection,
}

impl Common {
    /// What to ask for.
    pub(super) fn request(&self, kinds: &[v1::Kind], filter: v1::Filter) -> v1::SubscribeRequest {
        request(kinds, &self.selection, filter, &self.bounds, self.output)
    }

    /// Asks, and prints in these columns; `wide` are added with `-o wide`. `last` is the one that may be long.
    pub(super) async fn run(
        self,
        request: v1::SubscribeRequest,
        mut columns: Vec<Column>,
        wide: Vec<Column>,
        last: Column,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<ExitCode> {
        if self.output == EventOutput::Wide {
            columns.extend(wide);
        }
        columns.push(last);
        let table = EventTable::tool(columns, screen.terminal, !self.no_header);
        self.run_as(request, Format::Table(table), screen).await
    }

    /// Asks, and prints in a way of its own, or as JSON if that is asked for.
    pub(super) async fn run_as(
        self,
        request: v1::SubscribeRequest,
        format: Format,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<ExitCode> {
        let Self {
            output,
            bounds,
            connection,
            ..
        } = self;
        let format = match output {
            EventOutput::Table | EventOutput::Wide => format,
            EventOutput::Json => Format::Json(Json::of("Event")?),
        };
        listen(request, format, &bounds, &connection.address, screen).await
    }
}
