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

use super::{SCHEMA, attributes, client::Client, nanos, scope};
use crate::{
    export::{
        Context,
        config::OtlpSink,
        run::{Failure, Sent},
    },
    json::Schema,
    workload::Index,
};

/// Records in one request: at some 2 KiB each, far below the 4 MiB that collectors take.
const BATCH: u64 = 512;

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

    pub(crate) fn take(&mut self, message: Message) -> anyhow::Result<()> {
        let events = match message {
            Message::Batch(batch) => batch.events,
            Message::Snapshot(snapshot) => snapshot.events,
            Message::Plan(_) | Message::Loss(_) | Message::Workload(_) | Message::Heartbeat(_) => {
                return Ok(());
            }
        };
        for event in &events {
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
            if self
                .batches
                .back()
                .is_none_or(|batch| batch.events >= BATCH)
            {
                self.batches.push_back(Batch::default());
            }
            let Some(batch) = self.batches.back_mut() else {
                continue;
            };
            batch.events += 1;
            let logs = batch.logs.entry(who).or_insert_with(|| {
                let known = index.get(event.cgroup_id);
                ResourceLogs {
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
                }
            });
            logs.scope_logs[0].log_records.push(record);
        }
        Ok(())
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
        self.batches
            .front()
            .is_some_and(|batch| batch.events >= BATCH)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(crate) async fn send(&mut self) -> Result<Sent, Failure> {
        while let Some(batch) = self.batches.front() {
            let request = ExportLogsServiceRequest {
                resource_logs: batch.logs.values().cloned().collect(),
            };
            let bytes = prost::Message::encoded_len(&request) as u64;
            let refused = self.client.logs(request).await?;
            self.done.events += batch.events;
            self.done.bytes += bytes;
            if let Some((count, problem)) = refused {
                let before = self.done.refused.take().map_or(0, |(before, _)| before);
                self.done.refused = Some((before + count, problem));
            }
            self.batches.pop_front();
        }
        Ok(std::mem::take(&mut self.done))
    }

    /// Gives up what it has. Returns how many events that is, and how many the collector has taken of them.
    pub(crate) fn discard(&mut self) -> (u64, u64) {
        let left = self.batches.drain(..).map(|batch| batch.events).sum();
        (left, std::mem::take(&mut self.done).events)
    }
}
