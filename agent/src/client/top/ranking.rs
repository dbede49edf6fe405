//! Adds up by pod and subject, sorts, and draws.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    io::{self, Write},
    ops::ControlFlow,
    time::{Duration, Instant, SystemTime},
};

use dinle_proto::v1;

use super::{
    Notes, Poke,
    subjects::{Number, Subject},
    terminal,
};
use crate::client::{
    columns::Who,
    stream::{self, Printer},
    text::{self, NONE},
};

/// Rows that are added up apart in an interval: some 5 MiB. What comes beyond has a row together.
const ROWS_MAX: usize = 10_000;
const OTHERS: &str = "(others)";

/// Columns that tell of the pod.
const WHO: [&str; 4] = ["NODE", "NAMESPACE", "POD", "CONTAINER"];

/// A cell of text on a terminal is cut to this, so that numbers behind it are seen: the beginning of a pod's name and the end of a path tell
/// most.
const WIDEST: usize = 40;

/// Where a ranking goes.
pub(super) enum Output {
    /// Stays in place. What should be known besides has a line.
    Terminal(Notes),
    /// A table of so many rows at each interval.
    Lines { rows: usize },
}

/// One line.
struct Row {
    texts: Vec<String>,
    numbers: Vec<f64>,
}

/// A ranking.
pub(super) struct Ranking {
    subject: Box<dyn Subject>,
    output: Output,
    /// What happened in the interval that goes on.
    sums: BTreeMap<Vec<String>, Vec<u64>>,
    /// What happened in the one before, as it is shown.
    rows: Vec<Row>,
    since: Instant,
    seconds: f64,
    until: Option<prost_types::Timestamp>,
    node: String,
    /// Number of the column that it is sorted by.
    sort: usize,
    reversed: bool,
}

impl Ranking {
    pub(super) fn new(
        subject: Box<dyn Subject>,
        sort: Option<&str>,
        output: Output,
    ) -> Result<Self, String> {
        let texts = WHO.len() + subject.texts().len();
        let mut ranking = Self {
            subject,
            output,
            sums: BTreeMap::new(),
            rows: Vec::new(),
            since: Instant::now(),
            seconds: 0.0,
            until: None,
            node: String::new(),
            sort: texts,
            reversed: false,
        };
        if let Some(name) = sort {
            let names = ranking.names();
            ranking.sort = names
                .iter()
                .position(|column| column.eq_ignore_ascii_case(name))
                .ok_or_else(|| {
                    format!(
                        "--sort {name}: there is no such column; there are {}",
                        names.join(", ").to_lowercase()
                    )
                })?;
        }
        Ok(ranking)
    }

    fn names(&self) -> Vec<&'static str> {
        let numbers = self.subject.numbers().iter().map(|number| number.name);
        let texts = WHO.iter().chain(self.subject.texts()).copied();
        texts.chain(numbers).collect()
    }

    fn texts(&self) -> usize {
        WHO.len() + self.subject.texts().len()
    }

    fn add(&mut self, event: &v1::Event, who: &Who) {
        let Self { subject, sums, .. } = self;
        let Some((cells, amounts)) = subject.take(event) else {
            return;
        };
        let Who {
            node,
            namespace,
            pod,
            container,
            container_id: _,
        } = who.clone();
        self.node.clone_from(&node);
        let mut key = vec![node, namespace, pod, container];
        key.extend(cells);
        if sums.len() >= ROWS_MAX && !sums.contains_key(&key) {
            key = vec![NONE.to_owned(); key.len()];
            if let Some(last) = key.last_mut() {
                OTHERS.clone_into(last);
            }
        }
        let sum = sums.entry(key).or_default();
        let len = sum.len().max(amounts.len());
        sum.resize(len, 0);
        for (sum, more) in sum.iter_mut().zip(amounts) {
            *sum += more;
        }
    }

    /// The interval is over: what was added up is shown, and the next begins.
    fn turn(&mut self, took: Duration, until: Option<prost_types::Timestamp>) {
        let Self {
            subject,
            sums,
            rows,
            seconds,
            ..
        } = self;
        *seconds = took.as_secs_f64().max(1e-3);
        *rows = std::mem::take(sums)
            .into_iter()
            .map(|(texts, sums)| Row {
                texts,
                numbers: subject.show(&sums, *seconds),
            })
            .collect();
        self.until = until;
        self.order();
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let took = now - std::mem::replace(&mut self.since, now);
        self.turn(took, Some(SystemTime::now().into()));
    }

    fn order(&mut self) {
        let texts = self.texts();
        let Self {
            rows,
            sort,
            reversed,
            ..
        } = self;
        rows.sort_by(|a, b| {
            let order = match sort.checked_sub(texts) {
                None => a.texts[*sort].cmp(&b.texts[*sort]),
                Some(at) => largest_first(a.numbers[at], b.numbers[at]),
            };
            let order = if *reversed { order.reverse() } else { order };
            order.then_with(|| a.texts.cmp(&b.texts))
        });
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.output {
            Output::Lines { rows } => {
                for line in self.lines(*rows, usize::MAX) {
                    writeln!(out, "{line}")?;
                }
                writeln!(out)
            }
            Output::Terminal(notes) => {
                let (width, height) = terminal::size();
                let mut screen = vec![self.title()];
                // The title, the names of columns, and the note at the end.
                screen.extend(self.lines(height.saturating_sub(3), WIDEST));
                if let Some(note) = notes.last() {
                    screen.resize(height.saturating_sub(1).max(screen.len()), String::new());
                    screen.push(text::clean(&note).into_owned());
                }
                terminal::draw(&screen, (width, height), out)
            }
        }
    }

    fn title(&self) -> String {
        let names = self.names();
        let order = if self.reversed { " reversed" } else { "" };
        format!(
            "dinle top {}  {}  {}  {:.1} s  {} rows, by {}{order}  (←→ column, r reverse, q quit)",
            self.subject.name(),
            text::clock(self.until.as_ref()),
            text::or_none(&self.node),
            self.seconds,
            self.rows.len(),
            names.get(self.sort).copied().unwrap_or_default(),
        )
    }

    /// Names of the columns, and so many rows.
    fn lines(&self, rows: usize, widest: usize) -> Vec<String> {
        let texts = self.texts();
        let numbers = self.subject.numbers();
        let mut table: Vec<Vec<String>> =
            vec![self.names().iter().map(|&n| n.to_owned()).collect()];
        for row in self.rows.iter().take(rows) {
            let cells = row.texts.iter().enumerate().map(|(at, text)| {
                // Of the last column, such as a path, the end tells most.
                cut(&text::clean(text), widest, at + 1 == texts)
            });
            let mut cells: Vec<String> = cells.collect();
            let print = |(Number { print, .. }, value): (&Number, &f64)| print(*value);
            cells.extend(numbers.iter().zip(&row.numbers).map(print));
            table.push(cells);
        }
        let width = |at: usize| {
            let lens = table.iter().filter_map(|row| row.get(at));
            lens.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..texts + numbers.len()).map(width).collect();
        let line = |cells: &Vec<String>| {
            let padded = cells.iter().zip(&widths).enumerate();
            let padded = padded.map(|(at, (cell, width))| {
                if at < texts {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            padded.collect::<Vec<_>>().join(" ")
        };
        table.iter().map(line).collect()
    }
}

/// Nothing at all comes last.
fn largest_first(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.total_cmp(&a),
        (a, b) => a.cmp(&b),
    }
}

/// A text without what is too much of it.
fn cut(text: &str, widest: usize, end: bool) -> String {
    let len = text.chars().count();
    if len <= widest {
        return text.to_owned();
    }
    let kept = widest.saturating_sub(1);
    if end {
        ['…']
            .into_iter()
            .chain(text.chars().skip(len - kept))
            .collect()
    } else {
        text.chars().take(kept).chain(['…']).collect()
    }
}

impl Printer for Ranking {
    fn event(&mut self, event: &v1::Event, who: &Who, _: &mut dyn Write) -> io::Result<()> {
        self.add(event, who);
        Ok(())
    }

    fn snapshot_end(&mut self, snapshot: &v1::Snapshot, out: &mut dyn Write) -> io::Result<()> {
        if !self.subject.in_snapshots() {
            return Ok(());
        }
        self.turn(stream::length(snapshot), snapshot.end);
        self.print(out)
    }

    fn poke(&mut self, poke: Poke, out: &mut dyn Write) -> io::Result<ControlFlow<()>> {
        let columns = self.names().len();
        match poke {
            Poke::Quit => return Ok(ControlFlow::Break(())),
            Poke::Tick => self.tick(),
            Poke::Left => self.sort = (self.sort + columns - 1) % columns,
            Poke::Right => self.sort = (self.sort + 1) % columns,
            Poke::Reverse => self.reversed = !self.reversed,
            Poke::Resized => {}
        }
        self.order();
        self.print(out)?;
        Ok(ControlFlow::Continue(()))
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        // What came since the last table; snapshots were printed as they came.
        if self.sums.is_empty() || matches!(self.output, Output::Terminal(_)) {
            return Ok(());
        }
        self.tick();
        self.print(out)
    }
}
