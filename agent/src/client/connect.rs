//! The way to the agent, and words for when it does not work.

use std::{error::Error, future::Future, time::Duration};

use anyhow::anyhow;
use dinle_proto::v1::observer_client::ObserverClient;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint, Uri},
};
use tonic_types::StatusExt as _;

use super::Refused;

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
pub(super) type Client = ObserverClient<Channel>;

/// Reads `http://host:port`, `host:port` or `host`.
pub(super) fn parse_address(text: &str) -> Result<Uri, String> {
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let uri: Uri = with_scheme.parse().map_err(|error| {
        format!("{error}; write `http://host:port`, as in `http://127.0.0.1:{PORT}`")
    })?;
    if uri.scheme_str() != Some("http") {
        return Err(
            "only `http://` works; reach agents on other machines through `kubectl port-forward`"
                .to_owned(),
        );
    }
    let host = uri.host().unwrap_or_default();
    if host.is_empty() {
        return Err("there is no host in it; write `http://host:port`".to_owned());
    }
    let port = uri.port_u16().unwrap_or(PORT);
    format!("http://{host}:{port}")
        .parse()
        .map_err(|error| format!("{error}"))
}

/// Connects to the agent.
pub(super) async fn connect(address: &Uri) -> anyhow::Result<Client> {
    let endpoint = Endpoint::from(address.clone()).connect_timeout(CONNECT_TIMEOUT);
    let channel = endpoint.connect().await.map_err(|error| {
        anyhow!(
            "cannot connect to the agent at {address}: {}; \
             is it reachable there? For a pod: `kubectl port-forward -n dinle pod/NAME {PORT}:{PORT}`",
            root_cause(&error)
        )
    })?;
    Ok(Client::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Waits for the agent's answer, but not for ever: a port-forward takes connections also when the pod is gone.
pub(super) async fn answer<T>(
    address: &Uri,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(SILENCE_MAX, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failure(address, &status)),
        Err(_) => Err(anyhow!(
            "the agent at {address} did not answer within {} s; is the port-forward still alive?",
            SILENCE_MAX.as_secs()
        )),
    }
}

/// What a status means to the user.
pub(super) fn failure(address: &Uri, status: &Status) -> anyhow::Error {
    let message = status.message();
    match status.code() {
        Code::InvalidArgument => {
            let violations = status
                .get_details_bad_request()
                .map(|details| details.field_violations)
                .unwrap_or_default();
            if violations.is_empty() {
                return Refused(message.to_owned()).into();
            }
            let lines: Vec<_> = violations
                .iter()
                .map(|violation| format!("{}: {}", violation.field, violation.description))
                .collect();
            Refused(lines.join("\n")).into()
        }
        Code::Unimplemented => anyhow!(
            "what listens at {address} does not know this call ({message}); is it an agent of this version?"
        ),
        _ if status.source().is_some() => {
            anyhow!("the connection to the agent at {address} broke: {message}")
        }
        code => anyhow!("the agent at {address} refused: {message} ({code:?})"),
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
            ("http://127.0.0.1:4380", "http://127.0.0.1:4380/"),
            ("127.0.0.1:9000", "http://127.0.0.1:9000/"),
            ("node-1", "http://node-1:4380/"),
            ("http://node-1/", "http://node-1:4380/"),
            ("[::1]:4380", "http://[::1]:4380/"),
            ("[::1]", "http://[::1]:4380/"),
        ];
        for (text, expected) in table {
            assert_eq!(
                parse_address(text).map(|uri| uri.to_string()),
                Ok(expected.to_owned()),
                "{text}"
            );
        }
        for text in ["", "https://node-1:4380", "a b", "unix:///run/dinle.sock"] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    fn address() -> Uri {
        Uri::from_static("http://node-1:4380")
    }

    #[test]
    fn a_refused_request_is_told_field_by_field() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("filter.comm[0].glob", "`[` is not a glob");
        details.add_bad_request_violation("queue_bytes", "is 5");
        let status = Status::with_error_details(Code::InvalidArgument, "two problems", details);
        let refused = failure(&address(), &status)
            .downcast::<Refused>()
            .expect("a usage error");
        assert_eq!(
            refused.to_string(),
            "filter.comm[0].glob: `[` is not a glob\nqueue_bytes: is 5"
        );
        let bare = failure(&address(), &Status::invalid_argument("kinds: is empty"));
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
                "the agent at http://node-1:4380/ refused: not in namespace shop (PermissionDenied)",
            ),
            (
                Status::unimplemented("nothing here"),
                "what listens at http://node-1:4380/ does not know this call (nothing here); \
                 is it an agent of this version?",
            ),
            (
                Status::from_error(Box::new(std::io::Error::other("reset"))),
                "the connection to the agent at http://node-1:4380/ broke: reset",
            ),
        ];
        for (status, expected) in table {
            assert_eq!(failure(&address(), &status).to_string(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_never_answers_is_given_up() {
        let never = std::future::pending::<Result<Response<()>, Status>>();
        let error = answer(&address(), never).await.expect_err("gave up");
        assert_eq!(
            error.to_string(),
            "the agent at http://node-1:4380/ did not answer within 10 s; is the port-forward still alive?"
        );
    }

    #[tokio::test]
    async fn an_address_without_an_agent_gets_a_hint() {
        // Bound, so that nobody else takes it, but not listening.
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(any_port).expect("a free port");
        let port = socket.local_addr().expect("bound").port();
        let address = parse_address(&format!("127.0.0.1:{port}")).expect("an address");
        let error = connect(&address).await.expect_err("nobody is there");
        assert_eq!(
            error.to_string(),
            format!(
                "cannot connect to the agent at http://127.0.0.1:{port}/: Connection refused (os error 111); \
                 is it reachable there? For a pod: `kubectl port-forward -n dinle pod/NAME 4380:4380`"
            )
        );
    }
}
