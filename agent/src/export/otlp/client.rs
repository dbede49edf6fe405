//! The way to a collector. What it answers decides whether the same is sent again, as <https://opentelemetry.io/docs/specs/otlp/> says.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_proto::tonic::collector::{
    logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse, logs_service_client::LogsServiceClient,
    },
    metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_client::MetricsServiceClient,
    },
};
use tokio::time::timeout;
use tonic::{
    Code, Request, Status,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use super::http1::{Answer, Http};
use crate::export::{
    config::{OtlpSink, Protocol},
    counters::Cause,
    sink::Failure,
    tls,
};

/// How many it threw away, and why.
type Refused = Option<(u64, String)>;

/// A connection.
enum Way {
    Grpc(Channel, HeaderMap),
    Http(Box<Http>, HeaderMap),
}

/// Sends to a collector. A connection on which something failed is not used again.
pub(super) struct Client {
    sink: OtlpSink,
    way: Option<Way>,
    /// When the files that it was opened with were changed.
    files: Files,
    /// It has been told that the collector's answers cannot be read.
    odd: bool,
}

/// When files were changed: headers, and those of TLS.
type Files = [Option<SystemTime>; 4];

impl Client {
    pub(super) fn new(sink: OtlpSink) -> Self {
        Self {
            sink,
            way: None,
            files: Files::default(),
            odd: false,
        }
    }

    pub(super) async fn logs(
        &mut self,
        request: ExportLogsServiceRequest,
    ) -> Result<Refused, Failure> {
        let answer: ExportLogsServiceResponse = match self.way()? {
            Way::Grpc(channel, headers) => {
                let (channel, headers) = (channel.clone(), headers.clone());
                self.grpc(async move {
                    LogsServiceClient::new(channel)
                        .export(with(request, headers))
                        .await
                })
                .await?
            }
            Way::Http(..) => self.http(&request).await?,
        };
        let partial = answer.partial_success;
        Ok(
            partial
                .and_then(|partial| refused(partial.rejected_log_records, partial.error_message)),
        )
    }

    pub(super) async fn metrics(
        &mut self,
        request: ExportMetricsServiceRequest,
    ) -> Result<Refused, Failure> {
        let answer: ExportMetricsServiceResponse = match self.way()? {
            Way::Grpc(channel, headers) => {
                let (channel, headers) = (channel.clone(), headers.clone());
                self.grpc(async move {
                    MetricsServiceClient::new(channel)
                        .export(with(request, headers))
                        .await
                })
                .await?
            }
            Way::Http(..) => self.http(&request).await?,
        };
        let partial = answer.partial_success;
        Ok(
            partial
                .and_then(|partial| refused(partial.rejected_data_points, partial.error_message)),
        )
    }

    /// The connection, a new one if need be. Files are read for each, and one that has changed makes a new one.
    fn way(&mut self) -> Result<&mut Way, Failure> {
        let files = self.files();
        let way = match self.way.take() {
            Some(way) if files == self.files => way,
            _ => self
                .open()
                .map_err(|problem| Failure::later(Cause::Unavailable, problem))?,
        };
        self.files = files;
        Ok(self.way.insert(way))
    }

    fn files(&self) -> Files {
        let OtlpSink {
            headers_file, tls, ..
        } = &self.sink;
        [headers_file, &tls.ca_file, &tls.cert_file, &tls.key_file]
            .map(|path| std::fs::metadata(path.as_ref()?).ok()?.modified().ok())
    }

    fn open(&self) -> Result<Way, String> {
        let OtlpSink {
            endpoint,
            protocol,
            headers_file,
            tls,
            timeout,
            ..
        } = &self.sink;
        let headers = match headers_file {
            Some(path) => headers(path)?,
            None => HeaderMap::new(),
        };
        let secure = endpoint.scheme_str() == Some("https");
        match protocol {
            Protocol::Grpc => {
                let mut channel = Endpoint::from(endpoint.clone()).connect_timeout(*timeout);
                if secure {
                    let config = tls::of_tonic(tls)?;
                    channel = channel
                        .tls_config(config)
                        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
                }
                Ok(Way::Grpc(channel.connect_lazy(), headers))
            }
            Protocol::Http => {
                let config = secure.then(|| tls::config(tls)).transpose()?;
                Ok(Way::Http(
                    Box::new(Http::new(endpoint.clone(), config, tls.server_name.clone())),
                    headers,
                ))
            }
        }
    }

    async fn grpc<T>(
        &mut self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let status = match timeout(self.sink.timeout, call).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => {
                self.way = None;
                return Err(Failure::later(
                    Cause::Timeout,
                    format!("no answer within {:?}", self.sink.timeout),
                ));
            }
        };
        self.way = None;
        let mut problem = format!("{:?}: {}", status.code(), status.message());
        if let Some(source) = std::error::Error::source(&status) {
            problem = format!("{problem}: {}", crate::export::sentence(source));
            // Not an answer: the connection broke.
            return Err(Failure::later(Cause::Unavailable, problem));
        }
        // Nor is what the generated client says by itself.
        if status.message().starts_with("Service was not ready") {
            return Err(Failure::later(Cause::Unavailable, problem));
        }
        let pause = status
            .get_details_retry_info()
            .and_then(|info| info.retry_delay);
        match status.code() {
            Code::Cancelled
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => Err(again(Cause::Unavailable, problem, pause)),
            Code::DeadlineExceeded => Err(again(Cause::Timeout, problem, pause)),
            // A server that says when is one that takes it then.
            Code::ResourceExhausted if pause.is_some() => {
                Err(again(Cause::Unavailable, problem, pause))
            }
            // A new token may come any time, and would be read then.
            Code::Unauthenticated | Code::PermissionDenied => {
                Err(again(Cause::Refused, problem, pause))
            }
            _ => Err(Failure::never(Cause::Refused, problem)),
        }
    }

    async fn http<T: prost::Message + Default>(
        &mut self,
        request: &impl prost::Message,
    ) -> Result<T, Failure> {
        let body = request.encode_to_vec();
        let limit = self.sink.timeout;
        let Some(Way::Http(http, headers)) = &mut self.way else {
            return Err(Failure::later(Cause::Unavailable, "there is no connection"));
        };
        let answer = match timeout(limit, http.post(headers, "application/x-protobuf", body)).await
        {
            Ok(Ok(answer)) => answer,
            Ok(Err(problem)) => {
                self.way = None;
                return Err(Failure::later(Cause::Unavailable, problem));
            }
            Err(_) => {
                self.way = None;
                return Err(Failure::later(
                    Cause::Timeout,
                    format!("no answer within {limit:?}"),
                ));
            }
        };
        let Answer {
            status,
            retry_after,
            body,
        } = answer;
        if status.is_success() {
            // It has taken them, whatever else it says: sent again, they would be there twice.
            return Ok(match body.map(T::decode) {
                Some(Ok(answer)) => answer,
                _ => {
                    if !std::mem::replace(&mut self.odd, true) {
                        tracing::warn!(
                            endpoint = %self.sink.endpoint,
                            %status,
                            "what the collector answers is not OTLP's protobuf: whether it throws something away is not known"
                        );
                    }
                    T::default()
                }
            });
        }
        self.way = None;
        let problem = match body.and_then(tonic_types::pb::Status::decode_message) {
            Some(text) => format!("HTTP {status}: {text}"),
            None => format!("HTTP {status}"),
        };
        match status.as_u16() {
            429 | 502 | 503 | 504 => Err(again(Cause::Unavailable, problem, retry_after)),
            401 | 403 => Err(again(Cause::Refused, problem, retry_after)),
            _ => Err(Failure::never(Cause::Refused, problem)),
        }
    }
}

/// The message of a `google.rpc.Status`.
trait DecodeMessage {
    fn decode_message(body: bytes::Bytes) -> Option<String>;
}

impl DecodeMessage for tonic_types::pb::Status {
    fn decode_message(body: bytes::Bytes) -> Option<String> {
        let status = <Self as prost::Message>::decode(body).ok()?;
        (!status.message.is_empty()).then_some(status.message)
    }
}

fn again(cause: Cause, problem: String, pause: Option<Duration>) -> Failure {
    Failure {
        cause,
        problem,
        again: Some(pause.unwrap_or_default()),
    }
}

fn refused(count: i64, why: String) -> Refused {
    (count > 0).then(|| (count.unsigned_abs(), why))
}

fn with<T>(message: T, headers: HeaderMap) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    request
}

/// Headers of a file: `name: value`, one a line.
fn headers(path: &Path) -> Result<HeaderMap, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    parse_headers(&text).map_err(|problem| format!("{}: {problem}", path.display()))
}

fn parse_headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HashMap::new();
    for (number, line) in (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty())
    {
        // The value may be a secret, and is not told.
        let bad = || format!("line {number} is no header; write `name: value`");
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| bad())?;
        let mut value = HeaderValue::try_from(value.trim()).map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        spawn,
        task::JoinHandle,
    };

    use super::*;
    use crate::{
        export::{Receiver, parse},
        filter::Limits,
    };

    fn client(listener: &TcpListener, more: &str) -> Client {
        let text = format!(
            "exporters:\n- name: a\n  kinds: [exec]\n  otlp: {{endpoint: 'http://{}', {more}}}\n",
            listener.local_addr().expect("an address")
        );
        let specs = parse(&text, &Limits::default()).expect("a good file");
        let Receiver::Otlp(sink) = specs[0].receiver.clone() else {
            panic!("{specs:?}")
        };
        Client::new(sink)
    }

    /// Answers one request of each connection with the same bytes, and gives what was asked.
    fn answering(listener: TcpListener, answer: impl Into<Vec<u8>>) -> JoinHandle<Vec<String>> {
        let answer = answer.into();
        spawn(async move {
            let mut asked = Vec::new();
            while let Ok(Ok((mut stream, _))) =
                timeout(Duration::from_secs(1), listener.accept()).await
            {
                let mut request = vec![0; 64 << 10];
                let read = stream.read(&mut request).await.expect("a request");
                stream.write_all(&answer).await.expect("an answer");
                asked.push(String::from_utf8_lossy(&request[..read]).into_owned());
            }
            asked
        })
    }

    fn http(status: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}")
    }

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.expect("a port")
    }

    /// A request fails, and may be made again.
    async fn fails(client: &mut Client, cause: Cause) {
        let sent = client.logs(ExportLogsServiceRequest::default()).await;
        let failure = sent.expect_err("a failure");
        assert_eq!(failure.cause, cause, "{failure:?}");
        assert!(failure.again.is_some(), "{failure:?}");
    }

    #[tokio::test]
    async fn what_was_under_way_when_a_connection_broke_is_sent_again() {
        let listener = listener().await;
        let mut client = client(&listener, "protocol: grpc");
        // It has no settings, takes what comes, and goes.
        answering(listener, [0, 0, 0, 4, 0, 0, 0, 0, 0]);
        fails(&mut client, Cause::Unavailable).await;
    }

    #[tokio::test]
    async fn who_is_not_let_in_tries_again_with_the_file_as_it_is_then() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("headers");
        std::fs::write(&path, "x-token: old\n").expect("a file");
        let listener = listener().await;
        let more = format!("protocol: http, headers_file: {}", path.display());
        let mut client = client(&listener, &more);
        let asked = answering(listener, http("401 Unauthorized", ""));
        for token in ["old", "new"] {
            std::fs::write(&path, format!("x-token: {token}\n")).expect("a file");
            fails(&mut client, Cause::Refused).await;
        }
        let asked = asked.await.expect("requests");
        assert!(asked[0].contains("x-token: old") && asked[1].contains("x-token: new"));
    }

    #[tokio::test]
    async fn a_file_that_changes_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("headers");
        std::fs::write(&path, "x-token: old\n").expect("a file");
        let listener = listener().await;
        let mut client = client(&listener, &format!("headers_file: {}", path.display()));
        let token = |client: &mut Client| match client.way() {
            Ok(Way::Grpc(_, headers)) => headers["x-token"].clone(),
            _ => panic!("no way"),
        };
        assert_eq!(token(&mut client), "old");
        std::fs::write(&path, "x-token: new\n").expect("a file");
        let later = SystemTime::now() + Duration::from_secs(1);
        let file = std::fs::File::options().write(true).open(&path);
        let file = file.expect("a file");
        file.set_modified(later).expect("a time");
        assert_eq!(token(&mut client), "new");
    }

    #[tokio::test]
    async fn what_a_collector_takes_is_taken_whatever_it_says() {
        for body in ["{}", &"x".repeat(100_000)] {
            let listener = listener().await;
            let mut client = client(&listener, "protocol: http");
            answering(listener, http("200 OK", body));
            for _ in 0..2 {
                let taken = client.logs(ExportLogsServiceRequest::default()).await;
                assert_eq!(taken.expect("taken"), None);
            }
            assert!(client.odd);
        }
    }

    #[test]
    fn headers_are_lines() {
        let headers =
            parse_headers("authorization: Bearer a:b\n\nx-scope-orgid:7\n").expect("headers");
        assert_eq!(headers["authorization"], "Bearer a:b");
        assert_eq!(headers["x-scope-orgid"], "7");
        let error = parse_headers("a: b\nsecret\n").expect_err("no header");
        assert_eq!(error, "line 2 is no header; write `name: value`");
    }
}
