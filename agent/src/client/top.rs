//! `dinle top`: who does most, anew at every interval.

mod live;
mod ranking;
mod subjects;
mod sums;
mod terminal;
#[cfg(test)]
mod tests;

use std::{
    io,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use clap::ValueEnum;
use crossterm::event::KeyCode;
use dinle_proto::v1;
use tokio_stream::{Stream, StreamExt as _, wrappers::IntervalStream};

use super::{
    Refused, Screen,
    args::{Bounds, Selection, parse_duration},
    connection::Connection,
    output::Output,
    stream::Format,
    watch::{How, listen_and, listen_at, request},
};
use live::Live;
use ranking::Ranking;
use subjects::{Disk, Drops, Files, Process, Subject, Tcp};
use terminal::Enough;

pub(super) use terminal::restore;

pub(super) const LONG_ABOUT: &str = "\
Rank what pods do: processes, files, TCP sessions, disks, dropped packets.

On a terminal the view stays in place, with a tab for each of these, or for the one that is named; only what has a tab is listened to. \
Tab or a digit takes another tab, s sorts by another column and S the other way round, / shows only rows with a text, Enter only those of a \
pod in all tabs, and Esc all again; t adds up since the beginning, Space holds what is shown, ? tells of all keys, q quits. What was lost is in \
the line of the books. Elsewhere one of them must be named, and a table is printed at every interval.

process: executions and ends by pod and command; AVG and P99 are of how long processes lived. \
files: opens and deletions by pod and path. \
tcp: sessions by pod and peer; of the sessions that were accepted at a port all of a peer together. SESSIONS are those heard of first. \
disk: requests by pod, disk and operation; AVG and P99 are times in the device. \
drops: packets by pod, reason, protocol and destination port. \
A P99 is that of the bucket in which it lies.

Examples:
  dinle top -n shop
  dinle top files --interval 5s --sort failed/s";

/// Arguments of `dinle top`.
#[derive(Clone, Debug, clap::Args)]
pub struct Top {
    /// What to rank [default: all, which takes a terminal]
    #[arg(
        value_enum,
        value_name = "process|files|tcp|disk|drops|all",
        default_value_t = What::All,
        hide_default_value = true,
        hide_possible_values = true
    )]
    what: What,
    /// Rank what happened in so much time, such as `5s`; from 1s to 1h
    #[arg(short, long, value_name = "TIME", value_parser = parse_interval, default_value = "1s")]
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

/// The longest interval. Rows of longer ones would be those of the past.
const INTERVAL_MAX: i64 = 3600;

fn parse_interval(text: &str) -> Result<prost_types::Duration, String> {
    let interval = parse_duration(text)?;
    match (interval.seconds, interval.nanos) {
        (1..INTERVAL_MAX, _) | (INTERVAL_MAX, 0) => Ok(interval),
        _ => Err("it is from 1s to 1h".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Executions and ends of processes
    Process,
    /// Opens and deletions of files
    Files,
    /// TCP sessions
    Tcp,
    /// Requests to disks
    Disk,
    /// Packets that the kernel dropped
    Drops,
    /// Each of them, in a tab of its own
    All,
}

impl What {
    fn subjects(self) -> Vec<Box<dyn Subject>> {
        match self {
            Self::Process => vec![Box::new(Process)],
            Self::Files => vec![Box::new(Files)],
            Self::Tcp => vec![Box::<Tcp>::default()],
            Self::Disk => vec![Box::new(Disk)],
            Self::Drops => vec![Box::new(Drops)],
            Self::All => {
                let each = [
                    Self::Process,
                    Self::Files,
                    Self::Tcp,
                    Self::Disk,
                    Self::Drops,
                ];
                each.into_iter().flat_map(Self::subjects).collect()
            }
        }
    }
}

/// What comes to a stream's printer from elsewhere than the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Poke {
    /// An interval is over.
    Tick,
    /// What is different may be drawn by now.
    Redraw,
    /// A key was pressed.
    Key(KeyCode),
    /// The terminal has another size, or lost what was drawn.
    Resized,
    /// Enough.
    Quit,
}

/// How often the view is looked at, whether something is to be drawn.
const REDRAW: Duration = Duration::from_millis(200);
/// How often the agent tells the books.
const BOOKS: Duration = Duration::from_secs(1);

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
        let subjects = what.subjects();
        let kinds: Vec<v1::Kind> = subjects
            .iter()
            .flat_map(|subject| subject.kinds().to_vec())
            .collect();
        v1::SubscribeRequest {
            interval: Some(*interval),
            ..request(
                &kinds,
                selection,
                v1::Filter::default(),
                bounds,
                &Output::Table,
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
        let how = How::new(bounds, connection, &selection)?;
        let subjects = what.subjects();
        let sort = sort.as_deref();
        // What is told in snapshots comes when an interval is over.
        let ticking = subjects.iter().any(|subject| !subject.in_snapshots());
        let period = Duration::try_from(interval).unwrap_or(BOOKS);
        let ticks: Pokes = match ticking {
            true => Box::new(ticks(period, Poke::Tick)),
            false => Box::new(tokio_stream::pending()),
        };
        let explain = how.bounds.explain;
        if screen.look.is_terminal() && !explain {
            let live = Live::new(subjects, sort, screen.look.colored, Notes::default());
            return show(request, live.map_err(Refused)?, how, screen, ticks).await;
        }
        let several = subjects.len() > 1;
        if several && !explain {
            return Err(Refused(
                "only a terminal has room for all: name one, such as `dinle top files`; there are process, files, tcp, disk, drops".to_owned(),
            )
            .into());
        }
        let format: Box<dyn super::stream::Printer> = match subjects.into_iter().next() {
            Some(subject) if !several => {
                Box::new(Ranking::new(subject, sort, rows).map_err(Refused)?)
            }
            // What the agent would do is the same for all of them.
            _ => Box::new(Ranking::new(Box::new(Process), None, rows).map_err(Refused)?),
        };
        listen_and(request, Format::Custom(format), how, screen, ticks).await
    }
}

/// Shows the view on the terminal until somebody has had enough.
async fn show(
    mut request: v1::SubscribeRequest,
    mut live: Live,
    how: How,
    screen: &mut Screen<'_>,
    ticks: Pokes,
) -> anyhow::Result<ExitCode> {
    // Whoever asks for a password asks on a terminal that is as usual.
    let reached = how.reach().await?;
    // Books are looked at all the time.
    request.heartbeat_interval = prost_types::Duration::try_from(BOOKS).ok();
    let notes = live.notes();
    let enough = Enough::default();
    let keys = terminal::keys(enough.clone())?;
    let terminal = terminal::Terminal::enter().map_err(|error| {
        Refused(format!(
            "the view needs a terminal ({error}); to print tables, name a ranking and pipe it, as in `dinle top files | cat`"
        ))
    })?;
    live.draw(screen.out)?;
    let begun = {
        let heard = Arc::clone(&enough.heard);
        futures::stream::once(std::future::ready(())).map(move |()| {
            heard.store(true, Ordering::SeqCst);
            Poke::Redraw
        })
    };
    let drawn = ticks.merge(ticks_to_draw());
    let pokes: Pokes = Box::new(begun.chain(keys.merge(drawn)));
    // What is told besides the output has a line on the screen, and is told again when that is gone.
    let mut inner = Screen {
        out: &mut *screen.out,
        err: &mut notes.clone(),
        look: screen.look,
        err_colored: false,
    };
    let format = Format::Custom(Box::new(live));
    let result = tokio::select! {
        result = listen_at(reached, request, format, &mut inner, pokes) => Some(result),
        () = enough.for_good() => None,
    };
    drop(terminal);
    screen.say(&notes.all())?;
    match result {
        Some(result) => result,
        None if enough.heard.load(Ordering::SeqCst) => {
            anyhow::bail!("ended without the books: they did not come in time")
        }
        // There was nothing to end.
        None => Ok(ExitCode::SUCCESS),
    }
}

type Pokes = Box<dyn Stream<Item = Poke> + Unpin>;

fn ticks_to_draw() -> impl Stream<Item = Poke> + Unpin {
    ticks(REDRAW, Poke::Redraw)
}

fn ticks(period: Duration, poke: Poke) -> impl Stream<Item = Poke> + Unpin {
    let begin = tokio::time::Instant::now() + period;
    let mut ticks = tokio::time::interval_at(begin, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    IntervalStream::new(ticks).map(move |_| poke)
}

/// What is told besides the output. Holds the last [`Notes::MAX`] bytes.
#[derive(Clone, Debug, Default)]
struct Notes(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    text: String,
    /// Bytes that were written, those that are not held any more too.
    written: usize,
}

impl Notes {
    const MAX: usize = 16 << 10;

    fn all(&self) -> String {
        self.lock().text.clone()
    }

    /// The last line.
    fn last(&self) -> Option<String> {
        self.lock().text.lines().last().map(str::to_owned)
    }

    /// So many bytes were told.
    fn written(&self) -> usize {
        self.lock().written
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl io::Write for Notes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut noted = self.lock();
        noted.written += bytes.len();
        let text = &mut noted.text;
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
