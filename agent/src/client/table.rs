//! Aligned columns for lines that come one at a time.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use super::text::clean;

/// Between two columns.
const GAP: &str = " ";

/// How wide a column is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    pub(super) name: &'static str,
    /// At the start; it grows with what it has to show, and never shrinks, so that lines stay aligned.
    pub(super) start: usize,
    /// On a terminal, longer cells are cut to this.
    pub(super) widest: usize,
}

/// A table that is printed while it comes to be.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Width>,
    terminal: bool,
    header_due: bool,
}

impl Table {
    pub(super) fn new(columns: Vec<Width>, terminal: bool, header: bool) -> Self {
        let columns = columns
            .into_iter()
            .map(|column| Width {
                start: column.start.max(column.name.len()),
                ..column
            })
            .collect();
        Self {
            columns,
            terminal,
            header_due: header,
        }
    }

    /// Prints all rows of a table that is complete: every column is as wide as it has to be from the first line on.
    pub(super) fn print(
        names: &[&'static str],
        rows: &[Vec<String>],
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let column = |(index, name): (usize, &&'static str)| Width {
            name,
            start: rows
                .iter()
                .filter_map(|row| row.get(index))
                .map(|cell| clean(cell).chars().count())
                .max()
                .unwrap_or(0),
            widest: usize::MAX,
        };
        let columns = names.iter().enumerate().map(column).collect();
        let mut table = Self::new(columns, false, true);
        table.header(out)?;
        for row in rows {
            table.row(row, out)?;
        }
        Ok(())
    }

    /// Prints the header, unless it was printed or is not wanted.
    pub(super) fn header(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::take(&mut self.header_due) {
            let names: Vec<_> = self
                .columns
                .iter()
                .map(|column| column.name.to_owned())
                .collect();
            self.row(&names, out)?;
        }
        Ok(())
    }

    /// Prints one line: a cell for each column.
    pub(super) fn row(&mut self, cells: &[String], out: &mut dyn Write) -> io::Result<()> {
        let last = self.columns.len().saturating_sub(1);
        for (index, (column, cell)) in self.columns.iter_mut().zip(cells).enumerate() {
            let mut cell = clean(cell);
            if self.terminal {
                cell = cut(cell, column.widest);
            }
            let width = cell.chars().count();
            column.start = column.start.max(width);
            if index == last {
                writeln!(out, "{cell}")?;
            } else {
                write!(out, "{cell}{:1$}{GAP}", "", column.start - width)?;
            }
        }
        Ok(())
    }
}

fn cut(text: Cow<'_, str>, widest: usize) -> Cow<'_, str> {
    if text.chars().count() <= widest {
        return text;
    }
    let kept = widest.saturating_sub(1);
    Cow::Owned(text.chars().take(kept).chain(['…']).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(terminal: bool, header: bool, rows: &[[&str; 3]]) -> String {
        let columns = [("POD", 5, 8), ("PID", 2, 7), ("ARGS", 9, 6)]
            .map(|(name, start, widest)| Width {
                name,
                start,
                widest,
            })
            .to_vec();
        let mut table = Table::new(columns, terminal, header);
        let mut out = Vec::new();
        for row in rows {
            table.header(&mut out).expect("a Vec takes all");
            table
                .row(&row.map(str::to_owned), &mut out)
                .expect("a Vec takes all");
        }
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn columns_grow_and_never_shrink() {
        let rows = [
            ["web", "1", "ls"],
            ["checkout-1", "12345", "ls -l /tmp"],
            ["ü", "2", "x"],
        ];
        assert_eq!(
            printed(false, true, &rows),
            "POD   PID ARGS\n\
             web   1   ls\n\
             checkout-1 12345 ls -l /tmp\n\
             ü          2     x\n"
        );
        assert_eq!(
            printed(false, false, &rows[..1]),
            "web   1   ls\n",
            "no header"
        );
    }

    #[test]
    fn long_cells_are_cut_only_on_a_terminal() {
        let rows = [["checkout-1", "1", "ls -l /tmp"]];
        assert_eq!(
            printed(true, true, &rows),
            "POD   PID ARGS\n\
             checkou… 1   ls -l…\n"
        );
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        assert_eq!(
            printed(true, false, &[["a\nb", "1", "\u{1b}[2J"]]),
            "a\\nb  1   \\u{1b…\n"
        );
    }

    #[test]
    fn a_complete_table_fits_from_the_first_line_on() {
        let mut out = Vec::new();
        let rows = [vec!["checkout".to_owned(), "1".to_owned()]];
        Table::print(&["POD", "PID"], &rows, &mut out).expect("a Vec takes all");
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "POD      PID\n\
             checkout 1\n"
        );
    }
}
