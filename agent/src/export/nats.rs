//! A log that many read: each event is a message in a stream of NATS, which acknowledges it. What was not acknowledged is sent again, with the same
//! number, by which the stream knows it.

use std::{collections::VecDeque, path::Path, time::UNIX_EPOCH};

use async_nats::{
    Client, ConnectOptions,
    connection::State,
    jetstream::{
        self, Context as JetStream, ErrorCode,
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
    sink::{Failure, Sent, Unwritable, each},
    subject, tls,
};
use crate::json::Schema;

/// Messages that wait for their acknowledgement at a time.
const BATCH: usize = 256;
/// So often a stream may refuse a message until it is given up: some 15 seconds, in which somebody may have mended the stream.
const TRIES: u32 = 5;

/// A message that is not acknowledged yet.
struct Waiting {
    subject: String,
    id: String,
    payload: Bytes,
    /// How often the stream has refused it.
    refused: u32,
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
    /// What became of those of the batch that are not in it any more.
    done: Sent,
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
            done: Sent::default(),
        })
    }

    pub(super) fn take(&mut self, message: Message) -> Result<(), Unwritable> {
        let events: Vec<v1::Event> = match message {
            Message::Batch(batch) => batch.events,
            Message::Snapshot(snapshot) => snapshot.events,
            Message::Plan(_) | Message::Loss(_) | Message::Workload(_) | Message::Heartbeat(_) => {
                return Ok(());
            }
        };
        each(&events, |event| {
            let mut payload = Vec::new();
            self.event.line(event, &mut payload)?;
            // A message ends by itself.
            payload.pop();
            self.numbered += 1;
            self.batch.push_back(Waiting {
                subject: subject::of(&self.config.subject, event),
                id: format!("{}-{}", self.origin, self.numbered),
                payload: payload.into(),
                refused: 0,
            });
            Ok(())
        })
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
        Ok(std::mem::take(&mut self.done))
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
        for (mut waiting, result) in self.batch.drain(..count).zip(results) {
            let Err(error) = result else {
                self.done.events += 1;
                self.done.bytes += waiting.payload.len() as u64;
                continue;
            };
            let given_up = match verdict(&error) {
                Verdict::Later => None,
                Verdict::TooLarge => Some(Cause::TooLarge),
                Verdict::Refused => {
                    waiting.refused += 1;
                    (waiting.refused >= TRIES).then_some(Cause::Refused)
                }
            };
            match given_up {
                Some(cause) => give_up(&mut self.done, cause, &error),
                None => {
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
        let client = options
            // Each once. A client that has lost its connection is dropped, and must not go on to look for another one.
            .max_reconnects(servers.len())
            .connect(servers)
            .await
            .map_err(|error| {
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

    /// Gives up what it has. Returns how many events that is, and what the stream has taken of them.
    pub(super) fn discard(&mut self) -> (u64, Sent) {
        let left = self.batch.drain(..).count() as u64;
        (left, std::mem::take(&mut self.done))
    }
}

/// What an error says of one message.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It may be taken later.
    Later,
    /// It never is: the server or the stream takes smaller ones alone.
    TooLarge,
    /// The stream does not take it as it is, nor as the stream is now.
    Refused,
}

fn verdict(error: &PublishError) -> Verdict {
    use std::error::Error as _;
    let answer = error.source().and_then(|source| source.downcast_ref());
    match (error.kind(), answer.map(of_answer)) {
        (PublishErrorKind::MaxPayloadExceeded, _) => Verdict::TooLarge,
        (_, Some(verdict)) => verdict,
        (_, None) => Verdict::Later,
    }
}

/// What a stream's answer says of one message.
fn of_answer(answer: &jetstream::Error) -> Verdict {
    match (answer.error_code(), answer.code()) {
        (ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, _) => Verdict::TooLarge,
        // As of HTTP: it is the message's fault.
        (_, 400..=499) => Verdict::Refused,
        _ => Verdict::Later,
    }
}

/// Adds a message that will not be sent again.
fn give_up(done: &mut Sent, cause: Cause, error: &PublishError) {
    done.events += 1;
    match done.refused.iter_mut().find(|(own, ..)| *own == cause) {
        Some((_, count, _)) => *count += 1,
        None => done.refused.push((cause, 1, super::sentence(error))),
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
        _ if verdict(error) == Verdict::Refused => {
            Failure::later(Cause::Refused, super::sentence(error))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_that_a_stream_does_not_take_is_told_from_a_stream_that_takes_none_now() {
        for (code, number, expected) in [
            (400, 10054, Verdict::TooLarge),
            (400, 10060, Verdict::Refused),
            (503, 10077, Verdict::Later),
            (503, 10008, Verdict::Later),
        ] {
            let answer = serde_json::json!({"code": code, "err_code": number, "description": "no"});
            let answer: jetstream::Error = serde_json::from_value(answer).expect("an answer");
            assert_eq!(of_answer(&answer), expected, "{number}");
        }
    }
}
