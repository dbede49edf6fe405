//! `dinle top`: who does most, anew at every interval.

mod ranking;
mod subjects;
mod terminal;
#[cfg(test)]
mod tests;

use std::{
    io,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use clap::ValueEnum;
use dinle_proto::v1;
use tokio_stream::{Stream, StreamExt as _, wrappers::IntervalStream};

use super::{
    Refused, Screen,
    args::{Bounds, Selection, parse_duration},
    connection::Connection,
    output,
    stream::Format,
    watch::{How, listen_and, request},
};
use ranking::{Output, Ranking};
use subjects::{Disk, Files, Subject, Tcp};

pub(super) use terminal::restore;

pub(super) const LONG_ABOUT: &str = "\
Rank what pods do: with disks, TCP sessions or files.

On a terminal the table stays in place: ← and → choose the column to sort by, r reverses the order, q quits. Elsewhere a table is printed at \
every interval.

disk: requests by pod, disk and operation; AVG and P99 are times in the device, P99 that of the bucket in which it lies. \
tcp: sessions by pod and peer; of the sessions that were accepted at a port all of a peer together. \
files: opens and deletions by pod and path.

Examples:
  dinle top disk -n shop
  dinle top files --interval 5s --sort failed/s";

/// Arguments of `dinle top`.
#[derive(Clone, Debug, clap::Args)]
pub struct Top {
    /// What to rank
    #[arg(value_enum, value_name = "files|tcp|disk", hide_possible_values = true)]
    what: What,
    /// Rank what happened in so much time, such as `5s`; at least 1s
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    interval: prost_types::Duration,
    /// Sort by this column, such as `sent/s`; numbers begin with the largest [default: the first with numbers]
    #[arg(short, long, value_name = "COLUMN")]
    sort: Option<String>,
    /// Print so many rows at most; on a terminal, as many as fit
    #[arg(long, value_name = "N", default_value_t = 20)]
    rows: usize,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Opens and deletions of files
    Files,
    /// TCP sessions
    Tcp,
    /// Requests to disks
    Disk,
}

impl What {
    fn subject(self) -> Box<dyn Subject> {
        match self {
            Self::Files => Box::new(Files),
            Self::Tcp => Box::new(Tcp::default()),
            Self::Disk => Box::new(Disk),
        }
    }
}

/// What comes to a stream's printer from elsewhere than the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Poke {
    /// An interval is over.
    Tick,
    /// Sort by the column to the left.
    Left,
    /// Sort by the column to the right.
    Right,
    /// The other way round.
    Reverse,
    /// The terminal has another size.
    Resized,
    /// Enough.
    Quit,
}

impl Top {
    pub(super) fn request(&self) -> v1::SubscribeRequest {
        let Self {
            what,
            interval,
            sort: _,
            rows: _,
            selection,
            bounds,
            connection: _,
        } = self;
        v1::SubscribeRequest {
            interval: Some(*interval),
            ..request(
                what.subject().kinds(),
                selection,
                v1::Filter::default(),
                bounds,
                &output::Output::Table,
            )
        }
    }

    pub(super) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let Self {
            what,
            interval,
            sort,
            rows,
            bounds,
            connection,
            selection,
        } = self;
        let subject = what.subject();
        // What is told in snapshots comes when an interval is over.
        let ticks = (!subject.in_snapshots()).then(|| ticks(interval));
        let notes = Notes::default();
        let live = screen.look.is_terminal() && !bounds.explain;
        let output = if live {
            Output::Terminal(notes.clone())
        } else {
            Output::Lines { rows }
        };
        let ranking = Ranking::new(subject, sort.as_deref(), output).map_err(Refused)?;
        let format = Format::Custom(Box::new(ranking));
        let ticks: Pokes = match ticks {
            Some(ticks) => Box::new(ticks),
            None => Box::new(tokio_stream::pending()),
        };
        let how = How::new(bounds, connection, &selection)?;
        if !live {
            return listen_and(request, format, how, screen, ticks).await;
        }
        let terminal = terminal::Terminal::enter()?;
        let pokes: Pokes = Box::new(ticks.merge(terminal::keys()?));
        // What is told besides the output has a line on the screen, and is told again when that is gone.
        let mut inner = Screen {
            out: &mut *screen.out,
            err: &mut notes.clone(),
            look: screen.look,
            err_colored: false,
        };
        let result = listen_and(request, format, how, &mut inner, pokes).await;
        drop(terminal);
        screen.say(&notes.all())?;
        result
    }
}

type Pokes = Box<dyn Stream<Item = Poke> + Unpin>;

fn ticks(interval: prost_types::Duration) -> impl Stream<Item = Poke> + Unpin {
    let period = Duration::try_from(interval).unwrap_or(Duration::from_secs(1));
    let begin = tokio::time::Instant::now() + period;
    let mut ticks = tokio::time::interval_at(begin, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    IntervalStream::new(ticks).map(|_| Poke::Tick)
}

/// What is told besides the output. Holds the last [`Notes::MAX`] bytes.
#[derive(Clone, Debug, Default)]
struct Notes(Arc<Mutex<String>>);

impl Notes {
    const MAX: usize = 16 << 10;

    fn all(&self) -> String {
        self.lock().clone()
    }

    /// The last line.
    fn last(&self) -> Option<String> {
        self.lock().lines().last().map(str::to_owned)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl io::Write for Notes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = self.lock();
        text.push_str(&String::from_utf8_lossy(bytes));
        if text.len() > Self::MAX {
            let keep = text.len() - Self::MAX / 2;
            let cut = text[..]
                .char_indices()
                .map(|(at, _)| at)
                .find(|at| *at >= keep);
            text.drain(..cut.unwrap_or(0));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
