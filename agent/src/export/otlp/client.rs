//! The way to a collector. What it answers decides whether the same is sent again, as <https://opentelemetry.io/docs/specs/otlp/> says.

use std::{collections::HashMap, path::Path, time::Duration};

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
    run::Failure,
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
}

impl Client {
    pub(super) fn new(sink: OtlpSink) -> Self {
        Self { sink, way: None }
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

    /// The connection, a new one if need be. Files are read for each.
    fn way(&mut self) -> Result<&mut Way, Failure> {
        let way = match self.way.take() {
            Some(way) => way,
            None => self
                .open()
                .map_err(|problem| Failure::later(Cause::Unavailable, problem))?,
        };
        Ok(self.way.insert(way))
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
            return T::decode(body).map_err(|error| {
                Failure::later(
                    Cause::Unavailable,
                    format!("the answer cannot be read: {error}"),
                )
            });
        }
        self.way = None;
        let problem = match tonic_types::pb::Status::decode_message(body) {
            Some(text) => format!("HTTP {status}: {text}"),
            None => format!("HTTP {status}"),
        };
        match status.as_u16() {
            429 | 502 | 503 | 504 => Err(again(Cause::Unavailable, problem, retry_after)),
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
    use super::*;

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
