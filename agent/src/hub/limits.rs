//! How many streams there may be, and how much may wait for them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use dinle_proto::v1;

use super::{LISTENERS_MAX, Listener};
use crate::filter::Bound;

/// What all streams together may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams at a time, at most [`LISTENERS_MAX`].
    pub streams: usize,
    /// Streams at a time of one user, where users are known: by a certificate, or at a Unix socket.
    pub streams_per_user: usize,
    /// Sum of the queues, in bytes, all full.
    pub queue_bytes: u64,
}

impl Limits {
    /// So many of the default size that a memory limit of 256 MiB holds them, each with what the connection buffers (7 MiB in all,
    /// measured) and the agent itself.
    pub const QUEUE_BYTES: u64 = 96 << 20;
    /// A user who needs more than this has left some open.
    pub const STREAMS_PER_USER: usize = 16;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: LISTENERS_MAX,
            streams_per_user: Self::STREAMS_PER_USER,
            queue_bytes: Self::QUEUE_BYTES,
        }
    }
}

/// No room for another stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Too many streams.
    #[error(
        "{0} streams are open already, which is the limit; end one of them, or raise the agent's --max-streams (at most {LISTENERS_MAX})"
    )]
    Streams(usize),
    /// Too many of this user.
    #[error(
        "{user} has {open} streams open already, which is the limit; end one of them, or raise the agent's --max-streams-per-user"
    )]
    User {
        /// By which the agent knows them.
        user: String,
        /// How many those are.
        open: usize,
    },
    /// Too large a queue.
    #[error(
        "a queue of {asked} bytes does not fit beside those of {open} other streams, of which {taken} of {limit} bytes are taken; ask for a \
         smaller one in queue_bytes (--queue-bytes), end a stream, or raise the agent's --max-queue-bytes"
    )]
    QueueBytes {
        /// The size that was asked for.
        asked: u64,
        /// Streams that are open.
        open: usize,
        /// Sum of their queues' sizes.
        taken: u64,
        /// The limit.
        limit: u64,
    },
}

/// How often a limit kept somebody out: for want of room, or since nothing so large is allowed.
#[derive(Debug, Default)]
pub struct Refusals {
    streams: AtomicU64,
    streams_per_user: AtomicU64,
    queue_bytes: AtomicU64,
    events_per_second: AtomicU64,
    filter: AtomicU64,
    request_bytes: AtomicU64,
}

impl Refusals {
    /// By the limit's name.
    pub fn counts(&self) -> [(&'static str, u64); 6] {
        let Self {
            streams,
            streams_per_user,
            queue_bytes,
            events_per_second,
            filter,
            request_bytes,
        } = self;
        [
            ("streams", streams),
            ("streams_per_user", streams_per_user),
            ("queue_bytes", queue_bytes),
            ("events_per_second", events_per_second),
            ("filter", filter),
            ("request_bytes", request_bytes),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// A request that would not fit if it were alone.
    pub fn beyond(&self, bound: Bound) {
        let count = match bound {
            Bound::QueueBytes => &self.queue_bytes,
            Bound::EventsPerSecond => &self.events_per_second,
            Bound::Filter => &self.filter,
            Bound::RequestBytes => &self.request_bytes,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, full: &Full) {
        let count = match full {
            Full::Streams(_) => &self.streams,
            Full::User { .. } => &self.streams_per_user,
            Full::QueueBytes { .. } => &self.queue_bytes,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sum of the queues' sizes, in bytes.
pub(super) fn queue_bytes<'a>(open: impl Iterator<Item = &'a Arc<Listener>>) -> u64 {
    open.map(|listener| listener.request.queue_bytes).sum()
}

/// Refuses a stream for which there is no room beside those that are open.
pub(super) fn check(
    limits: &Limits,
    refusals: &Refusals,
    open: &[Option<Arc<Listener>>],
    new: &Listener,
) -> Result<(), Full> {
    let open = || open.iter().flatten();
    let count = open().count();
    let refuse = |full: Full| {
        refusals.count(&full);
        Err(full)
    };
    if count >= limits.streams {
        return refuse(Full::Streams(count));
    }
    if let Some(user) = user(&new.caller) {
        let same = |listener: &&Arc<Listener>| self::user(&listener.caller) == Some(user);
        let own = open().filter(same).count();
        if own >= limits.streams_per_user {
            let user = user.to_owned();
            return refuse(Full::User { user, open: own });
        }
    }
    let (taken, asked) = (queue_bytes(open()), new.request.queue_bytes);
    if taken.saturating_add(asked) > limits.queue_bytes {
        return refuse(Full::QueueBytes {
            asked,
            open: count,
            taken,
            limit: limits.queue_bytes,
        });
    }
    Ok(())
}

/// By what the agent knows a caller: whoever comes through a port-forward is known to the API server alone.
fn user(caller: &v1::Caller) -> Option<&str> {
    match &*caller.user {
        "" => Some(&*caller.peer).filter(|peer| peer.starts_with("unix:")),
        user => Some(user),
    }
}
