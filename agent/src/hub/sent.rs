//! What was sent to a client that may resume its stream: whatever of it did not come is sent again.

use std::collections::VecDeque;

use dinle_proto::{Encoded, v1};

use super::Stage;
use crate::filter::Request;

/// Bytes that are kept of a stream at most: several seconds of a busy pod, in what networks hold back before a break is noticed.
const BYTES_MAX: u64 = 1 << 20;

/// Bytes that are kept of a stream, out of those of its queue.
pub(super) fn room(request: &Request) -> u64 {
    let Request {
        queue_bytes,
        resume_window,
        ..
    } = request;
    resume_window.map_or(0, |_| BYTES_MAX.min(queue_bytes / 4))
}

/// Messages of which it is known what they told: of more, nobody could say what is missing.
const MESSAGES_MAX: usize = 8192;

/// A message on its way to the client.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) message: Encoded,
    pub(super) tells: Tells,
}

/// What a message tells, as far as the books and later messages depend on it.
#[derive(Clone, Debug)]
pub(super) enum Tells {
    /// Something that is told again, or never needed.
    Nothing,
    /// Events, so many of each kind.
    Events(Vec<(v1::Kind, u64)>),
    /// Events that were lost.
    Loss(v1::Kind, Stage, u64),
    /// Of a workload, which later events may refer to.
    Workload,
    /// How the books stood.
    Books,
}

/// A stream cannot be resumed from there.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLate;

/// What was sent last, oldest first.
#[derive(Debug)]
pub(super) struct Sent {
    /// Bytes that are kept at most.
    room: u64,
    messages: VecDeque<Kept>,
    /// How many were sent before those.
    before: u64,
    /// Of all that are kept whole.
    bytes: u64,
    /// Those before are not kept whole any more, but for workloads.
    whole_from: usize,
}

#[derive(Debug)]
struct Kept {
    /// `None`: there was no room.
    message: Option<Encoded>,
    tells: Tells,
}

impl Sent {
    /// Nothing, with room for so many bytes.
    pub(super) fn new(room: u64) -> Self {
        Self {
            room,
            messages: VecDeque::new(),
            before: 0,
            bytes: 0,
            whole_from: 0,
        }
    }

    pub(super) fn push(&mut self, Outgoing { message, tells }: Outgoing) {
        self.bytes += message.0.len() as u64;
        self.messages.push_back(Kept {
            message: Some(message),
            tells,
        });
        while self.bytes > self.room
            && let Some(oldest) = self.messages.get_mut(self.whole_from)
        {
            self.whole_from += 1;
            if !matches!(oldest.tells, Tells::Workload)
                && let Some(message) = oldest.message.take()
            {
                self.bytes -= message.0.len() as u64;
            }
        }
        if self.messages.len() > MESSAGES_MAX {
            self.forget(1);
        }
    }

    /// Forgets the oldest.
    fn forget(&mut self, count: usize) {
        for Kept { message, .. } in self.messages.drain(..count) {
            self.bytes -= message.map_or(0, |message| message.0.len() as u64);
        }
        self.before += count as u64;
        self.whole_from = self.whole_from.saturating_sub(count);
    }

    /// What was sent beyond the first `received` messages, in order: each whole, or what it told. It has not been sent then.
    pub(super) fn beyond(
        &mut self,
        received: u64,
    ) -> Result<Vec<Result<Outgoing, Tells>>, TooLate> {
        let come = received.checked_sub(self.before).ok_or(TooLate)?;
        let come = usize::try_from(come).map_err(|_| TooLate)?;
        if come > self.messages.len() {
            return Err(TooLate);
        }
        self.forget(come);
        let kept = std::mem::take(&mut self.messages);
        (self.bytes, self.whole_from) = (0, 0);
        let each = kept
            .into_iter()
            .map(|Kept { message, tells }| match message {
                Some(message) => Ok(Outgoing { message, tells }),
                None => Err(tells),
            });
        Ok(each.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn batch(size: usize) -> Outgoing {
        Outgoing {
            message: Encoded(Bytes::from(vec![0; size])),
            tells: Tells::Events(vec![(v1::Kind::Exec, 1)]),
        }
    }

    fn whole(sent: &mut Sent, received: u64) -> Vec<bool> {
        let beyond = sent.beyond(received).expect("not too late");
        beyond.iter().map(Result::is_ok).collect()
    }

    #[test]
    fn what_did_not_come_is_there_as_far_as_there_was_room() {
        const THIRD: usize = BYTES_MAX as usize / 3;
        let mut sent = Sent::new(BYTES_MAX);
        for _ in 0..5 {
            sent.push(batch(THIRD));
        }
        assert_eq!(whole(&mut sent, 1), [false, true, true, true]);
        // They are sent again, and numbered anew.
        sent.push(batch(1));
        sent.push(batch(1));
        assert_eq!(sent.beyond(0).err(), Some(TooLate));
        assert_eq!(
            sent.beyond(4).err(),
            Some(TooLate),
            "so many were never sent"
        );
        assert_eq!(whole(&mut sent, 3), [] as [bool; 0]);
        sent.push(batch(1));
        assert_eq!(whole(&mut sent, 3), [true]);
    }

    #[test]
    fn workloads_are_kept_and_only_so_many_messages() {
        let mut sent = Sent::new(BYTES_MAX);
        sent.push(Outgoing {
            tells: Tells::Workload,
            ..batch(10)
        });
        sent.push(batch(BYTES_MAX as usize));
        sent.push(batch(BYTES_MAX as usize));
        assert_eq!(
            whole(&mut sent, 0),
            [true, false, false],
            "not even the last has room"
        );
        for _ in 0..MESSAGES_MAX + 5 {
            sent.push(batch(1));
        }
        assert_eq!(sent.beyond(4).err(), Some(TooLate));
        assert_eq!(whole(&mut sent, 5).len(), MESSAGES_MAX);
    }
}
