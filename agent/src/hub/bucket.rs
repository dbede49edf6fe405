//! A token bucket: so many events a second, and as many at once.

use std::time::{Duration, Instant};

/// A second's worth.
const BURST: Duration = Duration::from_secs(1);

/// Kept as the time at which it is full again (GCRA): each event takes its share of a second from it.
#[derive(Debug)]
pub(super) struct Bucket {
    share: Duration,
    full_at: Option<Instant>,
}

impl Bucket {
    /// A full one. A rate of 0 is taken for 1.
    pub(super) fn new(events_per_second: u32) -> Self {
        Self {
            share: BURST / events_per_second.max(1),
            full_at: None,
        }
    }

    /// Whether there is one for an event now; takes it.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.share;
        let taken = full_at.duration_since(now) <= BURST;
        if taken {
            self.full_at = Some(full_at);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bucket: &mut Bucket, now: Instant, tries: usize) -> usize {
        (0..tries).filter(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_second_s_worth_at_once_then_as_it_fills() {
        let began = Instant::now();
        let mut bucket = Bucket::new(100);
        assert_eq!(taken(&mut bucket, began, 250), 100);
        let later = began + Duration::from_millis(250);
        assert_eq!(taken(&mut bucket, later, 250), 25);
        assert_eq!(taken(&mut bucket, later, 1), 0);
        // No more gathers than that.
        let much_later = began + Duration::from_secs(3600);
        assert_eq!(taken(&mut bucket, much_later, 250), 100);
    }

    #[test]
    fn rates_that_do_not_divide_a_second_are_not_exceeded() {
        let began = Instant::now();
        for rate in [1, 3, 7, 999_983] {
            let mut bucket = Bucket::new(rate);
            let rate = rate as usize;
            let at_once = taken(&mut bucket, began, rate + 10);
            // A share is cut to nanoseconds.
            assert!(
                (rate..=rate + rate / 1000).contains(&at_once),
                "{rate}: {at_once}"
            );
        }
    }
}
