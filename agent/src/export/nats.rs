//! A log that many read: each event is a message in a stream of NATS, which acknowledges it. What was not acknowledged is sent again, with the same
//! number, by which the stream knows it.

use std::{collections::VecDeque, path::Path, time::UNIX_EPOCH};

use async_nats::{
    Client, ConnectOptions,
    connection::State,
    jetstream::{
        Context as JetStream,
        context::{ContextBuilder, PublishAckFuture, PublishError, PublishErrorKind},
        message::PublishMessage,
    },
};
use bytes::Bytes;
use dinle_proto::v1::{self, subscribe_response::Message};
use futures::future::join_all;
use tokio::time::timeout;

use super::{
    Context,
    config::NatsSink,
    counters::Cause,
    run::{Failure, Sent},
    subject, tls,
};
use crate::json::Schema;

/// Messages that wait for their acknowledgement at a time.
const BATCH: usize = 256;

/// A message that is not acknowledged yet.
struct Waiting {
    subject: String,
    id: String,
    payload: Bytes,
}

/// Sends events to a stream.
pub(super) struct Nats {
    config: NatsSink,
    event: Schema,
    /// Begins the ids of this exporter's messages: two agents, and two lives of one, have not the same.
    origin: String,
    numbered: u64,
    connected: Option<(Client, JetStream)>,
    batch: VecDeque<Waiting>,
    /// Of the batch, those that were acknowledged already.
    events: u64,
    bytes: u64,
    too_large: u64,
}

impl Nats {
    pub(super) fn new(config: NatsSink, context: &Context) -> anyhow::Result<Self> {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        Ok(Self {
            config,
            event: Schema::of("Event")?,
            origin: format!("{}-{now}", context.node),
            numbered: 0,
            connected: None,
            batch: VecDeque::new(),
            events: 0,
            bytes: 0,
            too_large: 0,
        })
    }

    pub(super) fn take(&mut self, message: Message) -> anyhow::Result<()> {
        let events: Vec<v1::Event> = match message {
            Message::Batch(batch) => batch.events,
            Message::Snapshot(snapshot) => snapshot.events,
            Message::Plan(_) | Message::Loss(_) | Message::Workload(_) | Message::Heartbeat(_) => {
                return Ok(());
            }
        };
        for event in &events {
            let mut payload = Vec::new();
            self.event.line(event, &mut payload)?;
            // A message ends by itself.
            payload.pop();
            self.numbered += 1;
            self.batch.push_back(Waiting {
                subject: subject::of(&self.config.subject, event),
                id: format!("{}-{}", self.origin, self.numbered),
                payload: payload.into(),
            });
        }
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch.len() >= BATCH
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    pub(super) async fn send(&mut self) -> Result<Sent, Failure> {
        while !self.batch.is_empty() {
            self.send_some().await?;
        }
        let too_large = std::mem::take(&mut self.too_large);
        let refused = (too_large > 0).then(|| {
            (
                too_large,
                "events are larger than the server's max_payload".to_owned(),
            )
        });
        Ok(Sent {
            events: std::mem::take(&mut self.events) + too_large,
            bytes: std::mem::take(&mut self.bytes),
            refused,
        })
    }

    async fn send_some(&mut self) -> Result<(), Failure> {
        // What is given to a client that is not connected it would keep without a bound of ours; and a new one reads its files anew.
        self.connected
            .take_if(|(client, _)| client.connection_state() != State::Connected);
        if self.connected.is_none() {
            self.connected = Some(self.connect().await?);
        }
        let Some((_, stream)) = &self.connected else {
            return Err(Failure::later(Cause::Unavailable, "there is no connection"));
        };
        let count = self.batch.len().min(BATCH);
        let publish = |waiting: &Waiting| {
            let message = PublishMessage::build()
                .message_id(&waiting.id)
                .payload(waiting.payload.clone());
            stream.send_publish(waiting.subject.clone(), message)
        };
        let all = async {
            let mut acknowledgements = Vec::with_capacity(count);
            for waiting in self.batch.iter().take(count) {
                acknowledgements.push(publish(waiting).await);
            }
            join_all(acknowledgements.into_iter().map(acknowledged)).await
        };
        let results = timeout(self.config.timeout, all).await.map_err(|_| {
            let problem = format!("no acknowledgement within {:?}", self.config.timeout);
            Failure::later(Cause::Timeout, problem)
        })?;
        let mut failed: Option<PublishError> = None;
        let mut again = VecDeque::new();
        for (waiting, result) in self.batch.drain(..count).zip(results) {
            match result {
                Ok(()) => {
                    self.events += 1;
                    self.bytes += waiting.payload.len() as u64;
                }
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                    self.too_large += 1
                }
                Err(error) => {
                    again.push_back(waiting);
                    failed.get_or_insert(error);
                }
            }
        }
        again.append(&mut self.batch);
        self.batch = again;
        match failed {
            None => Ok(()),
            Some(error) => Err(failure(&error, &self.config.subject)),
        }
    }

    async fn connect(&self) -> Result<(Client, JetStream), Failure> {
        let NatsSink {
            url,
            password_file,
            tls,
            timeout,
            ..
        } = &self.config;
        let problem = |problem: String| Failure::later(Cause::Unavailable, problem);
        let mut options = ConnectOptions::new()
            .name("dinle")
            .connection_timeout(*timeout)
            .request_timeout(Some(*timeout))
            // No more than is sent at a time.
            .client_capacity(BATCH);
        if let Some(path) = password_file {
            options = match secret(path).map_err(problem)? {
                (user, Some(password)) => options.user_and_password(user, password),
                (token, None) => options.token(token),
            };
        }
        if url.contains("tls://") {
            options = options
                .require_tls(true)
                .tls_client_config(tls::config(tls).map_err(problem)?);
        }
        let servers: Vec<&str> = url.split(',').collect();
        let client = options.connect(servers).await.map_err(|error| {
            problem(format!(
                "{url} cannot be connected to: {}",
                super::sentence(&error)
            ))
        })?;
        let stream = ContextBuilder::new()
            .timeout(*timeout)
            .ack_timeout(*timeout)
            .max_ack_inflight(2 * BATCH)
            .build(client.clone());
        Ok((client, stream))
    }

    /// Gives up what it has. Returns how many events that is, and how many the stream has taken of them.
    pub(super) fn discard(&mut self) -> (u64, u64) {
        let (left, done) = (self.batch.len() as u64 + self.too_large, self.events);
        self.batch.clear();
        (self.events, self.bytes, self.too_large) = (0, 0, 0);
        (left, done)
    }
}

fn failure(error: &PublishError, subject: &str) -> Failure {
    match error.kind() {
        PublishErrorKind::StreamNotFound => Failure::later(
            Cause::Refused,
            format!(
                "no stream of the server takes the subject `{subject}`: make one, as in docs/exporters.md"
            ),
        ),
        PublishErrorKind::TimedOut => Failure::later(Cause::Timeout, super::sentence(error)),
        _ => Failure::later(Cause::Unavailable, super::sentence(error)),
    }
}

/// User and password, or a token.
fn secret(path: &Path) -> Result<(String, Option<String>), String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    let mut lines = text.lines().map(str::to_owned);
    match (lines.next(), lines.next()) {
        (Some(first), second) if !first.is_empty() => Ok((first, second)),
        _ => Err(format!(
            "{} is empty; write the user in its first line and the password in its second, or a token",
            path.display()
        )),
    }
}

/// Waits until the server has what was sent.
async fn acknowledged(sent: Result<PublishAckFuture, PublishError>) -> Result<(), PublishError> {
    sent?.await.map(|_| ())
}
