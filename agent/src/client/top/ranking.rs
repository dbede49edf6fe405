//! A table at each interval, for whoever reads lines.

use std::{
    io::{self, Write},
    ops::ControlFlow,
    time::{Duration, Instant},
};

use dinle_proto::v1;

use super::{
    Poke,
    subjects::Subject,
    sums::{self, Order, Rows, WHO},
};
use crate::client::{
    columns::Who,
    stream::{self, News, Printer},
    text,
};

/// One line.
struct Row {
    texts: Vec<String>,
    numbers: Vec<f64>,
}

/// A ranking.
pub(super) struct Ranking {
    subject: Box<dyn Subject>,
    /// So many are printed at most.
    rows_max: usize,
    /// What happened in the interval that goes on.
    sums: Rows,
    since: Instant,
    order: Order,
}

/// Names of all columns.
pub(super) fn names(subject: &dyn Subject) -> Vec<&'static str> {
    let numbers = subject.numbers().iter().map(|number| number.name);
    let texts = WHO.iter().chain(subject.texts()).copied();
    texts.chain(numbers).collect()
}

/// A sentence on a column that is none of these.
pub(super) fn no_such_column(name: &str, names: &[&str]) -> String {
    format!(
        "--sort {name}: there is no such column; there are {}",
        names.join(", ").to_lowercase()
    )
}

/// The order by the first column with numbers, or by that of this name.
pub(super) fn order(subject: &dyn Subject, sort: Option<&str>) -> Result<Order, String> {
    let names = names(subject);
    let column = match sort {
        None => WHO.len() + subject.texts().len(),
        Some(name) => names
            .iter()
            .position(|column| column.eq_ignore_ascii_case(name))
            .ok_or_else(|| no_such_column(name, &names))?,
    };
    Ok(Order {
        column,
        reversed: false,
    })
}

impl Ranking {
    pub(super) fn new(
        subject: Box<dyn Subject>,
        sort: Option<&str>,
        rows_max: usize,
    ) -> Result<Self, String> {
        Ok(Self {
            order: order(subject.as_ref(), sort)?,
            subject,
            rows_max,
            sums: Rows::new(),
            since: Instant::now(),
        })
    }

    /// The interval is over: what was added up is printed, and the next begins.
    fn turn(&mut self, took: Duration, out: &mut dyn Write) -> io::Result<()> {
        let Self {
            subject,
            rows_max,
            sums,
            order,
            ..
        } = self;
        let seconds = took.as_secs_f64().max(1e-3);
        let mut rows: Vec<Row> = std::mem::take(sums)
            .into_iter()
            .map(|(texts, sums)| Row {
                texts,
                numbers: subject.show(&sums, seconds),
            })
            .collect();
        rows.sort_by(|a, b| order.of((&a.texts, &a.numbers), (&b.texts, &b.numbers)));
        rows.truncate(*rows_max);
        for line in lines(subject.as_ref(), &rows) {
            writeln!(out, "{line}")?;
        }
        writeln!(out)
    }

    fn tick(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let now = Instant::now();
        let took = now - std::mem::replace(&mut self.since, now);
        self.turn(took, out)
    }
}

/// Names of the columns, and rows.
fn lines(subject: &dyn Subject, rows: &[Row]) -> Vec<String> {
    let names = names(subject);
    let numbers = subject.numbers();
    let texts = names.len() - numbers.len();
    let mut table: Vec<Vec<String>> = vec![names.iter().map(|&name| name.to_owned()).collect()];
    for row in rows {
        let cells = row.texts.iter().map(|text| text::clean(text).into_owned());
        let values = numbers.iter().zip(&row.numbers);
        let values = values.map(|(number, value)| number.print(*value));
        table.push(cells.chain(values).collect());
    }
    let width = |at: usize| {
        let lens = table.iter().filter_map(|row| row.get(at));
        lens.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
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

impl Printer for Ranking {
    fn event(&mut self, event: &v1::Event, who: &Who, _: &mut dyn Write) -> io::Result<()> {
        if let Some((cells, amounts)) = self.subject.take(event, &who.node) {
            sums::add(&mut self.sums, sums::key(who, cells), &amounts);
        }
        Ok(())
    }

    fn snapshot_end(&mut self, snapshot: &v1::Snapshot, out: &mut dyn Write) -> io::Result<()> {
        if !self.subject.in_snapshots() {
            return Ok(());
        }
        self.turn(stream::length(snapshot), out)
    }

    fn poke(&mut self, poke: Poke, out: &mut dyn Write) -> io::Result<ControlFlow<()>> {
        match poke {
            Poke::Quit => return Ok(ControlFlow::Break(())),
            Poke::Tick => self.tick(out)?,
            // Nobody presses keys.
            Poke::Key(_) | Poke::Redraw | Poke::Resized => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    fn news(&mut self, _: News<'_>, _: &mut dyn Write) -> io::Result<()> {
        // Lines tell of them on standard error.
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        // What came since the last table; snapshots were printed as they came.
        if self.sums.is_empty() {
            return Ok(());
        }
        self.tick(out)
    }
}
