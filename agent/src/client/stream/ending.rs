//! How a stream ends, and who ends it.

use std::{future::Future, io, time::Duration};

use anyhow::{Context as _, anyhow};
use dinle_proto::v1;
use futures::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tonic::Status;

use crate::client::{
    connect::{HEARTBEAT, Place, SILENCE_MAX, failure},
    top,
};

/// Signals within this time are one.
const ONE_SIGNAL: Duration = Duration::from_millis(300);

/// How long an interrupted client waits for whoever reads its output.
const STUCK_MAX: Duration = Duration::from_secs(2);

/// Why a stream is over.
pub(in crate::client) enum Ending {
    /// The user interrupted it, or its time is over and the agent does not end it.
    Interrupted,
    /// The agent ended it, with its last books.
    Agent(Result<v1::EndReason, i32>),
    /// It ended without last books.
    Unfinished,
    /// It failed.
    Failed(Status),
    /// Nothing came for [`SILENCE_MAX`].
    Silence,
    /// The connection broke, and there was no other one for so long.
    Lost(Duration),
    /// The connection broke, and by the next one the agent does not have the stream, of which nothing is left to ask for.
    Late,
}

impl Ending {
    /// What is wrong with it; `None` if it is as was asked for.
    pub(in crate::client) fn error(&self, place: &Place) -> Option<anyhow::Error> {
        Some(match self {
            Self::Interrupted
            | Self::Agent(Ok(v1::EndReason::MaxEvents | v1::EndReason::MaxDuration)) => {
                return None;
            }
            Self::Agent(Ok(v1::EndReason::Shutdown)) => anyhow!("{place} shuts down"),
            // What may not go on is told behind the last books.
            Self::Agent(Ok(v1::EndReason::Permission)) => {
                anyhow!("{place} ended the stream: you may not listen to it any more")
            }
            Self::Agent(Ok(v1::EndReason::Unspecified)) | Self::Unfinished => anyhow!(
                "the stream from {place} ended without its last books; was the agent killed?"
            ),
            Self::Agent(Err(reason)) => {
                anyhow!("{place} ended the stream for reason {reason}, which a newer dinle knows")
            }
            Self::Failed(status) => failure(place, status),
            Self::Lost(patience) => anyhow!(
                "{place} could not be reached again for {} s (--reconnect)",
                patience.as_secs()
            ),
            Self::Late => anyhow!(
                "{place} does not have the stream any more, and there is no time or event left to ask for: its last books did not come"
            ),
            Self::Silence => anyhow!(
                "no sign of life from the agent for {} s ({} heartbeats missed)",
                SILENCE_MAX.as_secs(),
                SILENCE_MAX.as_secs() / HEARTBEAT.as_secs()
            ),
        })
    }
}

/// Becomes ready when the user interrupts with Ctrl-C or SIGTERM.
///
/// The process ends by itself soon afterwards, or at the second signal, if it is stuck in writing to somebody who does not read.
pub(in crate::client) fn interrupted() -> anyhow::Result<impl Future<Output = ()>> {
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
        // timeout(1) signals a process, and then its group: the same once more.
        tokio::time::sleep(ONE_SIGNAL).await;
        while interrupt.recv().now_or_never().is_some() || terminate.recv().now_or_never().is_some()
        {
        }
        let why = tokio::select! {
            _ = interrupt.recv() => "interrupted again",
            _ = terminate.recv() => "interrupted again",
            () = tokio::time::sleep(STUCK_MAX) => "nobody reads the output",
        };
        top::restore();
        eprintln!("ended without the books: {why}");
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
