//! The budget: what programs and the agent's own threads cost, and who is told less when that is more than they may.
//!
//! The kernel measures programs in windows of a second, with a pause between them: measuring costs, too.

mod shares;
mod steps;

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use dinle_ebpf::Kind;
use dinle_proto::v1;

use crate::{
    hub::Hub,
    kernel::{HookStatus, Meter, Runs, cpu_ns},
};
use shares::{Heard, shares};
use steps::{Steps, Taken};

/// Between two windows, where nothing depends on them.
const PAUSE: Duration = Duration::from_secs(9);
/// The same where there is a budget. While it is exceeded, there is none.
const PAUSE_WITH_BUDGET: Duration = Duration::from_secs(4);

/// Costs as of the last window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Costs {
    /// As the contract has it.
    pub budget: v1::Budget,
    /// By hook.
    pub programs: HashMap<String, v1::ProgramCost>,
    /// By the stream's number, in per cent of one CPU.
    pub streams: HashMap<u64, f64>,
}

/// Measures, and sheds.
pub(super) struct Budget {
    /// In per cent of one CPU.
    limit: Option<f64>,
    window: Option<Window>,
    /// When the next window may begin.
    next: Instant,
    steps: Steps,
    costs: Costs,
}

/// What the counters showed when it began.
struct Window {
    began: Instant,
    runs: HashMap<String, Runs>,
    cpu_ns: u64,
    matched: HashMap<(u64, v1::Kind), u64>,
    /// The kernel measures while it is held.
    _meter: Option<Meter>,
}

impl Budget {
    pub(super) fn new(limit: Option<f64>) -> Self {
        Self {
            limit,
            window: None,
            next: Instant::now(),
            steps: Steps::default(),
            costs: Costs::default(),
        }
    }

    /// What was measured last.
    pub(super) fn costs(&self) -> &Costs {
        &self.costs
    }

    /// What streams are told of it.
    pub(super) fn note(&self) -> Option<String> {
        let limit = self.limit?;
        let reason = &self.costs.budget.unmeasured;
        (!reason.is_empty()).then(|| {
            format!("the budget of {limit} % of a CPU is held by the agent's own threads alone: {reason}")
        })
    }

    /// To be called every second.
    pub(super) fn tick(&mut self, hooks: &[HookStatus], hub: &Hub) {
        let now = Instant::now();
        if let Some(window) = self.window.take() {
            self.close(&window, hooks, hub, now);
        }
        self.steps.forget_but(&ids(hub));
        let idle = !hooks.iter().any(HookStatus::is_of_sensor) && self.steps.taken().is_empty();
        if idle {
            self.forget();
        } else if now >= self.next {
            self.open(hooks, hub, now);
        }
    }

    /// Nothing runs that costs.
    fn forget(&mut self) {
        let Costs {
            budget,
            programs,
            streams,
        } = &mut self.costs;
        programs.clear();
        streams.clear();
        (budget.programs_percent, budget.agent_percent) = (0.0, 0.0);
        self.tell();
    }

    fn open(&mut self, hooks: &[HookStatus], hub: &Hub, now: Instant) {
        let meter = Meter::start();
        self.costs.budget.unmeasured = meter.as_ref().err().cloned().unwrap_or_default();
        self.window = Some(Window {
            began: now,
            runs: hooks
                .iter()
                .map(|hook| (hook.hook.clone(), hook.runs))
                .collect(),
            cpu_ns: cpu_ns(),
            matched: matched(hub),
            _meter: meter.ok(),
        });
    }

    fn close(&mut self, window: &Window, hooks: &[HookStatus], hub: &Hub, now: Instant) {
        let seconds = now.duration_since(window.began).as_secs_f64();
        let percent = |ns: f64| ns / seconds / 1e7;
        let mut spent = Vec::new();
        self.costs.programs.clear();
        for hook in hooks {
            let before = window.runs.get(&hook.hook).copied().unwrap_or_default();
            let count = hook.runs.count.saturating_sub(before.count);
            let ns = hook.runs.ns.saturating_sub(before.ns) as f64;
            if count == 0 {
                continue;
            }
            let cost = v1::ProgramCost {
                runs_per_second: count as f64 / seconds,
                ns_per_run: ns / count as f64,
                cpu_percent: percent(ns),
            };
            self.costs.programs.insert(hook.hook.clone(), cost);
            spent.push((hook.hook.as_str(), percent(ns)));
        }
        let agent = percent(cpu_ns().saturating_sub(window.cpu_ns) as f64);
        let heard = heard(hub, &window.matched);
        let shares = shares(&spent, agent, &heard);
        self.costs.streams.clear();
        for share in &shares {
            *self.costs.streams.entry(share.id).or_default() += share.percent;
        }
        let programs = spent.iter().map(|(_, percent)| percent).sum();
        let budget = &mut self.costs.budget;
        (budget.programs_percent, budget.agent_percent) = (programs, agent);
        budget.measured = Some(SystemTime::now().into());
        let total = programs + agent;
        self.next = now
            + match self.limit {
                None => PAUSE,
                Some(limit) if total <= limit => PAUSE_WITH_BUDGET,
                Some(_) => Duration::ZERO,
            };
        if let Some(limit) = self.limit
            && let Some(taken) = self.steps.next(now, total, limit, &shares)
        {
            step(hub, &taken, total, limit);
        }
        self.tell();
    }

    fn tell(&mut self) {
        let budget = &mut self.costs.budget;
        budget.limit_percent = self.limit.unwrap_or(0.0);
        budget.shed = self.steps.taken().len() as u32;
        (budget.steps_down, budget.steps_up) = self.steps.counts();
    }
}

/// Takes a step, and says so.
fn step(hub: &Hub, taken: &Taken, total: f64, limit: f64) {
    let Taken { id, kind, to, less } = *taken;
    let board = hub.board();
    let mut listeners = board.listeners().map(|(_, listener)| listener);
    // It may have left.
    let Some(listener) = listeners.find(|listener| listener.id == id) else {
        return;
    };
    hub.set_fidelity(listener, kind, to);
    let (kind, fidelity) = (kind.as_str_name(), to.proto().as_str_name());
    if less {
        tracing::warn!(
            stream = id,
            kind,
            fidelity,
            percent = total,
            budget = limit,
            "over the CPU budget: the stream that costs most is told less"
        );
    } else {
        tracing::info!(
            stream = id,
            kind,
            fidelity,
            percent = total,
            budget = limit,
            "below the CPU budget: a stream is told more again"
        );
    }
}

fn ids(hub: &Hub) -> Vec<u64> {
    let board = hub.board();
    board.listeners().map(|(_, listener)| listener.id).collect()
}

/// How many events of each stream and kind matched so far.
fn matched(hub: &Hub) -> HashMap<(u64, v1::Kind), u64> {
    let board = hub.board();
    let mut matched = HashMap::new();
    for (_, listener) in board.listeners() {
        for books in listener.books() {
            matched.insert((listener.id, books.kind()), books.matched);
        }
    }
    matched
}

/// The same since the window began, with what each stream is told of it.
fn heard(hub: &Hub, before: &HashMap<(u64, v1::Kind), u64>) -> Vec<Heard> {
    let board = hub.board();
    let mut heard = Vec::new();
    for (_, listener) in board.listeners() {
        for books in listener.books() {
            let kind = books.kind();
            // Told less of these, the stream's filter would leave out what it asks for.
            if listener.request.filter.hears().contains(kind) {
                continue;
            }
            let Some(of) = Kind::from_id(kind as u16) else {
                continue;
            };
            let before = before.get(&(listener.id, kind)).copied().unwrap_or(0);
            heard.push(Heard {
                id: listener.id,
                kind,
                of,
                fidelity: listener.fidelity(kind),
                events: books.matched.saturating_sub(before),
            });
        }
    }
    heard
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        filter::{self, Grant, Request},
        hub::Limits,
    };

    #[tokio::test]
    async fn what_a_filter_needs_is_not_shed() {
        let (hub, _publisher) = Hub::new(Limits::default(), || ());
        let asked = |descendants| v1::SubscribeRequest {
            kinds: vec![v1::Kind::Exec.into(), v1::Kind::Fork.into()],
            filter: Some(v1::Filter {
                pids: vec![v1::PidMatch {
                    pid: 1,
                    descendants,
                }],
                ..v1::Filter::default()
            }),
            ..v1::SubscribeRequest::default()
        };
        let kinds = |descendants| {
            let asked = asked(descendants);
            let request = Request::parse(&asked, &filter::Limits::default()).expect("a request");
            let _subscription = hub.subscribe(asked, request, v1::Caller::default(), Grant::all());
            let heard = heard(&hub, &HashMap::new());
            heard.iter().map(|one| one.kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(false), [v1::Kind::Exec, v1::Kind::Fork]);
        assert_eq!(kinds(true), [v1::Kind::Exec]);
    }
}
