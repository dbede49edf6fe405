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
    args::{Bounds, Selection},
    columns::{Column, EventTable},
    connection::Connection,
    output::{self, Output, parse_output},
    stream::Format,
    watch::{How, listen, request},
};

/// Arguments of every tool.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Common {
    #[arg(short, long, help = output::HELP, default_value = "table", value_parser = parse_output, value_name = output::VALUE)]
    pub(super) output: Output,
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
        request(kinds, &self.selection, filter, &self.bounds, &self.output)
    }

    /// Asks, and prints in these columns; `wide` are added with `-o wide`.
    pub(super) async fn run(
        self,
        request: v1::SubscribeRequest,
        mut columns: Vec<Column>,
        wide: Vec<Column>,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<ExitCode> {
        if self.output.is_wide() {
            columns.extend(wide);
        }
        let look = if self.output.is_wide() {
            screen.look.uncut()
        } else {
            screen.look
        };
        let table = EventTable::tool(columns, look, !self.no_header);
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
            selection,
            no_header: _,
        } = self;
        let how = How::new(bounds, connection, &selection)?;
        let json = output.json("Event", screen)?;
        let format = json.map_or(format, Format::Json);
        listen(request, format, how, screen).await
    }
}
