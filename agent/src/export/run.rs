//! One exporter: takes messages out of its stream and brings them to its receiver. While that does not take them, they wait in the stream's
//! queue, which is bounded; what does not fit there is lost and counted, as for every subscriber.

use std::{
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use dinle_proto::{
    Encoded,
    v1::{self, subscribe_response::Message},
};
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Context,
    config::{Receiver, Spec},
    counters::{Cause, Counters},
    open::Opening,
    otlp,
    series::Store,
    sink::{Failure, Sent, Sink, Unwritable},
};
use crate::{
    audit,
    hub::{Listener, Subscription, Withdrawn},
};

/// How long an event waits for others before they are sent together.
const LINGER: Duration = Duration::from_millis(500);
/// Between the first failure and the second try; each further wait is twice as long…
pub(super) const AGAIN: Duration = Duration::from_millis(500);
/// …up to this: what comes back is noticed within half a minute.
pub(super) const AGAIN_MAX: Duration = Duration::from_secs(30);
/// What a receiver may ask for at most.
const ASKED_MAX: Duration = Duration::from_secs(300);
/// How long an exporter whose stream is to end tries to bring what it has.
pub(super) const LAST: Duration = Duration::from_secs(3);

/// Runs until it is told to stop, or the agent ends.
pub(super) async fn run(
    spec: Spec,
    context: Context,
    counters: Arc<Counters>,
    store: Option<Arc<Store>>,
    stop: watch::Receiver<bool>,
) {
    let name = spec.name.clone();
    let sink = match Sink::new(&spec.receiver, store.clone(), &context) {
        Ok(sink) => sink,
        // A defect; the file was right.
        Err(error) => return tracing::error!(exporter = name, "{error:#}"),
    };
    let mut exporter = Exporter {
        name,
        sink,
        counters: counters.clone(),
        stop,
        failing: None,
        deadline: None,
        pushes: matches!(spec.receiver, Receiver::Otlp(_)),
    };
    let mut opening = Opening::new(spec.clone(), &context, counters, store.clone());
    let last = watch::Sender::new(false);
    let pushing = match (&spec.receiver, store) {
        (Receiver::Otlp(sink), Some(store)) => {
            let (name, counters) = (exporter.name.clone(), exporter.counters.clone());
            let push = otlp::push(
                name,
                sink.clone(),
                store,
                counters,
                context.node.clone(),
                last.subscribe(),
            );
            Some(tokio::spawn(push))
        }
        _ => None,
    };
    let mut stopped = exporter.stop.clone();
    while let Some((subscription, _guard)) = opening.open(&mut stopped).await {
        if !exporter.settle(&spec, &context).await {
            break;
        }
        let Some(why) = exporter.follow(subscription).await else {
            break;
        };
        opening.withdrawn(why);
    }
    if let Some(mut pushing) = pushing {
        last.send_replace(true);
        let deadline = exporter.deadline.unwrap_or_else(|| Instant::now() + LAST);
        if timeout_at(deadline, &mut pushing).await.is_err() {
            pushing.abort();
            _ = pushing.await;
        }
    }
    exporter.counters.closed(exporter.cause());
    // It may wait for a disk.
    _ = tokio::task::spawn_blocking(move || drop(exporter)).await;
}

/// Until the next try: what the receiver asks for, or our own wait if that is longer, and a part of that by chance, so that not all nodes come
/// at once.
pub(super) fn pause(asked: Duration, wait: Duration, chance: f64) -> Duration {
    asked.min(ASKED_MAX).max(wait) + wait.mul_f64(chance / 2.0)
}

/// From 0 to 1.
pub(super) fn chance() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    // Each has another key.
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}

/// Comes back when the exporter is to end.
pub(super) async fn told(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    _ = stop.wait_for(|stop| *stop).await;
}

/// The next message: `None` after the last, and when there is none in time.
async fn next(subscription: &mut Subscription, deadline: Option<Instant>) -> Option<Encoded> {
    match deadline {
        Some(deadline) => timeout_at(deadline, subscription.next()).await.ok()?,
        None => subscription.next().await,
    }
}

/// Comes back when a stream is to end, and says why: the exporter is to, or what it heard is not for it any more.
async fn ending(stop: &mut watch::Receiver<bool>, listener: &Listener) -> v1::EndReason {
    tokio::select! {
        biased;
        () = told(stop) => v1::EndReason::Shutdown,
        () = listener.over() => v1::EndReason::Permission,
    }
}

/// Comes back when an exporter whose stream is to end has no more time, and says when that was.
async fn over(
    mut stop: watch::Receiver<bool>,
    listener: &Listener,
    deadline: Option<Instant>,
) -> Instant {
    let deadline = match deadline {
        Some(deadline) => deadline,
        None => {
            ending(&mut stop, listener).await;
            Instant::now() + LAST
        }
    };
    sleep_until(deadline).await;
    deadline
}

struct Exporter {
    name: String,
    sink: Sink,
    counters: Arc<Counters>,
    stop: watch::Receiver<bool>,
    /// Since when, why, and what has been lost for it.
    failing: Option<(Cause, u64)>,
    /// When to give up, once its stream is to end.
    deadline: Option<Instant>,
    /// Sums are sent, and are no sooner with the receiver.
    pushes: bool,
}

impl Exporter {
    /// Waits until the kernel reports what was asked for. `false`: the agent ends.
    async fn settle(&self, spec: &Spec, context: &Context) -> bool {
        if !context.settle.settle().await {
            return false;
        }
        let node = context.state.load();
        let asked = |capability: &&v1::Capability| spec.asked.kinds.contains(&capability.kind);
        for capability in node
            .capabilities
            .iter()
            .filter(asked)
            .filter(|capability| !capability.available)
        {
            tracing::warn!(
                exporter = self.name,
                kind = capability.kind().name(),
                reason = capability.reason,
                "nothing of this kind will be exported"
            );
        }
        true
    }

    /// Brings what a stream tells, until it ends. Says why, if that may not go on.
    async fn follow(&mut self, mut subscription: Subscription) -> Option<Withdrawn> {
        let listener = subscription.listener().clone();
        let began = Clock::now();
        let mut bytes = 0;
        let mut due: Option<Instant> = None;
        let mut stop = self.stop.clone();
        loop {
            let linger = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                biased;
                reason = ending(&mut stop, &listener), if subscription.ending().is_none() => {
                    self.deadline.get_or_insert_with(|| Instant::now() + LAST);
                    // What happened until now comes yet.
                    subscription.finish(reason);
                    continue;
                }
                () = linger => {
                    due = None;
                    self.send(&listener).await;
                    continue;
                }
                message = next(&mut subscription, self.deadline) => message,
            };
            let Some(message) = message else { break };
            bytes += message.0.len() as u64;
            if self.take(&message.0).await && !self.sink.is_empty() {
                due.get_or_insert_with(|| Instant::now() + LINGER);
            }
            if self.sink.is_full() {
                due = None;
                self.send(&listener).await;
            }
        }
        self.deadline.get_or_insert_with(|| Instant::now() + LAST);
        if !self.sink.is_empty() {
            self.send(&listener).await;
        }
        audit::ends(&subscription, began, bytes);
        let withdrawn = subscription.withdrawn()?;
        self.counters.left(self.cause());
        if !*self.stop.borrow() {
            self.deadline = None;
        }
        Some(withdrawn)
    }

    /// Why its queue runs over.
    fn cause(&self) -> Cause {
        let failing = self.failing.as_ref();
        failing.map_or(Cause::Slow, |(cause, _)| *cause)
    }

    /// Puts a message into the batch. Whether there may be something new in it.
    async fn take(&mut self, bytes: &[u8]) -> bool {
        let Ok(v1::SubscribeResponse {
            message: Some(message),
        }) = v1::SubscribeResponse::decode(bytes)
        else {
            tracing::error!(
                exporter = self.name,
                "a message of the agent's own could not be read"
            );
            return false;
        };
        let events = match &message {
            Message::Batch(batch) => batch.events.len(),
            Message::Snapshot(snapshot) => snapshot.events.len(),
            Message::Plan(_) | Message::Loss(_) | Message::Workload(_) => 0,
            Message::Heartbeat(_) => {
                self.overflowed();
                self.sink.tick().await;
                0
            }
        };
        self.counters.took(events as u64);
        if let Err(Unwritable { events, error }) = self.sink.take(message) {
            tracing::error!(exporter = self.name, events, "{error:#}");
            self.counters.dropped(Cause::Refused, events);
        }
        if let Sink::Series(_) = self.sink
            && !self.pushes
        {
            self.counters.counted(events as u64);
        }
        true
    }

    /// Tells the counters why the queue ran over, if it did.
    fn overflowed(&mut self) {
        let lost = self.counters.overflowed(self.cause());
        if let Some((_, all)) = &mut self.failing {
            *all += lost;
        }
    }

    /// Sends what is there, again and again until it is taken, or never will be.
    async fn send(&mut self, listener: &Listener) {
        let mut wait = AGAIN;
        let mut stop = self.stop.clone();
        loop {
            // A sink that fails at once would come first for ever.
            let late = self
                .deadline
                .is_some_and(|deadline| deadline <= Instant::now());
            let sent = tokio::select! {
                biased;
                sent = self.sink.send(), if !late => sent,
                deadline = over(stop.clone(), listener, self.deadline) => {
                    self.deadline = Some(deadline);
                    Err(Failure::never(Cause::Ended, "its stream ended first"))
                }
            };
            let failure = match sent {
                Ok(sent) => return self.succeeded(sent),
                Err(failure) => failure,
            };
            let Failure {
                cause,
                problem,
                again,
            } = failure;
            let Some(after) = again else {
                self.counters.failed(cause, &problem);
                let over = cause == Cause::Ended;
                let (events, taken) = self.sink.discard(over);
                self.counters.dropped(cause, events);
                self.account(taken);
                tracing::error!(
                    exporter = self.name,
                    cause = cause.name(),
                    problem,
                    events,
                    "events are dropped"
                );
                if over || self.sink.is_empty() {
                    return;
                }
                wait = AGAIN;
                continue;
            };
            self.counters.failed(cause, &problem);
            if self
                .failing
                .as_ref()
                .is_none_or(|(before, _)| *before != cause)
            {
                tracing::error!(
                    exporter = self.name,
                    cause = cause.name(),
                    problem,
                    "events wait, and those that find no room in the queue are lost until this is mended"
                );
                let lost = self.failing.take().map_or(0, |(_, lost)| lost);
                self.failing = Some((cause, lost));
            }
            self.overflowed();
            let pause = Instant::now() + pause(after, wait, chance());
            wait = (2 * wait).min(AGAIN_MAX);
            match self.deadline {
                Some(deadline) => {
                    if timeout_at(deadline, sleep_until(pause)).await.is_err() {
                        continue;
                    }
                }
                None => tokio::select! {
                    () = sleep_until(pause) => {}
                    _ = ending(&mut stop, listener) => {
                        self.deadline = Some(Instant::now() + LAST);
                    }
                },
            }
        }
    }

    /// Counts what was taken.
    fn account(&self, sent: Sent) {
        let Sent {
            mut events,
            bytes,
            refused,
        } = sent;
        for (cause, refused, problem) in refused {
            // A receiver may say anything.
            let refused = refused.min(events);
            tracing::error!(
                exporter = self.name,
                cause = cause.name(),
                events = refused,
                problem,
                "the receiver throws events away"
            );
            self.counters.dropped(cause, refused);
            events -= refused;
        }
        self.counters.exported(events, bytes);
    }

    fn succeeded(&mut self, sent: Sent) {
        self.account(sent);
        self.counters.succeeded();
        self.overflowed();
        if let Some((cause, lost)) = self.failing.take() {
            tracing::info!(
                exporter = self.name,
                cause = cause.name(),
                lost,
                "events are taken again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_may_ask_for_a_longer_pause_and_nodes_come_at_different_times() {
        let seconds = |asked, wait, chance| {
            let (asked, wait) = (Duration::from_secs(asked), Duration::from_secs(wait));
            pause(asked, wait, chance).as_secs_f64()
        };
        assert_eq!(seconds(0, 8, 0.0), 8.0);
        assert_eq!(seconds(0, 8, 1.0), 12.0);
        assert_eq!(seconds(120, 30, 0.0), 120.0);
        assert_eq!(seconds(86_400, 30, 0.0), 300.0);
        let chances = [chance(), chance(), chance()];
        assert!(chances.iter().all(|chance| (0.0..=1.0).contains(chance)));
        assert!(chances[0] != chances[1] || chances[1] != chances[2]);
    }
}
