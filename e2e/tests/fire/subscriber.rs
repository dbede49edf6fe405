//! Subscribers that count what they are sent, at little cost: they look at an event's kind, and skip the rest.

use std::{collections::BTreeMap, net::SocketAddr, thread, time::Duration};

use bytes::{Buf, BufMut};
use dinle_e2e::{patience::patience, stream::Book};
use dinle_proto::v1::{
    EndReason, Heartbeat, Kind, LossStage, SubscribeRequest, event::Detail,
    subscribe_response::Message as Told,
};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use tokio::{
    runtime::Builder,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout_at},
};
use tonic::{
    Request, Status, client::Grpc, codec::Streaming, codegen::http::uri::PathAndQuery,
    transport::Endpoint,
};
use tonic_prost::ProstCodec;

use super::producer::Counts;

/// How fast it reads, until it is told that everything has happened. Then it reads the rest at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As fast as it can.
    AtOnce,
    /// A few hundred messages a second.
    Slowly,
    /// Much, then nothing for a while.
    InBursts,
    /// Not at all.
    Hardly,
}

impl Pace {
    pub(crate) const ALL: [Self; 4] = [Self::AtOnce, Self::Slowly, Self::InBursts, Self::Hardly];
}

/// What one of them was told.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) pace: Pace,
    /// Events that came. Of kinds that the kernel adds up: occurrences.
    pub(crate) came: Counts,
    /// Events and rows that came, as the books count them.
    pub(crate) delivered: Counts,
    /// What the Loss messages said.
    pub(crate) told_lost: BTreeMap<(Kind, LossStage), u64>,
    /// Sequence numbers that were left out.
    pub(crate) skipped: u64,
    /// The last heartbeat.
    pub(crate) heartbeat: Heartbeat,
    next_sequence: u64,
}

impl Account {
    fn new(pace: Pace) -> Self {
        Self {
            pace,
            came: Counts::new(),
            delivered: Counts::new(),
            told_lost: BTreeMap::new(),
            skipped: 0,
            heartbeat: Heartbeat::default(),
            next_sequence: 1,
        }
    }

    pub(crate) fn book(&self, kind: Kind) -> Book {
        Book::of(&self.heartbeat.books, kind)
    }

    fn take(&mut self, said: Said) {
        let Said {
            counts,
            first,
            told,
        } = said;
        let events: u64 = counts.values().sum();
        if events > 0 {
            assert!(first >= self.next_sequence, "numbers only grow");
            self.skipped += first - self.next_sequence;
            self.next_sequence = first + events;
        }
        for (kind, count) in counts {
            *self.came.entry(kind).or_default() += count;
            *self.delivered.entry(kind).or_default() += count;
        }
        match told {
            Some(Told::Loss(loss)) => {
                let key = (loss.kind(), loss.stage());
                *self.told_lost.entry(key).or_default() += loss.count;
            }
            Some(Told::Heartbeat(heartbeat)) => {
                self.heartbeat = heartbeat;
                self.check_books();
            }
            Some(Told::Snapshot(snapshot)) => {
                for event in snapshot.events {
                    let kind = event.kind();
                    let count = match event.detail.unwrap() {
                        Detail::BlockLatency(row) => row.count,
                        Detail::DropCount(row) => row.count,
                        other => panic!("not told in snapshots: {other:?}"),
                    };
                    *self.came.entry(kind).or_default() += count;
                    *self.delivered.entry(kind).or_default() += 1;
                }
            }
            Some(Told::Plan(_) | Told::Workload(_) | Told::Batch(_)) | None => {}
        }
    }

    /// Books stand at every heartbeat, under whatever load.
    fn check_books(&self) {
        for books in &self.heartbeat.books {
            let got = self.delivered.get(&books.kind()).copied();
            assert_eq!(books.delivered, got.unwrap_or(0), "what came: {books:?}");
            assert!(books.matched >= books.delivered + books.queued, "{books:?}");
        }
    }

    /// Whether nothing more can come of what happened before that time.
    fn is_complete(&self, finish: &Finish) -> bool {
        let time = self.heartbeat.time.map(|time| (time.seconds, time.nanos));
        time.is_some_and(|time| time >= finish.time)
            && self.heartbeat.books.iter().all(|books| {
                let book = Book::of(&self.heartbeat.books, books.kind());
                let unsummed =
                    book.lost_at(LossStage::KernelTable) + book.lost_at(LossStage::KernelSkipped);
                let came = self.came.get(&books.kind()).copied().unwrap_or(0);
                books.queued == 0
                    && finish
                        .snapshots
                        .get(&books.kind())
                        .is_none_or(|count| came + unsummed >= *count)
            })
    }
}

/// Everything has happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finish {
    /// When, by the node's clock.
    pub(crate) time: (i64, i32),
    /// How much there was of kinds that are told when the next snapshot is due.
    pub(crate) snapshots: Counts,
}

/// One message, as far as it is looked at.
#[derive(Debug, Default)]
struct Said {
    counts: Counts,
    first: u64,
    told: Option<Told>,
}

/// `EventBatch batch = 2` of SubscribeResponse; `first_sequence = 1` and `events = 2` of EventBatch; `kind = 2` of Event.
const BATCH: u32 = 2;
const FIRST: u32 = 1;
const EVENTS: u32 = 2;
const KIND: u32 = 2;

impl Said {
    fn batch(&mut self, batch: &mut impl Buf) -> Result<(), DecodeError> {
        while batch.has_remaining() {
            match decode_key(batch)? {
                (FIRST, _) => self.first = decode_varint(batch)?,
                (EVENTS, _) => {
                    let len = decode_varint(batch)? as usize;
                    let mut event = batch.copy_to_bytes(len);
                    let kind = loop {
                        match decode_key(&mut event)? {
                            (KIND, _) => break decode_varint(&mut event)? as i32,
                            (tag, wire) => {
                                skip_field(wire, tag, &mut event, DecodeContext::default())?;
                            }
                        }
                    };
                    let kind = Kind::try_from(kind).expect("a kind that is known");
                    *self.counts.entry(kind).or_default() += 1;
                }
                (tag, wire) => skip_field(wire, tag, batch, DecodeContext::default())?,
            }
        }
        Ok(())
    }
}

impl Message for Said {
    fn encode_raw(&self, _: &mut impl BufMut) {}

    fn encoded_len(&self) -> usize {
        0
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag == BATCH {
            let len = decode_varint(buf)? as usize;
            return self.batch(&mut buf.copy_to_bytes(len));
        }
        Told::merge(&mut self.told, tag, wire, buf, context)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Many of them, on a thread of their own.
pub(crate) struct Subscribers {
    finish: watch::Sender<Option<Finish>>,
    thread: thread::JoinHandle<Vec<Account>>,
}

impl Subscribers {
    /// All have their plan when this comes back.
    pub(crate) fn start(
        address: SocketAddr,
        requests: impl Iterator<Item = (Pace, SubscribeRequest)>,
    ) -> Self {
        let (finish, finished) = watch::channel(None);
        let requests: Vec<_> = requests.collect();
        let (ready, mut are_ready) = mpsc::unbounded_channel();
        let expected = requests.len();
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut tasks = Vec::new();
                for (pace, request) in requests {
                    let (finished, ready) = (finished.clone(), ready.clone());
                    tasks.push(tokio::spawn(async move {
                        let stream = open(address, pace, request).await.expect("Subscribe");
                        run(stream, pace, finished, || _ = ready.send(())).await
                    }));
                }
                let mut accounts = Vec::new();
                for task in tasks {
                    accounts.push(task.await.expect("a subscriber"));
                }
                accounts
            })
        });
        for _ in 0..expected {
            are_ready.blocking_recv().expect("a subscriber begins");
        }
        Self { finish, thread }
    }

    /// Lets them read the rest.
    pub(crate) fn finish(self, finish: Finish) -> Vec<Account> {
        self.finish.send_replace(Some(finish));
        self.thread.join().expect("the subscribers")
    }
}

async fn open(
    address: SocketAddr,
    pace: Pace,
    request: SubscribeRequest,
) -> Result<Streaming<Said>, Status> {
    /// The least that HTTP/2 allows: what a slow reader has not read should wait at the agent.
    const SMALL: u32 = 65_535;
    let mut endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    if pace != Pace::AtOnce {
        endpoint = endpoint
            .initial_stream_window_size(SMALL)
            .initial_connection_window_size(SMALL);
    }
    let unavailable = |error: tonic::transport::Error| Status::unavailable(format!("{error:?}"));
    let mut client = Grpc::new(endpoint.connect().await.map_err(unavailable)?);
    client.ready().await.map_err(unavailable)?;
    let path = PathAndQuery::from_static("/dinle.v1.Observer/Subscribe");
    let codec = ProstCodec::<SubscribeRequest, Said>::default();
    let answer = client.server_streaming(Request::new(request), path, codec);
    Ok(answer.await?.into_inner())
}

async fn run(
    mut stream: Streaming<Said>,
    pace: Pace,
    mut finished: watch::Receiver<Option<Finish>>,
    ready: impl FnOnce(),
) -> Account {
    /// Between two messages.
    const SLOW: Duration = Duration::from_millis(5);
    /// After so many.
    const BURST: u64 = 256;
    const PAUSE: Duration = Duration::from_millis(500);
    let mut account = Account::new(pace);
    let plan = stream.message().await.expect("a plan").expect("a plan");
    assert!(matches!(plan.told, Some(Told::Plan(_))));
    ready();
    let mut messages = 0;
    while finished.borrow().is_none() {
        let pause = match pace {
            Pace::AtOnce => Duration::ZERO,
            Pace::Slowly => SLOW,
            Pace::InBursts if messages % BURST == 0 => PAUSE,
            Pace::InBursts => Duration::ZERO,
            Pace::Hardly => Duration::MAX,
        };
        let next = async {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            stream.message().await
        };
        tokio::select! {
            message = next => {
                messages += 1;
                account.take(message.expect("a message").expect("no end"));
            }
            _ = finished.changed() => {}
        }
    }
    let finish = finished.borrow().clone().unwrap_or_default();
    let deadline = Instant::now() + patience();
    while !account.is_complete(&finish) {
        let message = timeout_at(deadline, stream.message()).await;
        let message = message.unwrap_or_else(|_| panic!("never complete: {account:#?}"));
        account.take(message.expect("a message").expect("no end"));
    }
    assert_eq!(account.heartbeat.end(), EndReason::Unspecified);
    account
}
