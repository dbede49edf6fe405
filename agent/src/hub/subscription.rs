//! The stream's half: takes out of the queue, and tells what was lost and how the books stand.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use dinle_proto::{
    Encoded,
    v1::{self, EndReason, subscribe_response::Message},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until},
};

use super::{
    Command, Hub, KINDS, Listener, Stage, Withdrawn,
    sent::{self, Outgoing, Sent, Tells, TooLate},
};

/// Losses of a kind and stage are told together, at most this often.
const LOSS_INTERVAL: Duration = Duration::from_secs(1);

/// What waits for a stream.
#[derive(Debug)]
pub(super) enum Item {
    Batch {
        bytes: Bytes,
        counts: Vec<(v1::Kind, u64)>,
    },
    Update(Encoded),
    End(EndReason),
}

/// Between the reader and one stream: bounded in bytes, not in messages; pushing never waits.
#[derive(Debug)]
pub(super) struct Queue {
    sender: mpsc::UnboundedSender<Item>,
    bytes: AtomicU64,
    limit: u64,
}

impl Queue {
    pub(super) fn new(limit: u64) -> (Self, mpsc::UnboundedReceiver<Item>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (
            Self {
                sender,
                bytes: AtomicU64::new(0),
                limit,
            },
            receiver,
        )
    }

    /// Takes room. Only the reader does, so nobody comes between.
    pub(super) fn reserve(&self, size: u64) -> bool {
        if self.bytes.load(Ordering::Relaxed) + size > self.limit {
            return false;
        }
        self.take(size);
        true
    }

    /// Takes room, whether there is or not.
    pub(super) fn take(&self, size: u64) {
        self.bytes.fetch_add(size, Ordering::Relaxed);
    }

    /// Takes room for what must go through some time, however large: when nothing waits, it may.
    pub(super) fn reserve_or_idle(&self, size: u64) -> bool {
        if self.bytes.load(Ordering::Relaxed) == 0 {
            self.take(size);
            return true;
        }
        self.reserve(size)
    }

    /// How large a batch may get, of `most`: several of them fit, however small the queue is. One as large as all of it would
    /// never find room.
    pub(super) fn part(&self, most: usize) -> usize {
        const PARTS: u64 = 4;
        usize::try_from(self.limit / PARTS).map_or(most, |part| part.min(most))
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn send(&self, item: Item) {
        // A stream that is gone needs nothing any more.
        _ = self.sender.send(item);
    }

    /// `false` if there was no room.
    #[must_use]
    pub(super) fn update(&self, message: Message) -> bool {
        let message = encoded(message);
        let fits = self.reserve(message.0.len() as u64);
        if fits {
            self.send(Item::Update(message));
        }
        fits
    }

    /// The same of what must be told.
    pub(super) fn update_anyway(&self, message: Message) {
        let message = encoded(message);
        self.take(message.0.len() as u64);
        self.send(Item::Update(message));
    }

    pub(super) fn end(&self, reason: EndReason) {
        self.send(Item::End(reason));
    }
}

fn encoded(message: Message) -> Encoded {
    Encoded::new(&v1::SubscribeResponse {
        message: Some(message),
    })
}

enum Next {
    Heartbeat,
    LossCheck,
    Finish(EndReason),
    Item(Option<Item>),
}

/// One client's stream. Dropping it is how a subscriber leaves.
pub struct Subscription {
    hub: Hub,
    listener: Arc<Listener>,
    items: mpsc::UnboundedReceiver<Item>,
    pending: VecDeque<Outgoing>,
    /// What was sent, where it may have to be sent again.
    sent: Option<Sent>,
    /// Losses that the client was told of, by kind and stage.
    told: Box<[[u64; Stage::ALL.len()]; KINDS]>,
    /// The last sequence number that a Loss named, by kind.
    told_last: [u64; KINDS],
    heartbeats: Interval,
    loss_checks: Interval,
    deadline: Option<Instant>,
    shutdown: watch::Receiver<bool>,
    withdrawn: watch::Receiver<Option<Withdrawn>>,
    /// Why it is about to end.
    finishing: Option<EndReason>,
    ended: Option<EndReason>,
}

impl Subscription {
    pub(super) fn new(
        hub: Hub,
        listener: Arc<Listener>,
        items: mpsc::UnboundedReceiver<Item>,
    ) -> Self {
        let every = |period: Duration| {
            let mut interval = interval_at(Instant::now() + period, period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Self {
            items,
            pending: VecDeque::new(),
            sent: listener
                .request
                .resume_window
                .map(|_| Sent::new(sent::room(&listener.request))),
            told: Box::new([[0; _]; KINDS]),
            told_last: [0; KINDS],
            heartbeats: every(listener.request.heartbeat),
            loss_checks: every(LOSS_INTERVAL),
            deadline: listener
                .request
                .max_duration
                .map(|time| Instant::now() + time),
            shutdown: hub.0.shutdown.subscribe(),
            withdrawn: listener.withdrawn.subscribe(),
            finishing: None,
            ended: None,
            hub,
            listener,
        }
    }

    /// The listener's number.
    pub fn id(&self) -> u64 {
        self.listener.id
    }

    /// Its request and books.
    pub fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// Why the last message was the last; `None` before.
    pub fn ended(&self) -> Option<EndReason> {
        self.ended
    }

    /// Why the agent wants it to end; `None` if it does not.
    pub fn ending(&self) -> Option<EndReason> {
        self.ended.or(self.finishing)
    }

    /// Why it may not go on.
    pub fn withdrawn(&self) -> Option<Withdrawn> {
        self.withdrawn.borrow().clone()
    }

    /// Puts a message before everything that has not been taken yet.
    pub fn begin_with(&mut self, message: Message) {
        self.pending.push_front(Outgoing {
            message: encoded(message),
            tells: Tells::Nothing,
        });
    }

    /// Goes on with a client that got so many messages: what was sent beyond is sent again. Of what is not there any more, events are lost
    /// from now on. After an error everything is as before.
    pub fn resume(&mut self, received: u64) -> Result<(), TooLate> {
        let beyond = self.sent.as_mut().ok_or(TooLate)?.beyond(received)?;
        let Self {
            listener,
            hub,
            told,
            pending,
            ended,
            ..
        } = self;
        let mut again = VecDeque::with_capacity(beyond.len() + pending.len());
        let mut missing = false;
        for message in beyond {
            match message {
                Ok(message) => again.push_back(message),
                Err(Tells::Events(counts)) => {
                    missing = true;
                    for (kind, count) in counts {
                        listener.books.undeliver(kind, count);
                        hub.0.totals.lost(kind, Stage::Connection, count);
                    }
                }
                // It is told once more, with what has come since.
                Err(Tells::Loss(kind, stage, count)) => {
                    told[kind as usize % KINDS][stage as usize] -= count;
                }
                Err(Tells::Nothing | Tells::Workload | Tells::Books) => {}
            }
        }
        again.append(pending);
        if missing {
            // They tell of events as delivered that are lost.
            again.retain(|message| !matches!(message.tells, Tells::Books));
        }
        *pending = again;
        let ended = *ended;
        self.tell_losses();
        if let Some(reason) = ended
            && missing
        {
            self.tell_books(reason);
        }
        Ok(())
    }

    /// The next message; `None` after the last.
    pub async fn next(&mut self) -> Option<Encoded> {
        let outgoing = self.outgoing().await?;
        let message = outgoing.message.clone();
        if let Some(sent) = &mut self.sent {
            sent.push(outgoing);
        }
        Some(message)
    }

    async fn outgoing(&mut self) -> Option<Outgoing> {
        loop {
            if let Some(message) = self.pending.pop_front() {
                return Some(message);
            }
            if self.ended.is_some() {
                return None;
            }
            match self.wait().await {
                Next::Heartbeat => {
                    self.tell_losses();
                    self.tell_books(EndReason::Unspecified);
                }
                Next::LossCheck => self.tell_losses(),
                Next::Finish(reason) => self.finish(reason),
                Next::Item(Some(Item::Batch { bytes, counts })) => {
                    return Some(self.deliver(bytes, counts));
                }
                Next::Item(Some(Item::Update(message))) => {
                    self.taken(&message.0);
                    return Some(Outgoing {
                        message,
                        tells: Tells::Workload,
                    });
                }
                Next::Item(Some(Item::End(reason))) => self.end(reason),
                // The listener holds a sender, so that this does not happen while we are here.
                Next::Item(None) => self.end(EndReason::Shutdown),
            }
        }
    }

    async fn wait(&mut self) -> Next {
        let Self {
            items,
            heartbeats,
            loss_checks,
            deadline,
            shutdown,
            withdrawn,
            finishing,
            listener,
            ..
        } = self;
        let over = async {
            match deadline {
                Some(deadline) => sleep_until(*deadline).await,
                None => std::future::pending().await,
            }
        };
        // Timers first: a stream that is always busy must still show that it lives.
        tokio::select! {
            biased;
            _ = heartbeats.tick() => Next::Heartbeat,
            _ = loss_checks.tick() => Next::LossCheck,
            () = listener.news.notified() => Next::Heartbeat,
            () = over, if finishing.is_none() => Next::Finish(EndReason::MaxDuration),
            _ = shutdown.wait_for(|down| *down), if finishing.is_none() => Next::Finish(EndReason::Shutdown),
            _ = withdrawn.wait_for(Option::is_some), if finishing.is_none() => Next::Finish(EndReason::Permission),
            item = items.recv() => Next::Item(item),
        }
    }

    fn deliver(&mut self, bytes: Bytes, counts: Vec<(v1::Kind, u64)>) -> Outgoing {
        self.taken(&bytes);
        let Self { listener, hub, .. } = self;
        for &(kind, count) in &counts {
            listener.books.delivered(kind, count);
            hub.0.totals.delivered(kind, count);
        }
        Outgoing {
            message: Encoded(bytes),
            tells: Tells::Events(counts),
        }
    }

    fn taken(&self, bytes: &Bytes) {
        let taken = bytes.len() as u64;
        self.listener
            .queue
            .bytes
            .fetch_sub(taken, Ordering::Relaxed);
    }

    /// Asks the reader for the rest and the end, once.
    pub fn finish(&mut self, reason: EndReason) {
        if self.ending().is_some() {
            return;
        }
        self.finishing = Some(reason);
        self.hub.command(Command::Finish(self.listener.id, reason));
    }

    fn end(&mut self, reason: EndReason) {
        self.ended = Some(reason);
        self.tell_losses();
        self.tell_books(reason);
    }

    fn tell_losses(&mut self) {
        let Self {
            listener,
            told,
            told_last,
            pending,
            ..
        } = self;
        for kind in listener.request.heard.iter() {
            let at = kind as usize % KINDS;
            for stage in Stage::ALL {
                let lost = listener.books.lost(kind, stage);
                let count = lost - told[at][stage as usize];
                if count == 0 {
                    continue;
                }
                told[at][stage as usize] = lost;
                let (first_sequence, last_sequence) = if stage == Stage::ClientQueue {
                    let (first, last) = listener.books.take_lost_range(kind);
                    // Told while the reader was counting: then it begins where the last one ended.
                    let first = if first == 0 { told_last[at] + 1 } else { first };
                    told_last[at] = last;
                    (first.min(last), last)
                } else {
                    (0, 0)
                };
                let message = encoded(Message::Loss(v1::Loss {
                    kind: kind.into(),
                    stage: stage.proto().into(),
                    count,
                    first_sequence,
                    last_sequence,
                }));
                pending.push_back(Outgoing {
                    message,
                    tells: Tells::Loss(kind, stage, count),
                });
            }
        }
    }

    fn tell_books(&mut self, end: EndReason) {
        let message = encoded(Message::Heartbeat(v1::Heartbeat {
            time: Some(SystemTime::now().into()),
            books: self.listener.books(),
            end: end.into(),
            notes: self.hub.notes(),
        }));
        self.pending.push_back(Outgoing {
            message,
            tells: Tells::Books,
        });
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.remove(self.listener.id);
    }
}
