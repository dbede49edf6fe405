//! The file of exporters: read as a whole, and right as a whole, or nothing of it is taken.

mod receivers;
mod values;

use std::{collections::HashSet, fmt, path::PathBuf};

use dinle_proto::v1;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use crate::filter::{Kinds, Limits, Request};
pub use receivers::Receiver;
pub(super) use receivers::{
    Compression, FileSink, NatsSink, OtlpSink, Protocol, SeriesSink, Signal, Tls,
};
use receivers::{FileEntry, NatsEntry, OtlpEntry, SeriesEntry, StdoutEntry};
use values::{FilterValue, Size, Time};

/// More of them, and each event would be sent too often.
const EXPORTERS_MAX: usize = 16;
/// Of a name, which is a part of a user's name and of a path.
const NAME_MAX: usize = 40;
/// What an exporter's snapshots and reports are apart, where the user does not say: as often as somebody scrapes.
const INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);

/// What one exporter does.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// What it listens to.
    pub asked: v1::SubscribeRequest,
    /// Where that goes.
    pub receiver: Receiver,
}

/// One thing that is wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// From 1; 0: nowhere in particular.
    pub line: u64,
    /// From 1.
    pub column: u64,
    /// Such as `exporters[2].kinds`; empty for what is no YAML.
    pub field: String,
    /// What is wrong, and how to mend it.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.problem)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    exporters: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    kinds: Spanned<Vec<Spanned<String>>>,
    selector: Option<Spanned<SelectorEntry>>,
    filter: Option<Spanned<FilterValue>>,
    interval: Option<Spanned<Time>>,
    queue_bytes: Option<Spanned<Size>>,
    max_events_per_second: Option<Spanned<u32>>,
    stdout: Option<Spanned<StdoutEntry>>,
    file: Option<Spanned<FileEntry>>,
    otlp: Option<Spanned<OtlpEntry>>,
    prometheus: Option<Spanned<SeriesEntry>>,
    nats: Option<Spanned<NatsEntry>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SelectorEntry {
    namespaces: Vec<String>,
    pods: Vec<String>,
    labels: String,
    containers: Vec<String>,
    owners: Vec<String>,
    host: Host,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Host {
    #[default]
    Exclude,
    Include,
    Only,
}

impl SelectorEntry {
    fn selector(&self) -> v1::Selector {
        let host = match self.host {
            Host::Exclude => v1::HostProcesses::Unspecified,
            Host::Include => v1::HostProcesses::Include,
            Host::Only => v1::HostProcesses::Only,
        };
        v1::Selector {
            namespaces: self.namespaces.clone(),
            pods: self.pods.clone(),
            label_selector: self.labels.clone(),
            containers: self.containers.clone(),
            owners: self.owners.clone(),
            host_processes: host.into(),
        }
    }
}

/// Everything that is wrong, in the order of the file.
#[derive(Default)]
struct Mistakes(Vec<Mistake>);

impl Mistakes {
    fn add(&mut self, at: Location, field: String, problem: impl Into<String>) {
        self.0.push(Mistake {
            line: at.line(),
            column: at.column(),
            field,
            problem: problem.into(),
        });
    }
}

/// Reads a file's text. An error is everything that is wrong with it.
pub fn parse(text: &str, limits: &Limits) -> Result<Vec<Spec>, Vec<Mistake>> {
    if text.trim().is_empty() {
        return Err(vec![Mistake {
            line: 0,
            column: 0,
            field: String::new(),
            problem: "is empty; for no exporters write `exporters: []`".to_owned(),
        }]);
    }
    let document: Document = match serde_saphyr::from_str(text) {
        Ok(document) => document,
        Err(error) => {
            let (line, column) = error
                .location()
                .map_or((0, 0), |at| (at.line(), at.column()));
            // The place is told in one way here, and once.
            let mut problem = error.without_snippet().to_string();
            if let Some(end) = problem.find(&format!(" at line {line}, column {column}")) {
                problem.truncate(end);
            }
            return Err(vec![Mistake {
                line,
                column,
                field: String::new(),
                problem,
            }]);
        }
    };
    let mut mistakes = Mistakes::default();
    let mut specs: Vec<Spec> = Vec::new();
    let (mut names, mut files): (HashSet<String>, HashSet<PathBuf>) = Default::default();
    for (index, entry) in document.exporters.iter().enumerate() {
        let field = format!("exporters[{index}]");
        if index == EXPORTERS_MAX {
            mistakes.add(
                entry.defined,
                field,
                format!(
                    "is one too many: {EXPORTERS_MAX} are allowed; one can listen to several kinds"
                ),
            );
            break;
        }
        let spec = exporter(&entry.value, entry.defined, &field, limits, &mut mistakes);
        let name = &entry.value.name;
        if !names.insert(name.value.clone()) {
            mistakes.add(
                name.defined,
                format!("{field}.name"),
                format!(
                    "`{}` is the name of an exporter above: give each its own",
                    name.value
                ),
            );
        }
        if let Some(Receiver::File(file)) = spec.as_ref().map(|spec| &spec.receiver)
            && !files.insert(file.path.clone())
        {
            mistakes.add(
                entry.defined,
                format!("{field}.file.path"),
                format!(
                    "an exporter above writes to {}: give each its own file",
                    file.path.display()
                ),
            );
        }
        specs.extend(spec);
    }
    match mistakes.0.is_empty() {
        true => Ok(specs),
        false => Err(mistakes.0),
    }
}

/// One exporter. `None` if it is told what is wrong.
fn exporter(
    entry: &Entry,
    at: Location,
    field: &str,
    limits: &Limits,
    mistakes: &mut Mistakes,
) -> Option<Spec> {
    let before = mistakes.0.len();
    let name = &entry.name.value;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        mistakes.add(
            entry.name.defined,
            format!("{field}.name"),
            format!("`{name}` is no name: use 1 to {NAME_MAX} of a-z, 0-9 and `-`"),
        );
    }
    let mut kinds = Vec::new();
    for (index, kind) in entry.kinds.value.iter().enumerate() {
        match known_kind(&kind.value) {
            Ok(kind) => kinds.push(kind),
            Err(problem) => mistakes.add(kind.defined, format!("{field}.kinds[{index}]"), problem),
        }
    }
    let receiver = receiver(entry, at, field, mistakes);
    if let Some(receiver) = &receiver
        && let Some(problem) = receiver.cannot_tell(&kinds)
    {
        mistakes.add(entry.kinds.defined, format!("{field}.kinds"), problem);
    }
    if mistakes.0.len() > before {
        return None;
    }
    let receiver = receiver?;
    let interval = match &entry.interval {
        Some(interval) => Some(interval.value.0),
        None => receiver.adds_up().then_some(INTERVAL),
    };
    let asked = v1::SubscribeRequest {
        selector: entry
            .selector
            .as_ref()
            .map(|selector| selector.value.selector()),
        kinds: kinds.into_iter().map(Into::into).collect(),
        filter: entry.filter.as_ref().map(|filter| filter.value.0.clone()),
        queue_bytes: entry.queue_bytes.as_ref().map_or(0, |bytes| bytes.value.0),
        interval: interval.and_then(|interval| prost_types::Duration::try_from(interval).ok()),
        max_events_per_second: entry
            .max_events_per_second
            .as_ref()
            .map_or(0, |rate| rate.value),
        ..v1::SubscribeRequest::default()
    };
    if let Err(invalid) = Request::parse(&asked, limits) {
        let at = [
            ("kinds", Some(entry.kinds.defined)),
            (
                "selector",
                entry.selector.as_ref().map(|value| value.defined),
            ),
            ("filter", entry.filter.as_ref().map(|value| value.defined)),
            (
                "interval",
                entry.interval.as_ref().map(|value| value.defined),
            ),
            (
                "queue_bytes",
                entry.queue_bytes.as_ref().map(|value| value.defined),
            ),
            (
                "max_events_per_second",
                entry
                    .max_events_per_second
                    .as_ref()
                    .map(|value| value.defined),
            ),
        ]
        .into_iter()
        .find(|(name, _)| invalid.field.starts_with(name))
        .and_then(|(_, at)| at)
        .unwrap_or(at);
        // What the request calls so is another thing here.
        let told = invalid
            .field
            .replace("selector.label_selector", "selector.labels");
        mistakes.add(at, format!("{field}.{told}"), invalid.problem);
        return None;
    }
    Some(Spec {
        name: name.clone(),
        asked,
        receiver,
    })
}

fn known_kind(name: &str) -> Result<v1::Kind, String> {
    let all: Kinds = (1..)
        .map_while(|number| v1::Kind::try_from(number).ok())
        .collect();
    all.iter().find(|kind| kind.name() == name).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(v1::Kind::name).collect();
        format!("there is no kind `{name}`; there are {}", names.join(", "))
    })
}

/// The one receiver that is named.
fn receiver(entry: &Entry, at: Location, field: &str, mistakes: &mut Mistakes) -> Option<Receiver> {
    let mut found = Vec::new();
    let mut add = |name: &str, at: Location, result: Result<Receiver, (String, String)>| {
        found.push((
            name.to_owned(),
            result.map_err(|(inner, problem)| (at, inner, problem)),
        ));
    };
    if let Some(Spanned { value, defined, .. }) = &entry.stdout {
        add("stdout", *defined, Ok(value.receiver()));
    }
    if let Some(Spanned { value, defined, .. }) = &entry.file {
        add("file", *defined, value.receiver());
    }
    if let Some(Spanned { value, defined, .. }) = &entry.otlp {
        add("otlp", *defined, value.receiver());
    }
    if let Some(Spanned { value, defined, .. }) = &entry.prometheus {
        add("prometheus", *defined, value.receiver());
    }
    if let Some(Spanned { value, defined, .. }) = &entry.nats {
        add("nats", *defined, value.receiver());
    }
    match found.len() {
        0 => {
            mistakes.add(
                at,
                field.to_owned(),
                "says nowhere to send to: add one of stdout, file, otlp, prometheus, nats",
            );
            return None;
        }
        1 => {}
        _ => {
            let names: Vec<&str> = found.iter().map(|(name, _)| &**name).collect();
            mistakes.add(
                at,
                field.to_owned(),
                format!(
                    "has {}: an exporter has one of them; make two exporters",
                    names.join(" and ")
                ),
            );
            return None;
        }
    }
    let (name, result) = found.pop()?;
    match result {
        Ok(receiver) => Some(receiver),
        Err((at, inner, problem)) => {
            mistakes.add(at, format!("{field}.{name}.{inner}"), problem);
            None
        }
    }
}

#[cfg(test)]
mod tests;
