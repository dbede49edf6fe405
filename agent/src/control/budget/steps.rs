//! Which step is next: down while it costs too much, up again when there is room.

use std::time::{Duration, Instant};

use dinle_proto::v1;

use super::shares::Share;
use crate::hub::Fidelity;

/// There must have been room for so long before a step is taken back.
const HOLD: Duration = Duration::from_secs(5);
/// That doubles, up to this, whenever taking one back was too much.
const HOLD_MAX: Duration = Duration::from_secs(300);
/// There is room below this part of the budget.
const ROOM: f64 = 0.8;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Taken {
    /// The stream's number.
    pub(super) id: u64,
    pub(super) kind: v1::Kind,
    /// What it is told from now on.
    pub(super) to: Fidelity,
    /// That is less than before.
    pub(super) less: bool,
}

/// The steps that were taken and not taken back, in their order.
#[derive(Debug)]
pub(super) struct Steps {
    taken: Vec<Step>,
    hold: Duration,
    calm_since: Option<Instant>,
    raised: Option<Instant>,
    down: u64,
    up: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    id: u64,
    kind: v1::Kind,
    from: Fidelity,
}

impl Default for Steps {
    fn default() -> Self {
        Self {
            taken: Vec::new(),
            hold: HOLD,
            calm_since: None,
            raised: None,
            down: 0,
            up: 0,
        }
    }
}

impl Steps {
    /// Those that hold.
    pub(super) fn taken(&self) -> &[Step] {
        &self.taken
    }

    /// How many went down, and how many up.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.down, self.up)
    }

    /// Streams that are gone have nothing to be given back.
    pub(super) fn forget_but(&mut self, ids: &[u64]) {
        self.taken.retain(|step| ids.contains(&step.id));
    }

    /// The step to take after a window that cost `total` per cent.
    pub(super) fn next(
        &mut self,
        now: Instant,
        total: f64,
        limit: f64,
        shares: &[Share],
    ) -> Option<Taken> {
        if total > limit {
            self.calm_since = None;
            if self
                .raised
                .take()
                .is_some_and(|at| now.duration_since(at) < self.hold)
            {
                self.hold = (self.hold * 2).min(HOLD_MAX);
            }
            return self.less(shares);
        }
        if total > limit * ROOM || self.taken.is_empty() {
            self.calm_since = None;
            return None;
        }
        let since = *self.calm_since.get_or_insert(now);
        if now.duration_since(since) < self.hold {
            return None;
        }
        self.calm_since = None;
        self.raised = Some(now);
        let Step { id, kind, from } = self.taken.pop()?;
        if self.taken.is_empty() {
            self.hold = HOLD;
        }
        self.up += 1;
        Some(Taken {
            id,
            kind,
            to: from,
            less: false,
        })
    }

    /// Of the stream that costs most, the kind that costs most, of those that can be told less.
    fn less(&mut self, shares: &[Share]) -> Option<Taken> {
        let sheddable = || {
            shares
                .iter()
                .filter(|share| share.fidelity.less(share.kind).is_some())
        };
        let cost_of = |id: u64| -> f64 {
            let own = shares.iter().filter(|share| share.id == id);
            own.map(|share| share.percent).sum()
        };
        let dearest = sheddable().max_by(|a, b| {
            let streams = cost_of(a.id).total_cmp(&cost_of(b.id));
            // Of equal ones the one that came last.
            streams
                .then(a.id.cmp(&b.id))
                .then(a.percent.total_cmp(&b.percent))
        })?;
        let to = dearest.fidelity.less(dearest.kind)?;
        self.taken.push(Step {
            id: dearest.id,
            kind: dearest.kind,
            from: dearest.fidelity,
        });
        self.down += 1;
        Some(Taken {
            id: dearest.id,
            kind: dearest.kind,
            to,
            less: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(id: u64, kind: v1::Kind, percent: f64) -> Share {
        Share {
            id,
            kind,
            fidelity: Fidelity::Whole,
            percent,
        }
    }

    /// Takes a step, and has the shares know of it.
    fn walk(steps: &mut Steps, now: Instant, total: f64, shares: &mut [Share]) -> Option<Taken> {
        let taken = steps.next(now, total, 10.0, shares)?;
        let mut of = shares
            .iter_mut()
            .filter(|one| (one.id, one.kind) == (taken.id, taken.kind));
        of.next().expect("one of them").fidelity = taken.to;
        Some(taken)
    }

    #[test]
    fn the_dearest_stream_goes_down_first_and_the_last_step_is_taken_back_first() {
        let mut shares = [
            share(1, v1::Kind::Exec, 6.0),
            share(2, v1::Kind::Exec, 2.0),
            share(2, v1::Kind::FileOpen, 5.0),
        ];
        let (mut steps, mut now) = (Steps::default(), Instant::now());
        let mut down = Vec::new();
        while let Some(taken) = walk(&mut steps, now, 11.0, &mut shares) {
            assert!(taken.less);
            down.push((taken.id, taken.kind, taken.to));
        }
        let (exec, open) = (v1::Kind::Exec, v1::Kind::FileOpen);
        use Fidelity::{Counted, Detached, Sampled, Whole};
        assert_eq!(
            down,
            [
                (2, open, Sampled),
                (2, open, Counted),
                (2, open, Detached),
                (2, exec, Sampled),
                (2, exec, Counted),
                (2, exec, Detached),
                (1, exec, Sampled),
                (1, exec, Counted),
                (1, exec, Detached),
            ]
        );
        assert_eq!(steps.counts(), (9, 0));
        // Neither too much nor room.
        now += HOLD_MAX;
        assert_eq!(walk(&mut steps, now, 9.0, &mut shares), None);
        assert_eq!(walk(&mut steps, now, 1.0, &mut shares), None, "not at once");
        now += HOLD;
        let up = walk(&mut steps, now, 1.0, &mut shares).expect("a step back");
        assert_eq!((up.id, up.kind, up.to, up.less), (1, exec, Counted, false));
        // That was too much: it takes twice as long until the next try.
        let again = walk(&mut steps, now, 11.0, &mut shares).expect("a step down");
        assert_eq!(again.to, Detached);
        assert_eq!(walk(&mut steps, now, 1.0, &mut shares), None);
        now += HOLD;
        assert_eq!(walk(&mut steps, now, 1.0, &mut shares), None);
        now += HOLD;
        assert!(walk(&mut steps, now, 1.0, &mut shares).is_some());
        while !steps.taken().is_empty() {
            walk(&mut steps, now, 1.0, &mut shares);
            now += HOLD_MAX;
        }
        assert!(shares.iter().all(|share| share.fidelity == Whole));
        assert_eq!(steps.counts(), (10, 10));
    }

    #[test]
    fn a_stream_that_is_gone_is_forgotten() {
        let mut shares = [share(1, v1::Kind::Exec, 6.0)];
        let mut steps = Steps::default();
        walk(&mut steps, Instant::now(), 11.0, &mut shares);
        steps.forget_but(&[1]);
        assert_eq!(steps.taken().len(), 1);
        steps.forget_but(&[2]);
        assert!(steps.taken().is_empty());
    }
}
