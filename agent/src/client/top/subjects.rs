//! What can be ranked, and what is counted of it.

mod disk;
mod drops;
mod files;
mod process;
mod tcp;

use dinle_proto::v1;

pub(super) use self::{disk::Disk, drops::Drops, files::Files, process::Process, tcp::Tcp};
use super::sums::Rows;
use crate::client::text::{self, NONE};

/// A column of numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    /// One that ends in `/s` is told by the second.
    pub(super) name: &'static str,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Count,
    /// A count that is not told by the second.
    Whole,
    Bytes,
    Milliseconds,
}

const fn number(name: &'static str, unit: Unit) -> Number {
    Number { name, unit }
}

impl Number {
    pub(super) fn print(&self, value: f64) -> String {
        match self.unit {
            Unit::Count if value != 0.0 && value < 10.0 => format!("{value:.1}"),
            Unit::Count | Unit::Whole => format!("{value:.0}"),
            Unit::Bytes => text::size(value.round() as u64),
            Unit::Milliseconds if value.is_nan() => NONE.to_owned(),
            Unit::Milliseconds => format!("{value:.2}"),
        }
    }

    /// The name of all of it together.
    pub(super) fn total_name(&self) -> &'static str {
        self.name.strip_suffix("/s").unwrap_or(self.name)
    }

    /// All of it together.
    pub(super) fn print_total(&self, value: f64) -> String {
        match self.unit {
            Unit::Count | Unit::Whole => text::thousands(value.round() as u64),
            Unit::Bytes | Unit::Milliseconds => self.print(value),
        }
    }
}

/// What is drawn of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Drawing {
    /// How often something took how long: by the buckets of the contract.
    Spans(Vec<u64>),
    /// How often there was what.
    Parts(Vec<(String, u64)>),
}

/// What is ranked. Sums are added up by the cells of its columns of text, and shown as numbers.
pub(super) trait Subject {
    fn name(&self) -> &'static str;
    fn kinds(&self) -> &'static [v1::Kind];
    /// Its columns of text, behind those of the pod.
    fn texts(&self) -> &'static [&'static str];
    /// Its columns of numbers.
    fn numbers(&self) -> &'static [Number];
    /// The cells and the amounts of an event of a node; `None` for one that says nothing.
    fn take(&mut self, event: &v1::Event, node: &str) -> Option<(Vec<String>, Vec<u64>)>;
    /// Numbers for the columns, of what was added up in so many seconds: rates of the amounts.
    fn show(&self, sums: &[u64], seconds: f64) -> Vec<f64> {
        sums.iter().map(|sum| *sum as f64 / seconds).collect()
    }
    /// It comes in snapshots, each of which is an interval.
    fn in_snapshots(&self) -> bool {
        false
    }
    /// What is drawn over time, of amounts: its first number.
    fn height(&self, sums: &[u64]) -> u64 {
        sums.first().copied().unwrap_or(0)
    }
    /// What the drawing beside that shows.
    fn drawing_title(&self) -> &'static str;
    /// That drawing, of rows that are chosen by their cells.
    fn drawing(&self, rows: &Rows, chosen: &dyn Fn(&[String]) -> bool) -> Drawing;
}

/// Buckets of all chosen rows, of which amounts from `at` on are buckets.
fn spans(rows: &Rows, chosen: &dyn Fn(&[String]) -> bool, at: usize) -> Drawing {
    let mut all = Vec::new();
    for (_, sums) in rows.iter().filter(|(key, _)| chosen(key)) {
        super::sums::add_to(&mut all, sums.get(at..).unwrap_or_default());
    }
    Drawing::Spans(all)
}

/// Amounts with one in the bucket of a time in microseconds, behind `before`.
fn in_bucket(mut before: Vec<u64>, microseconds: u64) -> Vec<u64> {
    /// As for latencies in the contract.
    const LAST: u32 = 26;
    let bucket = microseconds.max(1).ilog2().min(LAST);
    before.resize(before.len() + bucket as usize, 0);
    before.push(1);
    before
}

/// A mean, or nothing of nothing.
fn mean(sum: u64, count: u64) -> f64 {
    if count == 0 {
        f64::NAN
    } else {
        sum as f64 / count as f64
    }
}

/// The upper bound of the bucket in which such a part of all is reached. Buckets are those of the contract.
fn percentile_ms(buckets: &[u64], part: f64) -> f64 {
    let all: u64 = buckets.iter().sum();
    let wanted = (all as f64 * part).ceil().max(1.0) as u64;
    let mut seen = 0;
    for (index, count) in buckets.iter().enumerate() {
        seen += count;
        if seen >= wanted {
            return (2u64 << index) as f64 / 1e3;
        }
    }
    f64::NAN
}
