//! Streams whose connection may break: they stay for a while, and another connection can go on with them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dinle_proto::{
    Encoded,
    v1::{self, subscribe_response::Message},
};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{
    runtime::Handle,
    sync::{Mutex as AsyncMutex, watch},
    time::{sleep, timeout},
};
use tonic::Status;

use super::audit::Audited;
use crate::{admission::Admitted, filter::Grant};

/// How long the connection of before has to let go of a stream: it does as soon as it is looked at.
const LET_GO: Duration = Duration::from_secs(5);

/// What only who began a stream knows.
pub(super) type Token = [u8; 16];

/// A new one.
pub(super) fn token() -> Result<Token, Status> {
    let mut token = Token::default();
    let filled = SystemRandom::new().fill(&mut token);
    filled.map_err(|_| Status::internal("the kernel gives no random numbers"))?;
    Ok(token)
}

/// How long it takes tells nothing of where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    let different = a.iter().zip(b).fold(0, |bits, (a, b)| bits | (a ^ b));
    a.len() == b.len() && different == 0
}

/// Streams by their number.
#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<HashMap<u64, Arc<Stream>>>>);

/// One that is open.
struct Stream {
    /// `None`: it ends with its connection.
    kept: Option<(Token, Duration)>,
    user: String,
    /// Number of the connection whose it is now.
    connection: watch::Sender<u64>,
    /// `None`: it is over.
    held: AsyncMutex<Option<Audited>>,
}

impl Stream {
    /// The caller began it.
    fn is_of(&self, token: &[u8], caller: &v1::Caller) -> bool {
        let known = |(kept, _): (Token, Duration)| same(&kept, token);
        self.kept.is_some_and(known) && self.user == caller.user
    }
}

impl Streams {
    /// A stream that has just begun, on its first connection.
    pub(super) fn begin(&self, audited: Audited, kept: Option<(Token, Duration)>) -> Connection {
        let listener = audited.listener();
        let (id, user) = (listener.id, listener.caller.user.clone());
        let stream = Arc::new(Stream {
            kept,
            user,
            connection: watch::Sender::new(0),
            held: AsyncMutex::new(Some(audited)),
        });
        if stream.kept.is_some() {
            self.lock().insert(id, stream.clone());
        }
        Connection::new(self.clone(), id, stream, false)
    }

    /// Goes on with a stream, if that is there, and the caller's. `plan` makes its first message.
    pub(super) async fn resume(
        &self,
        asked: &v1::Resume,
        admitted: &Admitted,
        plan: impl FnOnce(&v1::SubscribeRequest, &Grant, u64) -> Result<v1::Plan, Status>,
    ) -> Result<Connection, Status> {
        let v1::Resume {
            stream_id,
            token,
            received,
        } = asked;
        let gone = || {
            Status::not_found(format!(
                "stream {stream_id} is not here any more: it ended, its connection broke too long ago, or the agent was started anew; begin another one"
            ))
        };
        let stream = self.lock().get(stream_id).cloned().ok_or_else(gone)?;
        // Nobody learns which streams there are.
        if !stream.is_of(token, &admitted.caller) {
            return Err(gone());
        }
        stream.connection.send_modify(|connection| *connection += 1);
        let connection = Connection::new(self.clone(), *stream_id, stream.clone(), true);
        let mut held = timeout(LET_GO, stream.held.lock()).await.map_err(|_| {
            Status::unavailable("the connection of before still holds the stream; try again")
        })?;
        let audited = held.as_mut().ok_or_else(gone)?;
        let listener = audited.listener();
        let plan = plan(&listener.asked, &listener.grant(), *stream_id)?;
        audited.resume(admitted, *received).map_err(|_| {
            Status::out_of_range(format!(
                "what came after message {received} of stream {stream_id} is not known any more; begin another one"
            ))
        })?;
        audited.begin_with(Message::Plan(plan));
        drop(held);
        Ok(connection)
    }

    /// Keeps a stream no longer, if it is there, and the caller's.
    pub(super) async fn leave(&self, asked: &v1::LeaveRequest, caller: &v1::Caller) {
        let v1::LeaveRequest { stream_id, token } = asked;
        let stream = self.lock().get(stream_id).cloned();
        if let Some(stream) = stream.filter(|stream| stream.is_of(token, caller)) {
            // Its connection lets go of it.
            stream.connection.send_modify(|connection| *connection += 1);
            self.end(*stream_id, &stream).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Stream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is over.
    async fn end(&self, id: u64, stream: &Stream) {
        self.lock().remove(&id);
        drop(stream.held.lock().await.take());
    }
}

/// A stream on one of its connections. When that breaks, it is dropped.
pub(super) struct Connection {
    streams: Streams,
    id: u64,
    stream: Arc<Stream>,
    number: u64,
    /// A message was taken, on this connection or one before: without its token nobody can go on.
    begun: bool,
    over: bool,
}

impl Connection {
    fn new(streams: Streams, id: u64, stream: Arc<Stream>, begun: bool) -> Self {
        let number = *stream.connection.borrow();
        Self {
            streams,
            id,
            stream,
            number,
            begun,
            over: false,
        }
    }

    /// The next message; `None` after the last, or when another connection has gone on with it.
    pub(super) async fn next(&mut self) -> Option<Result<Encoded, Status>> {
        let Self {
            stream,
            number,
            begun,
            over,
            ..
        } = self;
        let mut connection = stream.connection.subscribe();
        let mut held = stream.held.lock().await;
        let next = tokio::select! {
            biased;
            _ = connection.wait_for(|now| now != number) => return None,
            next = held.as_mut()?.next() => next,
        };
        *over = !matches!(next, Some(Ok(_)));
        *begun = true;
        next
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Self {
            streams,
            id,
            stream,
            number,
            begun,
            over,
        } = self;
        if *stream.connection.borrow() != *number {
            return;
        }
        let (streams, stream, id, number) = (streams.clone(), stream.clone(), *id, *number);
        let kept = stream.kept.filter(|_| *begun && !*over);
        let window = kept.map(|(_, window)| window);
        let Some(window) = window else {
            streams.lock().remove(&id);
            // Nobody else has it, or who has will drop it.
            if let Ok(mut held) = stream.held.try_lock() {
                drop(held.take());
            }
            return;
        };
        // Without a runtime there is no agent either.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                sleep(window).await;
                // Who goes on with it meanwhile either has it already, or finds it gone.
                let mut held = stream.held.lock().await;
                if *stream.connection.borrow() == number {
                    streams.lock().remove(&id);
                    drop(held.take());
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::Guard,
        filter,
        hub::{Hub, Limits},
    };

    #[tokio::test]
    async fn a_stream_is_kept_once_its_token_was_taken() {
        for (taken, kept) in [(false, 0), (true, 1)] {
            let (hub, _publisher) = Hub::new(Limits::default(), || ());
            let asked = v1::SubscribeRequest {
                kinds: vec![v1::Kind::Exec.into()],
                ..Default::default()
            };
            let request = filter::Request::parse(&asked, &filter::Limits::default());
            let request = request.expect("a good request");
            let subscription = hub
                .subscribe(asked, request, v1::Caller::default(), Grant::all())
                .expect("room");
            let mut audited = Audited::begin(subscription, Guard::none());
            audited.begin_with(Message::Plan(v1::Plan::default()));
            let window = Duration::from_secs(30);
            let streams = Streams::default();
            let mut connection = streams.begin(audited, Some((Token::default(), window)));
            if taken {
                let plan = connection.next().await;
                plan.expect("a message").expect("no status");
            }
            drop(connection);
            assert_eq!(streams.lock().len(), kept);
            assert_eq!(hub.board().listeners().count(), kept);
        }
    }
}
