//! `dinle`: arguments → subcommand.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use dinle::{app, client, config::Config};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Listens to what happens in the pods of a Kubernetes node, without stopping them.
#[derive(Parser)]
#[command(
    name = "dinle",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Command {
    Agent(Config),
    #[command(flatten)]
    Client(client::Command),
    /// Print the version and end.
    Version,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Agent(config) => {
            log(config.log_json);
            app::run(config).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Client(command) => client::run(command).await,
        Command::Version => {
            println!("dinle {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("dinle: {error:#}");
        ExitCode::FAILURE
    })
}

fn log(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry
            .with(fmt::layer().json().with_writer(io::stderr))
            .init();
    } else {
        registry
            .with(
                fmt::layer()
                    .with_ansi(io::stderr().is_terminal())
                    .with_writer(io::stderr),
            )
            .init();
    }
}
