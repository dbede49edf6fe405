//! The way to the agent, and words for when it does not work.

use std::{
    error::Error,
    fmt, fs,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use dinle_proto::v1::observer_client::ObserverClient;
use tonic::{
    Code, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri},
};
use tonic_types::StatusExt as _;

use super::Refused;
use crate::cluster;

/// Where an agent listens unless it is told otherwise.
const PORT: u16 = 4380;
/// Longer than a handshake across continents.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an agent may be silent: three heartbeats of [`HEARTBEAT`], and a second of grace.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);
/// What the client asks for.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3);
/// A node's workloads come in one message; with long labels they are more than gRPC's usual 4 MiB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A connection to the agent.
pub(super) type Client = ObserverClient<InterceptedService<Channel, Bearer>>;

/// Tells with each call who asks, if there is a token.
#[derive(Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(header) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// Where an agent is, in full: `http://host:port`, `https://host:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address(String);

impl Address {
    /// What is sent there stays on this machine, or is encrypted.
    fn keeps_secrets(&self) -> bool {
        let host = self
            .0
            .strip_prefix("http://")
            .map(|rest| rest.rsplit_once(':').map_or(rest, |(host, _)| host));
        let local = |host: &str| {
            let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            host == "localhost" || address.is_ok_and(|address| address.is_loopback())
        };
        host.is_none_or(local)
    }

    /// Clients and the agent speak TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.0.starts_with("https:")
    }
}

/// One agent, and how to speak to it.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) address: Address,
    pub(super) tls: Tls,
    pub(super) token_file: Option<PathBuf>,
}

/// Files for TLS, in PEM.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Tls {
    /// With an address of `https://`: who has signed the agent's certificate, PEM [default: whom this machine trusts]
    #[arg(long, env = "DINLE_TLS_CA", value_name = "FILE")]
    pub(super) tls_ca: Option<PathBuf>,
    /// With it: this client's certificate, PEM
    #[arg(
        long,
        env = "DINLE_TLS_CLIENT_CERT",
        value_name = "FILE",
        requires = "tls_client_key"
    )]
    pub(super) tls_client_cert: Option<PathBuf>,
    /// With it: the certificate's key, PEM
    #[arg(
        long,
        env = "DINLE_TLS_CLIENT_KEY",
        value_name = "FILE",
        requires = "tls_client_cert"
    )]
    pub(super) tls_client_key: Option<PathBuf>,
    /// With it: the name in the agent's certificate [default: the host of the address]
    #[arg(long, env = "DINLE_TLS_SERVER_NAME", value_name = "NAME")]
    pub(super) tls_server_name: Option<String>,
}

impl Tls {
    fn config(&self) -> anyhow::Result<ClientTlsConfig> {
        let read = |path: &Path| {
            fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
        };
        let mut config = match &self.tls_ca {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = self
            .tls_client_cert
            .as_deref()
            .zip(self.tls_client_key.as_deref())
        {
            config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        if let Some(name) = &self.tls_server_name {
            config = config.domain_name(name);
        }
        Ok(config.timeout(CONNECT_TIMEOUT))
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address.0)
    }
}

/// Reads `http://host:port`, `https://host:port`, `host:port`, `host`, or `unix:/path`.
pub(super) fn parse_address(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return match path.starts_with('/') {
            true => Ok(Address(format!("unix:{path}"))),
            false => {
                Err("write the whole path of the socket, as in `unix:/run/dinle.sock`".to_owned())
            }
        };
    }
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let uri: Uri = with_scheme.parse().map_err(|error| {
        format!("{error}; write `http://host:port`, as in `http://127.0.0.1:{PORT}`")
    })?;
    let scheme = uri.scheme_str().unwrap_or_default();
    if !["http", "https"].contains(&scheme) {
        return Err(
            "there are `http://host:port`, `https://host:port` and `unix:/path`".to_owned(),
        );
    }
    let host = uri.host().unwrap_or_default();
    if host.is_empty() {
        return Err("there is no host in it; write `http://host:port`".to_owned());
    }
    let port = uri.port_u16().unwrap_or(PORT);
    Ok(Address(format!("{scheme}://{host}:{port}")))
}

/// Which agent is meant, in words for the user.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// The one at an address.
    At(Agent),
    /// The one of a node.
    On(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(agent) => write!(f, "the agent at {agent}"),
            Self::On(node) => write!(f, "the agent of node {node}"),
        }
    }
}

/// An agent's client on a connection.
///
/// # Errors
/// What is in the token cannot be sent.
pub(super) fn client_on(channel: Channel, token: Option<String>) -> Result<Client, String> {
    let header = token.map(|token| format!("Bearer {token}").parse());
    let mut header: Option<MetadataValue<Ascii>> = header
        .transpose()
        .map_err(|_| "the token has characters that no token has".to_owned())?;
    if let Some(header) = &mut header {
        header.set_sensitive(true);
    }
    let client = Client::new(InterceptedService::new(channel, Bearer(header)));
    Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Connects to the agent.
pub(super) async fn connect(agent: &Agent) -> anyhow::Result<Client> {
    let Agent {
        address,
        tls,
        token_file,
    } = agent;
    let token = token_file.as_ref().map(cluster::token_in).transpose();
    let token = token.map_err(anyhow::Error::msg)?;
    if token.is_some() && !address.keeps_secrets() {
        return Err(Refused(format!(
            "whoever listens in on the way to {agent} would read the token: write https://, or leave --token-file out"
        ))
        .into());
    }
    let mut endpoint = Endpoint::from_shared(address.0.clone())?.connect_timeout(CONNECT_TIMEOUT);
    if address.is_tls() {
        let config = tls.config()?;
        endpoint = endpoint
            .tls_config(config)
            .map_err(|error| anyhow!("the files for TLS cannot be used: {}", root_cause(&error)))?;
    }
    let channel = endpoint.connect().await.map_err(|error| {
        let hint = match address.is_tls() {
            true => "is it reachable there, and does its certificate have that name and an issuer that --tls-ca names?".to_owned(),
            false => {
                format!("is it reachable there? For a pod: `kubectl port-forward -n dinle pod/NAME {PORT}:{PORT}`")
            }
        };
        anyhow!("cannot connect to the agent at {agent}: {}; {hint}", root_cause(&error))
    })?;
    client_on(channel, token).map_err(anyhow::Error::msg)
}

/// Waits for the agent's answer, but not for ever: a port-forward takes connections also when the pod is gone.
pub(super) async fn answer<T>(
    place: &Place,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(SILENCE_MAX, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failure(place, &status)),
        Err(_) => Err(anyhow!(
            "{place} did not answer within {} s; is the port-forward still alive?",
            SILENCE_MAX.as_secs()
        )),
    }
}

/// What a status means to the user.
pub(super) fn failure(place: &Place, status: &Status) -> anyhow::Error {
    let message = status.message();
    if let Some(cause) = status.source() {
        // With TLS 1.3 a client learns only afterwards that it was refused.
        let hint = match place {
            Place::At(Agent { address, tls, .. })
                if address.is_tls() && tls.tls_client_cert.is_none() =>
            {
                "; perhaps it wants a certificate of yours, see --tls-client-cert"
            }
            Place::At(_) | Place::On(_) => "",
        };
        return anyhow!(
            "the connection to {place} broke: {}{hint}",
            root_cause(cause)
        );
    }
    let violations = status
        .get_details_bad_request()
        .map(|details| details.field_violations)
        .unwrap_or_default();
    match status.code() {
        // With a field it is the request that is too large, and not a matter of time.
        Code::InvalidArgument | Code::ResourceExhausted if !violations.is_empty() => {
            let lines: Vec<_> = violations
                .iter()
                .map(|violation| format!("{}: {}", violation.field, violation.description))
                .collect();
            Refused(lines.join("\n")).into()
        }
        Code::InvalidArgument => Refused(message.to_owned()).into(),
        Code::Unimplemented => {
            anyhow!("{place} does not know this call ({message}); is it an agent of this version?")
        }
        code => anyhow!("{place} refused: {message} ({code:?})"),
    }
}

fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let table = [
            ("http://127.0.0.1:4380", "http://127.0.0.1:4380"),
            ("127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("node-1", "http://node-1:4380"),
            ("http://node-1/", "http://node-1:4380"),
            ("[::1]:4380", "http://[::1]:4380"),
            ("[::1]", "http://[::1]:4380"),
            ("https://node-1", "https://node-1:4380"),
            ("unix:/run/dinle.sock", "unix:/run/dinle.sock"),
            ("unix:///run/dinle.sock", "unix:/run/dinle.sock"),
        ];
        for (text, expected) in table {
            assert_eq!(
                parse_address(text).map(|address| address.0),
                Ok(expected.to_owned()),
                "{text}"
            );
        }
        for text in ["", "ftp://node-1:4380", "a b", "unix:run/dinle.sock"] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    fn agent(address: &str) -> Agent {
        Agent {
            address: parse_address(address).expect("an address"),
            tls: Tls::default(),
            token_file: None,
        }
    }

    #[tokio::test]
    async fn a_token_goes_only_where_nobody_can_read_it() {
        for (address, kept) in [
            ("127.0.0.1", true),
            ("[::1]:9", true),
            ("localhost", true),
            ("https://node-1", true),
            ("unix:/run/dinle.sock", true),
            ("node-1", false),
            ("10.0.0.1:4380", false),
            ("127.0.0.1.example.com", false),
        ] {
            let Agent { address, .. } = agent(address);
            assert_eq!(address.keeps_secrets(), kept, "{address:?}");
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "s3cret").expect("written");
        let agent = Agent {
            token_file: Some(file.path().to_owned()),
            ..agent("192.0.2.1")
        };
        let error = connect(&agent).await.expect_err("refused");
        assert!(error.to_string().contains("write https://"), "{error}");
    }

    fn place() -> Place {
        Place::At(agent("http://node-1:4380"))
    }

    #[test]
    fn a_refused_request_is_told_field_by_field() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("filter.comm[0].glob", "`[` is not a glob");
        details.add_bad_request_violation("queue_bytes", "is 5");
        let status = Status::with_error_details(Code::InvalidArgument, "two problems", details);
        let refused = failure(&place(), &status)
            .downcast::<Refused>()
            .expect("a usage error");
        assert_eq!(
            refused.to_string(),
            "filter.comm[0].glob: `[` is not a glob\nqueue_bytes: is 5"
        );
        // What is more than the agent ever gives is the request's fault, too.
        let details = ErrorDetails::with_bad_request_violation("queue_bytes", "is 5000");
        let status = Status::with_error_details(Code::ResourceExhausted, "too much", details);
        let refused = failure(&place(), &status).downcast::<Refused>();
        assert_eq!(
            refused.expect("a usage error").to_string(),
            "queue_bytes: is 5000"
        );
        let bare = failure(&place(), &Status::invalid_argument("kinds: is empty"));
        assert_eq!(
            bare.downcast::<Refused>()
                .expect("a usage error")
                .to_string(),
            "kinds: is empty"
        );
    }

    #[test]
    fn other_failures_name_the_address() {
        let table = [
            (
                Status::permission_denied("not in namespace shop"),
                "the agent at http://node-1:4380 refused: not in namespace shop (PermissionDenied)",
            ),
            (
                Status::resource_exhausted("64 streams are open already"),
                "the agent at http://node-1:4380 refused: 64 streams are open already (ResourceExhausted)",
            ),
            (
                Status::unimplemented("nothing here"),
                "the agent at http://node-1:4380 does not know this call (nothing here); \
                 is it an agent of this version?",
            ),
            (
                Status::from_error(Box::new(std::io::Error::other("reset"))),
                "the connection to the agent at http://node-1:4380 broke: reset",
            ),
        ];
        for (status, expected) in table {
            assert_eq!(failure(&place(), &status).to_string(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_never_answers_is_given_up() {
        let never = std::future::pending::<Result<Response<()>, Status>>();
        let error = answer(&place(), never).await.expect_err("gave up");
        assert_eq!(
            error.to_string(),
            "the agent at http://node-1:4380 did not answer within 10 s; is the port-forward still alive?"
        );
    }

    #[tokio::test]
    async fn an_address_without_an_agent_gets_a_hint() {
        // Bound, so that nobody else takes it, but not listening.
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(any_port).expect("a free port");
        let port = socket.local_addr().expect("bound").port();
        let agent = agent(&format!("127.0.0.1:{port}"));
        let error = connect(&agent).await.expect_err("nobody is there");
        assert_eq!(
            error.to_string(),
            format!(
                "cannot connect to the agent at http://127.0.0.1:{port}: Connection refused (os error 111); \
                 is it reachable there? For a pod: `kubectl port-forward -n dinle pod/NAME 4380:4380`"
            )
        );
    }
}
