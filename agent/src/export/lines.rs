//! JSON lines, as `dinle watch -o json` prints them: to standard output, or to a file.

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use dinle_proto::v1::{self, subscribe_response::Message};
use tokio::{sync::Mutex, task::spawn_blocking};

use super::{
    counters::Cause,
    rotate::Rotated,
    run::{Failure, Sent, Unwritable, each},
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
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines)?;
                out.flush()
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
    events: u64,
}

impl Lines {
    pub(super) fn new(out: Out, raw: bool) -> anyhow::Result<Self> {
        Ok(Self {
            out: Arc::new(Mutex::new(out)),
            event: Schema::of("Event")?,
            raw: raw.then(|| Schema::of("SubscribeResponse")).transpose()?,
            batch: Vec::new(),
            events: 0,
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
            events: taken,
            ..
        } = self;
        if let Some(raw) = raw {
            let events = events.len() as u64;
            let message = Some(message);
            whole(batch, |batch| {
                raw.line(&v1::SubscribeResponse { message }, batch)
            })
            .map_err(|error| Unwritable { events, error })?;
            *taken += events;
            return Ok(());
        }
        each(events, |event| {
            whole(batch, |batch| schema.line(event, batch))?;
            *taken += 1;
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
            let result = out.write(&batch);
            (batch, result)
        });
        let (batch, result) = written
            .await
            .map_err(|error| Failure::never(Cause::Io, error.to_string()))?;
        match result {
            Ok(()) => Ok(Sent {
                events: std::mem::take(&mut self.events),
                bytes: batch.len() as u64,
                refused: Vec::new(),
            }),
            Err(error) => {
                self.batch = batch;
                let full = matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
                let cause = if full { Cause::NoSpace } else { Cause::Io };
                Err(Failure::later(cause, error.to_string()))
            }
        }
    }

    /// Gives up what it has. Returns how many events that is; none of them was taken.
    pub(super) fn discard(&mut self) -> u64 {
        self.batch.clear();
        std::mem::take(&mut self.events)
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

/// Adds a line, or nothing of it.
fn whole(
    batch: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let before = batch.len();
    write(batch).inspect_err(|_| batch.truncate(before))
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
}
