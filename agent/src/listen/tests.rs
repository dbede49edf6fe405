use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client};
use tokio_stream::StreamExt as _;

use super::{begin::PREFACE, *};
use tokio::time::timeout;

/// An authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
struct Pair {
    certificate: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    fn sign(&self, user: &str, groups: &[&str]) -> Pair {
        let mut params = CertificateParams::new(["agent.test".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params
                .distinguished_name
                .push(DnType::OrganizationName, *group);
        }
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.0).expect("a certificate");
        Pair {
            certificate: signed.der().clone(),
            pem: signed.pem(),
            key,
        }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("an authority");
        roots
    }
}

/// Writes what an agent is given.
fn files(dir: &Path, server: &Pair, clients: Option<&Authority>) -> Files {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).expect("a file");
        path
    };
    Files {
        certificate: write("tls.crt", &server.pem),
        key: write("tls.key", &server.key.serialize_pem()),
        client_ca: clients.map(|clients| write("ca.crt", &clients.0.pem())),
        client_may_show_none: false,
    }
}

/// A server that says its peer's user, then what it hears.
async fn serve(tls: &Arc<State>) -> SocketAddr {
    let any = "tls:127.0.0.1:0".parse().expect("an address");
    let listener = Listener::bind(&any, Access::default(), Some(tls))
        .await
        .expect("a port");
    let Kind::Tls(socket, _) = &listener.kind else {
        panic!("TLS")
    };
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut incoming = Box::pin(Listener::incoming(vec![listener], &Arc::default()));
        while let Some(Ok(mut connection)) = incoming.next().await {
            tokio::spawn(async move {
                let peer = connection.connect_info().certificate;
                let user = peer.map_or("nobody".to_owned(), |subject| {
                    format!("{} of {}", subject.user, subject.groups.join("+"))
                });
                let mut said = [0; PREFACE.len()];
                connection.read_exact(&mut said).await?;
                assert_eq!(said, *PREFACE);
                connection.write_all(format!("{user}\n").as_bytes()).await?;
                let (mut from, mut to) = tokio::io::split(connection);
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    address
}

/// What a client shows, and whom it believes.
fn config(authority: &Authority, own: Option<&Pair>) -> Arc<ClientConfig> {
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(authority.roots());
    Arc::new(match own {
        Some(Pair {
            certificate, key, ..
        }) => {
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
            config
                .with_client_auth_cert(vec![certificate.clone()], key)
                .expect("a pair")
        }
        None => config.with_no_client_auth(),
    })
}

async fn connect(
    address: SocketAddr,
    authority: &Authority,
    own: Option<&Pair>,
) -> io::Result<client::TlsStream<TcpStream>> {
    connect_as(address, config(authority, own)).await
}

async fn connect_as(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> io::Result<client::TlsStream<TcpStream>> {
    let name = ServerName::try_from("agent.test").expect("a name");
    let mut stream = TlsConnector::from(config)
        .connect(name, TcpStream::connect(address).await?)
        .await?;
    stream.write_all(PREFACE).await?;
    Ok(stream)
}

/// What comes up to the end of a line.
async fn line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

async fn greeted(
    address: SocketAddr,
    authority: &Authority,
    own: Option<&Pair>,
) -> io::Result<String> {
    line(&mut connect(address, authority, own).await?).await
}

#[tokio::test]
async fn clients_are_who_their_certificates_say_and_others_are_refused() {
    let dir = TempDir::new().expect("a directory");
    let (authority, strangers) = (Authority::new("ours"), Authority::new("theirs"));
    let tls = State::open(files(
        dir.path(),
        &authority.sign("agent", &[]),
        Some(&authority),
    ))
    .expect("certificates");
    let address = serve(&tls).await;
    let jane = authority.sign("jane", &["ops"]);
    assert_eq!(
        greeted(address, &authority, Some(&jane))
            .await
            .expect("let in"),
        "jane of ops"
    );
    let mallory = strangers.sign("jane", &["ops"]);
    for own in [None, Some(&mallory)] {
        greeted(address, &authority, own)
            .await
            .expect_err("refused");
    }
    let mut plain = TcpStream::connect(address).await.expect("a connection");
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .expect("written");
    let mut answer = Vec::new();
    // An alert and the end, or a reset.
    _ = plain.read_to_end(&mut answer).await;
    assert!(answer.len() < 16, "{answer:?}");
    soon("each is counted", || tls.handshake_failures() >= 3).await;
}

/// What a client says first that speaks TLS 1.`minor` at most (RFC 5246, section 7.4.1.2).
fn hello(minor: u8) -> Vec<u8> {
    let version = [3, minor + 1];
    // ECDSA with SHA-256 and P-256, X25519, and points that are not compressed.
    let extensions = [
        0, 13, 0, 4, 0, 2, 4, 3, 0, 10, 0, 4, 0, 2, 0, 29, 0, 11, 0, 2, 1, 0,
    ];
    let random = [7; 32];
    // No session, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, and no compression.
    let suites = [0, 0, 2, 0xc0, 0x2b, 1, 0];
    let length = [0, extensions.len() as u8];
    let body = [&version[..], &random, &suites, &length, &extensions].concat();
    let message = [&[1, 0, 0, body.len() as u8], &body[..]].concat();
    [&[22, 3, 1, 0, message.len() as u8], &message[..]].concat()
}

#[tokio::test]
async fn tls_is_spoken_from_its_version_1_2_on() {
    let dir = TempDir::new().expect("a directory");
    let authority = Authority::new("ours");
    let tls =
        State::open(files(dir.path(), &authority.sign("agent", &[]), None)).expect("certificates");
    let address = serve(&tls).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(authority.roots())
            .with_no_client_auth();
        let mut stream = connect_as(address, Arc::new(config)).await.expect("let in");
        assert_eq!(line(&mut stream).await.expect("a line"), "nobody");
        let spoken = stream.get_ref().1.protocol_version();
        assert_eq!(spoken, Some(version.version));
    }
    let answer = async |minor| {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(&hello(minor)).await.expect("written");
        let mut answer = [0; 7];
        let read = timeout(HANDSHAKE / 2, stream.read_exact(&mut answer)).await;
        read.expect("at once").expect("an answer");
        answer
    };
    // A handshake goes on, or there is a fatal alert: protocol_version.
    assert_eq!(answer(2).await[0], 22);
    for old in [0, 1] {
        assert_eq!(answer(old).await[..], [21, 3, 3, 0, 2, 2, 70]);
    }
}

#[tokio::test]
async fn a_certificate_is_looked_at_each_time() {
    let dir = TempDir::new().expect("a directory");
    let authority = Authority::new("ours");
    let server = authority.sign("agent", &[]);
    let tls = State::open(files(dir.path(), &server, Some(&authority))).expect("certificates");
    let address = serve(&tls).await;
    let jane = authority.sign("jane", &["ops"]);
    // It would take up its session again, if it could.
    let config = config(&authority, Some(&jane));
    for _ in 0..3 {
        let mut stream = connect_as(address, config.clone()).await.expect("let in");
        assert_eq!(line(&mut stream).await.expect("a line"), "jane of ops");
        let kind = stream.get_ref().1.handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn who_may_show_none_is_known_by_the_one_that_is_shown() {
    let dir = TempDir::new().expect("a directory");
    let (authority, strangers) = (Authority::new("ours"), Authority::new("theirs"));
    let server = authority.sign("agent", &[]);
    let files = Files {
        client_may_show_none: true,
        ..files(dir.path(), &server, Some(&authority))
    };
    let tls = State::open(files).expect("certificates");
    let address = serve(&tls).await;
    let jane = authority.sign("jane", &["ops"]);
    let told = greeted(address, &authority, Some(&jane)).await;
    assert_eq!(told.expect("let in"), "jane of ops");
    let told = greeted(address, &authority, None).await;
    assert_eq!(told.expect("let in"), "nobody");
    let mallory = strangers.sign("jane", &["ops"]);
    greeted(address, &authority, Some(&mallory))
        .await
        .expect_err("a false one is worse than none");
}

#[tokio::test]
async fn there_are_only_so_many_connections() {
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = Listener::bind(&any, Access::default(), None)
        .await
        .expect("a port");
    let Kind::Tcp(socket) = &listener.kind else {
        panic!("plain text")
    };
    let address = socket.local_addr().expect("bound");
    let mut incoming = Box::pin(Listener::incoming(vec![listener], &Arc::default()));
    let (mut clients, mut open) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let mut client = TcpStream::connect(address).await.expect("a connection");
        client.write_all(PREFACE).await.expect("written");
        clients.push(client);
        open.push(incoming.next().await.expect("a connection"));
    }
    // The kernel has taken it, and the listener has not.
    let mut waits = TcpStream::connect(address).await.expect("a connection");
    waits.write_all(PREFACE).await.expect("written");
    let more = timeout(Duration::from_millis(100), incoming.next()).await;
    assert!(more.is_err(), "one too many");
    open.pop();
    assert!(incoming.next().await.is_some());
}

#[tokio::test]
async fn without_a_client_ca_nobody_is_asked() {
    let dir = TempDir::new().expect("a directory");
    let authority = Authority::new("ours");
    let tls =
        State::open(files(dir.path(), &authority.sign("agent", &[]), None)).expect("certificates");
    assert_eq!(
        greeted(serve(&tls).await, &authority, None)
            .await
            .expect("let in"),
        "nobody"
    );
}

#[tokio::test]
async fn who_says_nothing_keeps_nobody_waiting() {
    let dir = TempDir::new().expect("a directory");
    let authority = Authority::new("ours");
    let tls =
        State::open(files(dir.path(), &authority.sign("agent", &[]), None)).expect("certificates");
    let address = serve(&tls).await;
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES + 50 {
        silent.push(TcpStream::connect(address).await.expect("a connection"));
    }
    assert_eq!(
        greeted(address, &authority, None).await.expect("let in"),
        "nobody"
    );
    // Of those the first had to go, and was told so.
    goes(&mut silent[0]).await;
}

/// The listener ends it, and before its time to begin is over.
async fn goes(silent: &mut TcpStream) {
    let read = timeout(HANDSHAKE / 2, silent.read(&mut [0])).await;
    assert_eq!(read.expect("it has to go at once").unwrap_or(0), 0);
}

/// Waits for something that nobody tells of.
async fn soon(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), wait).await.expect(what);
}

/// A listener in plain text, its address and its counts.
async fn plain() -> (
    Pin<Box<impl Stream<Item = io::Result<Connection>>>>,
    SocketAddr,
    Arc<Counts>,
) {
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = Listener::bind(&any, Access::default(), None)
        .await
        .expect("a port");
    let Kind::Tcp(socket) = &listener.kind else {
        panic!("plain text")
    };
    let address = socket.local_addr().expect("bound");
    let counts = Arc::default();
    let incoming = Listener::incoming(vec![listener], &counts);
    (Box::pin(incoming), address, counts)
}

#[tokio::test]
async fn in_plain_text_too_who_does_not_begin_goes() {
    let (mut incoming, address, counts) = plain().await;
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES + 50 {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        // Of the first words all but the last byte.
        let (most, _) = PREFACE.split_at(PREFACE.len() - 1);
        stream.write_all(most).await.expect("written");
        silent.push(stream);
    }
    let mut speaks = TcpStream::connect(address).await.expect("a connection");
    speaks
        .write_all(&[&PREFACE[..], b"more"].concat())
        .await
        .expect("written");
    let mut connection = incoming.next().await.expect("one").expect("it is fine");
    let mut said = [0; PREFACE.len() + 4];
    connection.read_exact(&mut said).await.expect("all of it");
    assert_eq!(said, *[&PREFACE[..], b"more"].concat());
    goes(&mut silent[0]).await;
    // Those that waited have their time, and go.
    drop(silent);
    soon("those that waited are gone", || counts.open() <= 1).await;
    assert_eq!(counts.refused(), HANDSHAKES as u64 + 50);
    drop(connection);
    assert_eq!(counts.open(), 0);
}

#[tokio::test]
async fn who_says_something_else_is_told_what_this_is() {
    let (_incoming, address, counts) = plain().await;
    let answer = async |said: &[u8]| {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(said).await.expect("written");
        stream.shutdown().await.expect("shut");
        let mut answer = String::new();
        _ = stream.read_to_string(&mut answer).await;
        answer
    };
    let http1 = answer(b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n").await;
    assert!(http1.starts_with("HTTP/1.1 505 "), "{http1}");
    assert!(
        http1.ends_with("Health and metrics are at --http.\n"),
        "{http1}"
    );
    // The beginning of a ClientHello.
    assert_eq!(answer(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await, "");
    soon("both are gone", || counts.open() == 0).await;
    assert_eq!(counts.refused(), 2);
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_a_wrong_one_for_none() {
    let dir = TempDir::new().expect("a directory");
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let given = files(dir.path(), &first.sign("agent", &[]), None);
    let tls = State::open(given.clone()).expect("certificates");
    let address = serve(&tls).await;
    let mut old = connect(address, &first, None).await.expect("let in");
    assert_eq!(line(&mut old).await.expect("a line"), "nobody");

    let next = second.sign("agent", &[]);
    files(dir.path(), &next, None);
    let known = tls
        .look(Err(String::new()))
        .unwrap_or_else(|error| panic!("{error}"));
    greeted(address, &first, None)
        .await
        .expect_err("it has another certificate now");
    greeted(address, &second, None).await.expect("let in");
    old.write_all(b"still here\n").await.expect("written");
    assert_eq!(line(&mut old).await.expect("a line"), "still here");

    fs::write(
        &given.key,
        KeyPair::generate().expect("a key").serialize_pem(),
    )
    .expect("a file");
    let wrong = tls
        .look(Ok(known))
        .err()
        .expect("a key of another certificate");
    assert!(
        wrong.contains("tls.key is not that of the certificate in"),
        "{wrong}"
    );
    let wrong = tls.look(Err(wrong)).err().expect("it is still there");
    assert_eq!(tls.reload_failures(), 1, "told once");
    greeted(address, &second, None)
        .await
        .expect("the old pair stays in use");
    fs::write(&given.key, next.key.serialize_pem()).expect("a file");
    assert!(tls.look(Err(wrong)).is_ok());
}

#[tokio::test]
async fn files_that_are_wrong_are_named() {
    let dir = TempDir::new().expect("a directory");
    let authority = Authority::new("ours");
    let good = files(dir.path(), &authority.sign("agent", &[]), Some(&authority));
    let other = dir.path().join("other");
    for (content, wrong, hint) in [
        (
            None,
            Files {
                key: other.clone(),
                ..good.clone()
            },
            "other cannot be read: No such file",
        ),
        (
            Some("hello"),
            Files {
                certificate: other.clone(),
                ..good.clone()
            },
            "other has no certificate in PEM: there is none in it",
        ),
        (
            Some("hello"),
            Files {
                key: other.clone(),
                ..good.clone()
            },
            "other has no private key in PEM",
        ),
        (
            Some("hello"),
            Files {
                client_ca: Some(other.clone()),
                client_may_show_none: false,
                ..good.clone()
            },
            "other has no certificate in PEM",
        ),
        (
            Some(&*authority.sign("agent", &[]).pem),
            Files {
                certificate: other.clone(),
                ..good.clone()
            },
            "tls.key is not that of the certificate in",
        ),
    ] {
        if let Some(content) = content {
            fs::write(&other, content).expect("a file");
        }
        let error = State::open(wrong).err().expect("refused").to_string();
        assert!(error.contains(hint), "{error}");
    }
}

#[tokio::test]
async fn a_socket_is_for_those_who_may_open_it_and_leaves_nothing() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("dinle.sock");
    let address: Address = format!("unix:{}", path.display())
        .parse()
        .expect("an address");
    // Only root may give it to a group that is not its own.
    let own = fs::metadata("/proc/self").expect("this process");
    let group = if own.uid() == 0 { 4242 } else { own.gid() };
    let access = Access {
        mode: 0o640,
        group: Some(group),
    };
    // One that nobody listens at any more.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let listener = Listener::bind(&address, access, None)
        .await
        .expect("a socket");
    assert_eq!(
        fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777,
        0o640
    );
    assert_eq!(fs::metadata(&path).expect("a socket").gid(), group);
    let taken = Listener::bind(&address, access, None)
        .await
        .err()
        .expect("somebody listens");
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    let mut incoming = Box::pin(Listener::incoming(vec![listener], &Arc::default()));
    let mut client = UnixStream::connect(&path).await.expect("it is open");
    client.write_all(PREFACE).await.expect("written");
    let connection = incoming
        .next()
        .await
        .expect("a connection")
        .expect("it is fine");
    assert_eq!(
        connection.connect_info().address,
        PeerAddress::Unix(Some(own.uid()))
    );
    drop(incoming);
    soon("the socket is gone", || !path.exists()).await;
    // Nobody can say whether anybody listens there.
    let odd = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    let refused = Listener::bind(&address, access, None).await.err();
    let refused = refused.expect("it may be in use").to_string();
    assert!(refused.contains("cannot be found out"), "{refused}");
    drop(odd);
    fs::remove_file(&path).expect("it was there");

    fs::write(&path, "mine").expect("a file");
    let refused = Listener::bind(&address, access, None)
        .await
        .err()
        .expect("it is no socket");
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&path).expect("it is untouched"), "mine");
}

#[test]
fn a_certificate_names_somebody_or_is_refused() {
    let authority = Authority::new("ours");
    let of = |user: &str, groups: &[&str]| Subject::of(&authority.sign(user, groups).certificate);
    let jane = of("jane", &["ops"]).expect("a subject");
    assert_eq!(
        (&*jane.user, jane.groups.join("+")),
        ("jane", "ops".to_owned())
    );
    for (user, groups) in [("", &[][..]), ("jane", &[""][..])] {
        let refused = of(user, groups).expect_err("an empty name");
        assert_eq!(refused, "a name in the client's certificate is empty");
    }
    assert!(Subject::of(b"hello").is_err());
}
