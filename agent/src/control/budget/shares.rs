//! Whose cost it is.

use dinle_ebpf::Kind;
use dinle_proto::v1;

use crate::hub::Fidelity;

/// One kind of one stream in a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    /// The stream's number.
    pub(super) id: u64,
    pub(super) kind: v1::Kind,
    /// The same as the kernel half has it.
    pub(super) of: Kind,
    pub(super) fidelity: Fidelity,
    /// Events that matched.
    pub(super) events: u64,
}

/// What one kind of one stream cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) id: u64,
    pub(super) kind: v1::Kind,
    pub(super) fidelity: Fidelity,
    pub(super) percent: f64,
}

/// Divides what was spent: each program's among those who hear a kind that it tells of, and the agent's own among all; by the events that each
/// was to be told, and evenly where there were none. What is detached costs nothing.
pub(super) fn shares(programs: &[(&str, f64)], agent: f64, heard: &[Heard]) -> Vec<Share> {
    let mut shares: Vec<Share> = heard
        .iter()
        .map(|one| Share {
            id: one.id,
            kind: one.kind,
            fidelity: one.fidelity,
            percent: 0.0,
        })
        .collect();
    let mut divide = |percent: f64, takes: &dyn Fn(&Heard) -> bool| {
        let takes = |one: &Heard| one.fidelity != Fidelity::Detached && takes(one);
        let events: u64 = heard
            .iter()
            .filter(|one| takes(one))
            .map(|one| one.events)
            .sum();
        let all = heard.iter().filter(|one| takes(one)).count();
        for (share, one) in shares.iter_mut().zip(heard).filter(|(_, one)| takes(one)) {
            share.percent += match events {
                0 => percent / all as f64,
                events => percent * one.events as f64 / events as f64,
            };
        }
    };
    for (hook, percent) in programs {
        divide(*percent, &|one| one.of.uses(hook));
    }
    divide(agent, &|_| true);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(id: u64, kind: v1::Kind, of: Kind, events: u64) -> Heard {
        Heard {
            id,
            kind,
            of,
            fidelity: Fidelity::Whole,
            events,
        }
    }

    fn percents(shares: &[Share]) -> Vec<f64> {
        shares.iter().map(|share| share.percent).collect()
    }

    #[test]
    fn who_is_told_of_it_pays_by_what_they_are_told() {
        let all = [
            heard(1, v1::Kind::Exec, Kind::Exec, 30),
            heard(2, v1::Kind::Exec, Kind::Exec, 10),
            heard(2, v1::Kind::Exit, Kind::Exit, 0),
        ];
        let spent = [
            ("sched_process_exec", 4.0),
            ("sched_process_exit", 2.0),
            ("cgroup_mkdir", 9.0),
        ];
        // Exits came to no events, and cost all the same.
        assert_eq!(
            percents(&shares(&spent, 8.0, &all)),
            [3.0 + 6.0, 1.0 + 2.0, 2.0]
        );
    }

    #[test]
    fn what_is_detached_costs_nothing() {
        let mut all = [
            heard(1, v1::Kind::Exec, Kind::Exec, 5),
            heard(2, v1::Kind::Exec, Kind::Exec, 0),
        ];
        all[0].fidelity = Fidelity::Detached;
        assert_eq!(
            percents(&shares(&[("sched_process_exec", 4.0)], 1.0, &all)),
            [0.0, 5.0]
        );
        assert_eq!(percents(&shares(&[], 1.0, &[])), [0.0; 0]);
    }
}
