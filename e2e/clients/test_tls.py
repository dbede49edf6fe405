"""TLS and Unix sockets: gRPC's own client and ours, with certificates that openssl made."""

import os
import re
import socket
import ssl
import stat
import subprocess
from pathlib import Path

import grpc
import pytest

import node
from certificates import NAME, Authority
from conftest import NODE, PATIENCE_SECONDS, PODS

class Secured:
    """An agent that also listens with TLS and at a Unix socket."""

    def __init__(self, directory: Path):
        self.authority = Authority(directory / "ours", "ours")
        self.certificate, self.key = directory / "tls.crt", directory / "tls.key"
        self.use(*self.authority.sign("agent", "/CN=agent"))
        self.authorities = directory / "clients.crt"
        self.client_ca(self.authority)
        self.client = self.authority.sign("jane", "/O=dev/CN=jane")
        self.address = f"127.0.0.1:{node.free_port()}"
        self.socket = directory / "dinle.sock"
        self.agent = node.Agent(
            PODS, NODE,
            "--tls-cert", str(self.certificate), "--tls-key", str(self.key),
            "--tls-client-ca", str(self.authorities),
            "--socket-mode", "0660",
            listen=(f"tls:{self.address}", f"unix:{self.socket}"),
        )

    def use(self, certificate: Path, key: Path) -> None:
        """As the kubelet does: both at once would be better, but it has no such means either."""
        for given, place in [(certificate, self.certificate), (key, self.key)]:
            self.replace(given, place)

    def client_ca(self, authority: Authority) -> None:
        self.replace(authority.path("crt"), self.authorities)

    @staticmethod
    def replace(given: Path, place: Path) -> None:
        new = place.with_suffix(".new")
        new.write_bytes(given.read_bytes())
        new.rename(place)

    def serves(self, v1, authority: Authority, client: tuple[Path, Path]) -> bool:
        """Whether it has a certificate of that authority, and lets that client in."""
        try:
            return status(self.channel(authority, client), v1).node == NODE
        except grpc.RpcError:
            return False

    def channel(self, authority: Authority | None = None, client: tuple[Path, Path] | None = None) -> grpc.Channel:
        certificate, key = [path.read_bytes() for path in client] if client else (None, None)
        roots = (authority or self.authority).path("crt").read_bytes()
        credentials = grpc.ssl_channel_credentials(roots, key, certificate)
        # Each has a connection of its own, so that none speaks for another.
        return grpc.secure_channel(self.address, credentials, [("grpc.use_local_subchannel_pool", 1)])

    def metric(self, name: str) -> int:
        line = next(line for line in self.agent.get("/metrics")[1].splitlines() if line.startswith(f"{name} "))
        return int(line.split()[1])


@pytest.fixture(scope="module")
def secured(pods, tmp_path_factory):
    secured = Secured(tmp_path_factory.mktemp("tls"))
    with secured.agent:
        yield secured


def status(channel: grpc.Channel, v1):
    with channel:
        return v1.ObserverStub(channel).GetStatus(v1.GetStatusRequest(), timeout=PATIENCE_SECONDS)


def refused(channel: grpc.Channel, v1) -> None:
    with pytest.raises(grpc.RpcError) as error:
        status(channel, v1)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_who_has_a_certificate_is_let_in_and_nobody_else(secured, v1, tmp_path):
    assert status(secured.channel(client=secured.client), v1).node == NODE
    before = secured.metric("dinle_tls_handshake_failures_total")
    refused(secured.channel(), v1)
    strangers = Authority(tmp_path, "theirs")
    refused(secured.channel(client=strangers.sign("jane", "/O=dev/CN=jane")), v1)
    refused(grpc.insecure_channel(secured.address), v1)
    with socket.create_connection(secured.address.split(":")) as http1:
        http1.sendall(b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n")
        assert len(http1.recv(1000)) < 16
    # Whoever is refused may learn of it before it is counted.
    node.wait_until(
        lambda: secured.metric("dinle_tls_handshake_failures_total") >= before + 4, PATIENCE_SECONDS, "each of them is counted"
    )
    assert status(secured.channel(client=secured.client), v1).node == NODE


def test_a_thousand_that_say_nothing_keep_nobody_out(secured, v1):
    silent = [socket.create_connection(secured.address.split(":")) for _ in range(1000)]
    try:
        # In less than the time that the agent gives those to begin: the first of them have to go.
        with secured.channel(client=secured.client) as channel:
            assert v1.ObserverStub(channel).GetStatus(v1.GetStatusRequest(), timeout=5).node == NODE
    finally:
        for connection in silent:
            connection.close()


def test_the_log_says_who_listened_to_what(secured, pods, v1):
    def told(*words: str) -> bool:
        return any(all(word in line for word in words) for line in secured.agent.log.read_text().splitlines())

    selector = v1.Selector(namespaces=[pods["web"].namespace], label_selector="audit=yes")
    channel = grpc.insecure_channel(f"unix:{secured.socket}", [("grpc.default_authority", "localhost")])
    with channel:
        observer = v1.ObserverStub(channel)
        list(observer.Subscribe(v1.SubscribeRequest(kinds=[v1.KIND_EXIT], selector=selector, max_duration={"nanos": 10**8})))
        asked = ["peer=\"unix:0\"", 'kinds="exit"', f'selector="namespaces={pods["web"].namespace} labels=audit=yes"']
        assert told("dinle::audit", "stream begins", *asked)
        node.wait_until(
            lambda: told("stream ends", *asked, "events=0", "lost=0", 'reason="MAX_DURATION"'), PATIENCE_SECONDS, "the end is told"
        )
        # Most of it is more than this stream may have in a second.
        web = pods["web"]
        request = v1.SubscribeRequest(
            kinds=[v1.KIND_EXIT], selector=v1.Selector(pods=[web.name]), max_events_per_second=1, max_duration={"seconds": 5}
        )
        call = observer.Subscribe(request, timeout=PATIENCE_SECONDS)
        messages = [next(call)]
        web.run("/bin/true", times=20)
        messages += call
        events = sum(len(message.batch.events) for message in messages)
        lost = sum(one.count for books in messages[-1].heartbeat.books for one in books.lost)
        assert events > 0 and lost > 0, messages[-1]
        count = sum(message.ByteSize() for message in messages)
        end = [f"stream={messages[0].plan.stream_id} ", f"events={events} ", f"bytes={count} ", f"lost={lost} "]
        node.wait_until(lambda: told("stream ends", *end), PATIENCE_SECONDS, f"the end is told: {end}")
        with pytest.raises(grpc.RpcError):
            list(observer.Subscribe(v1.SubscribeRequest(kinds=[77])))
        assert told("stream refused", 'kinds="77"', 'code="InvalidArgument"')
    with secured.channel(client=secured.client) as channel:
        request = v1.SubscribeRequest(kinds=[v1.KIND_EXEC], selector=selector)
        messages = v1.ObserverStub(channel).Subscribe(request, timeout=PATIENCE_SECONDS)
        assert next(messages).WhichOneof("message") == "plan"
        listening = v1.ObserverStub(channel).GetStatus(v1.GetStatusRequest()).subscriptions
        assert [(stream.caller.user, list(stream.caller.groups)) for stream in listening] == [("jane", ["dev"])]
        messages.cancel()
    node.wait_until(
        lambda: told("stream ends", 'user="jane"', 'groups="dev"', 'reason="CLIENT_LEFT"'), PATIENCE_SECONDS, "that she left is told"
    )


def expiry(certificate: Path) -> int:
    """What openssl says, in seconds since 1970."""
    told = subprocess.run(["openssl", "x509", "-noout", "-enddate", "-in", certificate], capture_output=True, text=True, check=True)
    return int(ssl.cert_time_to_seconds(told.stdout.strip().removeprefix("notAfter=")))


@pytest.fixture
def renewed_again(secured, v1):
    """Others find the agent as it was."""
    yield
    pair = secured.authority.sign("agent", "/CN=agent")
    secured.client_ca(secured.authority)
    secured.use(*pair)
    node.wait_until(lambda: secured.serves(v1, secured.authority, secured.client), 30, "the agent is as it was")


@pytest.mark.usefixtures("renewed_again")
def test_a_certificate_is_renewed_under_a_stream(secured, pods, v1, tmp_path):
    request = v1.SubscribeRequest(kinds=[v1.KIND_EXEC], selector=v1.Selector(pods=[pods["checkout"].name]))
    with secured.channel(client=secured.client) as channel:
        messages = v1.ObserverStub(channel).Subscribe(request, timeout=150 + PATIENCE_SECONDS)
        assert next(messages).WhichOneof("message") == "plan"

        # A key of another certificate: the old pair stays in use.
        _, other = secured.authority.sign("other", "/CN=other")
        secured.use(secured.certificate, other)
        node.wait_until(lambda: secured.metric("dinle_tls_reload_failures_total") == 1, 30, "the wrong key is noticed")
        assert "tls.key is not that of the certificate" in secured.agent.log.read_text()
        assert status(secured.channel(client=secured.client), v1).node == NODE

        others = Authority(tmp_path, "others")
        new = others.sign("agent", "/CN=agent")
        secured.use(*new)
        node.wait_until(lambda: secured.serves(v1, others, secured.client), 30, "the new certificate is in use")
        refused(secured.channel(client=secured.client), v1)
        assert secured.metric("dinle_tls_certificate_expiry_timestamp_seconds") == expiry(new[0])

        # Who signs clients is another now, too.
        stranger = others.sign("joe", "/CN=joe")
        refused(secured.channel(others, stranger), v1)
        secured.client_ca(others)
        node.wait_until(lambda: secured.serves(v1, others, stranger), 30, "the new authority is in use")
        refused(secured.channel(others, secured.client), v1)

        pods["checkout"].run("true")
        heard = next(event for message in messages for event in message.batch.events)
        assert heard.exec.args[0] == "true"


@pytest.mark.parametrize("version, spoken", [("1_1", False), ("1_2", True), ("1_3", True)])
def test_tls_is_spoken_from_its_version_1_2_on(secured, version, spoken):
    certificate, key = secured.client
    ask = ["openssl", "s_client", "-connect", secured.address, f"-tls{version}", "-CAfile", secured.authority.path("crt"),
           "-cert", certificate, "-key", key, "-alpn", "h2", "-verify_return_error"]
    if version == "1_1":
        # Else openssl itself does not offer it.
        ask += ["-cipher", "ALL:@SECLEVEL=0"]
    done = subprocess.run(ask, input="", capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    told = f"{done.stdout}\n{done.stderr}"
    if spoken:
        assert f"TLSv{version.replace('_', '.')}, Cipher is " in done.stdout and "Verification: OK" in done.stdout, told
    else:
        # It did ask.
        assert re.search(r"^SSL handshake has read \d+ bytes and written [1-9]\d* bytes$", done.stdout, re.MULTILINE), told
        assert done.returncode != 0 and "Cipher is (NONE)" in done.stdout, told


def test_an_agent_does_not_start_with_a_key_of_another_certificate(pods, tmp_path):
    authority = Authority(tmp_path / "ours", "ours")
    (certificate, _), (_, key) = authority.sign("agent", "/CN=agent"), authority.sign("other", "/CN=other")
    address = f"127.0.0.1:{node.free_port()}"
    agent = node.Agent(PODS, NODE, "--tls-cert", str(certificate), "--tls-key", str(key), listen=(f"tls:{address}",))
    ended = subprocess.run(agent.command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ended.returncode == 1, ended
    assert f"{key} is not that of the certificate" in ended.stdout + ended.stderr, ended


def test_a_socket_is_for_this_machine(secured, v1):
    assert stat.S_IMODE(os.stat(secured.socket).st_mode) == 0o660
    # gRPC's C core names the path as the authority, which the HTTP/2 of others refuses.
    options = [("grpc.default_authority", "localhost")]
    assert status(grpc.insecure_channel(f"unix:{secured.socket}", options), v1).node == NODE
    told = subprocess.run([node.binary(), "status", "--address", f"unix:{secured.socket}"], capture_output=True, text=True)
    assert told.returncode == 0 and NODE in told.stdout, told


def test_our_own_client_speaks_tls_and_says_what_is_wrong(tmp_path):
    secured = Secured(tmp_path)
    certificate, key = secured.client
    ours = ["--tls-ca", secured.authority.path("crt"), "--tls-client-cert", certificate, "--tls-client-key", key]

    def ask(*flags: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            [node.binary(), "status", "--address", f"https://{secured.address}", *flags], capture_output=True, text=True
        )

    with secured.agent:
        told = ask(*ours)
        assert told.returncode == 0 and NODE in told.stdout, told
        assert ask(*ours, "--tls-server-name", NAME).returncode == 0
        for flags, hint in [
            (ours[:2], "perhaps it wants a certificate of yours, see --tls-client-cert"),
            (ours[2:], "does its certificate have that name and an issuer that --tls-ca names?"),
            ([*ours, "--tls-server-name", "another.test"], "does its certificate have that name"),
            (["--tls-ca", tmp_path / "none"], "none cannot be read"),
        ]:
            told = ask(*flags)
            assert told.returncode == 1 and hint in told.stderr, (flags, told)
            assert len(told.stderr.splitlines()) == 1, told.stderr
        assert secured.socket.exists()
    assert not secured.socket.exists()
