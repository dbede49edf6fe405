//! The command line: it knows nothing but the API, so whatever it can do, any client can.

mod args;
mod books;
mod columns;
mod connect;
mod json;
mod pages;
mod status;
mod stream;
mod table;
mod text;
mod tools;
mod top;
mod watch;
mod workloads;

use std::{
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
};

pub use status::Status;
pub use tools::{
    Biolatency, Biosnoop, Filesnoop, Opensnoop, Pktdrop, Tcplife, Tcpreset, Tcpretrans,
};
pub use top::Top;
pub use watch::{Execsnoop, Watch};
pub use workloads::Workloads;

/// Exit status of a command that asked for something that cannot be: the same as clap's.
const EXIT_USAGE: u8 = 2;

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
    /// Rank what pods do with disks, TCP sessions or files, anew at every interval
    #[command(long_about = top::LONG_ABOUT)]
    Top(Top),
    /// List who runs on the node: pods, containers, cgroups
    #[command(long_about = workloads::LONG_ABOUT)]
    Workloads(Workloads),
    /// Show how the agent is doing, and what it can see on this kernel
    #[command(long_about = status::LONG_ABOUT)]
    Status(Status),
}

/// Runs a command with the process's own output. An error is one sentence for the user, and exit status 1.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let stdout = io::stdout();
    let mut screen = Screen {
        terminal: stdout.is_terminal(),
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
        Command::Status(status) => status.run(screen).await,
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
    /// A human looks at `out`.
    terminal: bool,
}

impl Screen<'_> {
    /// Tells the user something besides the output.
    fn say(&mut self, lines: &str) -> io::Result<()> {
        for line in lines.lines() {
            writeln!(self.err, "{}", text::clean(line))?;
        }
        self.err.flush()
    }
}

#[cfg(test)]
mod tests;
