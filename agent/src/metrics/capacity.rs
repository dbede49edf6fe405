//! How full everything is that has a bound.

use dinle_ebpf::{SCOPE_MAX, SLOTS};

use super::Health;
use crate::{
    auth,
    workload::{MAX_CGROUPS, MAX_PODS},
};

/// Something with a bound.
pub(super) struct Capacity {
    /// What metrics call it.
    pub(super) what: &'static str,
    /// How much of it is taken.
    pub(super) used: u64,
    /// How much there is.
    pub(super) most: u64,
}

/// Everything that fills up by what others do. What happens when it is full is in docs/limits.md.
pub(super) fn capacities(health: &Health) -> Vec<Capacity> {
    let Health {
        hub,
        index,
        node,
        auth,
        ..
    } = health;
    let (board, limits) = (hub.board(), hub.limits());
    let one = |what, used: usize, most: usize| Capacity {
        what,
        used: used as u64,
        most: most as u64,
    };
    let mut all = vec![
        one("streams", board.listeners().count(), limits.streams),
        Capacity {
            what: "queue_bytes",
            used: board.queue_bytes(),
            most: limits.queue_bytes,
        },
        one("cgroups", index.cgroups(), MAX_CGROUPS),
        one("pods", index.status().pods as usize, MAX_PODS),
        one("cgroups_watched", node.load().watched, SCOPE_MAX as usize),
        // The first of them is for everything that has none of its own.
        one("pods_watched", board.pods(), SLOTS as usize - 1),
    ];
    if let Some(auth) = auth {
        let (tokens, answers) = auth.cached();
        all.push(one("reviewed_tokens", tokens, auth::ANSWERS_MAX));
        all.push(one("access_answers", answers, auth::ANSWERS_MAX));
    }
    all
}
