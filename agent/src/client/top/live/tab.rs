//! What a tab has: what was added up, and which of it is shown.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use dinle_proto::v1;

use crate::client::{
    columns::Who,
    text::NONE,
    top::{
        ranking,
        subjects::Subject,
        sums::{self, Order, POD, Rows, WHO},
    },
};

/// Intervals that are drawn over time.
pub(super) const PAST_MAX: usize = 60;
/// Pods whose past is remembered apart: those of a large cluster, and a MiB for an interval at most.
const PAST_PODS_MAX: usize = 1_000;

/// The cells that name a pod; of what is no pod, the unit too.
pub(super) fn pod(key: &[String]) -> &[String] {
    let is_pod = key.get(POD).is_some_and(|pod| pod != NONE);
    let len = if is_pod { POD + 1 } else { POD + 2 };
    key.get(..len).unwrap_or(key)
}

/// What happened in an interval, of what is drawn over time.
#[derive(Default)]
struct Past {
    all: u64,
    pods: BTreeMap<Vec<String>, u64>,
}

/// What can be shown. Cheap to keep, so that it can be held while other things happen.
#[derive(Clone, Default)]
pub(super) struct Frame {
    /// Of the last interval.
    rows: Rc<Rows>,
    /// Since the beginning.
    total: Rc<Rows>,
    past: VecDeque<Rc<Past>>,
    pub(super) seconds: f64,
    pub(super) until: Option<prost_types::Timestamp>,
}

impl Frame {
    /// What is ranked.
    pub(super) fn rows(&self, total: bool) -> &Rows {
        if total { &self.total } else { &self.rows }
    }

    /// What is drawn over time, the newest last: of all, or of a pod.
    pub(super) fn past(&self, of: Option<&[String]>) -> Vec<u64> {
        let one = |past: &Rc<Past>| match of {
            None => past.all,
            Some(pod) => past.pods.get(pod).copied().unwrap_or(0),
        };
        self.past.iter().map(one).collect()
    }
}

/// A row as it is shown.
pub(super) struct Row<'a> {
    pub(super) key: &'a [String],
    pub(super) numbers: Vec<f64>,
}

/// A tab.
pub(super) struct Tab {
    pub(super) subject: Box<dyn Subject>,
    /// What happened in the interval that goes on.
    sums: Rows,
    since: Instant,
    frame: Frame,
    held: Option<Frame>,
    /// When it began to add up.
    pub(super) began: SystemTime,
    pub(super) order: Order,
    /// Where somebody has gone; else the first row.
    pub(super) selected: Option<Vec<String>>,
    /// Number of the first row on the screen.
    pub(super) offset: usize,
}

impl Tab {
    pub(super) fn new(subject: Box<dyn Subject>, sort: Option<&str>) -> Result<Self, String> {
        Ok(Self {
            order: ranking::order(subject.as_ref(), sort)?,
            subject,
            sums: Rows::new(),
            since: Instant::now(),
            frame: Frame::default(),
            held: None,
            began: SystemTime::now(),
            selected: None,
            offset: 0,
        })
    }

    pub(super) fn add(&mut self, event: &v1::Event, who: &Who) {
        if let Some((cells, amounts)) = self.subject.take(event, &who.node) {
            sums::add(&mut self.sums, sums::key(who, cells), &amounts);
        }
    }

    /// An interval is over by the clock.
    pub(super) fn tick(&mut self) {
        if !self.subject.in_snapshots() {
            let took = self.since.elapsed();
            self.turn(took, Some(SystemTime::now().into()));
        }
    }

    /// The interval is over: what was added up can be shown, and the next begins.
    pub(super) fn turn(&mut self, took: Duration, until: Option<prost_types::Timestamp>) {
        self.since = Instant::now();
        let rows = std::mem::take(&mut self.sums);
        let total = Rc::make_mut(&mut self.frame.total);
        let mut past = Past::default();
        for (key, amounts) in &rows {
            sums::add(total, key.clone(), amounts);
            let height = self.subject.height(amounts);
            past.all += height;
            let pod = pod(key);
            if past.pods.contains_key(pod) || past.pods.len() < PAST_PODS_MAX {
                *past.pods.entry(pod.to_vec()).or_default() += height;
            }
        }
        let frame = &mut self.frame;
        if frame.past.len() >= PAST_MAX {
            frame.past.pop_front();
        }
        frame.past.push_back(Rc::new(past));
        frame.rows = Rc::new(rows);
        frame.seconds = took.as_secs_f64().max(1e-3);
        frame.until = until;
    }

    /// Goes on to show what is there now, or not.
    pub(super) fn hold(&mut self, hold: bool) {
        self.held = hold.then(|| self.frame.clone());
    }

    /// What is shown.
    pub(super) fn shown(&self) -> &Frame {
        self.held.as_ref().unwrap_or(&self.frame)
    }

    /// Rows in their order.
    pub(super) fn rows(&self, total: bool, chosen: &dyn Fn(&[String]) -> bool) -> Vec<Row<'_>> {
        let frame = self.shown();
        // Columns of all together are sums, and no rates.
        let seconds = if total { 1.0 } else { frame.seconds };
        let rows = frame.rows(total).iter().filter(|(key, _)| chosen(key));
        let mut rows: Vec<Row<'_>> = rows
            .map(|(key, sums)| Row {
                key,
                numbers: self.subject.show(sums, seconds),
            })
            .collect();
        rows.sort_by(|a, b| self.order.of((a.key, &a.numbers), (b.key, &b.numbers)));
        rows
    }

    /// Number of columns of text.
    pub(super) fn texts(&self) -> usize {
        WHO.len() + self.subject.texts().len()
    }
}
