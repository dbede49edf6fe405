//! How much of a kind a stream is told, while the agent has to do with less of the node's CPUs.

use std::sync::atomic::{AtomicU8, Ordering};

use dinle_proto::v1;

use super::{KINDS, publisher::is_snapshot};

/// The contract's enum. A later one is told less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fidelity {
    /// Everything.
    #[default]
    Whole,
    /// [`Fidelity::SAMPLES_PER_SECOND`] of each pod.
    Sampled,
    /// No events, only their count.
    Counted,
    /// Nothing.
    Detached,
}

impl Fidelity {
    /// Enough to see what goes on, and too few to cost anything.
    pub const SAMPLES_PER_SECOND: u32 = 100;

    const ALL: [Self; 4] = [Self::Whole, Self::Sampled, Self::Counted, Self::Detached];

    /// The contract's name.
    pub const fn proto(self) -> v1::Fidelity {
        match self {
            Self::Whole => v1::Fidelity::Unspecified,
            Self::Sampled => v1::Fidelity::Sampled,
            Self::Counted => v1::Fidelity::Counted,
            Self::Detached => v1::Fidelity::Detached,
        }
    }

    /// The next lesser one; `None` below nothing. What the kernel adds up has no events to leave out.
    pub fn less(self, kind: v1::Kind) -> Option<Self> {
        match self {
            Self::Whole if is_snapshot(kind) => Some(Self::Detached),
            Self::Whole => Some(Self::Sampled),
            Self::Sampled => Some(Self::Counted),
            Self::Counted => Some(Self::Detached),
            Self::Detached => None,
        }
    }
}

/// One stream's, by kind.
#[derive(Debug)]
pub(super) struct Fidelities([AtomicU8; KINDS]);

impl Default for Fidelities {
    fn default() -> Self {
        Self([const { AtomicU8::new(0) }; KINDS])
    }
}

impl Fidelities {
    pub(super) fn get(&self, kind: v1::Kind) -> Fidelity {
        let number = self.0[kind as usize % KINDS].load(Ordering::Relaxed);
        Fidelity::ALL[usize::from(number) % Fidelity::ALL.len()]
    }

    pub(super) fn set(&self, kind: v1::Kind, fidelity: Fidelity) {
        self.0[kind as usize % KINDS].store(fidelity as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_lead_down_to_nothing() {
        for (kind, steps) in [(v1::Kind::Exec, 3), (v1::Kind::BlockLatency, 1)] {
            let mut down = vec![Fidelity::Whole];
            while let Some(less) = down[down.len() - 1].less(kind) {
                down.push(less);
            }
            assert_eq!(down.len(), steps + 1);
            assert_eq!(down.last(), Some(&Fidelity::Detached));
        }
    }
}
