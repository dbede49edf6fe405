//! `dinle watch` and `dinle execsnoop`: one stream, until somebody ends it.

use std::{pin::pin, process::ExitCode};

use dinle_proto::v1;
use futures::StreamExt as _;
use tokio::time::{Instant, sleep};
use tokio_stream::Stream;
use tonic::Streaming;

use super::{
    Refused, Screen,
    args::{Bounds, Processes, Selection, parse_kind},
    columns::{EventTable, Words},
    connect::{Client, HEARTBEAT, Place, answer, connect},
    connection::{Connection, Reach},
    json::Json,
    lasting::{Again, Lasting, is_broken, next_delay},
    look::Tone,
    nodes,
    output::{self, Output, parse_output},
    pages,
    stream::{Ending, Format, View, follow, interrupted},
    top::Poke,
};

pub(super) const LONG_ABOUT: &str = "\
Print what processes in pods do, as it happens.

Events go to standard output, one a line. TIME is UTC, by the node's clock. \
What else should be known goes to standard error: notes of the agent, losses as they happen, and at the end the books, \
which say for each kind how many events matched, and that each was delivered or lost.

Examples:
  dinle watch -n shop -l app=checkout --kinds exec,exit
  dinle watch --failed -o jsonpath='{.workload.pod} {.process.comm}{\"\\n\"}'";

pub(super) const EXECSNOOP_LONG_ABOUT: &str = "\
Print programs that pods execute, in the columns of bcc's execsnoop, with the pod's name in front.

Only successful executions are seen, so RET is always 0. ARGS begins with the path given to execve, as in bcc. \
TIME is UTC, by the node's clock.

Examples:
  dinle execsnoop -n shop
  dinle execsnoop -A --host -U -q";

/// Arguments of `dinle watch`.
#[derive(Clone, Debug, clap::Args)]
pub struct Watch {
    /// Kinds of events, separated with commas: exec, exit, fork, file_open, file_delete, tcp_session, tcp_connect, tcp_reset, tcp_retransmit, block_io, block_latency, drop, drop_count [default: exec and exit; with --binary only exec, with --failed only exit]
    #[arg(long, value_name = "KINDS", value_delimiter = ',', value_parser = parse_kind)]
    kinds: Vec<v1::Kind>,
    #[arg(short, long, help = output::HELP, default_value = "table", value_parser = parse_output, value_name = output::VALUE)]
    output: Output,
    /// Print no header [default: print it once]
    #[arg(long)]
    no_header: bool,
    /// With `-o json`: print every message of the stream, not only its events [default: no]
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    processes: Processes,
    /// Only processes that ended with an exit code other than 0 or by a signal; only for exit [default: any end]
    #[arg(short = 'x', long, conflicts_with = "binary", help_heading = "Filters")]
    failed: bool,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    connection: Connection,
}

impl Watch {
    pub(super) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let kinds: Vec<v1::Kind> = request.kinds().collect();
        let Self {
            output,
            no_header,
            raw,
            bounds,
            connection,
            selection,
            kinds: _,
            processes: _,
            failed: _,
        } = self;
        let how = How::new(bounds, connection, &selection)?;
        if raw && output != Output::Json {
            return Err(
                Refused("--raw prints messages as they are; add `-o json`".to_owned()).into(),
            );
        }
        if let Some(json) = output.json("Event", screen)? {
            let format = if raw {
                Format::Raw(Json::of("SubscribeResponse")?)
            } else {
                Format::Json(json)
            };
            return listen(request, format, how, screen).await;
        }
        let wide = output.is_wide();
        let table = EventTable::watch(&kinds, wide, screen.look, !no_header);
        let format = Format::Table(table);
        listen(request, format, how, screen).await
    }

    pub(super) fn request(&self) -> v1::SubscribeRequest {
        let kinds = if !self.kinds.is_empty() {
            self.kinds.clone()
        } else if self.failed {
            vec![v1::Kind::Exit]
        } else if self.processes.needs_exec() {
            vec![v1::Kind::Exec]
        } else {
            // What ran and how it ended; forks are for those who ask.
            vec![v1::Kind::Exec, v1::Kind::Exit]
        };
        request(
            &kinds,
            &self.selection,
            self.processes.to_proto(self.failed),
            &self.bounds,
            &self.output,
        )
    }
}

/// Arguments of `dinle execsnoop`.
#[derive(Clone, Debug, clap::Args)]
pub struct Execsnoop {
    #[arg(short, long, help = output::HELP, default_value = "table", value_parser = parse_output, value_name = output::VALUE)]
    output: Output,
    /// Print no header [default: print it once]
    #[arg(long)]
    no_header: bool,
    /// Print the time of each event; `--time=off` leaves it out
    #[arg(
        short = 'T',
        long,
        value_name = "on|off",
        num_args = 0..=1,
        require_equals = true,
        default_value = "on",
        default_missing_value = "on",
        hide_possible_values = true
    )]
    time: Switch,
    /// Print the user id too [default: no]
    #[arg(short = 'U', long)]
    print_uid: bool,
    /// Put arguments in quotation marks [default: no]
    #[arg(short, long)]
    quote: bool,
    /// Print at most so many words of the command line
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = max_args)]
    max_args: usize,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    processes: Processes,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

fn max_args(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("0 would leave nothing; use 1 for the path alone".to_owned()),
        Ok(max) => Ok(max),
        Err(error) => Err(error.to_string()),
    }
}

impl Execsnoop {
    pub(super) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let Self {
            output,
            no_header,
            time,
            print_uid,
            quote: quoted,
            max_args: max,
            bounds,
            connection,
            selection,
            processes: _,
        } = self;
        let how = How::new(bounds, connection, &selection)?;
        let format = match output.json("Event", screen)? {
            Some(json) => Format::Json(json),
            None => Format::Table(EventTable::execsnoop(
                (time == Switch::On, print_uid, output.is_wide()),
                Words::Bcc { max, quoted },
                screen.look,
                !no_header,
            )),
        };
        listen(request, format, how, screen).await
    }

    pub(super) fn request(&self) -> v1::SubscribeRequest {
        request(
            &[v1::Kind::Exec],
            &self.selection,
            self.processes.to_proto(false),
            &self.bounds,
            &self.output,
        )
    }
}

pub(super) fn request(
    kinds: &[v1::Kind],
    selection: &Selection,
    filter: v1::Filter,
    bounds: &Bounds,
    output: &Output,
) -> v1::SubscribeRequest {
    // A table needs each name once, not with every event.
    let identity_mode = match output.is_json() {
        true => v1::IdentityMode::Inline,
        false => v1::IdentityMode::ByReference,
    };
    let mut request = v1::SubscribeRequest {
        selector: Some(selection.to_proto()),
        kinds: kinds.iter().map(|kind| (*kind).into()).collect(),
        filter: Some(filter),
        identity_mode: identity_mode.into(),
        heartbeat_interval: prost_types::Duration::try_from(HEARTBEAT).ok(),
        ..Default::default()
    };
    bounds.apply(&mut request);
    request
}

/// What is to be done with a request.
pub(super) struct How {
    pub(super) bounds: Bounds,
    pub(super) connection: Connection,
    /// Every namespace was asked for, and not just left open.
    pub(super) all_namespaces: bool,
}

impl How {
    /// Checks the selection, too.
    pub(super) fn new(
        bounds: Bounds,
        connection: Connection,
        selection: &Selection,
    ) -> Result<Self, Refused> {
        selection.check()?;
        Ok(Self {
            bounds,
            connection,
            all_namespaces: selection.all_namespaces(),
        })
    }

    /// Finds out whom to ask. Whoever must log in to a cluster is asked for it here.
    pub(super) async fn reach(self) -> anyhow::Result<Reached> {
        Ok(Reached {
            whom: self.connection.reach().await?,
            bounds: self.bounds,
            all_namespaces: self.all_namespaces,
        })
    }
}

/// The same, where it is known whom to ask.
pub(super) struct Reached {
    whom: Reach,
    bounds: Bounds,
    all_namespaces: bool,
}

/// Asks for the stream and prints it, or asks what it would be.
pub(super) async fn listen(
    request: v1::SubscribeRequest,
    format: Format,
    how: How,
    screen: &mut Screen<'_>,
) -> anyhow::Result<ExitCode> {
    listen_and(request, format, how, screen, tokio_stream::pending()).await
}

/// The same, with `pokes` for the printer.
pub(super) async fn listen_and(
    request: v1::SubscribeRequest,
    format: Format,
    how: How,
    screen: &mut Screen<'_>,
    pokes: impl Stream<Item = Poke>,
) -> anyhow::Result<ExitCode> {
    listen_at(how.reach().await?, request, format, screen, pokes).await
}

/// The same, where it is known whom to ask.
pub(super) async fn listen_at(
    reached: Reached,
    request: v1::SubscribeRequest,
    format: Format,
    screen: &mut Screen<'_>,
    pokes: impl Stream<Item = Poke>,
) -> anyhow::Result<ExitCode> {
    let Reached {
        whom,
        bounds,
        all_namespaces,
    } = reached;
    let address = match whom {
        Reach::Agent(address) => address,
        Reach::Cluster(cluster) => {
            let asked = nodes::Asked {
                request,
                bounds,
                all_namespaces,
            };
            return nodes::listen(&cluster, asked, format, screen, pokes).await;
        }
    };
    let mut client = connect(&address).await?;
    let place = Place::At(address);
    if bounds.explain {
        let plan = explained(&mut client, &place, request).await?;
        print_plan(&plan, &format, screen)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Before the stream, so that no interruption is missed.
    let stop = interrupted()?;
    let mut stop = pin!(stop);
    let mut pokes = pin!(pokes);
    let mut view = View::new(format);
    let mut lasting = Lasting::new(request, bounds.reconnect);
    let begun = lasting
        .begin(lasting.asked().clone(), &mut client, &place, &mut stop)
        .await?;
    let Some(mut messages) = begun else {
        return view.finish(Ending::Interrupted, &place, screen);
    };
    let ending = loop {
        let noted = (&mut messages).inspect(|message| {
            if let Ok(message) = message {
                lasting.note(message);
            }
        });
        let ending = follow(noted, &mut stop, &mut pokes, &mut view, screen).await;
        // It may be the output that has ended.
        let ending = match ending {
            Ok(ending) => ending,
            Err(error) => {
                lasting.leave(&mut client, &mut messages).await;
                return Err(error);
            }
        };
        if !lasting.may_go_on(&ending) {
            break ending;
        }
        let broke = Instant::now();
        let why = ending.error(&place);
        let why = why.map_or_else(String::new, |why| format!("{why:#}"));
        screen.tell(Tone::Alarm, &format!("{why}; trying again"))?;
        view.broke(&place, &why, screen)?;
        let again = {
            let mut reconnecting = pin!(reconnected(&mut lasting, &place, broke));
            loop {
                tokio::select! {
                    () = &mut stop => break Err(Ending::Interrupted),
                    // Whoever looks is not kept waiting.
                    Some(poke) = pokes.next() => {
                        if let Some(ending) = view.poke(poke, screen)? {
                            break Err(ending);
                        }
                    }
                    again = &mut reconnecting => break Ok(again),
                }
            }
        };
        let again = match again {
            Ok(again) => again,
            Err(ending) => break ending,
        };
        let again = match again {
            Ok((again, other, connection)) => {
                (messages, client) = (other, connection);
                again
            }
            Err(ending) => break ending,
        };
        let seconds = broke.elapsed().as_secs_f64();
        match again {
            Again::Resumed => screen.say(&format!(
                "connected again after {seconds:.1} s: what happened meanwhile comes now, or is told as lost"
            ))?,
            Again::Anew => {
                view.begin_anew(0, screen)?;
                screen.tell(
                    Tone::Alarm,
                    &format!(
                        "connected again after {seconds:.1} s to an agent that does not have the stream any more: what happened meanwhile is \
                         not told"
                    ),
                )?;
            }
        }
    };
    lasting.leave(&mut client, &mut messages).await;
    view.finish(ending, &place, screen)
}

/// Another connection, and what comes of it; or how it ends without.
async fn reconnected(
    lasting: &mut Lasting,
    place: &Place,
    broke: Instant,
) -> Result<(Again, Streaming<v1::SubscribeResponse>, Client), Ending> {
    let lost = Ending::Lost(lasting.patience());
    let Place::At(agent) = place else {
        return Err(lost);
    };
    let mut delay = None;
    while broke.elapsed() < lasting.patience() {
        let wait = next_delay(delay);
        delay = Some(wait);
        sleep(wait).await;
        // Why it fails was told when it broke, and is what is told in the end.
        let Ok(mut client) = connect(agent).await else {
            continue;
        };
        match lasting.again(&mut client).await {
            Ok(Some((again, messages))) => return Ok((again, messages, client)),
            Ok(None) => return Err(Ending::Late),
            Err(status) if is_broken(&status) => {}
            Err(status) => return Err(Ending::Failed(status)),
        }
    }
    Err(lost)
}

/// What an agent would do.
pub(super) async fn explained(
    client: &mut Client,
    place: &Place,
    request: v1::SubscribeRequest,
) -> anyhow::Result<v1::Plan> {
    let request = v1::ExplainRequest {
        request: Some(request),
    };
    let v1::ExplainResponse { plan } = answer(place, client.explain(request)).await?;
    Ok(plan.unwrap_or_default())
}

/// Prints that.
pub(super) fn print_plan(
    plan: &v1::Plan,
    format: &Format,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    match format {
        Format::Table(_) | Format::Custom(_) => pages::plan(plan, screen.look.uncut(), screen.out)?,
        // A template says something of events, and this is none.
        Format::Json(_) | Format::Raw(_) => Json::of("Plan")?.line(plan, screen.out)?,
    }
    Ok(())
}
