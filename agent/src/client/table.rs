//! Aligned columns for lines that come one at a time.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use super::{
    look::{Look, Tone},
    text::{NONE, clean},
};

/// Between two columns.
const GAP: &str = " ";

/// What is left of the last column on a terminal that has no room for it; then lines are longer than the terminal is wide.
const LAST_MIN: usize = 16;

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
    look: Look,
    header_due: bool,
}

impl Table {
    /// A table of which nobody knows yet how wide it becomes.
    pub(super) fn new(columns: Vec<Width>, look: Look, header: bool) -> Self {
        let mut table = Self::sized(columns, look, header);
        // Room for what is usual is for those who have it.
        if look
            .width
            .is_some_and(|width| width() < usual(&table.columns))
        {
            for column in &mut table.columns {
                column.start = column.name.len();
            }
        }
        table
    }

    fn sized(mut columns: Vec<Width>, look: Look, header: bool) -> Self {
        for column in &mut columns {
            column.start = column.start.max(column.name.len());
        }
        Self {
            columns,
            look,
            header_due: header,
        }
    }

    /// Prints all rows of a table that is complete: every column is as wide as it has to be from the first line on.
    pub(super) fn print(
        names: &[&'static str],
        rows: &[Vec<String>],
        look: Look,
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
        let mut table = Self::sized(columns, look, true);
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
            self.line(&names, |_, _| Tone::Head, out)?;
        }
        Ok(())
    }

    /// Prints one line: a cell for each column.
    pub(super) fn row(&mut self, cells: &[String], out: &mut dyn Write) -> io::Result<()> {
        self.line(cells, tone, out)
    }

    fn line(
        &mut self,
        cells: &[String],
        tone: fn(&str, &str) -> Tone,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let Self { columns, look, .. } = self;
        let last = columns.len().saturating_sub(1);
        let terminal = look.width.map(|width| width());
        let mut used = 0;
        for (index, (column, cell)) in columns.iter_mut().zip(cells).enumerate() {
            let mut cell = clean(cell);
            if let Some(width) = terminal {
                let room = width.saturating_sub(used).max(LAST_MIN);
                let room = if index == last { room } else { usize::MAX };
                cell = cut(cell, column.widest.min(room));
            }
            let width = cell.chars().count();
            column.start = column.start.max(width);
            used += column.start + GAP.len();
            let painted = tone(column.name, &cell).paint(&cell, look.colored);
            if index == last {
                writeln!(out, "{painted}")?;
            } else {
                write!(out, "{painted}{:1$}{GAP}", "", column.start - width)?;
            }
        }
        Ok(())
    }
}

/// Width of a line in which nothing is longer than usual, with little in its last column.
fn usual(columns: &[Width]) -> usize {
    let before = columns.len().saturating_sub(1);
    let starts = columns
        .iter()
        .take(before)
        .map(|column| column.start + GAP.len());
    starts.sum::<usize>() + LAST_MIN
}

/// By what a column says of how something went.
fn tone(column: &str, cell: &str) -> Tone {
    let failed = match column {
        "CODE" | "ERR" | "LOST" => cell != "0" && cell != NONE,
        // How a TCP session ended: with an error, or by what is not its usual end.
        "END" => {
            cell.starts_with('E')
                || cell.starts_with("RST_")
                || ["TIMEOUT", "GAVE_UP"].contains(&cell)
        }
        "AVAILABLE" => cell == "NO",
        _ => false,
    };
    if failed { Tone::Alarm } else { Tone::Plain }
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

    const TERMINAL: Look = Look {
        colored: false,
        width: Some(|| 80),
    };

    fn printed(look: Look, header: bool, rows: &[[&str; 3]]) -> String {
        let columns = [("POD", 5, 8), ("PID", 2, 7), ("ARGS", 9, 6)]
            .map(|(name, start, widest)| Width {
                name,
                start,
                widest,
            })
            .to_vec();
        let mut table = Table::new(columns, look, header);
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
            printed(Look::default(), true, &rows),
            "POD   PID ARGS\n\
             web   1   ls\n\
             checkout-1 12345 ls -l /tmp\n\
             ü          2     x\n"
        );
        assert_eq!(
            printed(Look::default(), false, &rows[..1]),
            "web   1   ls\n",
            "no header"
        );
    }

    #[test]
    fn long_cells_are_cut_only_on_a_terminal() {
        let rows = [["checkout-1", "1", "ls -l /tmp"]];
        assert_eq!(
            printed(TERMINAL, true, &rows),
            "POD   PID ARGS\n\
             checkou… 1   ls -l…\n"
        );
    }

    #[test]
    fn a_cell_stays_on_its_line() {
        assert_eq!(
            printed(TERMINAL, false, &[["a\nb", "1", "\u{1b}[2J"]]),
            "a\\nb  1   \\u{1b…\n"
        );
    }

    #[test]
    fn a_complete_table_fits_from_the_first_line_on() {
        let mut out = Vec::new();
        let rows = [vec!["checkout".to_owned(), "1".to_owned()]];
        Table::print(&["POD", "PID"], &rows, Look::default(), &mut out).expect("a Vec takes all");
        // Also where it does not fit, but for the end of the last column.
        let tiny = Look {
            colored: false,
            width: Some(|| 20),
        };
        let rows = [["checkout", "/sys/fs/cgroup/pod1"]
            .map(str::to_owned)
            .to_vec()];
        Table::print(&["POD", "CGROUP"], &rows, tiny, &mut out).expect("a Vec takes all");
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "POD      PID\n\
             checkout 1\n\
             POD      CGROUP\n\
             checkout /sys/fs/cgroup/…\n"
        );
    }

    fn of_paths(look: Look, path: &str) -> String {
        let width = |name, start, widest| Width {
            name,
            start,
            widest,
        };
        let columns = vec![
            width("POD", 20, 48),
            width("ERR", 3, 14),
            width("PATH", 4, 160),
        ];
        let mut table = Table::new(columns, look, true);
        let mut out = Vec::new();
        table.header(&mut out).expect("a Vec takes all");
        let cells = ["web-0", "ENOENT", path].map(str::to_owned);
        table.row(&cells, &mut out).expect("a Vec takes all");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_table_fits_the_terminal_and_nothing_else_cuts_it() {
        let path = "/var/lib/postgresql/data/base/16384/2619";
        let narrow = Look {
            colored: false,
            width: Some(|| 40),
        };
        assert_eq!(
            of_paths(narrow, path),
            "POD ERR PATH\n\
             web-0 ENOENT /var/lib/postgresql/data/b…\n"
        );
        let whole = format!("{:20} ENOENT {path}\n", "web-0");
        assert!(of_paths(narrow.uncut(), path).ends_with(&whole));
        assert!(of_paths(TERMINAL, path).ends_with(&whole), "there is room");
        // As narrow as this no table is: something of the path is better than a line.
        let tiny = Look {
            colored: false,
            width: Some(|| 10),
        };
        assert!(of_paths(tiny, path).ends_with("web-0 ENOENT /var/lib/postgr…\n"));
    }

    #[test]
    fn colours_are_for_names_of_columns_and_for_what_failed() {
        let colored = Look {
            colored: true,
            width: None,
        };
        let bold = |text: &str| format!("\u{1b}[1m{text}\u{1b}[0m");
        assert_eq!(
            of_paths(colored, "/a"),
            format!(
                "{}{:17} {} {}\nweb-0{:15} \u{1b}[31mENOENT\u{1b}[0m /a\n",
                bold("POD"),
                "",
                bold("ERR"),
                bold("PATH"),
                ""
            )
        );
        let failed = [
            ("ERR", "EIO"),
            ("CODE", "SIGKILL"),
            ("LOST", "7"),
            ("AVAILABLE", "NO"),
            ("END", "ECONNREFUSED"),
        ];
        for (column, cell) in failed {
            assert_eq!(tone(column, cell), Tone::Alarm, "{column} {cell}");
        }
        let fine = [
            ("ERR", "0"),
            ("CODE", "-"),
            ("LOST", "0"),
            ("AVAILABLE", "yes"),
            ("END", "FIN_SENT"),
            ("POD", "EIO"),
        ];
        for (column, cell) in fine {
            assert_eq!(tone(column, cell), Tone::Plain, "{column} {cell}");
        }
    }
}
