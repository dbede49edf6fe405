//! Where an exporter sends to.

use std::{path::PathBuf, time::Duration};

use dinle_proto::v1;
use http::Uri;
use serde::Deserialize;

use super::values::{Size, Time};

/// A file that is closed so soon holds next to nothing.
const FILE_MIN: u64 = 64 << 10;
/// Pods of which each family can have series of their own: as many as a large node runs.
const TOP_MAX: usize = 500;

/// Where an exporter sends to.
#[derive(Clone, Debug, PartialEq)]
pub enum Receiver {
    /// The agent's standard output; with `true` every message of the stream.
    Stdout(bool),
    /// A file.
    File(FileSink),
    /// An OpenTelemetry collector.
    Otlp(OtlpSink),
    /// Whoever scrapes.
    Prometheus(SeriesSink),
    /// A NATS server.
    Nats(NatsSink),
}

/// A file that is changed for a new one now and then.
#[derive(Clone, Debug, PartialEq)]
pub struct FileSink {
    /// Its path.
    pub path: PathBuf,
    /// Every message of the stream, not only its events.
    pub raw: bool,
    /// At this size.
    pub max_bytes: u64,
    /// At this age.
    pub max_age: Option<Duration>,
    /// So many of the old ones are kept.
    pub keep: usize,
    /// What becomes of the old ones.
    pub compress: Compression,
}

/// What becomes of a file that is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// It is compressed.
    #[default]
    Gzip,
    /// It stays as it is.
    None,
}

/// A collector.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpSink {
    /// Its address, with the path for HTTP.
    pub endpoint: Uri,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// What it is sent.
    pub signal: Signal,
    /// A file with headers, a line each: `name: value`. For secrets, so read whenever it is connected to.
    pub headers_file: Option<PathBuf>,
    /// How it proves who it is.
    pub tls: Tls,
    /// Time for one request.
    pub timeout: Duration,
    /// Time between two of metrics.
    pub interval: Duration,
    /// Which pods have series of their own.
    pub series: SeriesSink,
}

/// How OTLP travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// gRPC.
    #[default]
    Grpc,
    /// Protobuf over HTTP/1.1.
    Http,
}

/// What is sent over OTLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Each event as a record.
    #[default]
    Logs,
    /// Sums for each pod.
    Metrics,
}

/// Files for TLS, all PEM.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Who signs the receiver's certificate, in the place of those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Our certificate.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// The name in the receiver's certificate, where the address has another.
    pub server_name: Option<String>,
}

/// Series for each pod.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesSink {
    /// So many pods have series of their own in each family.
    pub top: usize,
    /// A pod that is gone keeps its series for so long.
    pub grace: Duration,
}

/// A NATS server with a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct NatsSink {
    /// Servers.
    pub url: String,
    /// Subject, with `{namespace}`, `{pod}`, `{node}` and `{kind}`.
    pub subject: String,
    /// A file with the user's name in its first line and the password in its second, or a token alone.
    pub password_file: Option<PathBuf>,
    /// How it proves who it is.
    pub tls: Tls,
    /// Time until a message has to be acknowledged.
    pub timeout: Duration,
}

impl Receiver {
    /// What metrics call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stdout(_) => "stdout",
            Self::File(_) => "file",
            Self::Otlp(_) => "otlp",
            Self::Prometheus(_) => "prometheus",
            Self::Nats(_) => "nats",
        }
    }

    /// Events are added up and not told one by one.
    pub fn adds_up(&self) -> bool {
        match self {
            Self::Prometheus(_) => true,
            Self::Otlp(sink) => sink.signal == Signal::Metrics,
            Self::Stdout(_) | Self::File(_) | Self::Nats(_) => false,
        }
    }

    /// Why it cannot be told of one of the kinds, and what it can be told instead.
    pub fn cannot_tell(&self, kinds: &[v1::Kind]) -> Option<String> {
        if !self.adds_up() {
            return None;
        }
        kinds.iter().find_map(|kind| {
            let instead = match kind {
                v1::Kind::BlockIo => "block_latency, which the kernel adds up",
                v1::Kind::Drop => "drop_count, which the kernel adds up",
                v1::Kind::TcpRetransmit => "tcp_session, which tells how many there were",
                v1::Kind::Unspecified
                | v1::Kind::Exec
                | v1::Kind::Exit
                | v1::Kind::Fork
                | v1::Kind::FileOpen
                | v1::Kind::FileDelete
                | v1::Kind::TcpSession
                | v1::Kind::TcpConnect
                | v1::Kind::TcpReset
                | v1::Kind::BlockLatency
                | v1::Kind::DropCount => return None,
            };
            Some(format!(
                "series are not made of {}: use {instead}",
                kind.name()
            ))
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StdoutEntry {
    #[serde(default)]
    raw: bool,
}

impl StdoutEntry {
    pub(super) fn receiver(&self) -> Receiver {
        Receiver::Stdout(self.raw)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    path: PathBuf,
    #[serde(default)]
    raw: bool,
    max_bytes: Option<Size>,
    max_age: Option<Time>,
    keep: Option<usize>,
    #[serde(default)]
    compress: Compression,
}

/// What is wrong with a field, and its name.
type Wrong = (String, String);

fn wrong<T>(field: &str, problem: impl Into<String>) -> Result<T, Wrong> {
    Err((field.to_owned(), problem.into()))
}

/// Whether an address has a user, and maybe a password, before its host.
fn names_user(url: &str) -> bool {
    let behind = url.split_once("://").map_or(url, |(_, behind)| behind);
    let authority = behind.split(['/', '?', '#']).next();
    authority.is_some_and(|authority| authority.contains('@'))
}

impl FileEntry {
    pub(super) fn receiver(&self) -> Result<Receiver, Wrong> {
        if !self.path.is_absolute() || self.path.file_name().is_none() {
            let path = self.path.display();
            return wrong(
                "path",
                format!(
                    "`{path}` is no absolute path of a file; write one such as /var/log/dinle/events.jsonl"
                ),
            );
        }
        if let Some(ending) = ["gz", "part"]
            .into_iter()
            .find(|ending| self.path.extension().is_some_and(|own| own == *ending))
        {
            return wrong(
                "path",
                format!(
                    "ends in .{ending}, which old files that are compressed end in: use another ending, such as .jsonl"
                ),
            );
        }
        let max_bytes = self.max_bytes.map_or(100 << 20, |size| size.0);
        if max_bytes < FILE_MIN {
            return wrong(
                "max_bytes",
                format!("is {max_bytes}; use {FILE_MIN} or more"),
            );
        }
        if let Some(Time(age)) = self.max_age
            && age < Duration::from_secs(1)
        {
            return wrong(
                "max_age",
                format!("is {age:?}; use 1s or more, or leave it out"),
            );
        }
        let keep = self.keep.unwrap_or(5);
        if keep > 1000 {
            return wrong("keep", format!("is {keep}; use 1000 at most"));
        }
        Ok(Receiver::File(FileSink {
            path: self.path.clone(),
            raw: self.raw,
            max_bytes,
            max_age: self.max_age.map(|age| age.0),
            keep,
            compress: self.compress,
        }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OtlpEntry {
    endpoint: String,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    signal: Signal,
    headers_file: Option<PathBuf>,
    #[serde(default)]
    tls: Tls,
    timeout: Option<Time>,
    interval: Option<Time>,
    top: Option<usize>,
    grace: Option<Time>,
}

impl OtlpEntry {
    pub(super) fn receiver(&self) -> Result<Receiver, Wrong> {
        let Self {
            endpoint,
            signal,
            protocol,
            ..
        } = self;
        if names_user(endpoint) {
            return wrong(
                "endpoint",
                "has a user in it, which would be logged: write a header `authorization: …` into a file, and name that in headers_file",
            );
        }
        let uri: Option<Uri> = endpoint.parse().ok();
        let uri = uri.filter(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
        });
        let Some(uri) = uri else {
            return wrong(
                "endpoint",
                format!(
                    "`{endpoint}` is no address: write one such as http://collector:4317, or https://… for TLS"
                ),
            );
        };
        let uri = match protocol {
            Protocol::Grpc => uri,
            // As the specification says of an endpoint for all signals.
            Protocol::Http if matches!(uri.path(), "" | "/") => {
                let path = match signal {
                    Signal::Logs => "/v1/logs",
                    Signal::Metrics => "/v1/metrics",
                };
                let base = endpoint.trim_end_matches('/');
                match format!("{base}{path}").parse() {
                    Ok(uri) => uri,
                    Err(_) => return wrong("endpoint", format!("`{endpoint}` is no address")),
                }
            }
            Protocol::Http => uri,
        };
        self.tls.check(uri.scheme_str() == Some("https"))?;
        if *signal == Signal::Logs
            && (self.top.is_some() || self.grace.is_some() || self.interval.is_some())
        {
            return wrong(
                "signal",
                "is logs, for which interval, top and grace do nothing: remove them, or set signal to metrics",
            );
        }
        let series = SeriesEntry {
            top: self.top,
            grace: self.grace,
        }
        .sink()?;
        let interval = self.interval.map_or(Duration::from_secs(30), |time| time.0);
        if interval < Duration::from_secs(1) {
            return wrong("interval", format!("is {interval:?}; use 1s or more"));
        }
        Ok(Receiver::Otlp(OtlpSink {
            endpoint: uri,
            protocol: *protocol,
            signal: *signal,
            headers_file: self.headers_file.clone(),
            tls: self.tls.clone(),
            timeout: timeout(self.timeout)?,
            interval,
            series,
        }))
    }
}

fn timeout(time: Option<Time>) -> Result<Duration, Wrong> {
    let timeout = time.map_or(Duration::from_secs(10), |time| time.0);
    if timeout < Duration::from_millis(100) || timeout > Duration::from_secs(60) {
        return wrong("timeout", format!("is {timeout:?}; use 100ms to 60s"));
    }
    Ok(timeout)
}

impl Tls {
    fn check(&self, used: bool) -> Result<(), Wrong> {
        if self.cert_file.is_some() != self.key_file.is_some() {
            return wrong(
                "tls",
                "has one of cert_file and key_file: name both, or none",
            );
        }
        if !used && *self != Self::default() {
            return wrong(
                "tls",
                "is set, but the address is without TLS: write https:// or tls:// there, or remove it",
            );
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeriesEntry {
    top: Option<usize>,
    grace: Option<Time>,
}

impl SeriesEntry {
    fn sink(&self) -> Result<SeriesSink, Wrong> {
        let top = self.top.unwrap_or(100);
        if !(1..=TOP_MAX).contains(&top) {
            return wrong("top", format!("is {top}; use 1 to {TOP_MAX}"));
        }
        Ok(SeriesSink {
            top,
            grace: self.grace.map_or(Duration::from_secs(300), |time| time.0),
        })
    }

    pub(super) fn receiver(&self) -> Result<Receiver, Wrong> {
        self.sink().map(Receiver::Prometheus)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NatsEntry {
    url: String,
    subject: String,
    password_file: Option<PathBuf>,
    #[serde(default)]
    tls: Tls,
    timeout: Option<Time>,
}

impl NatsEntry {
    pub(super) fn receiver(&self) -> Result<Receiver, Wrong> {
        let Self { url, subject, .. } = self;
        let secure = url.starts_with("tls://");
        if url.split(',').any(names_user) {
            return wrong(
                "url",
                "has a user in it, which would be logged: write user and password into two lines of a file, or a token into one, and name that in password_file",
            );
        }
        if url
            .split(',')
            .any(|url| !(url.starts_with("nats://") || url.starts_with("tls://")) || url.len() < 8)
        {
            return wrong(
                "url",
                format!(
                    "`{url}` is no address: write one such as nats://nats:4222, or tls://… for TLS; several with commas"
                ),
            );
        }
        if let Some(problem) = super::super::subject::problem(subject) {
            return wrong("subject", problem);
        }
        self.tls.check(secure)?;
        if self.tls.server_name.is_some() {
            return wrong(
                "tls.server_name",
                "is not for NATS: its clients take the name in url, so write the certificate's name there",
            );
        }
        Ok(Receiver::Nats(NatsSink {
            url: url.clone(),
            subject: subject.clone(),
            password_file: self.password_file.clone(),
            tls: self.tls.clone(),
            timeout: timeout(self.timeout)?,
        }))
    }
}
