//! `dinle status`.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use dinle_proto::v1;

use super::{
    Screen,
    connect::{Client, Place, answer, connect},
    connection::{Connection, Reach},
    json::Json,
    look::Look,
    nodes::every,
    output::{self, Output, parse_output},
    pages::{capabilities, print_facts},
    table::Table,
    text::{self, NONE},
};

pub(super) const LONG_ABOUT: &str = "\
Show how the agent is doing: its programs in the kernel, the streams that are open, its exporters, what was lost \
since it started, where it knows pods from, and which kinds of events it can see on this kernel.

Examples:
  dinle status
  dinle status -o json | jq .status.losses";

/// Arguments of `dinle status`.
#[derive(Clone, Debug, clap::Args)]
pub struct Status {
    #[arg(short, long, help = output::HELP, default_value = "table", value_parser = parse_output, value_name = output::VALUE)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

impl Status {
    pub(super) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self { output, connection } = self;
        let ask = async |client: &mut Client, place: &Place| {
            let status = answer(place, client.get_status(v1::GetStatusRequest {})).await?;
            let kinds = client.list_capabilities(v1::ListCapabilitiesRequest {});
            anyhow::Ok((status, answer(place, kinds).await?))
        };
        let (answers, code) = match connection.reach().await? {
            Reach::Agent(address) => {
                let mut client = connect(&address).await?;
                let answer = ask(&mut client, &Place::At(address)).await?;
                (vec![answer], ExitCode::SUCCESS)
            }
            // Every node that has an agent.
            Reach::Cluster(cluster) => every(&cluster, None, screen, ask).await?,
        };
        for (number, (status, kinds)) in answers.iter().enumerate() {
            match &output {
                Output::Table | Output::Wide => {
                    if number > 0 {
                        writeln!(screen.out)?;
                    }
                    // Why something is not available takes more than a line.
                    let look = screen.look.uncut();
                    page(
                        status,
                        &kinds.capabilities,
                        SystemTime::now(),
                        look,
                        screen.out,
                    )?;
                }
                Output::Json | Output::JsonPath(_) => {
                    let answers = serde_json::json!({
                        "status": Json::of("GetStatusResponse")?.value(status)?,
                        "capabilities": Json::of("ListCapabilitiesResponse")?.value(kinds)?,
                    });
                    match &output {
                        Output::JsonPath(template) => {
                            template.print(&answers, screen.look.is_terminal(), screen.out)?;
                        }
                        Output::Table | Output::Wide | Output::Json => {
                            writeln!(screen.out, "{answers}")?;
                        }
                    }
                }
            }
        }
        Ok(code)
    }
}

fn page(
    status: &v1::GetStatusResponse,
    kinds: &[v1::Capability],
    now: SystemTime,
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    let v1::GetStatusResponse {
        version,
        node,
        boot_id,
        kernel_release,
        started,
        programs,
        subscriptions,
        losses,
        pod_source,
        cgroups,
        cgroups_in_scope,
        ring_bytes,
        budget,
        exporters,
    } = status;
    let facts = [
        (
            "agent",
            format!(
                "{}, up {}",
                text::or_none(version),
                age(started.as_ref(), now)
            ),
        ),
        ("node", text::or_none(node).to_owned()),
        (
            "kernel",
            format!(
                "{}, boot id {}",
                text::or_none(kernel_release),
                text::or_none(boot_id)
            ),
        ),
        ("pods", source(pod_source.as_ref())),
        (
            "cgroups",
            match budget {
                Some(_) => format!(
                    "{} known, {} reported on now",
                    text::thousands(u64::from(*cgroups)),
                    text::thousands(u64::from(*cgroups_in_scope))
                ),
                None => NONE.to_owned(),
            },
        ),
        ("ring", format!("{} bytes", text::thousands(*ring_bytes))),
        ("cost", cost(budget.as_ref())),
    ];
    print_facts(&facts, out)?;
    writeln!(out)?;
    capabilities(kinds, look, out)?;
    writeln!(out)?;
    if budget.is_some() {
        print_programs(programs, look, out)?;
        writeln!(out)?;
    }
    if subscriptions.is_empty() {
        writeln!(out, "nobody listens")?;
    } else {
        print_streams(subscriptions, now, look, out)?;
    }
    writeln!(out)?;
    if !exporters.is_empty() {
        print_exporters(exporters, now, look, out)?;
        writeln!(out)?;
    }
    if budget.is_none() {
        // An agent always tells it to those who may know.
        writeln!(
            out,
            "what the whole node costs and loses is told to those who may watch something in all namespaces"
        )
    } else if losses.is_empty() {
        writeln!(out, "nothing was lost")
    } else {
        print_losses(losses, look, out)
    }
}

fn source(source: Option<&v1::PodSource>) -> String {
    let Some(v1::PodSource {
        name,
        synced,
        pods,
        error,
    }) = source
    else {
        return NONE.to_owned();
    };
    let synced = if *synced { "synced" } else { "NOT SYNCED YET" };
    let error = if error.is_empty() {
        String::new()
    } else {
        format!("; last error: {error}")
    };
    format!(
        "from {}, {synced}, {} pods{error}",
        text::or_none(name),
        text::thousands(u64::from(*pods))
    )
}

fn print_programs(programs: &[v1::Program], look: Look, out: &mut dyn Write) -> io::Result<()> {
    let row = |program: &v1::Program| {
        let v1::Program {
            name,
            hook,
            way,
            attached,
            verified_instructions,
            recursion_misses,
            cost,
        } = program;
        let number = |of: fn(&v1::ProgramCost) -> f64| match cost {
            Some(cost) => text::thousands(of(cost).round() as u64),
            None => NONE.to_owned(),
        };
        vec![
            name.clone(),
            text::or_none(hook).to_owned(),
            text::or_none(way).to_owned(),
            if *attached { "yes" } else { "no" }.to_owned(),
            text::known(u64::from(*verified_instructions)),
            text::thousands(*recursion_misses),
            number(|cost| cost.runs_per_second),
            number(|cost| cost.ns_per_run),
            cost.map_or(NONE.to_owned(), |cost| percent(cost.cpu_percent)),
        ]
    };
    let rows: Vec<_> = programs.iter().map(row).collect();
    let names = [
        "PROGRAM", "HOOK", "WAY", "ATTACHED", "VERIFIED", "SKIPPED", "RUNS/S", "NS/RUN", "CPU",
    ];
    Table::print(&names, &rows, look, out)
}

fn print_streams(
    streams: &[v1::Subscription],
    now: SystemTime,
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut rows = Vec::new();
    for stream in streams {
        for books in &stream.books {
            let lost = books.lost.iter().map(|lost| lost.count).sum();
            rows.push(vec![
                stream.stream_id.to_string(),
                age(stream.started.as_ref(), now),
                text::kind(books.kind),
                text::thousands(books.matched),
                text::thousands(books.delivered),
                text::thousands(books.queued),
                text::thousands(lost),
                percent(stream.cpu_percent),
                text::fidelity(books.fidelity),
                text::caller(stream.caller.as_ref()),
            ]);
        }
    }
    let names = [
        "STREAM",
        "AGE",
        "KIND",
        "MATCHED",
        "DELIVERED",
        "QUEUED",
        "LOST",
        "CPU",
        "TOLD",
        "CALLER",
    ];
    Table::print(&names, &rows, look, out)
}

fn print_exporters(
    exporters: &[v1::Exporter],
    now: SystemTime,
    look: Look,
    out: &mut dyn Write,
) -> io::Result<()> {
    let row = |exporter: &v1::Exporter| {
        let v1::Exporter {
            name,
            receiver,
            up,
            problem,
            exported,
            waiting,
            dropped,
            lost,
            last_success,
        } = exporter;
        let dropped = dropped
            .iter()
            .map(|dropped| format!("{} {}", text::thousands(dropped.count), dropped.cause));
        let dropped = dropped.collect::<Vec<_>>().join(", ");
        vec![
            name.clone(),
            receiver.clone(),
            if *up { "yes" } else { "NO" }.to_owned(),
            text::thousands(*exported),
            text::thousands(*waiting),
            if dropped.is_empty() { "0" } else { &dropped }.to_owned(),
            text::thousands(lost.iter().map(|lost| lost.count).sum()),
            match last_success {
                Some(_) => format!("{} ago", age(last_success.as_ref(), now)),
                None => NONE.to_owned(),
            },
            text::or_none(problem).to_owned(),
        ]
    };
    let rows: Vec<_> = exporters.iter().map(row).collect();
    let names = [
        "EXPORTER", "RECEIVER", "UP", "EXPORTED", "WAITING", "DROPPED", "LOST", "TAKEN", "PROBLEM",
    ];
    Table::print(&names, &rows, look, out)
}

fn print_losses(losses: &[v1::NodeLoss], look: Look, out: &mut dyn Write) -> io::Result<()> {
    let row = |loss: &v1::NodeLoss| {
        let v1::NodeLoss { kind, stage, count } = loss;
        vec![
            text::kind(*kind),
            text::stage(*stage),
            text::thousands(*count),
        ]
    };
    let rows: Vec<_> = losses.iter().map(row).collect();
    Table::print(&["KIND", "LOST-AT", "COUNT"], &rows, look, out)
}

/// Of one CPU: `1.25%`.
pub(super) fn percent(percent: f64) -> String {
    format!("{percent:.2}%")
}

/// What the agent costs, and what it may.
fn cost(budget: Option<&v1::Budget>) -> String {
    let Some(v1::Budget {
        limit_percent,
        programs_percent,
        agent_percent,
        measured,
        unmeasured,
        shed,
        steps_down,
        steps_up,
    }) = budget
    else {
        return NONE.to_owned();
    };
    let mut cost = match measured {
        None => "not measured yet: nobody has listened".to_owned(),
        Some(_) => format!(
            "{} of a CPU for programs, {} for the agent",
            if unmeasured.is_empty() {
                percent(*programs_percent)
            } else {
                "?".to_owned()
            },
            percent(*agent_percent)
        ),
    };
    if *limit_percent > 0.0 {
        cost.push_str(&format!(
            "; the budget is {}, {shed} kinds of streams are told less now (steps down {}, up {})",
            percent(*limit_percent),
            text::thousands(*steps_down),
            text::thousands(*steps_up)
        ));
    }
    if !unmeasured.is_empty() {
        cost.push_str(&format!("; {unmeasured}"));
    }
    cost
}

/// `3h 2m 5s`. A clock that was set back makes it 0.
pub(super) fn age(since: Option<&prost_types::Timestamp>, now: SystemTime) -> String {
    let Some(started) = since.and_then(|since| SystemTime::try_from(*since).ok()) else {
        return NONE.to_owned();
    };
    let age = now.duration_since(started).unwrap_or_default();
    let seconds = Duration::from_secs(age.as_secs());
    humantime::format_duration(seconds).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::pages::tests::both_capabilities;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn printed(status: &v1::GetStatusResponse) -> String {
        let mut out = Vec::new();
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(11_125_900);
        page(status, &both_capabilities(), now, Look::default(), &mut out)
            .expect("a Vec takes all");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_busy_agent_is_a_page() {
        let status = v1::GetStatusResponse {
            version: "0.1.0".to_owned(),
            node: "node-1".to_owned(),
            boot_id: "b00t".to_owned(),
            kernel_release: "6.12.0".to_owned(),
            started: at(200),
            programs: vec![
                v1::Program {
                    name: "tp_btf__sched_process_exec".to_owned(),
                    hook: "sched_process_exec".to_owned(),
                    way: "tp_btf".to_owned(),
                    attached: true,
                    verified_instructions: 1272,
                    recursion_misses: 1,
                    cost: Some(v1::ProgramCost {
                        runs_per_second: 1204.4,
                        ns_per_run: 830.2,
                        cpu_percent: 0.1,
                    }),
                },
                v1::Program {
                    name: "cgroup_mkdir".to_owned(),
                    hook: "cgroup_mkdir".to_owned(),
                    way: "raw_tracepoint".to_owned(),
                    ..Default::default()
                },
            ],
            subscriptions: vec![v1::Subscription {
                stream_id: 7,
                started: at(11_120),
                request: None,
                caller: Some(v1::Caller {
                    peer: "10.0.0.7:41234".to_owned(),
                    user: "jane".to_owned(),
                    groups: Vec::new(),
                }),
                books: vec![v1::KindBooks {
                    kind: v1::Kind::Exec.into(),
                    matched: 1204,
                    delivered: 1200,
                    queued: 1,
                    lost: vec![v1::StageLoss {
                        stage: v1::LossStage::ClientQueue.into(),
                        count: 3,
                    }],
                    fidelity: v1::Fidelity::Sampled.into(),
                }],
                cpu_percent: 0.125,
            }],
            losses: vec![v1::NodeLoss {
                kind: v1::Kind::Exec.into(),
                stage: v1::LossStage::ClientQueue.into(),
                count: 3,
            }],
            pod_source: Some(v1::PodSource {
                name: "kube".to_owned(),
                synced: true,
                pods: 12,
                error: String::new(),
            }),
            cgroups: 40,
            cgroups_in_scope: 12,
            ring_bytes: 4 << 20,
            budget: Some(v1::Budget {
                limit_percent: 5.0,
                programs_percent: 0.1,
                agent_percent: 0.25,
                measured: at(11_124),
                shed: 1,
                steps_down: 3,
                steps_up: 2,
                ..Default::default()
            }),
            exporters: vec![
                v1::Exporter {
                    name: "audit".to_owned(),
                    receiver: "file".to_owned(),
                    up: true,
                    exported: 1200,
                    last_success: at(11_120),
                    ..Default::default()
                },
                v1::Exporter {
                    name: "lake".to_owned(),
                    receiver: "otlp".to_owned(),
                    problem: "may not watch exec in namespace shop".to_owned(),
                    waiting: 4,
                    dropped: vec![v1::ExporterDrop {
                        cause: "unavailable".to_owned(),
                        count: 1500,
                    }],
                    lost: vec![v1::StageLoss {
                        stage: v1::LossStage::KernelRing.into(),
                        count: 2,
                    }],
                    ..Default::default()
                },
            ],
        };
        assert_eq!(
            printed(&status),
            "\
agent    0.1.0, up 3h 2m 5s
node     node-1
kernel   6.12.0, boot id b00t
pods     from kube, synced, 12 pods
cgroups  40 known, 12 reported on now
ring     4,194,304 bytes
cost     0.10% of a CPU for programs, 0.25% for the agent; the budget is 5.00%, 1 kinds of streams are told less now (steps down 3, up 2)

KIND AVAILABLE HOOK               WAY            REFUSED
exec yes       sched_process_exec raw_tracepoint tp_btf: no BTF
exit NO        -                  -              no way to attach
exit NO        sched_process_exit -              tp_btf: no BTF; kprobe: not permitted
limit of exec: failed execs are not seen

PROGRAM                    HOOK               WAY            ATTACHED VERIFIED SKIPPED RUNS/S NS/RUN CPU
tp_btf__sched_process_exec sched_process_exec tp_btf         yes      1,272    1       1,204  830    0.10%
cgroup_mkdir               cgroup_mkdir       raw_tracepoint no       -        0       -      -      -

STREAM AGE KIND MATCHED DELIVERED QUEUED LOST CPU   TOLD    CALLER
7      5s  exec 1,204   1,200     1      3    0.12% sampled jane (10.0.0.7:41234)

EXPORTER RECEIVER UP  EXPORTED WAITING DROPPED           LOST TAKEN  PROBLEM
audit    file     yes 1,200    0       0                 0    5s ago -
lake     otlp     NO  0        4       1,500 unavailable 2    -      may not watch exec in namespace shop

KIND LOST-AT      COUNT
exec CLIENT_QUEUE 3
"
        );
    }

    fn has_lines(page: &str, expected: &[&str]) {
        for line in expected {
            assert!(
                page.lines().any(|found| found == *line),
                "{line} in\n{page}"
            );
        }
    }

    #[test]
    fn a_quiet_agent_says_so() {
        let status = v1::GetStatusResponse {
            pod_source: Some(v1::PodSource {
                name: "kube".to_owned(),
                synced: false,
                pods: 0,
                error: "connection refused".to_owned(),
            }),
            // The clock was set back since.
            started: at(i64::from(u32::MAX)),
            budget: Some(v1::Budget::default()),
            ..Default::default()
        };
        let expected = [
            "agent    -, up 0s",
            "pods     from kube, NOT SYNCED YET, 0 pods; last error: connection refused",
            "nobody listens",
            "nothing was lost",
        ];
        has_lines(&printed(&status), &expected);
    }

    #[test]
    fn what_is_not_told_is_no_zero() {
        let page = printed(&v1::GetStatusResponse::default());
        let expected = [
            "pods     -",
            "cgroups  -",
            "cost     -",
            "what the whole node costs and loses is told to those who may watch something in all namespaces",
        ];
        has_lines(&page, &expected);
        assert!(
            !page.contains("PROGRAM") && !page.contains("nothing was lost"),
            "{page}"
        );
    }
}
