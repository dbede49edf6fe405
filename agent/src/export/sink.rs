//! What an exporter needs of a receiver, whichever it is.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use dinle_proto::v1::{self, subscribe_response::Message};

use super::{
    Context,
    config::{Receiver, Signal},
    counters::Cause,
    lines::{Lines, Out},
    nats::Nats,
    otlp::Logs,
    rotate::Rotated,
    series::Store,
};

/// What a receiver took.
#[derive(Default)]
pub(super) struct Sent {
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// Of the events, those that it took only to throw away or will never take, and why.
    pub(super) refused: Vec<(Cause, u64, String)>,
}

/// Why a receiver did not take something.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    pub(super) problem: String,
    /// Whether the same may be taken later, and how soon at the earliest.
    pub(super) again: Option<Duration>,
}

impl Failure {
    pub(super) fn later(cause: Cause, problem: impl Into<String>) -> Self {
        Self {
            cause,
            problem: problem.into(),
            again: Some(Duration::ZERO),
        }
    }

    pub(super) fn never(cause: Cause, problem: impl Into<String>) -> Self {
        Self {
            cause,
            problem: problem.into(),
            again: None,
        }
    }
}

/// Events that cannot be brought into the form that a receiver takes, and why.
#[derive(Debug)]
pub(super) struct Unwritable {
    pub(super) events: u64,
    pub(super) error: anyhow::Error,
}

/// Takes each of the events. Those that cannot be written are left out.
pub(super) fn each(
    events: &[v1::Event],
    mut take: impl FnMut(&v1::Event) -> anyhow::Result<()>,
) -> Result<(), Unwritable> {
    let mut bad = None;
    for event in events {
        if let Err(error) = take(event) {
            bad.get_or_insert(Unwritable { events: 0, error }).events += 1;
        }
    }
    bad.map_or(Ok(()), Err)
}

/// Where messages go, and those that are on their way.
pub(super) enum Sink {
    Lines(Box<Lines>),
    Logs(Box<Logs>),
    Nats(Box<Nats>),
    /// Nothing is on its way: whoever wants the sums asks for them.
    Series(Arc<Store>),
}

impl Sink {
    pub(super) fn new(
        receiver: &Receiver,
        store: Option<Arc<Store>>,
        context: &Context,
    ) -> anyhow::Result<Self> {
        Ok(match receiver {
            Receiver::Stdout(raw) => Self::Lines(Box::new(Lines::new(Out::Stdout, *raw)?)),
            Receiver::File(file) => {
                let out = Out::File(Rotated::new(file.clone()));
                Self::Lines(Box::new(Lines::new(out, file.raw)?))
            }
            Receiver::Otlp(otlp) if otlp.signal == Signal::Logs => {
                Self::Logs(Box::new(Logs::new(otlp.clone(), context)?))
            }
            Receiver::Nats(nats) => Self::Nats(Box::new(Nats::new(nats.clone(), context)?)),
            Receiver::Otlp(_) | Receiver::Prometheus(_) => {
                Self::Series(store.context("there are no series")?)
            }
        })
    }

    pub(super) fn take(&mut self, message: Message) -> Result<(), Unwritable> {
        match self {
            Self::Lines(lines) => lines.take(message),
            Self::Logs(logs) => logs.take(message),
            Self::Nats(nats) => nats.take(message),
            Self::Series(store) => {
                match &message {
                    Message::Batch(batch) => store.take(&batch.events),
                    Message::Snapshot(snapshot) => store.take(&snapshot.events),
                    Message::Plan(_)
                    | Message::Loss(_)
                    | Message::Workload(_)
                    | Message::Heartbeat(_) => {}
                }
                Ok(())
            }
        }
    }

    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Lines(lines) => lines.is_full(),
            Self::Logs(logs) => logs.is_full(),
            Self::Nats(nats) => nats.is_full(),
            Self::Series(_) => false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Lines(lines) => lines.is_empty(),
            Self::Logs(logs) => logs.is_empty(),
            Self::Nats(nats) => nats.is_empty(),
            Self::Series(_) => true,
        }
    }

    pub(super) async fn send(&mut self) -> Result<Sent, Failure> {
        match self {
            Self::Lines(lines) => lines.send().await,
            Self::Logs(logs) => logs.send().await,
            Self::Nats(nats) => nats.send().await,
            Self::Series(_) => Ok(Sent::default()),
        }
    }

    /// Gives up what it could not send last, or everything. Returns how many events those were, and what the receiver has taken before.
    pub(super) fn discard(&mut self, everything: bool) -> (u64, Sent) {
        match self {
            Self::Lines(lines) => lines.discard(),
            Self::Logs(logs) => logs.discard(everything),
            Self::Nats(nats) => nats.discard(),
            Self::Series(_) => (0, Sent::default()),
        }
    }

    /// With every heartbeat.
    pub(super) async fn tick(&mut self) {
        match self {
            Self::Lines(lines) => lines.tick().await,
            Self::Logs(_) | Self::Nats(_) => {}
            Self::Series(store) => store.tick(),
        }
    }
}
