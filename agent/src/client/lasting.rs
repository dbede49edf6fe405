//! A stream that outlives its connection: it is resumed, or begun anew when the agent does not have it any more.

use std::{pin::pin, time::Duration};

use dinle_proto::v1::{self, subscribe_response::Message};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use super::{
    connect::{Client, Place, SILENCE_MAX, answer},
    stream::Ending,
};

/// Between two tries to connect again, at first.
const RETRY: Duration = Duration::from_millis(200);
/// And at most.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// What an agent keeps a stream for, at most.
const WINDOW_MAX: Duration = Duration::from_secs(60);
/// How long an agent may take to let a stream go.
pub(super) const LEAVE_MAX: Duration = Duration::from_secs(1);

/// What is known of a stream, over all its connections.
#[derive(Clone, Debug)]
pub(super) struct Lasting {
    asked: v1::SubscribeRequest,
    began: Instant,
    /// How long it is tried to go on.
    patience: Duration,
    /// Its number and token, where it can be resumed.
    resumable: Option<(u64, Vec<u8>)>,
    /// Messages that came.
    received: u64,
    /// Events that came, over all streams.
    events: u64,
}

/// How it goes on.
pub(super) enum Again {
    /// With the same stream: what happened meanwhile comes, or its loss is told.
    Resumed,
    /// With another one: what happened meanwhile is not told.
    Anew,
}

impl Lasting {
    /// Of a request, with what it takes for being resumed.
    pub(super) fn new(mut asked: v1::SubscribeRequest, patience: Duration) -> Self {
        asked.resume_window = match patience {
            Duration::ZERO => None,
            patience => prost_types::Duration::try_from(patience.min(WINDOW_MAX)).ok(),
        };
        Self {
            asked,
            began: Instant::now(),
            patience,
            resumable: None,
            received: 0,
            events: 0,
        }
    }

    /// How long it is tried to go on.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// What was asked for.
    pub(super) fn asked(&self) -> &v1::SubscribeRequest {
        &self.asked
    }

    /// Takes note of a message.
    pub(super) fn note(&mut self, response: &v1::SubscribeResponse) {
        self.received += 1;
        match &response.message {
            Some(Message::Plan(plan)) if !plan.resume_token.is_empty() => {
                self.resumable = Some((plan.stream_id, plan.resume_token.clone()));
            }
            Some(Message::Batch(batch)) => self.events += batch.events.len() as u64,
            Some(Message::Snapshot(snapshot)) => self.events += snapshot.events.len() as u64,
            _ => {}
        }
    }

    /// The messages of a new stream, of what was asked for or what is left of it. `None`: it was stopped before they came.
    pub(super) async fn begin(
        &mut self,
        request: v1::SubscribeRequest,
        client: &mut Client,
        place: &Place,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<Option<Streaming<v1::SubscribeResponse>>> {
        let late = {
            let mut call = pin!(answer(place, client.subscribe(request)));
            tokio::select! {
                begun = &mut call => return begun.map(Some),
                () = stop => tokio::time::timeout(LEAVE_MAX, call).await,
            }
        };
        if let Ok(Ok(mut messages)) = late {
            self.leave(client, &mut messages).await;
        }
        Ok(None)
    }

    /// Whether another connection may help.
    pub(super) fn may_go_on(&self, ending: &Ending) -> bool {
        let broke = match ending {
            Ending::Unfinished | Ending::Silence => true,
            Ending::Failed(status) => is_broken(status),
            Ending::Agent(Ok(v1::EndReason::Shutdown)) => true,
            Ending::Agent(_) | Ending::Interrupted | Ending::Lost(_) | Ending::Late => false,
        };
        broke && !self.patience.is_zero() && self.rest().is_some()
    }

    /// The messages of another connection: of the same stream if that is there, else of a new one. `None` if it is too late for one.
    pub(super) async fn again(
        &mut self,
        client: &mut Client,
    ) -> Result<Option<(Again, Streaming<v1::SubscribeResponse>)>, Status> {
        if let Some(messages) = self.resume(client).await? {
            return Ok(Some((Again::Resumed, messages)));
        }
        let Some(rest) = self.rest() else {
            return Ok(None);
        };
        let messages = within(client.subscribe(rest)).await?;
        Ok(Some((Again::Anew, messages)))
    }

    /// The messages of the same stream, on another connection. `None` if it is not there, and there is nothing to go on with any more.
    pub(super) async fn resume(
        &mut self,
        client: &mut Client,
    ) -> Result<Option<Streaming<v1::SubscribeResponse>>, Status> {
        let Some((stream_id, token)) = self.resumable.clone() else {
            self.received = 0;
            return Ok(None);
        };
        let request = v1::SubscribeRequest {
            resume: Some(v1::Resume {
                stream_id,
                token,
                received: self.received,
            }),
            ..Default::default()
        };
        match within(client.subscribe(request)).await {
            Ok(messages) => Ok(Some(messages)),
            Err(status) if [Code::NotFound, Code::OutOfRange].contains(&status.code()) => {
                self.resumable = None;
                self.received = 0;
                Ok(None)
            }
            Err(status) => Err(status),
        }
    }

    /// What is left of the request. `None`: nothing, all of it has come but for the last books.
    fn rest(&self) -> Option<v1::SubscribeRequest> {
        let mut rest = self.asked.clone();
        if rest.max_events > 0 {
            rest.max_events = rest.max_events.saturating_sub(self.events);
            if rest.max_events == 0 {
                return None;
            }
        }
        if let Some(whole) = rest
            .max_duration
            .and_then(|time| Duration::try_from(time).ok())
        {
            let left = whole.saturating_sub(self.began.elapsed());
            if left.is_zero() {
                return None;
            }
            rest.max_duration = prost_types::Duration::try_from(left).ok();
        }
        Some(rest)
    }

    /// Tells the agent that nobody comes again. It finds out by itself otherwise, later. What it takes to tell comes with the first of the
    /// messages.
    pub(super) async fn leave(
        &mut self,
        client: &mut Client,
        messages: &mut Streaming<v1::SubscribeResponse>,
    ) {
        let leave = async {
            if self.asked.resume_window.is_some()
                && self.received == 0
                && let Ok(Some(first)) = messages.message().await
            {
                self.note(&first);
            }
            if let Some((stream_id, token)) = self.resumable.clone() {
                _ = client.leave(v1::LeaveRequest { stream_id, token }).await;
            }
        };
        _ = tokio::time::timeout(LEAVE_MAX, leave).await;
    }
}

/// The next wait, after one of so long.
pub(super) fn next_delay(delay: Option<Duration>) -> Duration {
    delay.map_or(RETRY, |delay| (2 * delay).min(RETRY_MAX))
}

/// The connection failed, and not what was asked for.
pub(super) fn is_broken(status: &Status) -> bool {
    use std::error::Error as _;
    let codes = [
        Code::Unavailable,
        Code::Unknown,
        Code::Internal,
        Code::Cancelled,
    ];
    status.source().is_some() || codes.contains(&status.code())
}

async fn within(
    call: impl Future<Output = Result<tonic::Response<Streaming<v1::SubscribeResponse>>, Status>>,
) -> Result<Streaming<v1::SubscribeResponse>, Status> {
    match tokio::time::timeout(SILENCE_MAX, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::unavailable("no answer")),
    }
}
