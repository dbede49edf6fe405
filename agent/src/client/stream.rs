//! A stream from its plan to its last books.

use std::{
    collections::HashMap, future::Future, io, ops::ControlFlow, pin::pin, process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use dinle_proto::v1::{self, subscribe_response::Message};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout_at},
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Status, transport::Uri};

use super::{
    Screen,
    books::Ledger,
    columns::{EventTable, Who},
    connect::{HEARTBEAT, SILENCE_MAX, failure},
    json::Json,
    pages, text,
    top::{self, Poke},
};

/// How long an interrupted client waits for whoever reads its output.
const STUCK_MAX: Duration = Duration::from_secs(2);

/// How a stream is printed.
pub(super) enum Format {
    /// Events in columns.
    Table(EventTable),
    /// Events as JSON.
    Json(Json),
    /// Every message as JSON.
    Raw(Json),
    /// As a tool wants it.
    Custom(Box<dyn Printer>),
}

/// Prints what a stream brings in a way of its own.
pub(super) trait Printer {
    /// An event, or a row of a snapshot.
    fn event(&mut self, event: &v1::Event, who: &Who, out: &mut dyn io::Write) -> io::Result<()>;

    /// All rows of a snapshot have been given.
    fn snapshot_end(&mut self, _: &v1::Snapshot, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }

    /// Something else happened. It may have enough.
    fn poke(&mut self, _: Poke, _: &mut dyn io::Write) -> io::Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }

    /// The stream is over.
    fn end(&mut self, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }
}

/// What a client makes of a stream.
pub(super) struct View {
    format: Format,
    ledger: Ledger,
    /// Of the plan.
    node: String,
    /// By cgroup id. Grows with the cgroups that this stream hears of, by about 200 bytes each.
    names: HashMap<u64, Who>,
    /// What the agent said last that it cannot hear.
    notes: Vec<String>,
}

/// Why a stream is over.
pub(super) enum Ending {
    /// The user interrupted it.
    Interrupted,
    /// The agent ended it, with its last books.
    Agent(Result<v1::EndReason, i32>),
    /// It ended without last books.
    Unfinished,
    /// It failed.
    Failed(Status),
    /// Nothing came for [`SILENCE_MAX`].
    Silence,
}

/// Prints messages until the stream is over. `pokes` are for the printer.
pub(super) async fn follow(
    messages: impl Stream<Item = Result<v1::SubscribeResponse, Status>>,
    stop: impl Future<Output = ()>,
    pokes: impl Stream<Item = Poke>,
    view: &mut View,
    screen: &mut Screen<'_>,
) -> anyhow::Result<Ending> {
    let mut messages = pin!(messages);
    let mut stop = pin!(stop);
    let mut pokes = pin!(pokes);
    let mut silent_at = Instant::now() + SILENCE_MAX;
    loop {
        let next = tokio::select! {
            biased;
            () = &mut stop => return Ok(Ending::Interrupted),
            Some(poke) = pokes.next() => {
                if let Some(ending) = view.poke(poke, screen)? {
                    return Ok(ending);
                }
                continue;
            }
            next = timeout_at(silent_at, messages.next()) => next,
        };
        silent_at = Instant::now() + SILENCE_MAX;
        let response = match next {
            Err(_) => return Ok(Ending::Silence),
            Ok(None) => return Ok(Ending::Unfinished),
            Ok(Some(Err(status))) => return Ok(Ending::Failed(status)),
            Ok(Some(Ok(response))) => response,
        };
        if let Some(ending) = view.message(&response, screen)? {
            return Ok(ending);
        }
    }
}

impl View {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            ledger: Ledger::default(),
            node: String::new(),
            names: HashMap::new(),
            notes: Vec::new(),
        }
    }

    fn message(
        &mut self,
        response: &v1::SubscribeResponse,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<Option<Ending>> {
        if let Format::Raw(json) = &self.format {
            json.line(response, screen.out)?;
            screen.out.flush()?;
        }
        // A message that only newer clients know is a sign of life all the same.
        let Some(message) = &response.message else {
            return Ok(None);
        };
        match message {
            Message::Plan(plan) => {
                self.node.clone_from(&plan.node);
                self.notes.clone_from(&plan.notes);
                for workload in &plan.workloads {
                    self.name(workload);
                }
                screen.say(&pages::warnings(plan))?;
                if let Format::Table(table) = &mut self.format {
                    table.header(screen.out)?;
                    screen.out.flush()?;
                }
            }
            Message::Workload(v1::WorkloadUpdate { workload }) => {
                if let Some(workload) = workload {
                    self.name(workload);
                }
            }
            Message::Batch(batch) => {
                self.ledger.batch(batch);
                self.print_events(&batch.events, screen)?;
                screen.out.flush()?;
            }
            Message::Snapshot(snapshot) => {
                self.ledger.snapshot(snapshot);
                self.print_events(&snapshot.events, screen)?;
                if let Format::Custom(printer) = &mut self.format {
                    printer.snapshot_end(snapshot, screen.out)?;
                }
                screen.out.flush()?;
            }
            Message::Loss(loss) => {
                self.ledger.loss(loss);
                screen.say(&text::loss(loss))?;
            }
            Message::Heartbeat(heartbeat) => {
                let fine = self.ledger.wrong().is_none();
                self.ledger.heartbeat(heartbeat);
                if fine && let Some(wrong) = self.ledger.wrong() {
                    screen.say(&format!("THE BOOKS DO NOT BALANCE: {wrong}"))?;
                }
                for note in heartbeat
                    .notes
                    .iter()
                    .filter(|note| !self.notes.contains(note))
                {
                    screen.say(note)?;
                }
                self.notes.clone_from(&heartbeat.notes);
                if heartbeat.end != v1::EndReason::Unspecified as i32 {
                    let reason = v1::EndReason::try_from(heartbeat.end);
                    return Ok(Some(Ending::Agent(reason.map_err(|_| heartbeat.end))));
                }
            }
        }
        Ok(None)
    }

    fn poke(&mut self, poke: Poke, screen: &mut Screen<'_>) -> anyhow::Result<Option<Ending>> {
        let Format::Custom(printer) = &mut self.format else {
            return Ok(None);
        };
        let flow = printer.poke(poke, screen.out)?;
        screen.out.flush()?;
        Ok(flow.is_break().then_some(Ending::Interrupted))
    }

    fn name(&mut self, workload: &v1::Workload) {
        let who = Who::new(workload, &self.node);
        self.names.insert(workload.cgroup_id, who);
    }

    fn print_events(
        &mut self,
        events: &[v1::Event],
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<()> {
        let unknown = Who::unknown(&self.node);
        let who = |event: &v1::Event| self.names.get(&event.cgroup_id).unwrap_or(&unknown);
        match &mut self.format {
            Format::Table(table) => {
                for event in events {
                    table.event(event, who(event), screen.out)?;
                }
            }
            Format::Custom(printer) => {
                for event in events {
                    printer.event(event, who(event), screen.out)?;
                }
            }
            Format::Json(json) => {
                for event in events {
                    json.line(event, screen.out)?;
                }
            }
            // Printed as a message already.
            Format::Raw(_) => {}
        }
        Ok(())
    }

    /// Tells the books, and how it ended.
    pub(super) fn finish(
        self,
        ending: Ending,
        address: &Uri,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<ExitCode> {
        if let Format::Custom(mut printer) = self.format {
            printer.end(screen.out)?;
        }
        screen.out.flush()?;
        screen.say(&self.ledger.summary())?;
        match ending {
            Ending::Interrupted
            | Ending::Agent(Ok(v1::EndReason::MaxEvents | v1::EndReason::MaxDuration)) => {}
            Ending::Agent(Ok(v1::EndReason::Shutdown)) => {
                return Err(anyhow!("the agent at {address} shuts down"));
            }
            Ending::Agent(Ok(v1::EndReason::Unspecified)) | Ending::Unfinished => {
                return Err(anyhow!(
                    "the stream from the agent at {address} ended without its last books; was the agent killed?"
                ));
            }
            Ending::Agent(Err(reason)) => {
                return Err(anyhow!(
                    "the agent at {address} ended the stream for reason {reason}, which a newer dinle knows"
                ));
            }
            Ending::Failed(status) => return Err(failure(address, &status)),
            Ending::Silence => {
                return Err(anyhow!(
                    "no sign of life from the agent for {} s ({} heartbeats missed)",
                    SILENCE_MAX.as_secs(),
                    SILENCE_MAX.as_secs() / HEARTBEAT.as_secs()
                ));
            }
        }
        Ok(match self.ledger.wrong() {
            Some(_) => ExitCode::FAILURE,
            None => ExitCode::SUCCESS,
        })
    }
}

/// Becomes ready when the user interrupts with Ctrl-C or SIGTERM.
///
/// The process ends by itself soon afterwards, or at the second signal, if it is stuck in writing to somebody who does not read.
pub(super) fn interrupted() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = listen_to(SignalKind::interrupt())?;
    let mut terminate = listen_to(SignalKind::terminate())?;
    let (told, stop) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        // Nobody is left to be told when the stream is over already.
        if told.send(()).is_err() {
            return;
        }
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = tokio::time::sleep(STUCK_MAX) => {}
        }
        top::restore();
        eprintln!("ended without the books: nobody reads the output");
        std::process::exit(1);
    });
    Ok(async {
        // The sender is dropped only with the runtime.
        let _ = stop.await;
    })
}

fn listen_to(kind: SignalKind) -> anyhow::Result<tokio::signal::unix::Signal> {
    let listened: io::Result<_> = signal(kind);
    listened.with_context(|| format!("cannot listen to signal {}", kind.as_raw_value()))
}
