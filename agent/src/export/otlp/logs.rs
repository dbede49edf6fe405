//! Events as log records: each with its kind as its name, what the conventions know of it as attributes, and all of its detail as its body.

use std::{
    collections::{HashMap, VecDeque},
    time::SystemTime,
};

use dinle_proto::v1::{self, subscribe_response::Message};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use prost::Message as _;

use super::{SCHEMA, attributes, client::Client, nanos, scope};
use crate::{
    export::{
        Context,
        config::OtlpSink,
        counters::Cause,
        sink::{Failure, Sent, Unwritable, each},
    },
    json::Schema,
    workload::Index,
};

/// Records in one request…
const BATCH: u64 = 512;
/// …and bytes of them, after which it is closed. Collectors take 4 MiB.
const BATCH_BYTES: usize = 1 << 20;

/// Whose events they are.
#[derive(PartialEq, Eq, Hash)]
struct Who(u64, String, String, String);

/// Sends events.
pub(crate) struct Logs {
    client: Client,
    event: Schema,
    index: Index,
    node: String,
    /// Requests, the last of which is not full yet.
    batches: VecDeque<Batch>,
    /// What the collector has taken of those before them.
    done: Sent,
}

#[derive(Default)]
struct Batch {
    logs: HashMap<Who, ResourceLogs>,
    events: u64,
    /// Without what is around them, which is little.
    bytes: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.events >= BATCH || self.bytes >= BATCH_BYTES
    }
}

impl Logs {
    pub(crate) fn new(sink: OtlpSink, context: &Context) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::new(sink),
            event: Schema::of("Event")?,
            index: context.index.clone(),
            node: context.node.clone(),
            batches: VecDeque::new(),
            done: Sent::default(),
        })
    }

    pub(crate) fn take(&mut self, message: Message) -> Result<(), Unwritable> {
        let events = match message {
            Message::Batch(batch) => batch.events,
            Message::Snapshot(snapshot) => snapshot.events,
            Message::Plan(_) | Message::Loss(_) | Message::Workload(_) | Message::Heartbeat(_) => {
                return Ok(());
            }
        };
        each(&events, |event| {
            let record = self.record(event)?;
            let nobody = v1::WorkloadName::default();
            let name = event.workload.as_ref().unwrap_or(&nobody);
            let who = Who(
                event.cgroup_id,
                name.namespace.clone(),
                name.pod.clone(),
                name.container.clone(),
            );
            let (node, index) = (&self.node, &self.index);
            if self.batches.back().is_none_or(Batch::is_full) {
                self.batches.push_back(Batch::default());
            }
            let Some(batch) = self.batches.back_mut() else {
                return Ok(());
            };
            batch.events += 1;
            batch.bytes += record.encoded_len();
            let logs = batch.logs.entry(who).or_insert_with(|| {
                let known = index.get(event.cgroup_id);
                let logs = ResourceLogs {
                    resource: Some(Resource {
                        attributes: attributes::resource(node, name, known.as_deref()).0,
                        ..Resource::default()
                    }),
                    scope_logs: vec![ScopeLogs {
                        scope: Some(scope()),
                        schema_url: SCHEMA.to_owned(),
                        ..ScopeLogs::default()
                    }],
                    schema_url: SCHEMA.to_owned(),
                };
                batch.bytes += logs.encoded_len();
                logs
            });
            logs.scope_logs[0].log_records.push(record);
            Ok(())
        })
    }

    fn record(&self, event: &v1::Event) -> anyhow::Result<LogRecord> {
        let time = event.time.and_then(|time| SystemTime::try_from(time).ok());
        // The detail is the field that has the kind's name, in the JSON form.
        let serde_json::Value::Object(mut fields) = self.event.value(event)? else {
            anyhow::bail!("an event is no object");
        };
        for known in [
            "time", "kind", "cgroupId", "workload", "process", "redacted",
        ] {
            fields.remove(known);
        }
        let body = fields
            .into_iter()
            .next()
            .map(|(_, detail)| attributes::value(detail));
        Ok(LogRecord {
            time_unix_nano: time.map_or(0, nanos),
            observed_time_unix_nano: nanos(SystemTime::now()),
            severity_number: SeverityNumber::Info.into(),
            severity_text: "INFO".to_owned(),
            body,
            attributes: attributes::event(event).0,
            event_name: format!("dinle.{}", event.kind().name()),
            ..LogRecord::default()
        })
    }

    pub(crate) fn is_full(&self) -> bool {
        self.batches.front().is_some_and(Batch::is_full)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(crate) async fn send(&mut self) -> Result<Sent, Failure> {
        while let Some(batch) = self.batches.front() {
            let request = ExportLogsServiceRequest {
                resource_logs: batch.logs.values().cloned().collect(),
            };
            let bytes = request.encoded_len() as u64;
            let refused = self.client.logs(request).await?;
            self.done.events += batch.events;
            self.done.bytes += bytes;
            if let Some((count, problem)) = refused {
                let refused = (Cause::Refused, count.min(batch.events), problem);
                self.done.refused.push(refused);
            }
            self.batches.pop_front();
        }
        Ok(std::mem::take(&mut self.done))
    }

    /// Gives up the first request, or everything. Returns how many events those are, and what the collector has taken before.
    pub(crate) fn discard(&mut self, everything: bool) -> (u64, Sent) {
        let count = match everything {
            true => self.batches.len(),
            false => self.batches.len().min(1),
        };
        let left = self.batches.drain(..count).map(|batch| batch.events).sum();
        (left, std::mem::take(&mut self.done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        export::{Receiver, parse},
        filter::Limits,
    };

    fn logs() -> Logs {
        let text = "exporters:\n- name: a\n  kinds: [exec]\n  otlp: {endpoint: 'http://c:4317'}\n";
        let specs = parse(text, &Limits::default()).expect("a good file");
        let Receiver::Otlp(sink) = specs[0].receiver.clone() else {
            panic!("{specs:?}")
        };
        Logs {
            client: Client::new(sink),
            event: Schema::of("Event").expect("a schema"),
            index: Index::new("n"),
            node: "n".to_owned(),
            batches: VecDeque::new(),
            done: Sent::default(),
        }
    }

    fn message(count: usize, bytes: usize) -> Message {
        let exec = v1::Exec {
            args: vec!["x".repeat(bytes)],
            ..v1::Exec::default()
        };
        let event = v1::Event {
            kind: v1::Kind::Exec.into(),
            detail: Some(v1::event::Detail::Exec(exec)),
            ..v1::Event::default()
        };
        Message::Batch(v1::EventBatch {
            events: vec![event; count],
            ..v1::EventBatch::default()
        })
    }

    #[test]
    fn a_request_is_bounded_by_its_records_and_by_its_bytes() {
        let mut logs = logs();
        logs.take(message(1000, 10)).expect("events");
        let sizes =
            |logs: &Logs| -> Vec<u64> { logs.batches.iter().map(|batch| batch.events).collect() };
        assert_eq!(sizes(&logs), [512, 488]);
        logs.discard(true);
        // Each record has its arguments twice: as an attribute and in its body.
        logs.take(message(300, 10_000)).expect("events");
        assert!(logs.is_full());
        assert_eq!(sizes(&logs).iter().sum::<u64>(), 300);
        for batch in &logs.batches {
            let request = ExportLogsServiceRequest {
                resource_logs: batch.logs.values().cloned().collect(),
            };
            assert!(request.encoded_len() < BATCH_BYTES + 30_000);
        }
    }

    #[test]
    fn a_request_that_is_given_up_takes_no_other_with_it() {
        let mut logs = logs();
        logs.take(message(1000, 10)).expect("events");
        assert_eq!(logs.discard(false).0, 512);
        assert_eq!(logs.discard(true).0, 488);
    }
}
