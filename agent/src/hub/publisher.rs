//! The reader's half: matches events, encodes each once, and pushes them in batches. Never waits for anyone.

use std::{
    sync::{Arc, mpsc},
    time::{Instant, SystemTime},
};

use bytes::{BufMut as _, Bytes};
use dinle_proto::v1::{self, EndReason};
use prost::{Message as _, encoding};
use tokio::sync::oneshot;

use super::{
    Board, Hub, Item, KINDS, LISTENERS_MAX, Listener, Stage, bucket::Bucket, ids::IdMap, sums::Sums,
};
use crate::filter::{Family, Kinds};

/// A batch is sent when it is this large: far below the 4 MiB that gRPC clients accept, and large enough that a message's cost
/// is spread over hundreds of events.
const BATCH_BYTES: usize = 64 << 10;

/// Room in front of a batch for the message's own fields: two keys, two lengths and a sequence number.
const HEAD: usize = 32;

/// What streams ask of the reader.
#[derive(Debug)]
pub enum Command {
    /// Answer when everything that happened before is dealt with.
    Sync(oneshot::Sender<()>),
    /// Give that stream everything that happened before, and its end.
    Finish(u64, EndReason),
}

/// Listeners, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// They are told everything.
    pub whole: u64,
    /// They may not see arguments and paths.
    pub redacted: u64,
}

/// The reader's end of the hub.
pub struct Publisher {
    hub: Hub,
    board: Arc<Board>,
    /// At the number of their bit.
    voices: [Option<Box<Voice>>; LISTENERS_MAX],
    commands: mpsc::Receiver<Command>,
    /// Streams that have got all that they asked for.
    finished: Vec<u64>,
    /// The event in hand, encoded.
    encoded: Vec<u8>,
}

/// What the reader keeps of one listener.
struct Voice {
    listener: Arc<Listener>,
    batch: Batch,
    next_sequence: u64,
    /// Events that may still be delivered.
    remaining: Option<u64>,
    /// Where the stream has a rate limit.
    bucket: Option<Bucket>,
    family: Family,
    /// Workloads that the stream's events named, as it knows them.
    known: IdMap<Arc<v1::Workload>>,
    /// What its next snapshot will tell.
    sums: Sums,
    done: bool,
}

struct Batch {
    /// [`HEAD`] bytes, and the events.
    bytes: Vec<u8>,
    first_sequence: u64,
    counts: [u32; KINDS],
    events: u64,
}

impl Batch {
    /// An empty one.
    fn new() -> Self {
        Self {
            bytes: vec![0; HEAD],
            first_sequence: 0,
            counts: [0; KINDS],
            events: 0,
        }
    }

    /// Its events as a SubscribeResponse.
    fn message(&mut self) -> &[u8] {
        /// `EventBatch batch = 2` of SubscribeResponse.
        const BATCH: u32 = 2;
        /// `uint64 first_sequence = 1` of EventBatch.
        const FIRST_SEQUENCE: u32 = 1;
        let Self {
            bytes,
            first_sequence,
            ..
        } = self;
        let mut first = Vec::with_capacity(HEAD);
        encoding::uint64::encode(FIRST_SEQUENCE, first_sequence, &mut first);
        let mut head = Vec::with_capacity(HEAD);
        encoding::encode_key(BATCH, encoding::WireType::LengthDelimited, &mut head);
        encoding::encode_varint((first.len() + bytes.len() - HEAD) as u64, &mut head);
        head.extend_from_slice(&first);
        let start = HEAD - head.len();
        bytes[start..HEAD].copy_from_slice(&head);
        &bytes[start..]
    }

    /// Empties it. What it has room for it keeps while there is as much to tell.
    fn clear(&mut self) {
        let used = self.bytes.len();
        self.bytes.truncate(HEAD);
        self.bytes.shrink_to(2 * used);
        self.counts = [0; KINDS];
        self.events = 0;
    }
}

impl Publisher {
    pub(super) fn new(hub: Hub, commands: mpsc::Receiver<Command>) -> Self {
        let board = hub.board();
        Self {
            hub,
            board,
            voices: [const { None }; LISTENERS_MAX],
            commands,
            finished: Vec::new(),
            encoded: Vec::new(),
        }
    }

    /// The board has changed since [`Self::refresh`]: losses up to now are still the old listeners'.
    pub fn is_stale(&self) -> bool {
        self.hub.0.board.load().version != self.board.version
    }

    /// Looks at the board. What was decided by [`Self::targets`] holds no more. Returns the slots that somebody watches now, and
    /// nobody did before.
    pub fn refresh(&mut self) -> Vec<u32> {
        self.flush();
        let before = std::mem::replace(&mut self.board, self.hub.board());
        let Self { board, voices, .. } = self;
        let mut old = std::mem::replace(voices, [const { None }; LISTENERS_MAX]);
        for (bit, listener) in board.listeners() {
            let place = bit.trailing_zeros() as usize;
            let voice = match old[place].take() {
                Some(voice) if voice.listener.id == listener.id => voice,
                _ => Box::new(Voice {
                    listener: listener.clone(),
                    batch: Batch::new(),
                    next_sequence: 1,
                    remaining: listener.request.max_events,
                    bucket: listener.request.max_events_per_second.map(Bucket::new),
                    family: Family::default(),
                    known: IdMap::default(),
                    sums: Sums::new(listener.request.interval, listener.request.queue_bytes),
                    done: false,
                }),
            };
            voices[place] = Some(voice);
        }
        let begun = |slot: &u32| before.slots.listeners(*slot) == 0;
        board.slots.watched().filter(begun).collect()
    }

    /// Who wants that kind of events of that workload. Decided once for a cgroup, not for each event.
    pub fn targets(&self, kind: v1::Kind, workload: &v1::Workload) -> Targets {
        let mut targets = Targets::default();
        for (bit, listener) in self.board.listeners() {
            if listener.request.selector.matches(workload)
                && self.board.hears(bit, listener, workload).contains(kind)
            {
                match listener.grant.load().of(workload).args.contains(kind) {
                    true => targets.whole |= bit,
                    false => targets.redacted |= bit,
                }
            }
        }
        targets
    }

    /// Those of `targets` who may not know of a pod of that namespace at the other end of a connection: they may not watch the kind there.
    pub fn strangers(&self, targets: u64, kind: v1::Kind, namespace: &str) -> u64 {
        let listeners = self.board.listeners();
        let strange = |(bit, listener): &(u64, &Arc<Listener>)| {
            targets & bit != 0 && !listener.grant.load().names(kind, namespace)
        };
        listeners.filter(strange).map(|(bit, _)| bit).sum()
    }

    /// Whether anyone hears that kind.
    pub fn hears(&self, kind: v1::Kind) -> bool {
        let mut listeners = self.board.listeners();
        listeners.any(|(bit, listener)| self.board.hears_at_all(bit, listener).contains(kind))
    }

    /// The pod that a slot counts for.
    pub fn pod_of_slot(&self, slot: u32) -> Option<Arc<v1::Workload>> {
        self.board.slots.pod(slot).cloned()
    }

    /// Slots whose losses somebody must be told of.
    pub fn watched_slots(&self) -> Vec<u32> {
        self.board.slots.watched().collect()
    }

    /// Gives an event to those of `targets` whose filter it passes. `name` is [`encode_name`] of the workload.
    pub fn publish(
        &mut self,
        event: &v1::Event,
        kind: v1::Kind,
        workload: &Arc<v1::Workload>,
        name: &[u8],
        targets: u64,
    ) {
        let Self {
            voices,
            encoded,
            finished,
            hub,
            ..
        } = self;
        encoded.clear();
        let mut left = targets;
        while left != 0 {
            let place = left.trailing_zeros() as usize;
            left &= left - 1;
            let Some(voice) = &mut voices[place] else {
                continue;
            };
            let request = &voice.listener.request;
            if voice.done
                || !request.filter.matches(event, &mut voice.family)
                // Heard for the filter's sake alone.
                || !request.kinds.contains(kind)
            {
                continue;
            }
            if voice
                .bucket
                .as_mut()
                .is_some_and(|bucket| !bucket.take(Instant::now()))
            {
                voice.listener.books.lose(kind, Stage::RateLimit, 1);
                hub.0.totals.lost(kind, Stage::RateLimit, 1);
                continue;
            }
            if encoded.is_empty() {
                // A vector grows: whether it has room is no question.
                event.encode_raw(encoded);
            }
            voice.push(kind, workload, encoded, name, hub);
            if voice.done {
                finished.push(voice.listener.id);
            }
        }
    }

    /// Keeps a row that the kernel added up for the next snapshots of those of `targets` whose filter it passes.
    pub fn add_up(&mut self, event: &v1::Event, workload: &Arc<v1::Workload>, targets: u64) {
        let Self { voices, hub, .. } = self;
        for (place, voice) in voices.iter_mut().enumerate() {
            let Some(voice) = voice.as_mut().filter(|_| targets & (1 << place) != 0) else {
                continue;
            };
            let Voice {
                listener,
                family,
                sums,
                done,
                ..
            } = &mut **voice;
            if *done || !listener.request.filter.matches(event, family) {
                continue;
            }
            if !sums.add(event, workload) {
                listener.books.lose(event.kind(), Stage::ClientQueue, 1);
                hub.0.totals.lost(event.kind(), Stage::ClientQueue, 1);
            }
        }
    }

    /// Sends the snapshots that are due.
    pub fn tell_sums(&mut self, now: Instant) {
        let Self {
            voices, finished, ..
        } = self;
        for voice in voices.iter_mut().flatten().filter(|voice| !voice.done) {
            if voice.sums.is_due(now) {
                voice.tell_sums(now, Room::Limited);
                if voice.done {
                    finished.push(voice.listener.id);
                }
            }
        }
    }

    /// Sends off what has gathered.
    pub fn flush(&mut self) {
        let Self { voices, hub, .. } = self;
        voices
            .iter_mut()
            .flatten()
            .for_each(|voice| voice.flush(hub));
    }

    /// Counts events that were lost before anyone could match them, for those who watch their slot.
    pub fn lose(&mut self, slot: u32, kind: v1::Kind, stage: Stage, count: u64) {
        self.hub.0.totals.lost(kind, stage, count);
        let watching = self.board.slots.listeners(slot);
        for (bit, listener) in self.board.listeners() {
            let hears = || match self.board.slots.pod(slot) {
                Some(pod) => self.board.hears(bit, listener, pod),
                // Whose of its pods it was, nobody knows.
                None => self.board.hears_at_all(bit, listener),
            };
            if watching & bit != 0 && hears().contains(kind) {
                listener.books.lose(kind, stage, count);
            }
        }
    }

    /// Counts events of that kind that nobody can attribute to a pod, for all who hear it.
    pub fn lose_everywhere(&self, kind: v1::Kind, stage: Stage, count: u64) {
        self.hub.lose_everywhere(kind, stage, count);
    }

    /// Counts a record of which nobody knows what it was: for everyone, as one event of each kind that they hear.
    pub fn lose_unread(&mut self) {
        let heard = self
            .board
            .listeners()
            .map(|(_, listener)| listener.request.heard);
        for kind in heard.reduce(Kinds::union).unwrap_or_default().iter() {
            self.hub.lose_everywhere(kind, Stage::Agent, 1);
        }
    }

    /// Tells each stream what has become known of workloads that its events named.
    pub fn workloads_changed(&mut self, lookup: impl Fn(u64) -> Option<Arc<v1::Workload>>) {
        for voice in self.voices.iter_mut().flatten() {
            let Voice {
                known, listener, ..
            } = &mut **voice;
            known.retain(|&cgroup_id, known| {
                let Some(now) = lookup(cgroup_id) else {
                    // Gone and forgotten: its id is not used again.
                    return false;
                };
                // Where there is no room now, the next event or the next change of a workload tries again.
                if **known == *now || listener.queue.update(update(&now)) {
                    *known = now;
                }
                true
            });
        }
    }

    /// Streams to end now, in addition to [`Command::Finish`], because they have got all that they asked for.
    pub fn take_finished(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.finished)
    }

    /// What was asked of the reader since the last call.
    pub fn commands(&mut self) -> Vec<Command> {
        self.commands.try_iter().collect()
    }

    /// Sends a stream its end. What came before is in its queue.
    pub fn finish(&mut self, id: u64, reason: EndReason) {
        let Self { voices, hub, .. } = self;
        let mut voices = voices.iter_mut().flatten();
        if let Some(voice) = voices.find(|voice| voice.listener.id == id) {
            voice.flush(hub);
            if !voice.done {
                // There is no next one that could tell of it.
                voice.tell_sums(Instant::now(), Room::Anyway);
            }
            voice.done = true;
            voice.listener.queue.end(reason);
        }
    }
}

/// Whether the queue's limit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Limited,
    /// What must be told now or never, and is bounded otherwise.
    Anyway,
}

impl Voice {
    /// Makes the stream know the workload. `false` if it must, and there is no room to tell it.
    fn introduce(&mut self, workload: &Arc<v1::Workload>, room: Room) -> bool {
        let Self {
            listener, known, ..
        } = self;
        let by_reference = listener.request.by_reference;
        let before = known.get(&workload.cgroup_id);
        if before.is_some_and(|before| Arc::ptr_eq(before, workload)) {
            return true;
        }
        let news = before.map_or(by_reference, |before| **before != **workload);
        let told = |queue: &super::subscription::Queue| match room {
            Room::Limited => queue.update(update(workload)),
            Room::Anyway => {
                queue.update_anyway(update(workload));
                true
            }
        };
        if news && !told(&listener.queue) {
            // The next event, or the next change of a workload, tries again.
            return !by_reference;
        }
        known.insert(workload.cgroup_id, workload.clone());
        true
    }

    fn push(
        &mut self,
        kind: v1::Kind,
        workload: &Arc<v1::Workload>,
        event: &[u8],
        name: &[u8],
        hub: &Hub,
    ) {
        if !self.introduce(workload, Room::Limited) {
            // An event by reference whose workload cannot be told is worth nothing, and the queue is full anyway.
            self.flush(hub);
            return self.lose(kind, hub);
        }
        let Self {
            listener,
            batch,
            next_sequence,
            remaining,
            ..
        } = self;
        if batch.events == 0 {
            batch.first_sequence = *next_sequence;
        }
        *next_sequence += 1;
        batch.events += 1;
        batch.counts[kind as usize % KINDS] += 1;
        let name = if listener.request.by_reference {
            &[]
        } else {
            name
        };
        /// `repeated Event events = 2` of EventBatch.
        const EVENTS: u32 = 2;
        encoding::encode_key(
            EVENTS,
            encoding::WireType::LengthDelimited,
            &mut batch.bytes,
        );
        encoding::encode_varint((event.len() + name.len()) as u64, &mut batch.bytes);
        batch.bytes.put_slice(event);
        batch.bytes.put_slice(name);
        let whole = remaining.is_some_and(|remaining| batch.events >= remaining);
        if whole || batch.bytes.len() >= listener.queue.part(BATCH_BYTES) {
            self.flush(hub);
        }
    }

    /// Sends a snapshot, if the stream asked for a kind that is told so. Where there is no room for it, the next one will tell of both.
    fn tell_sums(&mut self, now: Instant, room: Room) {
        let (start, rows) = self.sums.rows();
        let workloads: Vec<Arc<v1::Workload>> = rows.map(|row| row.workload.clone()).collect();
        if !self.listener.request.kinds.iter().any(is_snapshot)
            || !workloads
                .iter()
                .all(|workload| self.introduce(workload, room))
        {
            return;
        }
        let Self {
            listener,
            sums,
            remaining,
            done,
            ..
        } = self;
        let end = SystemTime::now();
        let by_reference = listener.request.by_reference;
        let mut counts = [0u64; KINDS];
        let events = sums.rows().1.map(|row| {
            counts[row.event.kind as usize % KINDS] += 1;
            v1::Event {
                time: Some(end.into()),
                workload: (!by_reference).then(|| name_of(&row.workload)),
                ..row.event.clone()
            }
        });
        let snapshot = v1::Snapshot {
            start: Some(start.into()),
            end: Some(end.into()),
            events: events.collect(),
        };
        let rows = snapshot.events.len() as u64;
        let bytes = v1::SubscribeResponse {
            message: Some(v1::subscribe_response::Message::Snapshot(snapshot)),
        }
        .encode_to_vec();
        let kinds = listener.request.kinds.iter();
        let counts: Vec<(v1::Kind, u64)> = kinds
            .map(|kind| (kind, counts[kind as usize % KINDS]))
            .filter(|&(_, count)| count > 0)
            .collect();
        let size = bytes.len() as u64;
        match room {
            Room::Limited if !listener.queue.reserve_or_idle(size) => return,
            Room::Limited => {}
            Room::Anyway => listener.queue.take(size),
        }
        for &(kind, count) in &counts {
            listener.books.matched(kind, count);
        }
        listener.queue.send(Item::Batch {
            bytes: bytes.into(),
            counts,
        });
        sums.begin_next(end, now);
        if let Some(remaining) = remaining {
            *remaining = remaining.saturating_sub(rows);
            *done = *remaining == 0;
        }
    }

    /// Counts an event that finds no room in the queue. What came before must have been flushed: numbers go up.
    fn lose(&mut self, kind: v1::Kind, hub: &Hub) {
        let (books, sequence) = (&self.listener.books, self.next_sequence);
        self.next_sequence += 1;
        books.matched(kind, 1);
        books.lose_queued(kind, 1, sequence, sequence);
        hub.0.totals.lost(kind, Stage::ClientQueue, 1);
    }

    fn flush(&mut self, hub: &Hub) {
        if self.batch.events == 0 {
            return;
        }
        let Self {
            listener,
            batch,
            remaining,
            done,
            ..
        } = self;
        let &mut Batch {
            first_sequence,
            events,
            ..
        } = batch;
        let last_sequence = first_sequence + events - 1;
        let counts: Vec<(v1::Kind, u64)> = listener
            .request
            .kinds
            .iter()
            .map(|kind| (kind, u64::from(batch.counts[kind as usize % KINDS])))
            .filter(|&(_, count)| count > 0)
            .collect();
        for &(kind, count) in &counts {
            listener.books.matched(kind, count);
        }
        let pushed = listener.queue.push(batch.message(), counts);
        batch.clear();
        match pushed {
            Ok(()) => {
                if let Some(remaining) = remaining {
                    *remaining = remaining.saturating_sub(events);
                    *done = *remaining == 0;
                }
            }
            Err(counts) => {
                for (kind, count) in counts {
                    listener
                        .books
                        .lose_queued(kind, count, first_sequence, last_sequence);
                    hub.0.totals.lost(kind, Stage::ClientQueue, count);
                }
            }
        }
    }
}

/// An Event's field `workload`, encoded once for each workload and put behind each of its events.
pub fn encode_name(workload: &v1::Workload) -> Vec<u8> {
    /// `WorkloadName workload = 4` of Event.
    const WORKLOAD: u32 = 4;
    let name = name_of(workload);
    let mut bytes = Vec::new();
    encoding::message::encode(WORKLOAD, &name, &mut bytes);
    bytes
}

fn name_of(workload: &v1::Workload) -> v1::WorkloadName {
    let v1::Workload {
        node,
        namespace,
        pod,
        container,
        state,
        ..
    } = workload;
    v1::WorkloadName {
        node: node.clone(),
        namespace: namespace.clone(),
        pod: pod.clone(),
        container: container.clone(),
        state: *state,
    }
}

/// Whether a kind is told in snapshots.
pub(super) fn is_snapshot(kind: v1::Kind) -> bool {
    match kind {
        v1::Kind::BlockLatency | v1::Kind::DropCount => true,
        v1::Kind::Unspecified
        | v1::Kind::Exec
        | v1::Kind::Exit
        | v1::Kind::Fork
        | v1::Kind::FileOpen
        | v1::Kind::FileDelete
        | v1::Kind::TcpSession
        | v1::Kind::TcpConnect
        | v1::Kind::TcpReset
        | v1::Kind::TcpRetransmit
        | v1::Kind::BlockIo
        | v1::Kind::Drop => false,
    }
}

fn update(workload: &v1::Workload) -> v1::subscribe_response::Message {
    v1::subscribe_response::Message::Workload(v1::WorkloadUpdate {
        workload: Some(workload.clone()),
    })
}

impl super::subscription::Queue {
    /// What waits takes as much memory as is said, and no more: it is copied once there is room for it.
    fn push(
        &self,
        message: &[u8],
        counts: Vec<(v1::Kind, u64)>,
    ) -> Result<(), Vec<(v1::Kind, u64)>> {
        if !self.reserve(message.len() as u64) {
            return Err(counts);
        }
        let bytes = Bytes::copy_from_slice(message);
        self.send(Item::Batch { bytes, counts });
        Ok(())
    }
}
