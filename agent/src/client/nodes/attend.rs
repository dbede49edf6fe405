//! Keeps the stream of one node going.

use std::{
    future::pending,
    pin::pin,
    time::{Duration, SystemTime},
};

use dinle_proto::v1::{self, subscribe_response::Message};
use futures::StreamExt as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::Stream;
use tonic::Status;

use super::{RETRY, reach};
use crate::{
    client::{
        Refused,
        connect::{Client, Place, SILENCE_MAX, failure},
        lasting::Lasting,
        stream::Ending,
    },
    cluster::{Agent, Agents, Cluster},
};

/// How long to wait before a node is tried again, at most.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How much later than an agent should have ended its stream this client ends it by itself.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// A moment by the clock of this machine, which may be set, and by one that may not.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) wall: SystemTime,
    pub(super) clock: Instant,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            clock: Instant::now(),
        }
    }
}

/// What a node's attendant tells, and when it knew.
pub(super) struct Told {
    pub(super) node: String,
    pub(super) at: Moment,
    pub(super) said: Said,
}

/// What becomes of its stream.
pub(super) enum Said {
    /// The stream began.
    Began,
    /// The stream that broke goes on.
    Resumed,
    Message(Box<v1::SubscribeResponse>),
    /// It broke, and is not tried again if that is for good.
    Broke {
        why: String,
        for_good: bool,
    },
    /// There is no way to the agent.
    Lacking(String),
    /// It ended as was asked for.
    Over,
    /// The agent will not have such a request.
    Refused(anyhow::Error),
}

/// The request for a stream that begins now. `None` if there is no time left.
///
/// One that is to be `whole` takes as long as was asked for, however long the way to the agent was: the agent counts from its own beginning,
/// and its last books and snapshot come at the end. Others end when it is time.
fn bounded(
    request: &v1::SubscribeRequest,
    ends: Option<Instant>,
    whole: bool,
) -> Option<v1::SubscribeRequest> {
    let mut request = request.clone();
    if let Some(ends) = ends
        && !whole
    {
        let left = ends.duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        request.max_duration = prost_types::Duration::try_from(left).ok();
    }
    Some(request)
}

/// Where it is told what becomes of a node's stream.
pub(super) struct Outbox {
    pub(super) node: String,
    pub(super) sender: mpsc::Sender<Told>,
}

impl Outbox {
    pub(super) async fn say(&self, said: Said) {
        // It may be a while until somebody takes it.
        let told = Told {
            node: self.node.clone(),
            at: Moment::now(),
            said,
        };
        // Whoever listened has ended, and ends this.
        _ = self.sender.send(told).await;
    }

    /// Passes messages on until the stream ends; at the latest then, if nothing more is there.
    async fn pass(
        &self,
        messages: impl Stream<Item = Result<v1::SubscribeResponse, Status>>,
        until: Option<Instant>,
    ) -> Ending {
        let mut messages = pin!(messages);
        loop {
            let over = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            let next = tokio::select! {
                biased;
                next = timeout(SILENCE_MAX, messages.next()) => next,
                () = over => return Ending::Interrupted,
            };
            let response = match next {
                Err(_) => return Ending::Silence,
                Ok(None) => return Ending::Unfinished,
                Ok(Some(Err(status))) => return Ending::Failed(status),
                Ok(Some(Ok(response))) => response,
            };
            let end = match &response.message {
                Some(Message::Heartbeat(heartbeat)) => heartbeat.end,
                _ => 0,
            };
            self.say(Said::Message(Box::new(response))).await;
            if end != v1::EndReason::Unspecified as i32 && end != v1::EndReason::Permission as i32 {
                return Ending::Agent(v1::EndReason::try_from(end).map_err(|_| end));
            }
        }
    }
}

/// Keeps the stream of one node going.
pub(super) struct Attendant {
    pub(super) cluster: Cluster,
    pub(super) agents: Agents,
    pub(super) lasting: Lasting,
    /// It is to leave.
    pub(super) left: watch::Receiver<bool>,
    pub(super) ends: Option<Instant>,
    /// The node matters from the start.
    pub(super) first: bool,
    pub(super) out: Outbox,
}

impl Attendant {
    pub(super) async fn run(mut self) {
        let mut delay = RETRY;
        let mut whole = self.first;
        loop {
            let before: Option<Agent> = self.agent();
            let mut left = self.left.clone();
            let reached = tokio::select! {
                reached = reach(&self.cluster, &self.out.node, &self.agents) => reached,
                _ = left.wait_for(|left| *left) => return,
            };
            match reached {
                Ok(client) => match self.attend(client, whole, &mut delay).await {
                    Ok(()) => return,
                    Err(why) => self.out.say(why).await,
                },
                Err(why) => self.out.say(Said::Lacking(why)).await,
            }
            whole = false;
            // An agent that comes is worth a try at once.
            let mut agents = self.agents.clone();
            let node = &self.out.node;
            let another = agents.wait_for(|known| known.value.get(node) != before.as_ref());
            tokio::select! {
                () = sleep(delay) => {}
                _ = left.wait_for(|left| *left) => return,
                changed = another => if changed.is_err() { return },
            }
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    fn agent(&mut self) -> Option<Agent> {
        self.agents
            .borrow_and_update()
            .value
            .get(&self.out.node)
            .cloned()
    }

    /// Passes a stream on until it ends. `Ok` if that is for good.
    async fn attend(
        &mut self,
        mut client: Client,
        whole: bool,
        delay: &mut Duration,
    ) -> Result<(), Said> {
        let place = Place::On(self.out.node.clone());
        let Some(request) = bounded(self.lasting.asked(), self.ends, whole) else {
            return Ok(());
        };
        let lasts = request
            .max_duration
            .and_then(|lasts| Duration::try_from(lasts).ok());
        let lacking = |why: anyhow::Error| Said::Lacking(format!("{why:#}"));
        let resumed = self.lasting.resume(&mut client).await;
        let resumed = resumed.map_err(|status| lacking(failure(&place, &status)))?;
        let (began, mut messages) = match resumed {
            Some(messages) => (Said::Resumed, messages),
            None => {
                let Self { lasting, left, .. } = self;
                let stop = async { _ = left.wait_for(|left| *left).await };
                match lasting.begin(request, &mut client, &place, stop).await {
                    Ok(Some(messages)) => (Said::Began, messages),
                    Ok(None) => return Ok(()),
                    Err(error) if error.is::<Refused>() => {
                        self.out.say(Said::Refused(error)).await;
                        return Ok(());
                    }
                    Err(error) => return Err(lacking(error)),
                }
            }
        };
        let until = lasts.and_then(|lasts| Instant::now().checked_add(lasts.saturating_add(GRACE)));
        self.out.say(began).await;
        *delay = RETRY;
        let Self {
            lasting, left, out, ..
        } = self;
        let noted = (&mut messages).inspect(|message| {
            if let Ok(message) = message {
                lasting.note(message);
            }
        });
        let ending = tokio::select! {
            ending = out.pass(noted, until) => Some(ending),
            _ = left.wait_for(|left| *left) => None,
        };
        let Some(ending) = ending else {
            self.lasting.leave(&mut client, &mut messages).await;
            return Ok(());
        };
        match ending.error(&place) {
            None => {
                self.lasting.leave(&mut client, &mut messages).await;
                self.out.say(Said::Over).await;
                Ok(())
            }
            Some(error) => {
                let why = format!("{error:#}");
                let for_good = self.lasting.patience().is_zero();
                let broke = Said::Broke { why, for_good };
                if for_good {
                    self.out.say(broke).await;
                    return Ok(());
                }
                Err(broke)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_does_not_end_is_left() {
        let (sender, _inbox) = mpsc::channel(1);
        let out = Outbox {
            node: "n1".to_owned(),
            sender,
        };
        let began = Instant::now();
        let lasts = Duration::from_secs(5);
        let ending = out.pass(tokio_stream::pending(), Some(began + lasts)).await;
        assert!(matches!(ending, Ending::Interrupted));
        assert_eq!(began.elapsed(), lasts);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_streams_are_whole() {
        let asked = Duration::from_secs(10);
        let request = v1::SubscribeRequest {
            max_duration: prost_types::Duration::try_from(asked).ok(),
            ..v1::SubscribeRequest::default()
        };
        let ends = Some(Instant::now() + asked);
        let lasts = |whole| {
            let request = bounded(&request, ends, whole)?;
            Duration::try_from(request.max_duration?).ok()
        };
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(lasts(true), Some(asked));
        assert_eq!(lasts(false), Some(Duration::from_secs(6)));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(lasts(false), None, "an agent would take 0 for a mistake");
        let endless = v1::SubscribeRequest::default();
        assert_eq!(bounded(&endless, None, false), Some(endless));
    }
}
