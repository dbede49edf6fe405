//! What stays in place on a terminal: tabs, drawings, a table, and what is known of the streams.

mod draw;
mod graph;
mod grid;
mod tab;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::ControlFlow,
    time::{Duration, Instant, SystemTime},
};

use crossterm::event::KeyCode;
use dinle_proto::v1;

use super::{
    Notes, Poke,
    ranking::{names, no_such_column},
    subjects::Subject,
    sums::{NAMESPACE, POD},
    terminal::Canvas,
};
use crate::client::{
    books::Totals,
    columns::Who,
    stream::{self, News, Printer},
};
use tab::{Row, Tab, pod};

/// Letters of a filter. What is searched for is shorter.
const FILTER_MAX: usize = 64;

/// The view is drawn so often at most, but for keys.
const DRAW_MIN: Duration = Duration::from_millis(150);

/// What keys are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Browse,
    /// A filter is typed; this one was there before.
    Filter {
        before: String,
    },
    Help,
}

/// The view.
pub(super) struct Live {
    tabs: Vec<Tab>,
    at: usize,
    mode: Mode,
    /// Rows have it in a cell, whatever the case of its letters. Empty: any row.
    filter: String,
    /// Rows are those of this pod.
    zoom: Option<Vec<String>>,
    /// Shown is what happened since the beginning.
    total: bool,
    /// Since when what is shown is held.
    paused: Option<SystemTime>,
    graphs: bool,
    colored: bool,
    /// Streams by their node, and why one is not heard.
    nodes: BTreeMap<String, Option<String>>,
    /// Why a node cannot tell of a kind.
    lacking: BTreeMap<v1::Kind, BTreeMap<String, String>>,
    /// Bytes of notes when a node fell silent last, and when the view was drawn last.
    noted: usize,
    seen: usize,
    books: Option<Totals>,
    notes: Notes,
    canvas: Canvas,
    /// When it was drawn last.
    drawn: Option<Instant>,
    /// Something is different since then.
    stale: bool,
    /// Columns on the screen, by which rows can be sorted.
    columns: Vec<usize>,
    /// Rows on the screen.
    page: usize,
}

impl Live {
    /// With a tab for each subject. One of them at least has a column of the name by which rows are to be sorted.
    pub(super) fn new(
        subjects: Vec<Box<dyn Subject>>,
        sort: Option<&str>,
        colored: bool,
        notes: Notes,
    ) -> Result<Self, String> {
        let sortable = |subject: &dyn Subject| {
            sort.filter(|sort| {
                let names = names(subject);
                names.iter().any(|name| name.eq_ignore_ascii_case(sort))
            })
        };
        let found = subjects.iter().any(|one| sortable(one.as_ref()).is_some());
        if let (Some(sort), false) = (sort, found) {
            let mut all: Vec<&str> = Vec::new();
            for name in subjects.iter().flat_map(|one| names(one.as_ref())) {
                if !all.contains(&name) {
                    all.push(name);
                }
            }
            return Err(no_such_column(sort, &all));
        }
        let tabs = subjects.into_iter().map(|subject| {
            let sort = sortable(subject.as_ref());
            Tab::new(subject, sort)
        });
        Ok(Self {
            tabs: tabs.collect::<Result<_, _>>()?,
            at: 0,
            mode: Mode::default(),
            filter: String::new(),
            zoom: None,
            total: false,
            paused: None,
            graphs: true,
            colored,
            nodes: BTreeMap::new(),
            lacking: BTreeMap::new(),
            noted: 0,
            seen: 0,
            books: None,
            notes,
            canvas: Canvas::default(),
            drawn: None,
            stale: false,
            columns: Vec::new(),
            page: 1,
        })
    }

    /// What is told besides the output is written there.
    pub(super) fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// Draws what is different on the screen.
    pub(super) fn draw(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let mut canvas = std::mem::take(&mut self.canvas);
        let drawn = canvas.draw(|area, buffer| self.render(area, buffer), out);
        self.canvas = canvas;
        self.drawn = Some(Instant::now());
        self.seen = self.notes.written();
        self.stale = false;
        drawn
    }

    /// Draws, or if that was just done leaves it for a moment.
    fn draw_soon(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.stale = true;
        match self.drawn {
            Some(drawn) if drawn.elapsed() < DRAW_MIN => Ok(()),
            _ => self.draw(out),
        }
    }

    /// It lacks nothing, as far as is known.
    fn forget_what_lacks(&mut self, node: &str) {
        for nodes in self.lacking.values_mut() {
            nodes.remove(node);
        }
    }

    fn tab(&self) -> &Tab {
        &self.tabs[self.at]
    }

    /// Whether a row is to be shown.
    fn chosen(&self, key: &[String]) -> bool {
        let zoomed = self.zoom.as_deref().is_none_or(|zoom| pod(key) == zoom);
        let filter = self.filter.to_lowercase();
        let found = |cell: &String| cell.to_lowercase().contains(&filter);
        // A pod is `namespace/pod` on the screen.
        let name = || format!("{}/{}", key[NAMESPACE], key[POD]);
        zoomed && (filter.is_empty() || key.iter().any(found) || found(&name()))
    }

    fn rows(&self) -> Vec<Row<'_>> {
        self.tab().rows(self.total, &|key| self.chosen(key))
    }

    /// The number of the row that is selected.
    fn selected(&self, rows: &[Row<'_>]) -> usize {
        let selected = self.tab().selected.as_deref();
        let found = selected.and_then(|key| rows.iter().position(|row| row.key == key));
        found.unwrap_or(0)
    }

    fn go(&mut self, by: isize) {
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        let to = self.selected(&rows).saturating_add_signed(by).min(last);
        let key = rows.get(to).map(|row| row.key.to_vec());
        // The first row is whatever is first by then.
        self.tabs[self.at].selected = key.filter(|_| to > 0);
    }

    fn sort_by_next(&mut self, by: isize) {
        let Self {
            columns, tabs, at, ..
        } = self;
        let order = &mut tabs[*at].order;
        let Some(last) = columns.len().checked_sub(1) else {
            return;
        };
        let now = columns.iter().position(|column| *column == order.column);
        let to = match now {
            // It has no room on the screen.
            None => 0,
            Some(now) if by > 0 && now == last => 0,
            Some(0) if by < 0 => last,
            Some(now) => now.saturating_add_signed(by),
        };
        order.column = columns[to];
    }

    fn zoom_in(&mut self) {
        let rows = self.rows();
        let Some(row) = rows.get(self.selected(&rows)) else {
            return;
        };
        self.zoom = Some(pod(row.key).to_vec());
        // What led here has led here.
        self.filter.clear();
        self.begin_at_top();
    }

    fn back(&mut self) {
        if self.zoom.take().is_none() {
            self.filter.clear();
        }
        self.begin_at_top();
    }

    fn begin_at_top(&mut self) {
        for tab in &mut self.tabs {
            tab.selected = None;
            tab.offset = 0;
        }
    }

    fn pause(&mut self) {
        self.paused = match self.paused {
            Some(_) => None,
            None => Some(SystemTime::now()),
        };
        for tab in &mut self.tabs {
            tab.hold(self.paused.is_some());
        }
    }

    fn pressed(&mut self, key: KeyCode) -> ControlFlow<()> {
        match std::mem::take(&mut self.mode) {
            // Any key is an answer to it.
            Mode::Help => {}
            Mode::Filter { before } => self.typed(key, before),
            Mode::Browse => return self.browse(key),
        }
        ControlFlow::Continue(())
    }

    fn typed(&mut self, key: KeyCode, before: String) {
        match key {
            KeyCode::Enter => return,
            KeyCode::Esc => {
                self.filter = before;
                return;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if self.filter.chars().count() < FILTER_MAX => {
                self.filter.push(letter);
            }
            _ => {}
        }
        self.begin_at_top();
        self.mode = Mode::Filter { before };
    }

    fn browse(&mut self, key: KeyCode) -> ControlFlow<()> {
        let page = isize::try_from(self.page).unwrap_or(isize::MAX);
        let tabs = self.tabs.len();
        match key {
            KeyCode::Char('q') => return ControlFlow::Break(()),
            KeyCode::Tab => self.at = (self.at + 1) % tabs,
            KeyCode::BackTab => self.at = (self.at + tabs - 1) % tabs,
            KeyCode::Char(digit @ '1'..='9') => {
                let number = digit as usize - '1' as usize;
                if number < tabs {
                    self.at = number;
                }
            }
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::PageDown => self.go(page),
            KeyCode::PageUp => self.go(-page),
            KeyCode::Home | KeyCode::Char('g') => self.go(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.go(isize::MAX),
            KeyCode::Right | KeyCode::Char('>' | 'l' | 's') => self.sort_by_next(1),
            KeyCode::Left | KeyCode::Char('<' | 'h') => self.sort_by_next(-1),
            KeyCode::Char('S' | 'r') => {
                let order = &mut self.tabs[self.at].order;
                order.reversed = !order.reversed;
            }
            KeyCode::Char('/') => {
                self.mode = Mode::Filter {
                    before: self.filter.clone(),
                };
            }
            KeyCode::Char(' ') => self.pause(),
            KeyCode::Enter => self.zoom_in(),
            KeyCode::Esc | KeyCode::Backspace => self.back(),
            KeyCode::Char('t') => self.total = !self.total,
            KeyCode::Char('d') => self.graphs = !self.graphs,
            KeyCode::Char('?') | KeyCode::F(1) => self.mode = Mode::Help,
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

impl Printer for Live {
    fn event(&mut self, event: &v1::Event, who: &Who, _: &mut dyn Write) -> io::Result<()> {
        for tab in &mut self.tabs {
            tab.add(event, who);
        }
        Ok(())
    }

    fn snapshot_end(&mut self, snapshot: &v1::Snapshot, out: &mut dyn Write) -> io::Result<()> {
        let snapshots = self.tabs.iter_mut();
        for tab in snapshots.filter(|tab| tab.subject.in_snapshots()) {
            tab.turn(stream::length(snapshot), snapshot.end);
        }
        self.draw_soon(out)
    }

    fn poke(&mut self, poke: Poke, out: &mut dyn Write) -> io::Result<ControlFlow<()>> {
        match poke {
            Poke::Quit => return Ok(ControlFlow::Break(())),
            Poke::Key(key) => {
                if self.pressed(key).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                self.draw(out)?;
            }
            Poke::Tick => {
                self.tabs.iter_mut().for_each(Tab::tick);
                self.draw_soon(out)?;
            }
            // What was told besides comes without a sign.
            Poke::Redraw if self.stale || self.notes.written() != self.seen => {
                self.draw_soon(out)?;
            }
            Poke::Redraw => {}
            Poke::Resized => {
                self.canvas.forget();
                self.draw(out)?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn news(&mut self, news: News<'_>, out: &mut dyn Write) -> io::Result<()> {
        match news {
            News::Heard(node) => {
                self.nodes.insert(node.to_owned(), None);
                // What it lacks is told anew.
                self.forget_what_lacks(node);
            }
            News::Silent(node, why) => {
                self.nodes.insert(node.to_owned(), Some(why.to_owned()));
                self.noted = self.notes.written();
            }
            News::Gone(node) => {
                self.nodes.remove(node);
                self.forget_what_lacks(node);
            }
            News::Lacking(node, kind, why) => {
                let nodes = self.lacking.entry(kind).or_default();
                nodes.insert(node.to_owned(), why.to_owned());
            }
            News::Books(books) => self.books = Some(books),
        }
        self.draw_soon(out)
    }
}
