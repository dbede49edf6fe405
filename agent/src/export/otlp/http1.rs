//! One connection to a server of HTTP/1.1, with TLS or without.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
};
use tokio_rustls::TlsConnector;

/// An answer tells little.
const ANSWER_BYTES: usize = 64 << 10;

/// What a server said.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    /// `None` if it is too long, or breaks off.
    pub(super) body: Option<Bytes>,
}

/// A server and the connection to it, which is made when it is needed.
pub(super) struct Http {
    uri: Uri,
    tls: Option<ClientConfig>,
    server_name: Option<String>,
    open: Option<(SendRequest<Full<Bytes>>, AbortHandle)>,
}

impl Http {
    pub(super) fn new(uri: Uri, tls: Option<ClientConfig>, server_name: Option<String>) -> Self {
        Self {
            uri,
            tls,
            server_name,
            open: None,
        }
    }

    /// Sends a body. An error is a sentence on why there is no answer.
    pub(super) async fn post(
        &mut self,
        headers: &HeaderMap,
        kind: &str,
        body: Vec<u8>,
    ) -> Result<Answer, String> {
        // A server closes a connection that is silent for long.
        if self
            .open
            .as_ref()
            .is_some_and(|(sender, _)| sender.is_closed())
        {
            self.close();
        }
        if self.open.is_none() {
            self.connect().await?;
        }
        let Some((sender, _)) = &mut self.open else {
            return Err("there is no connection".to_owned());
        };
        sender.ready().await.map_err(|error| error.to_string())?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let host = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let mut request = Request::post(path)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, kind);
        if let Some(own) = request.headers_mut() {
            own.extend(headers.clone());
        }
        let request = request
            .body(Full::from(body))
            .map_err(|error| error.to_string())?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| crate::export::sentence(&error))?;
        let status = answer.status();
        let retry_after = answer
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(answer.into_body(), ANSWER_BYTES)
            .collect()
            .await;
        if body.is_err() {
            // What is left of it would stand before the next answer.
            self.close();
        }
        Ok(Answer {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            body: body.ok().map(|body| body.to_bytes()),
        })
    }

    async fn connect(&mut self) -> Result<(), String> {
        let host = self.uri.host().unwrap_or_default();
        let plain = host.trim_matches(['[', ']']);
        let port = self
            .uri
            .port_u16()
            .unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let failed =
            |error: std::io::Error| format!("{host}:{port} cannot be connected to: {error}");
        let stream = TcpStream::connect((plain, port)).await.map_err(failed)?;
        self.open = Some(match &self.tls {
            None => open(stream).await?,
            Some(config) => {
                let name = self.server_name.as_deref().unwrap_or(plain).to_owned();
                let name =
                    ServerName::try_from(name).map_err(|error| format!("{host}: {error}"))?;
                let connector = TlsConnector::from(Arc::new(config.clone()));
                open(connector.connect(name, stream).await.map_err(failed)?).await?
            }
        });
        Ok(())
    }

    fn close(&mut self) {
        if let Some((_, connection)) = self.open.take() {
            connection.abort();
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.close();
    }
}

async fn open(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(SendRequest<Full<Bytes>>, AbortHandle), String> {
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // How it ends is told where it is used.
    let task = tokio::spawn(async move { _ = connection.await });
    Ok((sender, task.abort_handle()))
}
