//! Puts the events of several nodes in the order of their times.

use std::{collections::BTreeMap, time::Duration};

use dinle_proto::v1;
use tokio::time::Instant;

use super::stream::StreamId;

/// How long an event is held: events of different nodes that arrive within so long of each other are told in the order of their times, by
/// each node's own clock. A port-forward delays by much less.
pub(super) const HELD: Duration = Duration::from_millis(500);

/// How many are held: some 100 MB. When there are more, the first are told early.
const HELD_MAX: usize = 100_000;

/// Holds events for a moment.
pub(super) struct Order {
    /// By time. The number keeps apart what happened at once, in the order in which it came.
    held: BTreeMap<(i64, i32, u64), (StreamId, Instant, v1::Event)>,
    next: u64,
    /// How many more are wanted.
    left: Option<u64>,
    /// Rows that came beyond that.
    refused: usize,
}

impl Order {
    /// Lets so many events through.
    pub(super) fn new(count: Option<u64>) -> Self {
        Self {
            held: BTreeMap::new(),
            next: 0,
            left: count,
            refused: 0,
        }
    }

    /// How many came that nobody wants any more.
    pub(super) fn beyond(&self) -> usize {
        match self.left {
            Some(0) => self.held.len() + self.refused,
            _ => 0,
        }
    }

    /// Takes what came just now.
    pub(super) fn add(&mut self, from: StreamId, events: Vec<v1::Event>) {
        let now = Instant::now();
        for event in events {
            let time = event.time.unwrap_or_default();
            let key = (time.seconds, time.nanos, self.next);
            self.next += 1;
            self.held.insert(key, (from, now, event));
        }
    }

    /// As many of these as are wanted, which are printed at once: rows of a snapshot are of an interval, not of a moment.
    pub(super) fn admit(&mut self, mut events: Vec<v1::Event>) -> Vec<v1::Event> {
        if let Some(left) = &mut self.left {
            let admitted = events
                .len()
                .min(usize::try_from(*left).unwrap_or(usize::MAX));
            self.refused += events.len() - admitted;
            events.truncate(admitted);
            *left -= admitted as u64;
        }
        events
    }

    /// What has been held long enough, or `all` of it, in order; and whether as many are out as were wanted.
    pub(super) fn take(&mut self, all: bool) -> (Vec<(StreamId, v1::Event)>, bool) {
        let now = Instant::now();
        let due = |arrived: Instant| now.duration_since(arrived) >= HELD;
        // Everything that happened before something that is due is due as well.
        let last = match all {
            true => self.held.keys().next_back().copied(),
            false => {
                let mut held = self.held.iter().rev();
                let last = held.find(|(_, (_, arrived, _))| due(*arrived));
                let over = self.held.len().saturating_sub(HELD_MAX);
                let early = over
                    .checked_sub(1)
                    .and_then(|over| self.held.keys().nth(over));
                last.map(|(key, _)| key).max(early).copied()
            }
        };
        let mut out = Vec::new();
        while let Some(first) = self.held.first_entry()
            && last.is_some_and(|last| *first.key() <= last)
            && self.left != Some(0)
        {
            let (from, _, event) = first.remove();
            if let Some(left) = &mut self.left {
                *left -= 1;
            }
            out.push((from, event));
        }
        (out, self.left == Some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(millis: i32, pid: u32) -> v1::Event {
        v1::Event {
            time: Some(prost_types::Timestamp {
                seconds: 7,
                nanos: millis * 1_000_000,
            }),
            process: Some(v1::Process {
                pid,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn pids(taken: &[(StreamId, v1::Event)]) -> Vec<(StreamId, u32)> {
        let pid = |event: &v1::Event| event.process.as_ref().map_or(0, |process| process.pid);
        taken
            .iter()
            .map(|(from, event)| (*from, pid(event)))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_arrives_within_the_bound_is_put_in_order() {
        let mut order = Order::new(None);
        order.add(0, vec![event(10, 1), event(30, 3)]);
        tokio::time::advance(HELD / 2).await;
        order.add(1, vec![event(20, 2), event(40, 4)]);
        assert_eq!(order.take(false), (Vec::new(), false), "too early");
        tokio::time::advance(HELD / 2).await;
        let (taken, _) = order.take(false);
        assert_eq!(pids(&taken), [(0, 1), (1, 2), (0, 3)]);
        let (taken, _) = order.take(true);
        assert_eq!(pids(&taken), [(1, 4)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_happened_at_once_stays_in_the_order_in_which_it_came() {
        let mut order = Order::new(None);
        order.add(1, vec![event(10, 1), event(10, 2)]);
        order.add(0, vec![event(10, 3)]);
        let (taken, _) = order.take(true);
        assert_eq!(pids(&taken), [(1, 1), (1, 2), (0, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_let_through_than_are_wanted() {
        let mut order = Order::new(Some(2));
        order.add(0, vec![event(30, 3), event(10, 1), event(20, 2)]);
        assert_eq!(order.beyond(), 0, "not known yet");
        let (taken, enough) = order.take(true);
        assert_eq!(pids(&taken), [(0, 1), (0, 2)]);
        assert!(enough);
        assert_eq!(order.take(true), (Vec::new(), true));
        assert_eq!(order.beyond(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn rows_of_snapshots_count_too() {
        let mut order = Order::new(Some(3));
        order.add(0, vec![event(10, 1)]);
        let rows = |count| vec![event(20, 2); count];
        assert_eq!(order.admit(rows(2)).len(), 2);
        assert_eq!(order.take(true), (vec![(0, event(10, 1))], true));
        assert_eq!(order.admit(rows(2)).len(), 0);
        assert_eq!(order.beyond(), 2);
        assert_eq!(Order::new(None).admit(rows(2)).len(), 2, "no limit");
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_fit_are_told_early() {
        let mut order = Order::new(None);
        order.add(0, (0..HELD_MAX + 3).map(|_| event(10, 1)).collect());
        assert_eq!(order.take(false).0.len(), 3);
    }
}
