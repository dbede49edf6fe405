//! Which columns of a table are on the screen, and how wide each is.

use super::tab::{Row, Tab};
use crate::client::{
    text,
    top::sums::{CONTAINER, NAMESPACE, NODE, POD, WHO},
};

/// A column of text is at least so wide if there is more of it.
const TEXT_MIN: usize = 14;
/// Columns of numbers are, so that they do not dance.
const NUMBER_MIN: usize = 7;

/// Columns that it takes to tell how many are hidden: ` +2`.
const HIDDEN: usize = 3;

/// A column on the screen.
pub(super) struct Column {
    /// By its number rows are sorted.
    pub(super) number: usize,
    pub(super) name: String,
    pub(super) is_number: bool,
    pub(super) cells: Vec<String>,
    pub(super) width: usize,
}

/// The columns on the screen.
pub(super) struct Grid {
    pub(super) columns: Vec<Column>,
    /// So many have no room.
    pub(super) hidden: usize,
}

/// From this width on the container is told beside its pod.
const WIDE: usize = 100;

/// What the screen is about.
#[derive(Clone, Copy)]
pub(super) struct About {
    pub(super) total: bool,
    /// Rows are those of a pod.
    pub(super) zoomed: bool,
    pub(super) several_nodes: bool,
    pub(super) width: usize,
}

impl Grid {
    /// Of rows that are on the screen.
    pub(super) fn new(tab: &Tab, rows: &[Row<'_>], about: About) -> Self {
        let order = tab.order;
        let mut columns = Vec::new();
        let mut column = |number: usize, name: &str, is_number, cells: Vec<String>| {
            let name = match (number == order.column, order.reversed) {
                (false, _) => name.to_owned(),
                (true, false) => format!("{name}▼"),
                (true, true) => format!("{name}▲"),
            };
            let lens = cells.iter().chain([&name]).map(|cell| cell.chars().count());
            let least = if is_number { NUMBER_MIN } else { 0 };
            let width = lens.max().unwrap_or(0).max(least);
            columns.push(Column {
                number,
                name,
                is_number,
                cells,
                width,
            });
        };
        let texts = |at: usize| -> Vec<String> {
            let cells = rows.iter().map(|row| text::clean(&row.key[at]));
            cells.map(|cell| cell.into_owned()).collect()
        };
        if !about.zoomed {
            if about.several_nodes {
                column(NODE, WHO[NODE], false, texts(NODE));
            }
            let pod = |row: &Row<'_>| match row.key[NAMESPACE].as_str() {
                text::NONE => row.key[POD].clone(),
                namespace => format!("{namespace}/{}", row.key[POD]),
            };
            let pods = rows.iter().map(|row| text::clean(&pod(row)).into_owned());
            column(POD, WHO[POD], false, pods.collect());
        }
        if about.zoomed || about.width >= WIDE {
            column(CONTAINER, WHO[CONTAINER], false, texts(CONTAINER));
        }
        for (at, name) in (WHO.len()..).zip(tab.subject.texts()) {
            column(at, name, false, texts(at));
        }
        let first = tab.texts();
        for (at, number) in tab.subject.numbers().iter().enumerate() {
            let print = |row: &Row<'_>| match about.total {
                true => number.print_total(row.numbers[at]),
                false => number.print(row.numbers[at]),
            };
            let name = if about.total {
                number.total_name()
            } else {
                number.name
            };
            column(first + at, name, true, rows.iter().map(print).collect());
        }
        let mut grid = Self { columns, hidden: 0 };
        grid.drop_what_has_no_room(order.column, about.width);
        let mut width = about.width;
        if grid.hidden > 0 {
            width = width.saturating_sub(HIDDEN);
            grid.drop_what_has_no_room(order.column, width);
        }
        grid.shrink(width);
        grid.cut(first);
        grid
    }

    /// With texts as narrow as may be.
    fn least(&self) -> usize {
        let widths = self.columns.iter().map(|column| match column.is_number {
            true => column.width,
            false => column.width.min(TEXT_MIN),
        });
        widths
            .map(|width| width + 1)
            .sum::<usize>()
            .saturating_sub(1)
    }

    fn drop_what_has_no_room(&mut self, sorted: usize, width: usize) {
        while self.least() > width {
            let found = [CONTAINER, NODE].iter().find_map(|number| {
                let found = self.columns.iter().position(|one| one.number == *number);
                found.filter(|_| *number != sorted)
            });
            let last = || {
                let numbers = self.columns.iter();
                let numbers = numbers.filter(|one| one.is_number).count();
                let last = self
                    .columns
                    .iter()
                    .rposition(|column| column.is_number && column.number != sorted);
                last.filter(|_| numbers > 1)
            };
            let Some(at) = found.or_else(last) else {
                return;
            };
            self.columns.remove(at);
            self.hidden += 1;
        }
    }

    fn shrink(&mut self, width: usize) {
        let all = |columns: &[Column]| -> usize {
            let widths = columns.iter().map(|column| column.width + 1);
            widths.sum::<usize>().saturating_sub(1)
        };
        while all(&self.columns) > width {
            let texts = self.columns.iter_mut().filter(|column| !column.is_number);
            match texts.max_by_key(|column| column.width) {
                Some(widest) if widest.width > 1 => widest.width -= 1,
                _ => return,
            }
        }
    }

    fn cut(&mut self, texts: usize) {
        for column in &mut self.columns {
            // Of the last column, such as a path, the end tells most.
            let end = column.number + 1 == texts;
            for cell in &mut column.cells {
                *cell = match column.is_number {
                    true => format!("{cell:>width$}", width = column.width),
                    false => cut(cell, column.width, end),
                };
            }
        }
    }
}

/// A text without what is too much of it.
pub(super) fn cut(text: &str, widest: usize, end: bool) -> String {
    let len = text.chars().count();
    if len <= widest {
        return text.to_owned();
    }
    let kept = widest.saturating_sub(1);
    if end {
        let kept = text.chars().skip(len - kept);
        ['…'].into_iter().chain(kept).collect()
    } else {
        text.chars().take(kept).chain(['…']).collect()
    }
}
