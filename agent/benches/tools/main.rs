//! What operations cost while nobody, the agent, or another tool watches; and what the agent costs while nothing happens.
//!
//! Rounds alternate between all conditions. Each measurement has one of nothing directly before and after it, and is told as a
//! ratio to them: absolute times are worth nothing on a machine that is shared. Time on the CPU tells what a tool adds to the
//! program that it watches; the clock tells what waiting for the tool adds too. Needs root and two CPUs.
//!
//! | variable | meaning |
//! |---|---|
//! | `DINLE_BENCH_ROUNDS` | rounds (15) |
//! | `DINLE_BENCH_OPS` | operations in each measurement (500 executions, 20,000 opens and so on) |
//! | `DINLE_BENCH_ONLY` | scenarios, separated with commas (exec,open,unlink,tcp,read) |

mod agent;
mod cgroups;
mod peers;
mod scenario;
#[path = "../support.rs"]
mod support;
mod workload;

use std::{env, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal as listen},
    time::sleep,
};

use agent::{Agent, Tally};
use cgroups::Cgroups;
use peers::{Peer, peers};
use scenario::Scenario;
use support::{knob, quantile};
use workload::{Time, Workload};

/// Mark of operations that are counted: a name that tools show.
const MEASURED: &str = "dinle-measured";
/// Mark of operations that show whether a tool works yet.
const WARM_UP: &str = "dinle-warm-up";
/// Mark of operations while no tool runs.
const BASELINE: &str = "dinle-baseline";

/// Operations before each measurement, for the caches.
const CACHE_OPS: u32 = 50;

/// How long the agent is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(10);

/// Tools and this process have this CPU; the workload has another.
const CPU: usize = 0;

/// Who watches.
#[derive(Clone, Copy)]
enum Condition {
    Nobody,
    Idle,
    AnotherPod,
    Watched,
    Peer(Peer),
}

impl Condition {
    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nothing",
            Self::Idle => "dinle, nobody subscribed",
            Self::AnotherPod => "dinle, another pod watched",
            Self::Watched => "dinle, every event delivered",
            Self::Peer(peer) => peer.name,
        }
    }
}

/// One measurement.
struct Sample {
    time: Time,
    /// To the same without the tool.
    cpu_ratio: f64,
    wall_ratio: f64,
    /// Events, or lines of another tool.
    delivered: u64,
    lost: u64,
}

/// All of one condition.
struct Row {
    condition: Condition,
    samples: Vec<Sample>,
    /// Why it was given up.
    given_up: Option<String>,
}

/// What the subscribers of all rounds saw.
#[derive(Default)]
struct Seen {
    /// Milliseconds from the agent's start to its first event at the subscriber.
    first_event: Vec<f64>,
    /// Nanoseconds from an execution to its event at the subscriber.
    delays: Vec<f64>,
}

struct Bench<'a> {
    scenario: Scenario,
    workload: Workload,
    directory: &'a Path,
    ops: u32,
    seen: Seen,
}

fn main() -> anyhow::Result<()> {
    let mut args = env::args().skip(1);
    if args.next().as_deref() == Some(workload::MODE) {
        let scenario = args.next().context("the scenario")?;
        return workload::serve(&scenario, &args.next().context("its directory")?);
    }
    support::pin(CPU)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        // What is dropped here cleans up after itself.
        tokio::select! {
            done = run() => done,
            _ = interrupt.recv() => anyhow::bail!("interrupted"),
            _ = terminate.recv() => anyhow::bail!("terminated"),
        }
    })
}

async fn run() -> anyhow::Result<()> {
    let rounds: usize = knob("DINLE_BENCH_ROUNDS", 15);
    // On a disk, where the machine keeps its builds: files in memory are not read from a disk.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    workload::compile(directory.path())?;
    let pods = directory.path().join("pods.json");
    std::fs::write(&pods, Cgroups::pods())?;
    let cgroups = Cgroups::make()?;
    println!("{}\n", support::machine());
    let only = env::var("DINLE_BENCH_ONLY").unwrap_or_default();
    let scenarios: Vec<Scenario> = match &*only {
        "" => Scenario::ALL.to_vec(),
        some => some
            .split(',')
            .map(scenario::parse)
            .collect::<Result<_, _>>()?,
    };
    for scenario in scenarios {
        let mut bench = Bench {
            scenario,
            workload: Workload::start(scenario, directory.path(), &cgroups.of(cgroups::WATCHED))?,
            directory: directory.path(),
            ops: knob("DINLE_BENCH_OPS", scenario.ops()),
            seen: Seen::default(),
        };
        bench.compare(rounds).await?;
    }
    idle(&pods).await
}

impl Bench<'_> {
    /// All conditions, and what came of them.
    async fn compare(&mut self, rounds: usize) -> anyhow::Result<()> {
        let Self { scenario, ops, .. } = *self;
        println!(
            "## {}: {rounds} rounds of {ops} × {}\n",
            scenario.name(),
            scenario.what()
        );
        for version in peers(scenario).iter().filter_map(Peer::version) {
            println!("* {version}");
        }
        use Condition::{AnotherPod, Idle, Nobody, Watched};
        let mut rows: Vec<Row> = [Nobody, Idle, AnotherPod, Watched]
            .into_iter()
            .chain(peers(scenario).map(Condition::Peer))
            .map(|condition| Row {
                condition,
                samples: Vec::new(),
                given_up: None,
            })
            .collect();
        for _ in 0..rounds {
            for row in rows.iter_mut().filter(|row| row.given_up.is_none()) {
                match (self.sample(row.condition).await, row.condition) {
                    (Ok(sample), _) => row.samples.push(sample),
                    // Others may fail on this kernel; the agent may not.
                    (Err(error), Condition::Peer(_)) => row.given_up = Some(format!("{error:#}")),
                    (Err(error), Nobody | Idle | AnotherPod | Watched) => return Err(error),
                }
            }
        }
        print_rows(&rows, scenario, ops);
        let Seen {
            first_event,
            delays,
        } = &self.seen;
        println!(
            "\nStart of the agent to its first event at a subscriber: median {:.0} ms, longest {:.0} ms (target 1,500).",
            quantile(first_event, 0.5),
            quantile(first_event, 1.0)
        );
        let ms = |part| quantile(delays, part) / 1e6;
        println!(
            "Operation to its event at the subscriber: median {:.1} ms, p99 {:.1} ms, longest {:.1} ms (target p99 10).\n",
            ms(0.5),
            ms(0.99),
            ms(1.0)
        );
        Ok(())
    }

    /// Nothing, the condition, nothing.
    async fn sample(&mut self, condition: Condition) -> anyhow::Result<Sample> {
        let before = self.measure(BASELINE).await?;
        let (time, delivered, lost) = self.watch(condition).await?;
        let after = self.measure(BASELINE).await?;
        let ratio = |of: fn(&Time) -> f64| of(&time) / ((of(&before) + of(&after)) / 2.0);
        Ok(Sample {
            time,
            cpu_ratio: ratio(|time| time.cpu_ns),
            wall_ratio: ratio(|time| time.wall_ns),
            delivered,
            lost,
        })
    }

    async fn measure(&mut self, marker: &str) -> anyhow::Result<Time> {
        self.workload.run(BASELINE, CACHE_OPS).await?;
        self.workload.run(marker, self.ops).await
    }

    /// What an operation takes, and what was shown and lost of all.
    async fn watch(&mut self, condition: Condition) -> anyhow::Result<(Time, u64, u64)> {
        let ops = u64::from(self.ops);
        if let Condition::Peer(peer) = condition {
            let running = peer
                .start(self.scenario, &mut self.workload, self.directory)
                .await?;
            let time = self.measure(MEASURED).await?;
            let shown = running.stop().await?;
            return Ok((time, shown, ops.saturating_sub(shown)));
        }
        let pods = self.directory.join("pods.json");
        let mut outcome = (Time::default(), 0, 0);
        match condition {
            Condition::Nobody | Condition::Peer(_) => outcome.0 = self.measure(MEASURED).await?,
            Condition::Idle => {
                let mut agent = Agent::roomy(&pods)?;
                drop(agent.client().await?);
                outcome.0 = self.measure(MEASURED).await?;
                agent.stop().await?;
            }
            Condition::AnotherPod => {
                let mut agent = Agent::roomy(&pods)?;
                let subscriber = agent.subscribe(self.scenario, cgroups::OTHER).await?;
                outcome.0 = self.measure(MEASURED).await?;
                ensure!(subscriber.is_open(), "the stream ended by itself");
                ensure!(
                    subscriber.tally().measured == 0,
                    "events of a pod reached a stream that watches another"
                );
                drop(subscriber);
                agent.stop().await?;
            }
            Condition::Watched => {
                let mut agent = Agent::roomy(&pods)?;
                let mut subscriber = agent.subscribe(self.scenario, cgroups::WATCHED).await?;
                self.workload.run(WARM_UP, 1).await?;
                subscriber.wait_for(|tally| tally.warm > 0).await?;
                self.seen
                    .first_event
                    .push(agent.begun.elapsed().as_secs_f64() * 1e3);
                outcome.0 = self.measure(MEASURED).await?;
                let expected = ops * self.scenario.events();
                let all = |tally: &Tally| tally.measured + tally.lost >= expected;
                subscriber.wait_for(all).await?;
                {
                    let tally = subscriber.tally();
                    outcome.1 = tally.measured;
                    outcome.2 = tally.lost;
                    self.seen.delays.extend(&tally.delays);
                }
                ensure!(
                    (outcome.1, outcome.2) == (expected, 0),
                    "{} events arrived and {} were lost ({}), expected {expected} and none",
                    outcome.1,
                    outcome.2,
                    subscriber.tally().losses.join(", ")
                );
                drop(subscriber);
                agent.stop().await?;
            }
        }
        Ok(outcome)
    }
}

fn print_rows(rows: &[Row], scenario: Scenario, ops: u32) {
    println!(
        "\n| condition | CPU µs each | CPU ratio | p25–p75 | wall-clock ratio | p25–p75 | shown of | lost |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for Row {
        condition,
        samples,
        given_up,
    } in rows
    {
        let name = condition.name();
        if let Some(reason) = given_up {
            println!("| {name} | not run: {reason} | | | | | | |");
            continue;
        }
        let all = |of: fn(&Sample) -> f64| samples.iter().map(of).collect::<Vec<f64>>();
        let cpu = all(|sample| sample.cpu_ratio);
        let wall = all(|sample| sample.wall_ratio);
        let time = all(|sample| sample.time.cpu_ns / 1e3);
        let (delivered, lost) = samples.iter().fold((0, 0), |(delivered, lost), sample| {
            (delivered + sample.delivered, lost + sample.lost)
        });
        let done = u64::from(ops) * samples.len() as u64;
        let (shown, lost) = match condition {
            Condition::Nobody | Condition::Idle | Condition::AnotherPod => Default::default(),
            Condition::Watched => (
                format!("{delivered} of {}", scenario.events() * done),
                lost.to_string(),
            ),
            Condition::Peer(_) => (format!("{delivered} of {done}"), lost.to_string()),
        };
        println!(
            "| {name} | {:.1} | {:.3} | {:.3}–{:.3} | {:.3} | {:.3}–{:.3} | {shown} | {lost} |",
            quantile(&time, 0.5),
            quantile(&cpu, 0.5),
            quantile(&cpu, 0.25),
            quantile(&cpu, 0.75),
            quantile(&wall, 0.5),
            quantile(&wall, 0.25),
            quantile(&wall, 0.75),
        );
    }
}

/// Measures an agent that has nothing to do.
async fn idle(pods: &Path) -> anyhow::Result<()> {
    let mut agent = Agent::start(pods, &[])?;
    drop(agent.client().await?);
    println!(
        "\n| agent, {} s each | CPU, % of one | RSS, MiB | of it anonymous | peak |",
        IDLE.as_secs()
    );
    println!("|---|---|---|---|---|");
    // The work of the start is not idling.
    sleep(Duration::from_secs(2)).await;
    print_cost("nobody subscribed", &agent.cost(IDLE).await?);
    let subscriber = agent.subscribe(Scenario::Exec, cgroups::OTHER).await?;
    sleep(Duration::from_secs(1)).await;
    print_cost("one quiet subscriber", &agent.cost(IDLE).await?);
    println!("| target | 0.05 | 25 | | 1.5 × |");
    drop(subscriber);
    agent.stop().await
}

fn print_cost(name: &str, cost: &agent::Cost) {
    let agent::Cost {
        cpu_percent,
        rss,
        anonymous,
        peak,
    } = cost;
    println!("| {name} | {cpu_percent:.3} | {rss:.1} | {anonymous:.1} | {peak:.1} |");
}

/// Sends a signal to a process of ours that was not waited for yet.
fn signal(child: &Child, number: libc::c_int) {
    if let Some(pid) = child.id() {
        // SAFETY: has no preconditions. The process is our child, so that its id is not another's.
        unsafe { libc::kill(pid as libc::pid_t, number) };
    }
}
