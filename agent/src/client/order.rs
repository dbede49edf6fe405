//! Puts the events of several nodes in the order of their times.

use std::{collections::BTreeMap, time::Duration};

use dinle_proto::v1;
use tokio::time::Instant;

use super::stream::StreamId;

/// How long an event is held: events of different nodes that arrive within so long of each other are told in the order of their times, by
/// each node's own clock. A port-forward delays by much less. Where clocks differ by more, what is held waits as long again for each node
/// that is behind.
pub(super) const HELD: Duration = Duration::from_millis(500);

/// How many are held: some 100 MB. When there are more, the first are told early.
const HELD_MAX: usize = 100_000;

/// When something happened. The number keeps apart what happened at once, in the order in which it came.
type Key = (i64, i32, u64);

/// From where an event came, and when.
type Held = (StreamId, Instant, v1::Event);

/// Holds events for a moment.
pub(super) struct Order {
    held: BTreeMap<Key, Held>,
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

    /// Takes what arrived then.
    pub(super) fn add(&mut self, from: StreamId, arrived: Instant, events: Vec<v1::Event>) {
        for event in events {
            let time = event.time.unwrap_or_default();
            let key = (time.seconds, time.nanos, self.next);
            self.next += 1;
            self.held.insert(key, (from, arrived, event));
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
        let over = self.held.len().saturating_sub(HELD_MAX);
        // When the first of those came that are before this one and stay. Who arrived soon after them may not overtake them; but a node
        // whose clock is ahead is not held up by everything that happens elsewhere until its time has come.
        let mut staying: Option<Instant> = None;
        let mut ready = Vec::new();
        for (number, (key, (_, arrived, _))) in self.held.iter().enumerate() {
            let due = now.duration_since(*arrived) >= HELD;
            let in_turn = staying.is_none_or(|first| first > *arrived + HELD);
            if all || number < over || (due && in_turn) {
                ready.push(*key);
            } else {
                staying = Some(staying.map_or(*arrived, |first| first.min(*arrived)));
            }
        }
        if let Some(left) = &mut self.left {
            ready.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= ready.len() as u64;
        }
        let taken = ready.iter().filter_map(|key| self.held.remove(key));
        let out = taken.map(|(from, _, event)| (from, event)).collect();
        (out, self.left == Some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(millis: i32, pid: u32) -> v1::Event {
        v1::Event {
            time: Some(prost_types::Timestamp {
                seconds: 7 + i64::from(millis.div_euclid(1000)),
                nanos: millis.rem_euclid(1000) * 1_000_000,
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
        order.add(0, Instant::now(), vec![event(10, 1), event(30, 3)]);
        tokio::time::advance(HELD / 2).await;
        order.add(1, Instant::now(), vec![event(20, 2), event(40, 4)]);
        assert_eq!(order.take(false), (Vec::new(), false), "too early");
        tokio::time::advance(HELD / 2).await;
        let (taken, _) = order.take(false);
        assert_eq!(
            pids(&taken),
            [(0, 1)],
            "the next may still have others before it"
        );
        tokio::time::advance(HELD / 2).await;
        let (taken, _) = order.take(false);
        assert_eq!(pids(&taken), [(1, 2), (0, 3), (1, 4)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_ahead_or_behind_changes_the_order_of_no_others() {
        const HOUR: i32 = 3_600_000;
        let mut order = Order::new(None);
        // By its clock all that the third node tells happens last, and what the fourth tells first.
        order.add(3, Instant::now(), vec![event(HOUR, 9)]);
        tokio::time::advance(HELD / 2).await;
        order.add(1, Instant::now(), vec![event(20, 2)]);
        tokio::time::advance(HELD / 2).await;
        assert_eq!(
            order.take(false),
            (Vec::new(), false),
            "others came soon after"
        );
        order.add(2, Instant::now(), vec![event(10, 1)]);
        tokio::time::advance(HELD / 2).await;
        assert_eq!(
            order.take(false),
            (Vec::new(), false),
            "one came soon after them"
        );
        order.add(4, Instant::now(), vec![event(-HOUR, 8)]);
        tokio::time::advance(HELD / 2).await;
        order.add(1, Instant::now(), vec![event(40, 4)]);
        assert_eq!(order.take(false), (Vec::new(), false));
        tokio::time::advance(HELD / 2).await;
        let (taken, _) = order.take(false);
        assert_eq!(
            pids(&taken),
            [(4, 8), (2, 1), (1, 2), (3, 9)],
            "nobody waits for ever"
        );
        tokio::time::advance(HELD / 2).await;
        assert_eq!(pids(&order.take(false).0), [(1, 4)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_late_to_be_taken_in_is_due_by_when_it_arrived() {
        let mut order = Order::new(None);
        let arrived = Instant::now();
        tokio::time::advance(HELD).await;
        order.add(0, arrived, vec![event(10, 1)]);
        assert_eq!(pids(&order.take(false).0), [(0, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_happened_at_once_stays_in_the_order_in_which_it_came() {
        let mut order = Order::new(None);
        order.add(1, Instant::now(), vec![event(10, 1), event(10, 2)]);
        order.add(0, Instant::now(), vec![event(10, 3)]);
        let (taken, _) = order.take(true);
        assert_eq!(pids(&taken), [(1, 1), (1, 2), (0, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_let_through_than_are_wanted() {
        let mut order = Order::new(Some(2));
        order.add(
            0,
            Instant::now(),
            vec![event(30, 3), event(10, 1), event(20, 2)],
        );
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
        order.add(0, Instant::now(), vec![event(10, 1)]);
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
        order.add(
            0,
            Instant::now(),
            (0..HELD_MAX + 3).map(|_| event(10, 1)).collect(),
        );
        assert_eq!(order.take(false).0.len(), 3);
    }
}
