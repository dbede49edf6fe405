//! The commands as a user sees them.

use clap::Parser as _;

use super::*;

mod end_to_end;
mod requests;

/// What main.rs does with the arguments.
#[derive(Debug, clap::Parser)]
#[command(name = "dinle")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn parse(arguments: &[&str]) -> Result<Command, clap::Error> {
    Cli::try_parse_from([&["dinle"], arguments].concat()).map(|cli| cli.command)
}
