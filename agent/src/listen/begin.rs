//! How a connection begins: with TLS where that is spoken, and with the first words of HTTP/2. The server gets it after that, so that
//! whoever connects and says nothing, or one byte now and then, takes no place from those who speak.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, sink},
    time::{Instant, timeout_at},
};

use super::{Connection, Duplex, HANDSHAKE, Peer, PeerAddress, Place, State, Subject};

/// What HTTP/2 begins with (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What somebody with a browser, or with curl, is told.
const NO_HTTP1: &str = "This port speaks gRPC, which is HTTP/2: ask it with dinle or another gRPC client. Health and metrics are at --http.\n";
/// Bytes of their request that are read, so that they get to read the answer: more than browsers send.
const HTTP1_BYTES: u64 = 64 << 10;

/// A connection that is on its way. One that does not arrive, for whatever reason, is counted when this is dropped.
pub(super) struct OnItsWay {
    place: Option<Place>,
    /// Until it has become TLS.
    tls: Option<Arc<State>>,
}

impl OnItsWay {
    pub(super) fn new(place: Place, tls: Option<Arc<State>>) -> Self {
        Self {
            place: Some(place),
            tls,
        }
    }

    /// `None`: it will not be one; counted, and told in the log.
    pub(super) async fn arrive(
        mut self,
        stream: Box<dyn Duplex>,
        address: PeerAddress,
    ) -> Option<Connection> {
        let deadline = Instant::now() + HANDSHAKE;
        let begun = timeout_at(deadline, self.begin(stream)).await;
        let begun =
            begun.unwrap_or_else(|_| Err(format!("it took longer than {} s", HANDSHAKE.as_secs())));
        match begun {
            Ok((stream, subject)) => Some(Connection {
                said: PREFACE,
                stream,
                _place: self.place.take()?,
                peer: Peer {
                    address,
                    certificate: subject.map(Arc::new),
                },
            }),
            Err(reason) => {
                // Scanners knock at every port: no more than a word.
                tracing::debug!(peer = ?address, reason, "no connection");
                None
            }
        }
    }

    async fn begin(
        &mut self,
        stream: Box<dyn Duplex>,
    ) -> Result<(Box<dyn Duplex>, Option<Subject>), String> {
        let (mut stream, subject) = match &self.tls {
            Some(tls) => secure(stream, tls).await?,
            None => (stream, None),
        };
        self.tls = None;
        let spoken = preface(&mut stream).await;
        spoken.map_err(|error| error.to_string())?;
        Ok((stream, subject))
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let Self { place, tls } = self;
        if let Some(tls) = tls {
            tls.refused();
        }
        if let Some(place) = place {
            place.refused();
        }
    }
}

async fn secure(
    stream: Box<dyn Duplex>,
    tls: &State,
) -> Result<(Box<dyn Duplex>, Option<Subject>), String> {
    let accepted = tls.acceptor().accept(stream).await;
    let stream = accepted.map_err(|error| error.to_string())?;
    let chain = stream.get_ref().1.peer_certificates();
    let subject = chain.and_then(|chain| chain.first());
    let subject = subject.map(|first| Subject::of(first)).transpose()?;
    Ok((Box::new(stream), subject))
}

/// Reads the first words, and no further.
async fn preface(stream: &mut Box<dyn Duplex>) -> io::Result<()> {
    let mut said = [0; PREFACE.len()];
    let mut len = 0;
    while len < said.len() {
        match stream.read(&mut said[len..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => len += more,
        }
        if said[..len] != PREFACE[..len] {
            if said[..len].iter().all(is_http1) {
                answer_http1(stream).await?;
            }
            return Err(io::Error::other("it does not speak HTTP/2"));
        }
    }
    Ok(())
}

/// Whether a request's first line may have this.
fn is_http1(byte: &u8) -> bool {
    byte.is_ascii_graphic() || b" \r\n".contains(byte)
}

async fn answer_http1(stream: &mut Box<dyn Duplex>) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{NO_HTTP1}",
        NO_HTTP1.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closed with something unread in it, a connection loses what was written.
    copy(&mut stream.take(HTTP1_BYTES), &mut sink()).await?;
    Ok(())
}
