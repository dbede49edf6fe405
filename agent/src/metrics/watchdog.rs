//! Sees whether the reader stands still. Everything else of the agent can go on without it, and nobody would be told of anything.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{hub::Hub, pipeline::Stats};

/// Between two looks. The reader makes a round every second at least.
const LOOK: Duration = Duration::from_secs(1);

/// A reader that made no round for so long is stuck.
const STUCK: Duration = Duration::from_secs(10);

/// Looks at the reader. Looks are counted, not time: an agent that was stopped as a whole, or that got no processor, did not look.
#[derive(Debug, Default)]
pub struct Watchdog {
    /// Looks in a row that saw no round.
    still: AtomicU64,
}

impl Watchdog {
    /// Looks for ever.
    pub async fn watch(&self, stats: Arc<Stats>, hub: Hub) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rounds = 0;
        loop {
            looks.tick().await;
            let before = std::mem::replace(&mut rounds, stats.rounds.load(Ordering::Relaxed));
            self.look(rounds != before, &hub);
        }
    }

    fn look(&self, moved: bool, hub: &Hub) {
        let was = self.stuck();
        if moved {
            self.still.store(0, Ordering::Relaxed);
        } else {
            self.still.fetch_add(1, Ordering::Relaxed);
        }
        match (was, self.stuck()) {
            (None, Some(time)) => {
                let text = told(time);
                tracing::error!("{text}; /healthz and /readyz fail until it goes on");
                hub.set_alarm(Some(text));
            }
            (Some(time), None) => {
                tracing::warn!(
                    seconds = time.as_secs(),
                    "the reader goes on after it stood still; streams are told what was lost meanwhile"
                );
                hub.set_alarm(None);
            }
            (Some(_), Some(time)) => hub.set_alarm(Some(told(time))),
            (None, None) => {}
        }
    }

    /// How long the reader has stood still, if that is too long.
    pub fn stuck(&self) -> Option<Duration> {
        let looks = self.still.load(Ordering::Relaxed);
        let time = LOOK.saturating_mul(u32::try_from(looks).unwrap_or(u32::MAX));
        (time >= STUCK).then_some(time)
    }
}

/// For streams, logs and health checks.
pub(super) fn told(time: Duration) -> String {
    format!(
        "the reader has stood still for {} s: nobody is told what happens meanwhile",
        time.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Limits;

    #[test]
    fn a_reader_is_stuck_after_many_looks_and_no_more_once_it_moves() {
        let (hub, _publisher) = Hub::new(Limits::default(), || ());
        let watchdog = Watchdog::default();
        let looks = STUCK.as_secs() / LOOK.as_secs();
        for _ in 1..looks {
            watchdog.look(false, &hub);
            assert_eq!(watchdog.stuck(), None);
        }
        assert_eq!(hub.notes(), [""; 0]);
        watchdog.look(false, &hub);
        assert_eq!(watchdog.stuck(), Some(STUCK));
        watchdog.look(false, &hub);
        hub.set_notes(vec!["other".to_owned()]);
        assert_eq!(
            hub.notes(),
            [
                "the reader has stood still for 11 s: nobody is told what happens meanwhile",
                "other"
            ]
        );
        watchdog.look(true, &hub);
        assert_eq!(watchdog.stuck(), None);
        assert_eq!(hub.notes(), ["other"]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_looks_at_the_readers_rounds() {
        let (hub, _publisher) = Hub::new(Limits::default(), || ());
        let (watchdog, stats) = (Arc::new(Watchdog::default()), Arc::new(Stats::default()));
        let watching = tokio::spawn({
            let (watchdog, stats) = (watchdog.clone(), stats.clone());
            async move { watchdog.watch(stats, hub).await }
        });
        let later = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        for _ in 0..20 {
            stats.rounds.fetch_add(1, Ordering::Relaxed);
            later(1).await;
        }
        assert_eq!(watchdog.stuck(), None);
        later(STUCK.as_secs() + 1).await;
        assert!(watchdog.stuck().is_some());
        stats.rounds.fetch_add(1, Ordering::Relaxed);
        later(2).await;
        assert_eq!(watchdog.stuck(), None);
        watching.abort();
    }
}
