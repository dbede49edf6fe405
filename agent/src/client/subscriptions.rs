//! `dinle subscriptions`.

use std::{io, process::ExitCode, time::SystemTime};

use dinle_proto::v1;

use super::{
    Screen,
    connect::{Client, Place, answer, connect},
    connection::{Connection, Reach},
    look::Look,
    nodes::every,
    output::{self, Output, parse_output},
    status::{age, percent},
    table::Table,
    text::{self, NONE},
};

pub(super) const LONG_ABOUT: &str = "\
List the streams that are open: who listens to what since when, how much it was told, and what that costs. Where the agent asks who you are, \
your own; to see those of everybody, it takes the permission to `list` the resource `subscriptions` in the API group dinle.dev.

CPU is in per cent of one CPU, as of the last second in which the kernel measured. TOLD is what is told of each kind while the agent is over its \
budget (--budget-cpu): sampled, counted or detached.

Examples:
  dinle subscriptions
  dinle subscriptions -o json | jq -r .caller.user";

/// Arguments of `dinle subscriptions`.
#[derive(Clone, Debug, clap::Args)]
pub struct Subscriptions {
    #[arg(short, long, help = output::HELP, default_value = "table", value_parser = parse_output, value_name = output::VALUE)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

impl Subscriptions {
    pub(super) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let Self { output, connection } = self;
        let json = output.json("Subscription", screen)?;
        let ask = async |client: &mut Client, place: &Place| {
            let request = v1::ListSubscriptionsRequest {};
            answer(place, client.list_subscriptions(request)).await
        };
        let (answers, code) = match connection.reach().await? {
            Reach::Agent(address) => {
                let mut client = connect(&address).await?;
                let answer = ask(&mut client, &Place::At(address)).await?;
                (vec![answer], ExitCode::SUCCESS)
            }
            Reach::Cluster(cluster) => every(&cluster, None, screen, ask).await?,
        };
        match json {
            None => {
                let look = match output.is_wide() {
                    true => screen.look.uncut(),
                    false => screen.look,
                };
                if answers
                    .iter()
                    .any(|answer| !answer.subscriptions.is_empty())
                {
                    print(&answers, SystemTime::now(), look, screen.out)?;
                }
            }
            Some(json) => {
                for subscription in answers.iter().flat_map(|answer| &answer.subscriptions) {
                    json.line(subscription, screen.out)?;
                }
            }
        }
        if answers.iter().all(|answer| answer.subscriptions.is_empty()) {
            screen.say("nobody listens")?;
        }
        if answers.iter().any(|answer| answer.own_only) {
            screen.say("only your own: to see those of others takes the permission to `list` subscriptions.dinle.dev")?;
        }
        Ok(code)
    }
}

fn print(
    answers: &[v1::ListSubscriptionsResponse],
    now: SystemTime,
    look: Look,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let mut rows = Vec::new();
    for answer in answers {
        for subscription in &answer.subscriptions {
            rows.push(row(&answer.node, subscription, now));
        }
    }
    let names = [
        "NODE",
        "STREAM",
        "AGE",
        "CALLER",
        "KINDS",
        "OF",
        "MATCHED",
        "DELIVERED",
        "LOST",
        "CPU",
        "TOLD",
    ];
    Table::print(&names, &rows, look, out)
}

fn row(node: &str, subscription: &v1::Subscription, now: SystemTime) -> Vec<String> {
    let v1::Subscription {
        stream_id,
        started,
        request,
        books,
        caller,
        cpu_percent,
    } = subscription;
    let request = request.clone().unwrap_or_default();
    let kinds: Vec<String> = request.kinds.iter().map(|kind| text::kind(*kind)).collect();
    let sum = |of: fn(&v1::KindBooks) -> u64| text::thousands(books.iter().map(of).sum());
    vec![
        text::or_none(node).to_owned(),
        stream_id.to_string(),
        age(started.as_ref(), now),
        text::caller(caller.as_ref()),
        kinds.join(","),
        of(request.selector.as_ref()),
        sum(|books| books.matched),
        sum(|books| books.delivered),
        sum(|books| books.lost.iter().map(|lost| lost.count).sum()),
        percent(*cpu_percent),
        told(books),
    ]
}

/// Kinds of which less than everything is told: `file_open sampled`.
pub(super) fn told(books: &[v1::KindBooks]) -> String {
    let less: Vec<String> = books
        .iter()
        .filter(|books| books.fidelity != v1::Fidelity::Unspecified as i32)
        .map(|books| {
            format!(
                "{} {}",
                text::kind(books.kind),
                text::fidelity(books.fidelity)
            )
        })
        .collect();
    match less.is_empty() {
        true => "all".to_owned(),
        false => less.join(", "),
    }
}

/// A selector as the flags have it.
fn of(selector: Option<&v1::Selector>) -> String {
    let Some(v1::Selector {
        namespaces,
        pods,
        label_selector,
        containers,
        owners,
        host_processes,
    }) = selector
    else {
        return NONE.to_owned();
    };
    let lists = [
        ("-n ", namespaces),
        ("pod ", pods),
        ("-c ", containers),
        ("", owners),
    ];
    let mut parts: Vec<String> = lists
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(flag, list)| format!("{flag}{}", list.join(",")))
        .collect();
    if !label_selector.is_empty() {
        parts.push(format!("-l {label_selector}"));
    }
    match v1::HostProcesses::try_from(*host_processes) {
        Ok(v1::HostProcesses::Include) => parts.push("and the host".to_owned()),
        Ok(v1::HostProcesses::Only) => parts.push("the host".to_owned()),
        Ok(v1::HostProcesses::Unspecified | v1::HostProcesses::Exclude) | Err(_) => {}
    }
    match parts.is_empty() {
        true => NONE.to_owned(),
        false => parts.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_a_line() {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(65);
        let books = |kind: v1::Kind, fidelity: v1::Fidelity| v1::KindBooks {
            kind: kind.into(),
            matched: 1003,
            delivered: 1000,
            lost: vec![v1::StageLoss {
                stage: v1::LossStage::RateLimit.into(),
                count: 3,
            }],
            fidelity: fidelity.into(),
            ..Default::default()
        };
        let subscription = v1::Subscription {
            stream_id: 7,
            started: Some(prost_types::Timestamp {
                seconds: 60,
                nanos: 0,
            }),
            request: Some(v1::SubscribeRequest {
                kinds: vec![v1::Kind::Exec.into(), v1::Kind::FileOpen.into()],
                selector: Some(v1::Selector {
                    namespaces: vec!["shop".into(), "db".into()],
                    label_selector: "app=web".into(),
                    host_processes: v1::HostProcesses::Include.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            books: vec![
                books(v1::Kind::Exec, v1::Fidelity::Unspecified),
                books(v1::Kind::FileOpen, v1::Fidelity::Sampled),
            ],
            caller: Some(v1::Caller {
                peer: "10.0.0.7:41234".into(),
                user: "jane".into(),
                groups: Vec::new(),
            }),
            cpu_percent: 1.256,
        };
        let answer = v1::ListSubscriptionsResponse {
            subscriptions: vec![subscription, v1::Subscription::default()],
            node: "node-1".into(),
            ..Default::default()
        };
        let mut out = Vec::new();
        print(&[answer], now, Look::default(), &mut out).expect("a Vec takes all");
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "\
NODE   STREAM AGE CALLER                KINDS          OF                                 MATCHED DELIVERED LOST CPU   TOLD
node-1 7      5s  jane (10.0.0.7:41234) exec,file_open -n shop,db -l app=web and the host 2,006   2,000     6    1.26% file_open sampled
node-1 0      -   -                                    -                                  0       0         0    0.00% all
"
        );
    }
}
