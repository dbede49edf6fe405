//! LISTEN: where clients connect, over TCP, over TLS, and by a Unix socket; and what each connection tells of who is at its other end.
//!
//! A handshake runs in a task of its own, and within a time: one that hangs keeps nobody waiting.

mod socket;
mod tls;

pub use tls::{Files, State, TlsError};

use std::{
    collections::VecDeque,
    fmt, io,
    net::{AddrParseError, SocketAddr},
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::server::Connected;

use socket::Socket;

/// How long a client may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Clients that shake hands at a time. One more, and the one that has taken longest goes: who means it needs milliseconds.
const HANDSHAKES: usize = 256;
/// Connections that the server has not taken yet.
const WAITING: usize = 64;
/// Connections of a listener at a time: far more than there are streams. One more waits until another ends.
const CONNECTIONS: usize = 512;
/// How long to wait when no more files can be opened: closing others makes room.
const FULL: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On an address of this host, in plain text.
    Tcp(SocketAddr),
    /// The same, with TLS.
    Tls(SocketAddr),
    /// At a path.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = |text: &str| {
            text.parse().map_err(|error: AddrParseError| {
                format!("{error}; write ADDR:PORT, tls:ADDR:PORT or unix:PATH")
            })
        };
        match text.split_once(':') {
            Some(("unix", "")) => Err("there is no path behind `unix:`".to_owned()),
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("tls", rest)) if rest.starts_with("unix:") => {
                Err("what goes through a Unix socket does not leave this machine, and needs no TLS: write unix:PATH".to_owned())
            }
            Some(("tls", rest)) => address(rest).map(Self::Tls),
            _ => address(text).map(Self::Tcp),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Tls(address) => write!(f, "tls:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who may open a Unix socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// Permission bits.
    pub mode: u32,
    /// Group; `None`: that of the process.
    pub group: Option<u32>,
}

/// What a connection tells of its other end. Requests carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Of whom the connection is.
    pub address: PeerAddress,
    /// It showed a certificate that the client CA had signed.
    pub certificate: Option<Arc<Subject>>,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// A TCP client.
    Tcp(SocketAddr),
    /// A process that could open the socket: its user.
    Unix(Option<u32>),
}

/// Whom a certificate names, as Kubernetes reads it: the common name is the user, organizations are groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Common name.
    pub user: String,
    /// Organizations.
    pub groups: Vec<String>,
}

/// An open place to listen at.
pub struct Listener {
    address: Address,
    kind: Kind,
}

enum Kind {
    Tcp(TcpListener),
    Tls(TcpListener, Arc<State>),
    Unix(Socket),
}

impl Listener {
    /// Opens it. An address with TLS needs certificates.
    pub async fn bind(
        address: &Address,
        access: Access,
        tls: Option<&Arc<State>>,
    ) -> io::Result<Self> {
        let kind = match address {
            Address::Tcp(address) => Kind::Tcp(TcpListener::bind(address).await?),
            Address::Tls(address) => {
                let tls = tls.ok_or_else(|| io::Error::other("there is no certificate"))?;
                Kind::Tls(TcpListener::bind(address).await?, tls.clone())
            }
            Address::Unix(path) => Kind::Unix(Socket::bind(path, access)?),
        };
        Ok(Self {
            address: address.clone(),
            kind,
        })
    }

    /// Connections, ready for gRPC. Ends them when it is dropped.
    pub fn incoming(listeners: Vec<Self>) -> impl Stream<Item = io::Result<Connection>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        for listener in listeners {
            tokio::spawn(listener.accept(sender.clone()));
        }
        ReceiverStream::new(receiver)
    }

    async fn accept(self, out: mpsc::Sender<io::Result<Connection>>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let next = || async {
            let place = places.clone().acquire_owned().await;
            // Nobody closes it.
            let place = place.map_err(io::Error::other)?;
            let (stream, address) = self.next().await?;
            Ok::<_, io::Error>((stream, address, place))
        };
        let mut handshakes = JoinSet::new();
        let mut order: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let connection = tokio::select! {
                () = out.closed() => return,
                // One that had to go, or failed, is no connection.
                Some(done) = handshakes.join_next() => done.ok().flatten(),
                accepted = next() => match (accepted, &self.kind) {
                    (Ok((stream, address, place)), Kind::Tls(_, tls)) => {
                        order.retain(|handshake| !handshake.is_finished());
                        if order.len() == HANDSHAKES && let Some(longest) = order.pop_front() {
                            longest.abort();
                            tls.refused();
                        }
                        order.push_back(handshakes.spawn(shake_hands(stream, address, place, tls.clone())));
                        None
                    }
                    (Ok((stream, address, place)), Kind::Tcp(_) | Kind::Unix(_)) => Some(Connection {
                        stream,
                        _place: place,
                        peer: Peer { address, certificate: None },
                    }),
                    // It went before it was taken.
                    (Err(error), _) if error.kind() == io::ErrorKind::ConnectionAborted => None,
                    (Err(error), _) => {
                        tracing::warn!(listen = %self.address, %error, "a connection could not be taken");
                        tokio::time::sleep(FULL).await;
                        None
                    }
                },
            };
            if let Some(connection) = connection
                && out.send(Ok(connection)).await.is_err()
            {
                return;
            }
        }
    }

    async fn next(&self) -> io::Result<(Box<dyn Duplex>, PeerAddress)> {
        match &self.kind {
            Kind::Tcp(listener) | Kind::Tls(listener, _) => {
                let (stream, peer) = listener.accept().await?;
                // Without this a small batch waits for the client's delayed acknowledgement: 40 ms. If it fails, the connection is gone.
                _ = stream.set_nodelay(true);
                Ok((Box::new(stream), PeerAddress::Tcp(peer)))
            }
            Kind::Unix(socket) => {
                let stream = socket.accept().await?;
                let user = stream.peer_cred().ok().map(|peer| peer.uid());
                Ok((Box::new(stream), PeerAddress::Unix(user)))
            }
        }
    }
}

/// `None`: it will not be one; counted, and told in the log.
async fn shake_hands(
    stream: Box<dyn Duplex>,
    address: PeerAddress,
    place: OwnedSemaphorePermit,
    tls: Arc<State>,
) -> Option<Connection> {
    let shaken = match timeout(HANDSHAKE, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates();
            let subject = chain.and_then(|chain| chain.first()).map(tls::subject);
            subject.transpose().map(|subject| (stream, subject))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it took longer than {} s", HANDSHAKE.as_secs())),
    };
    match shaken {
        Ok((stream, subject)) => Some(Connection {
            stream: Box::new(stream),
            _place: place,
            peer: Peer {
                address,
                certificate: subject.map(Arc::new),
            },
        }),
        Err(reason) => {
            tls.refused();
            // Scanners knock at every port: no more than a word.
            tracing::debug!(peer = ?address, reason, "no TLS connection");
            None
        }
    }
}

/// Both directions of a connection.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection, and what it tells of its other end.
pub struct Connection {
    stream: Box<dyn Duplex>,
    /// One of [`CONNECTIONS`].
    _place: OwnedSemaphorePermit,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
