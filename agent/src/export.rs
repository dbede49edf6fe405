//! EXPORT: what the agent itself brings elsewhere. Each exporter is an ordinary subscriber, with a queue and a count of losses of its own, and
//! knows nothing of the event path.

mod config;
mod counters;
mod lines;
mod nats;
mod open;
mod otlp;
mod prometheus;
mod reload;
mod rotate;
mod run;
mod series;
mod sink;
mod subject;
mod tls;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use arc_swap::ArcSwap;

use crate::{
    admission::Admission,
    control::{Node, Settle},
    filter::Limits,
    hub::Hub,
    workload::Index,
};

pub use config::{Mistake, Receiver, Spec, parse};
pub use counters::{Cause, Counters};
pub use prometheus::Scraped;
pub use reload::{Exporters, Reloads};

/// How long exporters get to end by themselves, after the streams, when the agent is told to stop. With the time that streams get it is below the chart's
/// grace period.
pub const DRAIN: std::time::Duration = std::time::Duration::from_secs(4);

/// What exporters need of the agent.
#[derive(Clone)]
pub struct Context {
    /// Where they subscribe.
    pub hub: Hub,
    /// Says what they may be told.
    pub admission: Admission,
    /// Brings the kernel in line with that.
    pub settle: Settle,
    /// Bounds of their requests.
    pub limits: Limits,
    /// Who runs.
    pub index: Index,
    /// What the kernel half can tell.
    pub state: Arc<ArcSwap<Node>>,
    /// Kubernetes node name.
    pub node: String,
}

/// A file of exporters cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is wrong.
    #[error("{}", lines(path, mistakes))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// In these places.
        mistakes: Vec<Mistake>,
    },
}

fn lines(path: &Path, mistakes: &[Mistake]) -> String {
    let line = |mistake: &Mistake| match mistake.line {
        0 => format!("{}: {mistake}", path.display()),
        _ => format!("{}:{mistake}", path.display()),
    };
    let lines: Vec<String> = mistakes.iter().map(line).collect();
    lines.join("\n")
}

/// An error and what is behind it.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        // Some tell what is behind them by themselves.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// Reads a file. Gives its text, too, to see when it changes.
fn read(path: &Path, limits: &Limits) -> Result<(String, Vec<Spec>), Unusable> {
    let text = std::fs::read_to_string(path).map_err(|error| Unusable::Unreadable {
        path: path.to_owned(),
        error,
    })?;
    match parse(&text, limits) {
        Ok(specs) => Ok((text, specs)),
        Err(mistakes) => Err(Unusable::Wrong {
            path: path.to_owned(),
            mistakes,
        }),
    }
}

/// Prints whether a file of exporters could be used, or everything that is wrong with it.
pub fn check(path: &Path) -> ExitCode {
    match read(path, &Limits::default()) {
        Ok((_, specs)) => {
            let exporters: Vec<String> = specs
                .iter()
                .map(|spec| format!("{} ({})", spec.name, spec.receiver.name()))
                .collect();
            let exporters = match &exporters[..] {
                [] => "no exporters".to_owned(),
                all => all.join(", "),
            };
            println!("OK: {exporters}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests;
