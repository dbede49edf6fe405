//! The books: for every stream and kind, `matched` = `delivered` + `queued` + `lost`.

use std::sync::atomic::{AtomicU64, Ordering};

use dinle_proto::v1::{self, LossStage};

use super::KINDS;
use crate::filter::Kinds;

/// Where an event can get lost. The contract's enum without its zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The ring was full.
    KernelRing,
    /// A program was skipped because it already ran on that CPU.
    KernelSkipped,
    /// The agent could not make sense of a record.
    Agent,
    /// The client reads too slowly.
    ClientQueue,
    /// A table of the kernel's was full.
    KernelTable,
    /// There were more than the stream's rate limit allows.
    RateLimit,
    /// They were sent into a connection that broke, and were gone when the stream was resumed.
    Connection,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::KernelRing,
        Self::KernelSkipped,
        Self::Agent,
        Self::ClientQueue,
        Self::KernelTable,
        Self::RateLimit,
        Self::Connection,
    ];

    /// The contract's name.
    pub const fn proto(self) -> LossStage {
        match self {
            Self::KernelRing => LossStage::KernelRing,
            Self::KernelSkipped => LossStage::KernelSkipped,
            Self::Agent => LossStage::Agent,
            Self::ClientQueue => LossStage::ClientQueue,
            Self::KernelTable => LossStage::KernelTable,
            Self::RateLimit => LossStage::RateLimit,
            Self::Connection => LossStage::Connection,
        }
    }

    /// What metrics call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KernelRing => "kernel_ring",
            Self::KernelSkipped => "kernel_skipped",
            Self::Agent => "agent",
            Self::ClientQueue => "client_queue",
            Self::KernelTable => "kernel_table",
            Self::RateLimit => "rate_limit",
            Self::Connection => "connection",
        }
    }
}

#[derive(Debug, Default)]
struct Page {
    matched: AtomicU64,
    delivered: AtomicU64,
    lost: [AtomicU64; Stage::ALL.len()],
    /// Sequence numbers of the first and last event lost in the queue since a Loss told of some; 0: none.
    first_lost: AtomicU64,
    last_lost: AtomicU64,
}

/// One stream's books. The reader counts what matched and what was lost, the stream what was delivered.
#[derive(Debug)]
pub(super) struct Books(Box<[Page; KINDS]>);

impl Default for Books {
    fn default() -> Self {
        Self(Box::new(std::array::from_fn(|_| Page::default())))
    }
}

impl Books {
    fn page(&self, kind: v1::Kind) -> &Page {
        &self.0[kind as usize % KINDS]
    }

    pub(super) fn matched(&self, kind: v1::Kind, count: u64) {
        self.page(kind).matched.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn delivered(&self, kind: v1::Kind, count: u64) {
        self.page(kind)
            .delivered
            .fetch_add(count, Ordering::Relaxed);
    }

    /// Events that were counted as delivered, and were not.
    pub(super) fn undeliver(&self, kind: v1::Kind, count: u64) {
        let page = self.page(kind);
        page.delivered.fetch_sub(count, Ordering::Relaxed);
        page.lost[Stage::Connection as usize].fetch_add(count, Ordering::Release);
    }

    /// Events that nobody could number: they matched, as far as anyone can tell, and are lost.
    pub(super) fn lose(&self, kind: v1::Kind, stage: Stage, count: u64) {
        let page = self.page(kind);
        page.matched.fetch_add(count, Ordering::Relaxed);
        page.lost[stage as usize].fetch_add(count, Ordering::Release);
    }

    /// Events that were counted as matched, and found no room in the queue.
    pub(super) fn lose_queued(&self, kind: v1::Kind, count: u64, first: u64, last: u64) {
        let page = self.page(kind);
        _ = page
            .first_lost
            .compare_exchange(0, first, Ordering::Relaxed, Ordering::Relaxed);
        page.last_lost.store(last, Ordering::Relaxed);
        page.lost[Stage::ClientQueue as usize].fetch_add(count, Ordering::Release);
    }

    pub(super) fn lost(&self, kind: v1::Kind, stage: Stage) -> u64 {
        self.page(kind).lost[stage as usize].load(Ordering::Acquire)
    }

    /// The range of sequence numbers lost since the last call.
    pub(super) fn take_lost_range(&self, kind: v1::Kind) -> (u64, u64) {
        let page = self.page(kind);
        let last = page.last_lost.load(Ordering::Relaxed);
        (page.first_lost.swap(0, Ordering::Relaxed), last)
    }

    /// For the contract. `matched` is read last: what comes between counts as queued, for the moment.
    /// Of kinds that are only `heard`, not asked for, what was lost is told.
    pub(super) fn tell(&self, kinds: Kinds, heard: Kinds) -> Vec<v1::KindBooks> {
        let tell = |kind: v1::Kind| {
            let page = self.page(kind);
            let lost = Stage::ALL.map(|stage| (stage, self.lost(kind, stage)));
            let delivered = page.delivered.load(Ordering::Relaxed);
            let matched = page.matched.load(Ordering::Relaxed);
            let gone: u64 = lost.iter().map(|(_, count)| count).sum();
            v1::KindBooks {
                kind: kind.into(),
                matched,
                delivered,
                queued: matched.saturating_sub(delivered + gone),
                lost: lost
                    .into_iter()
                    .filter(|&(_, count)| count > 0)
                    .map(|(stage, count)| v1::StageLoss {
                        stage: stage.proto().into(),
                        count,
                    })
                    .collect(),
                ..v1::KindBooks::default()
            }
        };
        let told = |books: &v1::KindBooks| kinds.contains(books.kind()) || !books.lost.is_empty();
        heard.iter().map(tell).filter(told).collect()
    }
}

/// Counts of the whole node, for metrics and status.
#[derive(Debug)]
pub struct Totals {
    delivered: Box<[AtomicU64; KINDS]>,
    lost: Box<[[AtomicU64; Stage::ALL.len()]; KINDS]>,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            delivered: Box::new(std::array::from_fn(|_| AtomicU64::new(0))),
            lost: Box::new(std::array::from_fn(|_| Default::default())),
        }
    }
}

impl Totals {
    pub(super) fn delivered(&self, kind: v1::Kind, count: u64) {
        self.delivered[kind as usize % KINDS].fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn lost(&self, kind: v1::Kind, stage: Stage, count: u64) {
        self.lost[kind as usize % KINDS][stage as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Events that were sent to subscribers, each as often as it was sent.
    pub fn deliveries(&self, kind: v1::Kind) -> u64 {
        self.delivered[kind as usize % KINDS].load(Ordering::Relaxed)
    }

    /// Events that were lost.
    pub fn losses(&self, kind: v1::Kind, stage: Stage) -> u64 {
        self.lost[kind as usize % KINDS][stage as usize].load(Ordering::Relaxed)
    }
}
