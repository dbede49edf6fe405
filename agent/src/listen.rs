//! LISTEN: where clients connect, over TCP, over TLS, and by a Unix socket; and what each connection tells of who is at its other end.
//!
//! A connection begins in a task of its own, and within a time: one that hangs keeps nobody waiting.

mod begin;
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
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::server::Connected;

use begin::OnItsWay;
use socket::Socket;

/// How long a client may take to shake hands, and to say its first words.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Clients that do so at a time. One more, and the one that has taken longest goes: who means it needs milliseconds.
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

/// Connections of all listeners.
#[derive(Debug, Default)]
pub struct Counts {
    open: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    /// Those that are open, or begin.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Those that did not begin as they should, or took too long for it.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// One of [`CONNECTIONS`].
struct Place {
    counts: Arc<Counts>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(permit: OwnedSemaphorePermit, counts: Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::Relaxed);
        Self {
            counts,
            _permit: permit,
        }
    }

    fn refused(&self) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
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
    pub fn incoming(
        listeners: Vec<Self>,
        counts: &Arc<Counts>,
    ) -> impl Stream<Item = io::Result<Connection>> + use<> {
        let (sender, receiver) = mpsc::channel(WAITING);
        for listener in listeners {
            tokio::spawn(listener.accept(counts.clone(), sender.clone()));
        }
        ReceiverStream::new(receiver)
    }

    async fn accept(self, counts: Arc<Counts>, out: mpsc::Sender<io::Result<Connection>>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let next = || async {
            let place = places.clone().acquire_owned().await;
            // Nobody closes it.
            let place = place.map_err(io::Error::other)?;
            let (stream, address) = self.next().await?;
            Ok::<_, io::Error>((stream, address, Place::new(place, counts.clone())))
        };
        let mut handshakes = JoinSet::new();
        let mut order: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let connection = tokio::select! {
                () = out.closed() => return,
                // One that had to go, or failed, is no connection.
                Some(done) = handshakes.join_next() => done.ok().flatten(),
                accepted = next() => {
                    match accepted {
                        Ok((stream, address, place)) => {
                            order.retain(|handshake| !handshake.is_finished());
                            if order.len() == HANDSHAKES && let Some(longest) = order.pop_front() {
                                longest.abort();
                            }
                            let tls = match &self.kind {
                                Kind::Tls(_, tls) => Some(tls.clone()),
                                Kind::Tcp(_) | Kind::Unix(_) => None,
                            };
                            order.push_back(handshakes.spawn(OnItsWay::new(place, tls).arrive(stream, address)));
                        }
                        // It went before it was taken.
                        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (),
                        Err(error) => {
                            tracing::warn!(listen = %self.address, %error, "a connection could not be taken");
                            tokio::time::sleep(FULL).await;
                        }
                    }
                    None
                }
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

/// Both directions of a connection.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection, and what it tells of its other end.
pub struct Connection {
    /// What was read of it already.
    said: &'static [u8],
    stream: Box<dyn Duplex>,
    _place: Place,
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
        if !self.said.is_empty() {
            let fits = buffer.remaining().min(self.said.len());
            let (now, later) = self.said.split_at(fits);
            buffer.put_slice(now);
            self.said = later;
            return Poll::Ready(Ok(()));
        }
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
