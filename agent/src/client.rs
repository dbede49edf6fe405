//! The command line: it knows nothing but the API, so whatever it can do, any client can.

mod args;
mod books;
mod columns;
mod complete;
mod connect;
mod connection;
mod json;
mod lasting;
mod look;
mod nodes;
mod order;
mod output;
mod pages;
mod selftest;
mod status;
mod stream;
mod subscriptions;
mod table;
mod template;
mod text;
mod tools;
mod top;
mod watch;
mod workloads;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::Subcommand as _;

use look::{Look, Tone};

pub use complete::{complete, register};
pub use look::Colors;
pub use selftest::Selftest;
pub use status::Status;
pub use subscriptions::Subscriptions;
pub use tools::{
    Biolatency, Biosnoop, Filesnoop, Opensnoop, Pktdrop, Tcplife, Tcpreset, Tcpretrans,
};
pub use top::Top;
pub use watch::{Execsnoop, Watch};
pub use workloads::Workloads;

/// Exit status of a command that asked for something that cannot be: the same as clap's.
const EXIT_USAGE: u8 = 2;
/// Exit status when all went well but for nodes that could not be heard.
const EXIT_PARTLY: u8 = 3;

/// What the exit status says, for the end of the help.
pub const EXIT_STATUS: &str = "\
Exit status:
  0  all went well; what was lost, or not heard for a while, was told; or the reader had enough
  1  something failed: no agent was reached, it refused or left, or the books do not balance
  2  what was asked for is wrong, as the command line or an agent says
  3  of a cluster's nodes some were not heard, or not to the end; which and why was told";

/// What `dinle` can ask of an agent.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Print what processes in pods do, as it happens
    #[command(long_about = watch::LONG_ABOUT)]
    Watch(Watch),
    /// Print programs that pods execute, in the columns of bcc's execsnoop
    #[command(long_about = watch::EXECSNOOP_LONG_ABOUT)]
    Execsnoop(Execsnoop),
    /// Print opens of files, in the columns of bcc's opensnoop
    #[command(long_about = tools::file::OPENSNOOP)]
    Opensnoop(Opensnoop),
    /// Print who opens files, or who made their content go
    #[command(long_about = tools::file::FILESNOOP)]
    Filesnoop(Filesnoop),
    /// Print TCP sessions when they end, in the columns of bcc's tcplife
    #[command(long_about = tools::tcp::TCPLIFE)]
    Tcplife(Tcplife),
    /// Print TCP resets, sent and received
    #[command(long_about = tools::tcp::TCPRESET)]
    Tcpreset(Tcpreset),
    /// Print TCP segments that were sent again, in the columns of bcc's tcpretrans
    #[command(long_about = tools::tcp::TCPRETRANS)]
    Tcpretrans(Tcpretrans),
    /// Print requests to disks, in the columns of bcc's biosnoop
    #[command(long_about = tools::block::BIOSNOOP)]
    Biosnoop(Biosnoop),
    /// Draw how long requests to disks take, by pod
    #[command(long_about = tools::block::BIOLATENCY)]
    Biolatency(Biolatency),
    /// Print which packets the kernel drops, and why
    #[command(long_about = tools::drop::PKTDROP)]
    Pktdrop(Pktdrop),
    /// Rank what pods do, anew at every interval: processes, files, TCP sessions, disks, dropped packets
    #[command(long_about = top::LONG_ABOUT)]
    Top(Top),
    /// List who runs on the node: pods, containers, cgroups
    #[command(long_about = workloads::LONG_ABOUT)]
    Workloads(Workloads),
    /// List the streams that are open: who listens to what, and what it costs
    #[command(long_about = subscriptions::LONG_ABOUT)]
    Subscriptions(Subscriptions),
    /// Show how the agent is doing, and what it can see on this kernel
    #[command(long_about = status::LONG_ABOUT)]
    Status(Status),
    /// Check that the agent hears what runs right here
    #[command(long_about = selftest::LONG_ABOUT)]
    Selftest(Selftest),
}

/// Name of the program as a plugin of kubectl, which finds it by this.
const PLUGIN: &str = "kubectl-dinle";
/// The only flag before a command that has a value.
const COLOR: &str = "--color";

/// The process's arguments. As a plugin of kubectl it asks the cluster unless it is told otherwise: `kubectl dinle watch` is
/// `dinle watch --kube`.
pub fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.collect();
    let program = arguments.first().map(Path::new).and_then(Path::file_name);
    let is_plugin = program.is_some_and(|name| name == PLUGIN);
    let elsewhere = |argument: &OsString| {
        let text = argument.to_string_lossy();
        text == "--address" || text.starts_with("--address=")
    };
    if is_plugin
        && !arguments.iter().any(elsewhere)
        && let Some(at) = question(&arguments)
    {
        arguments.insert(at + 1, "--kube".into());
    }
    arguments
}

/// Where the name of a command is that asks agents. Flags that all commands have may come before it.
fn question(arguments: &[OsString]) -> Option<usize> {
    let mut at = 1;
    loop {
        let argument = arguments.get(at)?.to_str()?;
        at += match argument {
            COLOR => 2,
            flag if flag.starts_with('-') => 1,
            name => return Command::has_subcommand(name).then_some(at),
        };
    }
}

/// Runs a command with the process's own output. An error is one sentence for the user, and exit status 1.
pub async fn run(command: Command, colors: Colors) -> anyhow::Result<ExitCode> {
    let stdout = io::stdout();
    let mut screen = Screen {
        look: Look::of(&stdout, colors),
        err_colored: colors.on(&io::stderr()),
        // A line each would be a system call each; whoever writes flushes when there is nothing more to write now.
        out: &mut io::BufWriter::new(stdout.lock()),
        err: &mut io::stderr(),
    };
    run_on(command, &mut screen).await
}

async fn run_on(command: Command, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
    let result = match command {
        Command::Watch(watch) => watch.run(screen).await,
        Command::Execsnoop(execsnoop) => execsnoop.run(screen).await,
        Command::Opensnoop(tool) => tool.run(screen).await,
        Command::Filesnoop(tool) => tool.run(screen).await,
        Command::Tcplife(tool) => tool.run(screen).await,
        Command::Tcpreset(tool) => tool.run(screen).await,
        Command::Tcpretrans(tool) => tool.run(screen).await,
        Command::Biosnoop(tool) => tool.run(screen).await,
        Command::Biolatency(tool) => tool.run(screen).await,
        Command::Pktdrop(tool) => tool.run(screen).await,
        Command::Top(top) => top.run(screen).await,
        Command::Workloads(workloads) => workloads.run(screen).await,
        Command::Subscriptions(subscriptions) => subscriptions.run(screen).await,
        Command::Status(status) => status.run(screen).await,
        Command::Selftest(selftest) => selftest.run(screen).await,
    };
    let result = result.and_then(|code| {
        screen.out.flush()?;
        Ok(code)
    });
    match result {
        Ok(code) => Ok(code),
        // Whoever read the output has seen enough, as `head` has.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        Err(error) => match error.downcast::<Refused>() {
            Ok(refused) => {
                screen.say(&refused.to_string())?;
                Ok(ExitCode::from(EXIT_USAGE))
            }
            Err(error) => Err(error),
        },
    }
}

/// An error as it may be printed: what it quotes of an agent or a file cannot take over the terminal.
pub fn printable(error: &anyhow::Error) -> String {
    let told = format!("{error:#}");
    let lines: Vec<_> = told.lines().map(text::clean).collect();
    lines.join("\n")
}

/// The user asked for something that cannot be: one sentence a line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Where a command prints.
struct Screen<'a> {
    /// What was asked for.
    out: &'a mut dyn Write,
    /// What should be known about it.
    err: &'a mut dyn Write,
    /// What `out` is.
    look: Look,
    /// `err` takes colours.
    err_colored: bool,
}

impl Screen<'_> {
    /// Tells the user something besides the output.
    fn say(&mut self, lines: &str) -> io::Result<()> {
        self.tell(Tone::Plain, lines)
    }

    /// The same, by what it is to the user.
    fn tell(&mut self, tone: Tone, lines: &str) -> io::Result<()> {
        for line in lines.lines() {
            let line = text::clean(line);
            writeln!(self.err, "{}", tone.paint(&line, self.err_colored))?;
        }
        self.err.flush()
    }
}

#[cfg(test)]
mod tests;
