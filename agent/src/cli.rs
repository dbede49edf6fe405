//! `dinle`: arguments → subcommand. In the library, so that what runs here is compiled once: an asynchronous function is compiled where it is run.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};
use clap_complete::Shell;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{app, client, config::Config, export};

/// Listens to what happens in the pods of a Kubernetes node, without stopping them.
#[derive(Parser)]
#[command(
    name = "dinle",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = client::EXIT_STATUS
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    colors: client::Colors,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Command {
    Agent(Config),
    #[command(flatten)]
    Client(client::Command),
    Doctor(app::Doctor),
    /// Look at files of the agent's configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    #[command(long_about = COMPLETION)]
    /// Print a script with which a shell completes commands, flags and the names of pods
    Completion {
        /// Which one
        shell: Shell,
    },
    #[command(long_about = MAN)]
    /// Write pages for `man`, one for each command
    Man {
        /// Write a file for each page there [default: print the page of the command]
        #[arg(short, long, value_name = "DIR")]
        directory: Option<PathBuf>,
        /// Print the page of this command [default: that of dinle]
        #[arg(value_name = "COMMAND", conflicts_with = "directory")]
        page: Option<String>,
    },
    /// Print the version and end.
    Version,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether a file of exporters (`dinle agent --exporters FILE`) is right, or everything that is wrong with it and where; the exit
    /// status is then 1
    Check {
        /// The file
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
    },
}

/// How long a write to standard output that nobody reads may keep the program from ending.
const LAST: Duration = Duration::from_secs(1);

const COMPLETION: &str = "\
Print a script with which a shell completes commands, flags, and what is in the cluster: namespaces, pods, owners, containers, nodes.

Names come from the cluster, or without --kube from the agent at --address, as what is written before on the line says. What is not found \
within 2 seconds is left out.

Examples:
  source <(dinle completion bash)             # in ~/.bashrc; for zsh, the same with zsh in ~/.zshrc
  dinle completion fish | source              # in ~/.config/fish/config.fish
  source <(kubectl dinle completion bash)     # where kubectl-dinle is called by this name

`kubectl dinle` is completed by kubectl, which looks for kubectl_complete-dinle on the PATH: this program by another name.
  ln -s kubectl-dinle \"$(dirname \"$(command -v kubectl-dinle)\")/kubectl_complete-dinle\"";

const MAN: &str = "\
Write pages for `man`, one for each command, of what --help says.

Examples:
  dinle man top | man -l -
  dinle man --directory ~/.local/share/man/man1";

/// Does what the arguments say.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(status) = client::complete(Cli::command, &arguments) {
        return status;
    }
    let done = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let done = runtime.block_on(run(arguments));
            runtime.shutdown_timeout(LAST);
            done
        }
        Err(error) => Err(error.into()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("dinle: {}", client::printable(&error));
        ExitCode::FAILURE
    })
}

async fn run(arguments: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let program = arguments.first().cloned();
    let Cli { command, colors } = Cli::parse_from(client::arguments(arguments.into_iter()));
    match command {
        Command::Agent(config) => {
            log(config.log_json, colors);
            app::run(config).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Client(command) => client::run(command, colors).await,
        Command::Doctor(doctor) => doctor.run().await,
        Command::Config {
            command: ConfigCommand::Check { file },
        } => Ok(export::check(&file)),
        Command::Completion { shell } => {
            client::register(shell, program.as_deref(), &mut io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { directory, page } => man(directory.as_deref(), page.as_deref()),
        Command::Version => {
            println!("dinle {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Writes all pages into a directory, or prints one.
fn man(directory: Option<&Path>, page: Option<&str>) -> anyhow::Result<ExitCode> {
    // Whoever has `man` needs no pages on `dinle help`.
    let mut cli = Cli::command().disable_help_subcommand(true);
    // Names below are those of all of it: `dinle-top`.
    cli.build();
    if let Some(directory) = directory {
        let failed = || format!("cannot write pages into {}", directory.display());
        std::fs::create_dir_all(directory).with_context(failed)?;
        clap_mangen::generate_to(cli, directory).with_context(failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let command = match page {
        None => cli,
        Some(name) => match cli.find_subcommand(name) {
            Some(found) => found.clone(),
            None => {
                let wrong = format!("there is no command {name}; `dinle --help` lists them");
                cli.error(ErrorKind::InvalidSubcommand, wrong).exit()
            }
        },
    };
    clap_mangen::Man::new(command).render(&mut io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

fn log(json: bool, colors: client::Colors) {
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
                    .with_ansi(colors.on(&io::stderr()))
                    .with_writer(io::stderr),
            )
            .init();
    }
}
