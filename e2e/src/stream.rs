//! A subscriber that remembers all that it was sent.

use std::time::{Duration, Instant, SystemTime};

use dinle_proto::v1::{
    self, EndReason, Event, Exec, Exit, Fork, Kind, KindBooks, LossStage, Process, event::Detail,
    observer_client::ObserverClient, subscribe_response::Message,
};
use prost_types::Timestamp;
use tokio::{runtime::Handle, time::timeout_at};
use tonic::{Code, Status, Streaming, transport::Endpoint};

use crate::patience::patience;

/// A stream, and what came of it so far.
pub struct Stream {
    handle: Handle,
    messages: Streaming<v1::SubscribeResponse>,
    /// Its first message.
    pub plan: v1::Plan,
    /// Its events, oldest first.
    pub events: Vec<Event>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<v1::Snapshot>,
    /// Its losses.
    pub losses: Vec<v1::Loss>,
    /// What it was told of workloads, and how many events came before that.
    pub updates: Vec<(usize, v1::Workload)>,
    /// The latest books.
    pub books: Vec<KindBooks>,
    /// What the latest heartbeat said that the agent cannot hear.
    pub notes: Vec<String>,
    /// When the latest heartbeat was made, in seconds and nanoseconds.
    pub heard: Option<(i64, i32)>,
    /// Why it ended.
    pub end: Option<EndReason>,
    /// Messages that came, the plan included.
    pub received: u64,
    /// Sequence numbers that were left out between batches.
    pub skipped: u64,
    next_sequence: u64,
}

/// How fast a subscriber reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// As fast as the agent sends.
    Usual,
    /// Only what is asked for, and 64 KiB more: what HTTP/2 allows at the least.
    Small,
}

impl Stream {
    pub(crate) fn open(
        handle: &Handle,
        endpoint: &Endpoint,
        window: Window,
        request: v1::SubscribeRequest,
    ) -> Result<Self, Status> {
        const SMALL: u32 = 65_535;
        let endpoint = match window {
            Window::Usual => endpoint.clone(),
            Window::Small => endpoint
                .clone()
                .initial_stream_window_size(SMALL)
                .initial_connection_window_size(SMALL),
        };
        let (messages, first) = handle.block_on(async {
            let channel = endpoint
                .connect()
                .await
                .map_err(|error| Status::unavailable(format!("{error:?}")))?;
            let mut client = ObserverClient::new(channel);
            let mut messages = client.subscribe(request).await?.into_inner();
            let first = messages.message().await?;
            Ok::<_, Status>((messages, first))
        })?;
        let Some(Message::Plan(plan)) = first.and_then(|first| first.message) else {
            panic!("a stream begins with its plan")
        };
        Ok(Self {
            handle: handle.clone(),
            messages,
            plan,
            events: Vec::new(),
            snapshots: Vec::new(),
            losses: Vec::new(),
            updates: Vec::new(),
            books: Vec::new(),
            notes: Vec::new(),
            heard: None,
            end: None,
            received: 1,
            skipped: 0,
            next_sequence: 1,
        })
    }

    /// Reads until the condition holds.
    ///
    /// # Panics
    /// When it does not within [`patience`], or when the stream ends before.
    pub fn until(&mut self, what: &str, condition: impl FnMut(&Self) -> bool) {
        self.after(Duration::ZERO, what, condition);
    }

    /// The same of what happens only once a time is over that somebody else keeps.
    ///
    /// # Panics
    /// When it does not within that time and [`patience`], or when the stream ends before.
    pub fn after(&mut self, time: Duration, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + time + patience();
        while !condition(self) {
            let more = self.read(what, deadline);
            assert!(
                more || condition(self),
                "the stream ended ({:?}) before: {what}; {} events, books {:?}",
                self.end,
                self.events.len(),
                self.books
            );
        }
    }

    /// Reads until a heartbeat that was made after this call: everything that was sent before it has been read, and it has the
    /// books of that moment. One that was made earlier may still be on its way.
    pub fn heartbeat(&mut self) {
        let now = Timestamp::from(SystemTime::now());
        let now = (now.seconds, now.nanos);
        self.until("a heartbeat", |stream| {
            stream.heard.is_some_and(|time| time >= now)
        });
    }

    /// Reads until the process's exit was told, and then until the next heartbeat.
    pub fn through_exit(&mut self, pid: u32) {
        self.until(&format!("the exit of {pid}"), |stream| {
            stream.exits().any(|(_, process, _)| process.pid == pid)
        });
        self.heartbeat();
    }

    /// Reads until the process's exec was told, and then until the next heartbeat.
    pub fn through_exec(&mut self, pid: u32) {
        self.until(&format!("the exec of {pid}"), |stream| {
            stream.execs().any(|(_, process, _)| process.pid == pid)
        });
        self.heartbeat();
    }

    /// Reads to the end.
    pub fn to_end(&mut self) -> EndReason {
        let deadline = Instant::now() + patience();
        while self.read("the end of the stream", deadline) {}
        self.end.expect("a stream that the agent ends says why")
    }

    /// `false` at the end.
    fn read(&mut self, what: &str, deadline: Instant) -> bool {
        let Self {
            handle, messages, ..
        } = self;
        let read = handle.block_on(async { timeout_at(deadline.into(), messages.message()).await });
        let Ok(message) = read else {
            panic!(
                "did not come within {:?}: {what}; {} events, books {:?}",
                patience(),
                self.events.len(),
                self.books
            )
        };
        let message = message.unwrap_or_else(|status| panic!("{what}: {status}"));
        let Some(message) = message else { return false };
        assert_eq!(self.end, None, "nothing comes after the end");
        self.received += 1;
        match message.message.expect("one of the messages") {
            Message::Plan(_) => panic!("a plan comes only once"),
            Message::Batch(v1::EventBatch {
                first_sequence,
                events,
            }) => {
                assert!(!events.is_empty(), "a batch has events");
                assert!(first_sequence >= self.next_sequence, "numbers only grow");
                self.skipped += first_sequence - self.next_sequence;
                self.next_sequence = first_sequence + events.len() as u64;
                self.events.extend(events);
            }
            Message::Snapshot(snapshot) => {
                if let Some(before) = self.snapshots.last() {
                    assert_eq!(before.end, snapshot.start, "no gap and no overlap");
                }
                self.snapshots.push(snapshot);
            }
            Message::Loss(loss) => self.losses.push(loss),
            Message::Workload(update) => {
                let workload = update.workload.expect("an update of a workload");
                self.updates.push((self.events.len(), workload));
            }
            Message::Heartbeat(heartbeat) => {
                self.heard = heartbeat.time.map(|time| (time.seconds, time.nanos));
                if heartbeat.end() != EndReason::Unspecified {
                    self.end = Some(heartbeat.end());
                }
                self.books = heartbeat.books;
                self.notes = heartbeat.notes;
                self.check_books();
            }
        }
        true
    }

    fn check_books(&self) {
        // One that was resumed is told of what came before, too.
        if self.plan.resumed {
            return;
        }
        for books in &self.books {
            let KindBooks {
                matched,
                delivered,
                queued,
                lost,
                ..
            } = books;
            let lost: u64 = lost.iter().map(|lost| lost.count).sum();
            assert!(*matched >= delivered + queued, "{books:?}");
            if self.end.is_some() {
                assert_eq!(*matched, delivered + queued + lost, "{books:?}");
            }
            let rows = self.snapshots.iter().flat_map(|snapshot| &snapshot.events);
            let got = self
                .events
                .iter()
                .chain(rows)
                .filter(|event| event.kind == books.kind)
                .count() as u64;
            assert_eq!(*delivered, got, "what is told and what came: {books:?}");
        }
    }

    /// Its EXEC events.
    pub fn execs(&self) -> impl Iterator<Item = (&Event, &Process, &Exec)> {
        self.events.iter().filter_map(|event| {
            let Some(Detail::Exec(detail)) = &event.detail else {
                return None;
            };
            Some((event, event.process.as_ref()?, detail))
        })
    }

    /// Its FORK events.
    pub fn forks(&self) -> impl Iterator<Item = (&Event, &Process, &Fork)> {
        self.events.iter().filter_map(|event| {
            let Some(Detail::Fork(detail)) = &event.detail else {
                return None;
            };
            Some((event, event.process.as_ref()?, detail))
        })
    }

    /// Its EXIT events.
    pub fn exits(&self) -> impl Iterator<Item = (&Event, &Process, &Exit)> {
        self.events.iter().filter_map(|event| {
            let Some(Detail::Exit(detail)) = &event.detail else {
                return None;
            };
            Some((event, event.process.as_ref()?, detail))
        })
    }

    /// Its events of other kinds: `pick` takes a detail apart.
    pub fn details<'a, T: 'a>(
        &'a self,
        pick: impl Fn(&'a Detail) -> Option<&'a T>,
    ) -> impl Iterator<Item = (&'a Event, &'a T)> {
        self.events
            .iter()
            .filter_map(move |event| Some((event, pick(event.detail.as_ref()?)?)))
    }

    /// The rows of its snapshots, added up as they came.
    pub fn rows<'a, T: 'a>(
        &'a self,
        pick: impl Fn(&'a Detail) -> Option<&'a T>,
    ) -> impl Iterator<Item = (&'a Event, &'a T)> {
        self.snapshots
            .iter()
            .flat_map(|snapshot| &snapshot.events)
            .filter_map(move |event| Some((event, pick(event.detail.as_ref()?)?)))
    }

    /// The last exec of a process.
    pub fn exec_of(&self, pid: u32) -> (&Event, &Process, &Exec) {
        let mut execs = self.execs().filter(|(_, process, _)| process.pid == pid);
        let last = execs.by_ref().last();
        last.unwrap_or_else(|| panic!("no exec of {pid} among {} events", self.events.len()))
    }

    /// The exit of a process, which is told once.
    pub fn exit_of(&self, pid: u32) -> (&Event, &Process, &Exit) {
        let exits: Vec<_> = self
            .exits()
            .filter(|(_, process, _)| process.pid == pid)
            .collect();
        assert_eq!(exits.len(), 1, "exits of {pid}: {exits:?}");
        exits[0]
    }

    /// The latest books of a kind.
    pub fn book(&self, kind: Kind) -> Book {
        Book::of(&self.books, kind)
    }

    /// What the Loss messages told of.
    pub fn told_lost(&self, kind: Kind, stage: LossStage) -> u64 {
        let losses = self
            .losses
            .iter()
            .filter(|loss| loss.kind() == kind && loss.stage() == stage);
        losses.map(|loss| loss.count).sum()
    }
}

/// The books of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// Events that should have been seen.
    pub matched: u64,
    /// Events that were.
    pub delivered: u64,
    /// Events that wait.
    pub queued: u64,
    /// Losses, by stage in the order of their numbers.
    pub lost: Vec<(LossStage, u64)>,
}

impl Book {
    /// The books of that kind among those of a stream.
    pub fn of(books: &[KindBooks], kind: Kind) -> Self {
        let found = books.iter().find(|books| books.kind() == kind);
        let books = found.unwrap_or_else(|| panic!("no books of {kind:?}: {books:?}"));
        let mut lost: Vec<_> = books
            .lost
            .iter()
            .filter(|lost| lost.count > 0)
            .map(|lost| (lost.stage(), lost.count))
            .collect();
        lost.sort();
        Self {
            matched: books.matched,
            delivered: books.delivered,
            queued: books.queued,
            lost,
        }
    }

    /// Books of a stream that got everything.
    pub fn complete(events: u64) -> Self {
        Self {
            matched: events,
            delivered: events,
            ..Self::default()
        }
    }

    /// What was lost at one stage.
    pub fn lost_at(&self, stage: LossStage) -> u64 {
        self.lost
            .iter()
            .filter(|(at, _)| *at == stage)
            .map(|(_, count)| count)
            .sum()
    }
}

/// Asserts that a request was refused as wrong, and for that field.
pub fn assert_invalid<T>(answer: Result<T, Status>, field: &str) {
    let status = match answer {
        Ok(_) => panic!("{field} should be refused"),
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(
        status.message().starts_with(&format!("{field}: ")),
        "{status}"
    );
}
