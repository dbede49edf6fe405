//! HUB: who is listening, what they are owed, and what they lost.
//!
//! Two halves share one [`Listener`] for each stream: the reader thread's [`Publisher`] pushes into its queue and never waits,
//! the stream's [`Subscription`] takes out of it. They share counters and a queue, no lock.

mod books;
mod bucket;
mod demand;
mod fidelity;
mod ids;
mod limits;
mod publisher;
mod sent;
mod subscription;
mod sums;

pub use books::{Stage, Totals};
pub use demand::{Demand, Want};
pub use fidelity::Fidelity;
pub use ids::IdMap;
pub use limits::{Full, Limits, Refusals};
pub use publisher::{Command, Publisher, Targets, encode_name};
pub use sent::TooLate;
pub use subscription::Subscription;

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;
use dinle_proto::v1;
use tokio::sync::{Notify, oneshot, watch};

use crate::filter::{Access, Grant, Kinds, Request};
use books::Books;
use fidelity::Fidelities;
use subscription::{Item, Queue};

/// Streams that can be open at a time whatever the limits are: as many as a set of bits has.
pub const LISTENERS_MAX: usize = 64;

/// Room for numbers of kinds.
pub const KINDS: usize = 64;

/// One open stream.
#[derive(Debug)]
pub struct Listener {
    /// Its number, from 1, never used again.
    pub id: u64,
    /// Since when.
    pub started: SystemTime,
    /// Who it is.
    pub caller: v1::Caller,
    /// What it asked for, as it was asked.
    pub asked: v1::SubscribeRequest,
    /// The same, understood.
    pub request: Request,
    /// What it may be told.
    grant: ArcSwap<Grant>,
    /// It may not be told anything any more, and why.
    withdrawn: watch::Sender<Option<Withdrawn>>,
    /// How much of what it asked for it is told.
    fidelities: Fidelities,
    /// Something of it is told with a heartbeat now.
    news: Notify,
    books: Books,
    queue: Queue,
}

impl Listener {
    /// How much of that kind it is told.
    pub fn fidelity(&self, kind: v1::Kind) -> Fidelity {
        self.fidelities.get(kind)
    }

    /// Kinds of which it is told nothing.
    fn detached(&self) -> Kinds {
        let kinds = self.request.kinds.iter();
        kinds
            .filter(|kind| self.fidelity(*kind) == Fidelity::Detached)
            .collect()
    }

    /// Whether it is told less than everything of something.
    fn is_shed(&self) -> bool {
        let mut kinds = self.request.kinds.iter();
        kinds.any(|kind| self.fidelity(kind) != Fidelity::Whole)
    }

    /// Its books as of now.
    pub fn books(&self) -> Vec<v1::KindBooks> {
        let Self { books, request, .. } = self;
        let mut told = books.tell(request.kinds, request.heard);
        for books in &mut told {
            books.fidelity = self.fidelity(books.kind()).proto().into();
        }
        told
    }

    /// What it may be told.
    pub fn grant(&self) -> Arc<Grant> {
        self.grant.load_full()
    }

    /// Comes back when it may not be told anything any more.
    pub async fn over(&self) {
        // The sender is here.
        _ = self.withdrawn.subscribe().wait_for(Option::is_some).await;
    }

    fn hears_with(&self, access: Access, detached: Kinds) -> Kinds {
        let Request { kinds, heard, .. } = self.request;
        let told = kinds.intersection(access.watch).difference(detached);
        match told.is_empty() {
            true => told,
            false => told.union(heard.difference(kinds)),
        }
    }
}

/// Why a stream may not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// Something that it was told of is not for it any more: a sentence that says what.
    Denied(String),
    /// Nobody knows any more whose it is.
    Unauthenticated(String),
    /// Whether it may go on could not be asked for too long.
    Unknown(String),
}

/// Who listens, at one moment. A listener keeps its place for as long as it is there.
#[derive(Clone, Debug)]
pub struct Board {
    version: u64,
    places: [Option<Arc<Listener>>; LISTENERS_MAX],
    /// Kinds of which the listener at the place is told nothing any more. Here, so that what was lost before is told by what held before.
    detached: [Kinds; LISTENERS_MAX],
    slots: Arc<demand::Slots>,
}

impl Board {
    /// Kinds that a listener hears of a workload which its selector matches: those that it asks for and may be told, and what their filter needs.
    fn hears(&self, bit: u64, listener: &Listener, workload: &v1::Workload) -> Kinds {
        listener.hears_with(listener.grant.load().of(workload), self.detached(bit))
    }

    /// Kinds that it hears of some workload or other.
    fn hears_at_all(&self, bit: u64, listener: &Listener) -> Kinds {
        listener.hears_with(listener.grant.load().all_access(), self.detached(bit))
    }

    fn detached(&self, bit: u64) -> Kinds {
        self.detached[bit.trailing_zeros() as usize % LISTENERS_MAX]
    }

    /// Everyone, with their place as a bit.
    pub fn listeners(&self) -> impl Iterator<Item = (u64, &Arc<Listener>)> {
        self.places
            .iter()
            .enumerate()
            .filter_map(|(place, listener)| Some((1 << place, listener.as_ref()?)))
    }

    /// How many pods are watched that are counted each by itself.
    pub fn pods(&self) -> usize {
        self.slots.pods()
    }

    /// Sum of what their queues may hold, in bytes.
    pub fn queue_bytes(&self) -> u64 {
        limits::queue_bytes(self.places.iter().flatten())
    }
}

/// The place where streams and the reader meet.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    board: ArcSwap<Board>,
    /// Guards changes of the board, and the commands' sender.
    changing: Mutex<mpsc::Sender<Command>>,
    changed: watch::Sender<()>,
    shutdown: watch::Sender<bool>,
    next_id: AtomicU64,
    totals: Totals,
    limits: Limits,
    refusals: Refusals,
    notes: ArcSwap<Vec<String>>,
    alarm: ArcSwap<Option<String>>,
    /// Makes the reader look at commands and at the board.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Hub {
    /// A hub without listeners, and the reader's end of it. `wake` interrupts the reader's sleep.
    pub fn new(limits: Limits, wake: impl Fn() + Send + Sync + 'static) -> (Self, Publisher) {
        let board = Arc::new(Board {
            version: 0,
            places: [const { None }; LISTENERS_MAX],
            detached: [Kinds::default(); LISTENERS_MAX],
            slots: Arc::default(),
        });
        let (sender, commands) = mpsc::channel();
        let hub = Self(Arc::new(Inner {
            board: ArcSwap::new(board),
            changing: Mutex::new(sender),
            changed: watch::Sender::new(()),
            shutdown: watch::Sender::new(false),
            next_id: AtomicU64::new(1),
            totals: Totals::default(),
            limits,
            refusals: Refusals::default(),
            notes: ArcSwap::default(),
            alarm: ArcSwap::default(),
            wake: Box::new(wake),
        }));
        let publisher = Publisher::new(hub.clone(), commands);
        (hub, publisher)
    }

    /// Opens a stream. It ends when the subscription is dropped.
    pub fn subscribe(
        &self,
        asked: v1::SubscribeRequest,
        request: Request,
        caller: v1::Caller,
        grant: Grant,
    ) -> Result<Subscription, Full> {
        let (queue, receiver) = Queue::new(request.queue_bytes - sent::room(&request));
        let listener = Arc::new(Listener {
            id: self.0.next_id.fetch_add(1, Ordering::Relaxed),
            started: SystemTime::now(),
            caller,
            asked,
            request,
            grant: ArcSwap::from_pointee(grant),
            withdrawn: watch::Sender::new(None),
            fidelities: Fidelities::default(),
            news: Notify::new(),
            books: Books::default(),
            queue,
        });
        let Inner {
            limits, refusals, ..
        } = &*self.0;
        self.change(|board| {
            limits::check(limits, refusals, &board.places[..], &listener)?;
            let free = board.places.iter().position(Option::is_none);
            let place = free.ok_or(Full::Streams(LISTENERS_MAX))?;
            board.places[place] = Some(listener.clone());
            board.detached[place] = Kinds::default();
            Ok(())
        })?;
        self.0.changed.send_replace(());
        Ok(Subscription::new(self.clone(), listener, receiver))
    }

    /// From now on a stream may be told this.
    pub fn set_grant(&self, listener: &Listener, grant: Grant) {
        if *listener.grant.load_full() == grant {
            return;
        }
        listener.grant.store(Arc::new(grant));
        // Whoever decided by the old one decides anew.
        self.change(|_| Ok(()))
            .unwrap_or_else(|never: Infallible| match never {});
        self.0.changed.send_replace(());
    }

    /// From now on a stream is told so much of that kind. It learns of it at once.
    pub fn set_fidelity(&self, listener: &Listener, kind: v1::Kind, fidelity: Fidelity) {
        listener.fidelities.set(kind, fidelity);
        self.change(|board| {
            let own = |place: &Option<Arc<Listener>>| {
                place.as_ref().is_some_and(|at| at.id == listener.id)
            };
            if let Some(place) = board.places.iter().position(own) {
                board.detached[place] = listener.detached();
            }
            Ok(())
        })
        .unwrap_or_else(|never: Infallible| match never {});
        self.0.changed.send_replace(());
        listener.news.notify_one();
    }

    /// Nothing more is for a stream: it ends.
    pub fn withdraw(&self, listener: &Listener, why: Withdrawn) {
        self.set_grant(listener, Grant::default());
        listener.withdrawn.send_replace(Some(why));
    }

    /// Who listens now.
    pub fn board(&self) -> Arc<Board> {
        self.0.board.load_full()
    }

    /// Tells whenever a listener comes or goes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// What was delivered and lost on this node so far.
    pub fn totals(&self) -> &Totals {
        &self.0.totals
    }

    /// What all streams together may take.
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// How often there was no room for a stream.
    pub fn refusals(&self) -> &Refusals {
        &self.0.refusals
    }

    /// What keeps the agent from hearing everything; told with every heartbeat.
    pub fn set_notes(&self, notes: Vec<String>) {
        self.0.notes.store(Arc::new(notes));
    }

    /// What keeps everyone from hearing anything; told before the notes.
    pub fn set_alarm(&self, alarm: Option<String>) {
        self.0.alarm.store(Arc::new(alarm));
    }

    /// See [`Self::set_notes`] and [`Self::set_alarm`].
    pub fn notes(&self) -> Vec<String> {
        let (alarm, notes) = (self.0.alarm.load(), self.0.notes.load());
        alarm.iter().chain(notes.iter()).cloned().collect()
    }

    /// Ends all streams, each with its final books.
    pub fn shutdown(&self) {
        self.0.shutdown.send_replace(true);
    }

    /// The agent ends.
    pub fn is_shut_down(&self) -> bool {
        *self.0.shutdown.borrow()
    }

    /// Comes back when the reader has seen everything that happened in the kernel before the call. `false` if there is no reader.
    pub async fn sync(&self) -> bool {
        let (done, wait) = oneshot::channel();
        self.command(Command::Sync(done));
        wait.await.is_ok()
    }

    /// Tells every listener to that kind of events that nobody can attribute to a pod.
    pub fn lose_everywhere(&self, kind: v1::Kind, stage: Stage, count: u64) {
        self.0.totals.lost(kind, stage, count);
        let board = self.board();
        for (bit, listener) in board.listeners() {
            if listener.request.heard.contains(kind) && !board.detached(bit).contains(kind) {
                listener.books.lose(kind, stage, count);
            }
        }
    }

    fn command(&self, command: Command) {
        // Without a reader there is nobody to tell: whoever waits for an answer sees its channel close.
        _ = self.lock().send(command);
        (self.0.wake)();
    }

    fn remove(&self, id: u64) {
        self.change(|board| {
            let own = |place: &&mut Option<Arc<Listener>>| {
                place.as_ref().is_some_and(|listener| listener.id == id)
            };
            if let Some(place) = board.places.iter_mut().find(own) {
                *place = None;
            }
            Ok(())
        })
        .unwrap_or_else(|never: Infallible| match never {});
        self.0.changed.send_replace(());
    }

    /// Puts a new board in place of the old one.
    fn change<E>(&self, change: impl FnOnce(&mut Board) -> Result<(), E>) -> Result<(), E> {
        let guard = self.lock();
        let mut board = Board::clone(&self.0.board.load());
        change(&mut board)?;
        board.version += 1;
        self.0.board.store(Arc::new(board));
        drop(guard);
        (self.0.wake)();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, mpsc::Sender<Command>> {
        self.0
            .changing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
