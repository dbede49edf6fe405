//! Draws the view into the cells of a screen.

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{
        Block, Cell, Clear, Paragraph, Row as Cells, StatefulWidget, Table, TableState, Widget as _,
    },
};

use super::{
    Live, Mode, graph,
    grid::{About, Grid, cut},
    tab::{Row, Tab},
};
use crate::client::{
    books, text,
    top::sums::{NAMESPACE, NODE, POD},
};

/// Lines of the drawings, with a title.
const GRAPH: u16 = 5;
/// Below this a screen has no room for them.
const GRAPH_FROM: u16 = 17;
/// Columns between the two.
const GAP: u16 = 2;

const HELP: &[(&str, &str)] = &[
    ("Tab, 1 to 5", "another tab"),
    ("↑ ↓ j k, PgUp PgDn, g G", "go to another row"),
    ("← → h l, s", "sort by another column"),
    ("S, r", "the other way round"),
    ("/", "only rows with this text in a cell"),
    ("Enter", "only the pod of this row, in all tabs"),
    ("Esc", "back: every pod, then any text"),
    ("t", "since the beginning, or the last interval"),
    ("Space", "hold what is shown; all is counted meanwhile"),
    ("d", "with or without drawings"),
    ("Ctrl-L", "draw all of it again"),
    ("q, Ctrl-C", "quit, and print the books"),
];

impl Live {
    fn alarm(&self) -> Style {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        if self.colored {
            bold.fg(Color::Red)
        } else {
            bold
        }
    }

    fn bars(&self) -> Style {
        if self.colored {
            Style::new().fg(Color::Cyan)
        } else {
            Style::new()
        }
    }

    pub(super) fn render(&mut self, area: Rect, buffer: &mut Buffer) {
        let rows = self.rows();
        let mut top = area.y;
        let mut bottom = area.bottom();
        let line = |y: u16| Rect {
            y,
            height: 1,
            ..area
        };
        // What is most worth knowing goes last when there is no room.
        if area.height >= 3 {
            bottom -= 1;
            self.books_line().render(line(bottom), buffer);
            self.tabs_line(area.width.into()).render(line(top), buffer);
            top += 1;
        }
        if area.height >= 5 {
            self.status_line(&rows).render(line(top), buffer);
            top += 1;
        }
        if area.height >= 7 {
            // Books are above what is told besides.
            let books = line(bottom);
            let (note, foot) = (line(bottom - 1), line(bottom));
            Clear.render(books, buffer);
            bottom -= 2;
            self.books_line().render(line(bottom), buffer);
            self.note_line().render(note, buffer);
            self.foot_line().render(foot, buffer);
        }
        if self.graphs && area.height >= GRAPH_FROM {
            let graphs = Rect {
                y: top,
                height: GRAPH,
                ..area
            };
            self.render_graphs(graphs, buffer);
            top += GRAPH;
        }
        if let Some(lacking) = self.lacking_line()
            && bottom > top + 1
        {
            bottom -= 1;
            lacking.render(line(bottom), buffer);
        }
        let table = Rect {
            y: top,
            height: bottom.saturating_sub(top),
            ..area
        };
        let Shown {
            columns,
            page,
            offset,
        } = self.render_table(&rows, table, buffer);
        if self.mode == Mode::Help {
            render_help(area, buffer);
        }
        self.columns = columns;
        self.page = page;
        let at = self.at;
        self.tabs[at].offset = offset;
    }

    fn tabs_line(&self, width: usize) -> Line<'_> {
        let mut spans = vec![Span::from("dinle top ")];
        for (at, tab) in self.tabs.iter().enumerate() {
            let name = format!(" {} {} ", at + 1, tab.subject.name());
            let mut style = Style::new();
            if at == self.at {
                style = style.add_modifier(Modifier::REVERSED | Modifier::BOLD);
            }
            spans.push(Span::styled(name, style));
        }
        let shown = self.tab().shown();
        let clock = text::clock(shown.until.as_ref());
        let clock = clock.split('.').next().unwrap_or_default();
        let mut right = format!("{clock}  {:.1} s", shown.seconds);
        if self.paused.is_some() {
            right = format!("PAUSED  {right}");
        }
        let used: usize = spans.iter().map(Span::width).sum();
        let room = width.saturating_sub(used + right.chars().count());
        spans.push(Span::from(" ".repeat(room.max(1))));
        let style = match self.paused {
            Some(_) => self.alarm(),
            None => Style::new(),
        };
        spans.push(Span::styled(right, style));
        Line::from(spans)
    }

    fn status_line(&self, rows: &[Row<'_>]) -> Line<'static> {
        let tab = self.tab();
        let all = tab.shown().rows(self.total).len();
        let shown = rows.len();
        let mut parts = Vec::new();
        let plural = if all == 1 { "" } else { "s" };
        parts.push(match shown == all {
            true => format!("{all} row{plural}"),
            false => format!("{shown} of {all} row{plural}"),
        });
        if let Some(zoom) = &self.zoom {
            parts.push(format!("pod {}", pod_name(zoom)));
        }
        if !self.filter.is_empty() {
            parts.push(format!("with \"{}\"", self.filter));
        }
        if self.total {
            let since = text::clock(Some(&tab.began.into()));
            let since = since.split('.').next().unwrap_or_default();
            parts.push(format!("since {since}"));
        }
        parts.push(self.who_is_heard());
        Line::from(text::clean(&parts.join(", ")).into_owned())
    }

    fn who_is_heard(&self) -> String {
        let mut nodes = self.nodes.iter();
        match (nodes.next(), nodes.next()) {
            (None, _) => "not connected yet".to_owned(),
            (Some((node, None)), None) => format!("node {node}"),
            (Some((node, Some(_))), None) => format!("node {node}: NOT HEARD"),
            (Some(_), Some(_)) => {
                let silent: Vec<&String> = self.silent().map(|(node, _)| node).collect();
                let all = self.nodes.len();
                match silent[..] {
                    [] => format!("{all} nodes"),
                    [node] => format!("{all} nodes, {node} NOT HEARD"),
                    _ => format!("{all} nodes, {} NOT HEARD", silent.len()),
                }
            }
        }
    }

    fn books_line(&self) -> Line<'_> {
        let Some(totals) = &self.books else {
            return Line::from("books: none came yet");
        };
        let told = match &totals.wrong {
            Some(wrong) => books::contradiction(wrong),
            None => format!("books: {totals}"),
        };
        let fine = totals.wrong.is_none() && totals.lost() == 0;
        let style = if fine { Style::new() } else { self.alarm() };
        Line::styled(text::clean(&told).into_owned(), style)
    }

    /// Nodes that are not heard, and why.
    fn silent(&self) -> impl Iterator<Item = (&String, &String)> {
        let nodes = self.nodes.iter();
        nodes.filter_map(|(node, why)| Some((node, why.as_ref()?)))
    }

    /// Why the tab tells nothing, or not of every node.
    fn lacking_line(&self) -> Option<Line<'static>> {
        let kinds = self.tab().subject.kinds().iter();
        let mut lacking = kinds.filter_map(|kind| Some((kind, self.lacking.get(kind)?)));
        let (kind, nodes) = lacking.find(|(_, nodes)| !nodes.is_empty())?;
        let (node, why) = nodes.first_key_value()?;
        let wherever = match nodes.len() {
            1 => format!("node {node}"),
            several => format!("{several} nodes"),
        };
        let told = format!(
            "{} is not available on {wherever}: {}",
            kind.name(),
            text::or_none(why)
        );
        Some(Line::styled(text::clean(&told).into_owned(), self.alarm()))
    }

    /// What keeps a node from being heard, or what was told since.
    fn note_line(&self) -> Line<'_> {
        let newer = self.notes.written() > self.noted;
        if let Some((node, why)) = self.silent().next().filter(|_| !newer) {
            let told = format!("{node}: not heard: {why}; trying again");
            return Line::styled(text::clean(&told).into_owned(), self.alarm());
        }
        let note = self.notes.last().unwrap_or_default();
        let style = Style::new().add_modifier(Modifier::DIM);
        Line::styled(text::clean(&note).into_owned(), style)
    }

    fn foot_line(&self) -> Line<'_> {
        let keys: &[(&str, &str)] = match (&self.mode, &self.zoom) {
            (Mode::Filter { .. }, _) => {
                let typed = format!("only rows with: {}▏", self.filter);
                let typed = Span::from(text::clean(&typed).into_owned());
                let mut line = Line::from(vec![typed, Span::from("  ")]);
                line.extend(keys(&[("Enter", "keep it"), ("Esc", "leave it")]));
                return line;
            }
            (Mode::Help, _) => &[("any key", "back")],
            (Mode::Browse, zoom) => &[
                ("Tab", "tabs"),
                ("s/S", "sort"),
                ("/", "filter"),
                ("Space", "pause"),
                match zoom {
                    None => ("Enter", "zoom"),
                    Some(_) => ("Esc", "back"),
                },
                ("t", "total"),
                ("?", "help"),
                ("q", "quit"),
            ],
        };
        Line::from(self::keys(keys))
    }

    fn render_graphs(&self, area: Rect, buffer: &mut Buffer) {
        let tab = self.tab();
        let left = Rect {
            width: (area.width.saturating_sub(GAP) / 2).min(super::tab::PAST_MAX as u16),
            ..area
        };
        let right = Rect {
            x: left.right() + GAP,
            width: area.width.saturating_sub(left.width + GAP),
            ..area
        };
        let frame = tab.shown();
        let past = frame.past(self.zoom.as_deref());
        let name = tab.subject.numbers().first();
        let name = name.map_or("", |number| number.total_name());
        let title = format!("{name} by interval");
        graph::past(&past, &title, left, self.bars(), buffer);
        let rows = frame.rows(self.total);
        let drawing = tab.subject.drawing(rows, &|key| self.chosen(key));
        let title = tab.subject.drawing_title();
        graph::drawing(&drawing, title, right, self.bars(), buffer);
    }

    fn render_table(&self, rows: &[Row<'_>], area: Rect, buffer: &mut Buffer) -> Shown {
        let page = usize::from(area.height.saturating_sub(1));
        let (selected, len) = (self.selected(rows), rows.len());
        let offset = scrolled(self.tab(), selected, page, len);
        let window = rows.get(offset..len.min(offset + page)).unwrap_or_default();
        let about = About {
            total: self.total,
            zoomed: self.zoom.is_some(),
            several_nodes: self.nodes.len() > 1,
            width: area.width.into(),
        };
        let Grid { columns, hidden } = Grid::new(self.tab(), window, about);
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let names = columns.iter().map(|column| {
            let name = cut(&column.name, column.width, false);
            Cell::from(match column.is_number {
                true => format!("{name:>width$}", width = column.width),
                false => name,
            })
        });
        let header = Cells::new(names).style(bold);
        let lines = (0..window.len()).map(|at| {
            let cells = columns.iter().filter_map(|column| column.cells.get(at));
            Cells::new(cells.map(|cell| Cell::from(cell.clone())))
        });
        let widths = columns
            .iter()
            .map(|column| Constraint::Length(u16::try_from(column.width).unwrap_or(u16::MAX)));
        let table = Table::new(lines.collect::<Vec<_>>(), widths)
            .header(header)
            .column_spacing(1)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let selected = (!window.is_empty()).then(|| selected - offset);
        let mut state = TableState::new().with_selected(selected);
        StatefulWidget::render(table, area, buffer, &mut state);
        if hidden > 0 && area.height > 0 {
            let told = format!("+{hidden}");
            let x = area.right().saturating_sub(told.len() as u16);
            let dim = Style::new().add_modifier(Modifier::DIM);
            buffer.set_string(x, area.y, told, dim);
        }
        Shown {
            columns: columns.iter().map(|column| column.number).collect(),
            page: page.max(1),
            offset,
        }
    }
}

/// What of the table is on the screen.
struct Shown {
    /// Numbers of its columns.
    columns: Vec<usize>,
    /// Rows that have room.
    page: usize,
    /// Number of the first row.
    offset: usize,
}

/// Number of the first row on the screen, so that the selected one is on it.
fn scrolled(tab: &Tab, selected: usize, page: usize, len: usize) -> usize {
    let last = len.saturating_sub(page);
    let least = (selected + 1).saturating_sub(page);
    tab.offset.min(last).clamp(least.min(selected), selected)
}

/// `namespace/pod`, or the unit of what is no pod.
fn pod_name(zoom: &[String]) -> String {
    match zoom {
        [_, _, _, unit] => unit.clone(),
        [_, _, _] => format!("{}/{}", zoom[NAMESPACE], zoom[POD]),
        _ => zoom.get(NODE).cloned().unwrap_or_default(),
    }
}

fn keys(keys: &[(&'static str, &'static str)]) -> Vec<Span<'static>> {
    let mut spans = Vec::new();
    for (key, meaning) in keys {
        if !spans.is_empty() {
            spans.push(Span::from("  "));
        }
        let bold = Style::new().add_modifier(Modifier::BOLD);
        spans.extend([Span::styled(*key, bold), Span::from(format!(" {meaning}"))]);
    }
    spans
}

fn render_help(area: Rect, buffer: &mut Buffer) {
    let widest = HELP.iter().map(|(keys, _)| keys.chars().count()).max();
    let widest = widest.unwrap_or(0);
    let lines: Vec<Line<'_>> = HELP
        .iter()
        .map(|(keys, meaning)| Line::from(format!(" {keys:<widest$}  {meaning} ")))
        .collect();
    let width = lines.iter().map(Line::width).max().unwrap_or(0) + 2;
    let width = u16::try_from(width).unwrap_or(u16::MAX).min(area.width);
    let height = u16::try_from(lines.len() + 2)
        .unwrap_or(u16::MAX)
        .min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    Clear.render(place, buffer);
    let block = Block::bordered().title(" keys ");
    Paragraph::new(lines).block(block).render(place, buffer);
}
