//! What programs cost, and what becomes of streams when that is too much.

use std::{process::Child, time::Duration};

use dinle_e2e::{act::act, agent::Agent, patience::eventually, stream::Stream};
use dinle_proto::v1::{Fidelity, Kind, LossStage, ProgramCost, SubscribeRequest};

use crate::{Lab, only, shop};

/// A step is taken back within so long after the load is gone: it is measured every 5 s, and has to be calm for as long.
const STEP_UP: Duration = Duration::from_secs(15);

/// Opens files until it is dropped.
struct Load(Child);

impl Load {
    fn on(lab: &Lab) -> Self {
        Self(lab.app.spawn(act([
            "file",
            "many",
            "4000000000",
            "open",
            "/dev/null",
            "0",
        ])))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn opens() -> SubscribeRequest {
    SubscribeRequest {
        // What comes is not looked at.
        queue_bytes: 1 << 20,
        ..only(Kind::FileOpen, shop())
    }
}

/// What a stream is told of opens, as of its latest heartbeat.
fn fidelity(stream: &Stream) -> Fidelity {
    let books = stream
        .books
        .iter()
        .find(|books| books.kind() == Kind::FileOpen);
    books.map_or(Fidelity::Unspecified, |books| books.fidelity())
}

fn costs(agent: &Agent) -> Vec<(String, ProgramCost)> {
    let programs = agent.status().programs.into_iter();
    programs
        .filter_map(|program| Some((program.hook, program.cost?)))
        .collect()
}

/// Per cent of a CPU that opens cost this machine's agent, with the load or without: a machine that is emulated is slow.
fn measured(load: bool) -> f64 {
    let lab = Lab::of("file");
    // The first second that somebody listens is measured.
    let _load = load.then(|| Load::on(&lab));
    let _stream = lab.agent.subscribe(opens());
    let mut cost = None;
    eventually("something was measured", || {
        let budget = lab.agent.status().budget.unwrap();
        cost = budget
            .measured
            .map(|_| budget.agent_percent + budget.programs_percent);
        cost.is_some()
    });
    cost.unwrap()
}

#[test]
fn programs_are_measured_while_they_are_attached() {
    let lab = Lab::of("file");
    assert!(costs(&lab.agent).is_empty());
    let budget = lab.agent.status().budget.unwrap();
    assert_eq!((budget.limit_percent, budget.measured), (0.0, None));
    let mut stream = lab.agent.subscribe(opens());
    let _load = Load::on(&lab);
    let mut costs = Vec::new();
    eventually("the programs of opens cost something", || {
        costs = self::costs(&lab.agent);
        !costs.is_empty()
    });
    let status = lab.agent.status();
    let attached = |hook: &str| {
        status
            .programs
            .iter()
            .any(|one| one.hook == hook && one.attached)
    };
    for (hook, cost) in &costs {
        assert!(attached(hook), "{hook}");
        assert!(
            cost.runs_per_second > 0.0 && cost.ns_per_run > 0.0,
            "{hook}: {cost:?}"
        );
        let percent = cost.runs_per_second * cost.ns_per_run / 1e7;
        assert!(
            (percent - cost.cpu_percent).abs() < 1e-6 * percent.max(1.0),
            "{hook}: {cost:?}"
        );
    }
    let budget = status.budget.unwrap();
    assert_eq!(budget.unmeasured, "");
    // It is the stream that all this is for, but for what the tracker and others cost.
    let own = status.subscriptions[0].cpu_percent;
    assert!(own > 0.0 && own <= budget.programs_percent + budget.agent_percent + 1e-6);
    stream.heartbeat();
    assert_eq!(
        fidelity(&stream),
        Fidelity::Unspecified,
        "there is no budget"
    );
    drop(stream);
    eventually("nothing is measured any more", || {
        self::costs(&lab.agent).is_empty()
    });
}

#[test]
fn over_the_budget_a_stream_is_told_less_and_afterwards_everything_again() {
    // The load is far above it, also beside other tests, and what is there without is below.
    let (calm, loaded) = (measured(false), measured(true));
    let limit = calm + (loaded - calm) / 4.0;
    let lab = Lab::with(&["--sensors", "file", "--budget-cpu", &limit.to_string()]);
    let mut stream = lab.agent.subscribe(opens());
    let load = Load::on(&lab);
    let mut told = vec![Fidelity::Unspecified];
    stream.until("it is told less", |stream| {
        let now = fidelity(stream);
        if told.last() != Some(&now) {
            told.push(now);
        }
        now != Fidelity::Unspecified
    });
    assert_eq!(
        told,
        [Fidelity::Unspecified, Fidelity::Sampled],
        "one step at a time"
    );
    let budget = lab.agent.status().budget.unwrap();
    assert_eq!(
        (budget.limit_percent, budget.shed >= 1),
        (limit, true),
        "{budget:?}"
    );
    // Before it is over the budget in the next step, too: each takes its time to be taken back.
    drop(load);
    stream.until("what is left out is told", |stream| {
        stream.told_lost(Kind::FileOpen, LossStage::RateLimit) > 0
    });
    let steps = lab.agent.status().budget.unwrap().steps_down;
    let time = STEP_UP * u32::try_from(steps).unwrap();
    stream.after(time, "everything is told again", |stream| {
        fidelity(stream) == Fidelity::Unspecified
    });
    let budget = lab.agent.status().budget.unwrap();
    assert_eq!(
        (budget.shed, budget.steps_down),
        (0, budget.steps_up),
        "{budget:?}"
    );

    // The books balance over all that, and what comes now comes whole.
    stream.heartbeat();
    let before = stream.book(Kind::FileOpen);
    lab.app
        .succeed(act(["file", "many", "300", "open", "/dev/zero", "0"]));
    stream.until("all of the last ones are delivered", |stream| {
        stream.book(Kind::FileOpen).delivered >= before.delivered + 300
    });
    let book = stream.book(Kind::FileOpen);
    assert_eq!(book.lost, before.lost);
    let lost: u64 = book.lost.iter().map(|(_, count)| count).sum();
    assert_eq!(book.matched, book.delivered + lost);
    let log = lab.agent.log();
    assert!(
        log.contains("over the CPU budget") && log.contains("below the CPU budget"),
        "{log}"
    );
}

#[test]
fn far_over_the_budget_nothing_is_told_and_nothing_is_attached() {
    // Less than it costs to listen at all.
    let lab = Lab::with(&["--sensors", "file", "--budget-cpu", "0.01"]);
    let mut stream = lab.agent.subscribe(opens());
    let mut told = vec![Fidelity::Unspecified];
    let load = Load::on(&lab);
    stream.after(STEP_UP, "it is told nothing", |stream| {
        let now = fidelity(stream);
        if told.last() != Some(&now) {
            told.push(now);
        }
        now == Fidelity::Detached
    });
    drop(load);
    assert_eq!(
        told,
        [
            Fidelity::Unspecified,
            Fidelity::Sampled,
            Fidelity::Counted,
            Fidelity::Detached
        ]
    );
    eventually("nothing but the tracker is attached", || {
        let mut programs = lab.agent.status().programs.into_iter();
        programs.all(|program| !program.attached || program.hook.starts_with("cgroup_"))
    });
    stream.heartbeat();
    let before = stream.book(Kind::FileOpen);
    let lost: u64 = before.lost.iter().map(|(_, count)| count).sum();
    assert_eq!(before.matched, before.delivered + lost, "the books balance");
    assert!(stream.told_lost(Kind::FileOpen, LossStage::RateLimit) > 0);
    lab.app
        .succeed(act(["file", "many", "300", "open", "/dev/zero", "0"]));
    stream.heartbeat();
    assert_eq!(
        stream.book(Kind::FileOpen),
        before,
        "what happens now is neither told nor counted"
    );
}
