//! JSON lines, as `dinle watch -o json` prints them: to standard output, or to a file.

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    sync::Arc,
};

use dinle_proto::v1::{self, subscribe_response::Message};
use tokio::{sync::Mutex, task::spawn_blocking};

use super::{
    counters::Cause,
    rotate::Rotated,
    sink::{Failure, Sent, Unwritable, each},
};
use crate::json::Schema;

/// Lines are written together when they are so many bytes.
const BATCH_BYTES: usize = 256 << 10;

/// Where lines go.
pub(super) enum Out {
    Stdout,
    File(Rotated),
}

impl Out {
    /// Takes away what it has written.
    fn write(&mut self, lines: &mut &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines)?;
                out.flush()?;
                *lines = &[];
                Ok(())
            }
            Self::File(file) => file.write(lines),
        }
    }
}

/// Writes lines.
pub(super) struct Lines {
    /// A thread has it while it writes, also one that nobody waits for any more.
    out: Arc<Mutex<Out>>,
    event: Schema,
    /// Every message is a line.
    raw: Option<Schema>,
    batch: Vec<u8>,
    /// The lines of the batch: bytes of each, and how many events are in it.
    lines: VecDeque<(usize, u64)>,
    /// What was written of a batch before an error.
    done: Sent,
}

impl Lines {
    pub(super) fn new(out: Out, raw: bool) -> anyhow::Result<Self> {
        Ok(Self {
            out: Arc::new(Mutex::new(out)),
            event: Schema::of("Event")?,
            raw: raw.then(|| Schema::of("SubscribeResponse")).transpose()?,
            batch: Vec::new(),
            lines: VecDeque::new(),
            done: Sent::default(),
        })
    }

    /// Takes a message.
    pub(super) fn take(&mut self, message: Message) -> Result<(), Unwritable> {
        let events = match &message {
            Message::Batch(batch) => &batch.events[..],
            Message::Snapshot(snapshot) => &snapshot.events[..],
            Message::Plan(_) | Message::Loss(_) | Message::Workload(_) | Message::Heartbeat(_) => {
                &[]
            }
        };
        let Self {
            event: schema,
            raw,
            batch,
            lines,
            ..
        } = self;
        if let Some(raw) = raw {
            let events = events.len() as u64;
            let message = Some(message);
            let bytes = whole(batch, |batch| {
                raw.line(&v1::SubscribeResponse { message }, batch)
            })
            .map_err(|error| Unwritable { events, error })?;
            lines.push_back((bytes, events));
            return Ok(());
        }
        each(events, |event| {
            let bytes = whole(batch, |batch| schema.line(event, batch))?;
            lines.push_back((bytes, 1));
            Ok(())
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch.len() >= BATCH_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Writes what it has.
    pub(super) async fn send(&mut self) -> Result<Sent, Failure> {
        let mut out = self.out.clone().lock_owned().await;
        let batch = std::mem::take(&mut self.batch);
        // A disk may be slow, and a pipe may not be read at all.
        let written = spawn_blocking(move || {
            let mut left = batch.as_slice();
            let result = out.write(&mut left);
            let left = left.to_vec();
            (batch.len() - left.len(), left, result)
        });
        let (written, left, result) = written
            .await
            .map_err(|error| Failure::never(Cause::Io, error.to_string()))?;
        self.batch = left;
        self.wrote(written);
        result.map_err(|error| {
            let full = matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            );
            let cause = if full { Cause::NoSpace } else { Cause::Io };
            Failure::later(cause, error.to_string())
        })?;
        Ok(std::mem::take(&mut self.done))
    }

    /// Accounts for lines that are not in the batch any more.
    fn wrote(&mut self, mut bytes: usize) {
        self.done.bytes += bytes as u64;
        while let Some((line, events)) = self.lines.pop_front_if(|(line, _)| *line <= bytes) {
            bytes -= line;
            self.done.events += events;
        }
    }

    /// Gives up what it has. Returns how many events that is, and what was written of them before.
    pub(super) fn discard(&mut self) -> (u64, Sent) {
        self.batch.clear();
        let left = self.lines.drain(..).map(|(_, events)| events).sum();
        (left, std::mem::take(&mut self.done))
    }

    /// Now and then: a file that is old enough is changed for a new one.
    pub(super) async fn tick(&mut self) {
        let Ok(mut out) = self.out.clone().try_lock_owned() else {
            return;
        };
        if matches!(&*out, Out::File(file) if file.is_due()) {
            let turn = move || {
                if let Out::File(file) = &mut *out {
                    file.turn_if_due();
                }
            };
            // A panic was printed when it happened.
            _ = spawn_blocking(turn).await;
        }
    }
}

/// Adds a line, or nothing of it. Returns how long it is.
fn whole(
    batch: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let before = batch.len();
    write(batch).inspect_err(|_| batch.truncate(before))?;
    Ok(batch.len() - before)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::{
        export::{Receiver, parse},
        filter::Limits,
    };

    #[tokio::test]
    async fn a_write_that_was_given_up_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let text = format!(
            "exporters:\n- name: a\n  kinds: [exec]\n  file: {{path: {}}}\n",
            path.display()
        );
        let specs = parse(&text, &Limits::default()).expect("a good file");
        let Receiver::File(file) = specs[0].receiver.clone() else {
            panic!("{specs:?}")
        };
        let mut lines = Lines::new(Out::File(Rotated::new(file)), false).expect("a schema");
        let batch = v1::EventBatch {
            events: vec![v1::Event::default()],
            ..Default::default()
        };
        lines.take(Message::Batch(batch)).expect("a line");
        // Its thread still has the file.
        let held = lines.out.clone().try_lock_owned().expect("nobody else");
        let soon = timeout(Duration::from_millis(10), lines.send()).await;
        assert!(soon.is_err());
        drop(held);
        assert_eq!(lines.send().await.expect("written").events, 1);
        assert_eq!(
            std::fs::read_to_string(&path)
                .expect("a file")
                .lines()
                .count(),
            1
        );
    }

    #[test]
    fn what_was_written_before_an_error_counts_once() {
        let events = vec![v1::Event::default(); 3];
        let batch = v1::EventBatch {
            first_sequence: 1,
            events,
        };
        let mut lines = Lines::new(Out::Stdout, false).expect("a schema");
        let taken = lines.take(Message::Batch(batch));
        assert!(taken.is_ok() && lines.lines.len() == 3);
        let one = lines.batch.len() / 3;
        lines.batch.drain(..one);
        lines.wrote(one);
        let (left, done) = lines.discard();
        assert_eq!((left, done.events, done.bytes), (2, 1, one as u64));
        assert!(lines.is_empty());
        assert_eq!(lines.discard().0, 0);
    }
}
