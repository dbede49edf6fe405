"""Clients that mean harm, or know no better: they are refused, others hear on, and nothing of them stays."""

import random
import re
import select
import socket
import ssl
import struct
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import pytest

import http2
import node
from conftest import NODE, PATIENCE_SECONDS
from test_tls import Secured

# A peer that answers no ping is let go: KEEPALIVE and KEEPALIVE_TIMEOUT of agent/src/app.rs.
KEEPALIVE_SECONDS = 30
# How long a client has to begin: HANDSHAKE of agent/src/listen.rs, SILENCE of agent/src/metrics.rs.
BEGIN_SECONDS = 10
# More than may begin at a time: HANDSHAKES of agent/src/listen.rs.
MANY = 300
# The least that a stream may ask for.
QUEUE_BYTES = 64 << 10
# What the agent may grow by while somebody does not read: queues, buffers of HTTP/2, and what the allocator keeps.
GROWTH_BYTES = 48 << 20

PLAIN, TLS = "plain", "tls"
both = pytest.mark.parametrize("listener", [PLAIN, TLS])


class Target:
    """An agent that listens with TLS and without, and what an attacker reaches of it."""

    def __init__(self, secured: Secured):
        self.secured, self.agent = secured, secured.agent

    def address(self, listener: str) -> tuple[str, int]:
        host, port = {PLAIN: self.agent.grpc, TLS: self.secured.address}[listener].split(":")
        return host, int(port)

    def tcp(self, listener: str, receive_bytes: int = 0) -> socket.socket:
        """A connection that has said nothing yet."""
        raw = socket.socket()
        if receive_bytes:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.settimeout(PATIENCE_SECONDS)
        raw.connect(self.address(listener))
        return raw

    def connect(self, listener: str, *, alpn: str = "h2", receive_bytes: int = 0) -> socket.socket:
        """The same after TLS, where that is spoken."""
        raw = self.tcp(listener, receive_bytes)
        if listener == PLAIN:
            return raw
        context = ssl.create_default_context(cafile=self.secured.authority.path("crt"))
        context.check_hostname = False
        context.load_cert_chain(*self.secured.client)
        context.set_alpn_protocols([alpn])
        return context.wrap_socket(raw)

    def http2(self, listener: str, *, receive_bytes: int = 0, **settings: int) -> socket.socket:
        """The same after the first words of HTTP/2."""
        connection = self.connect(listener, receive_bytes=receive_bytes)
        connection.sendall(http2.PREFACE + http2.settings(**settings))
        return connection

    def metric(self, name: str) -> int:
        found = re.search(rf"^dinle_{re.escape(name)} (\d+)$", self.agent.get("/metrics")[1], re.MULTILINE)
        assert found, f"no metric dinle_{name}"
        return int(found[1])

    def sockets(self) -> int:
        """How many the agent has open."""
        links = Path(f"/proc/{self.agent.process.pid}/fd").iterdir()
        count = 0
        for link in links:
            with suppress(FileNotFoundError):
                count += str(link.readlink()).startswith("socket:")
        return count

    def memory(self) -> int:
        """What the agent holds, in bytes."""
        status = Path(f"/proc/{self.agent.process.pid}/status").read_text()
        return 1024 * int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[1])

    def holds(self) -> dict[str, int]:
        """What connections and streams take."""
        return {
            "connections": self.metric("connections"),
            "subscriptions": self.metric("subscriptions"),
            "sockets": self.sockets(),
        }

    def holds_no_more_than(self, before: dict[str, int]) -> bool:
        """The socket that /metrics was asked by may count or not."""
        now = self.holds()
        return now.pop("sockets") <= before["sockets"] and now.items() <= before.items()


class WellBehaved:
    """A stream that hears all that its pod runs, whatever goes on beside it."""

    def __init__(self, observer, v1, pod):
        self.pod, self.ran, self.heard = pod, 0, 0
        request = v1.SubscribeRequest(kinds=[v1.KIND_EXEC], selector=v1.Selector(pods=[pod.name]))
        request.heartbeat_interval.FromMilliseconds(100)
        self.call = observer.Subscribe(request, timeout=300)
        assert next(self.call).HasField("plan")

    def hears(self, times: int = 3) -> None:
        """Everything, with balanced books."""
        self.pod.run("/bin/true", times=times)
        self.ran += times
        for message in self.call:
            self.heard += len(message.batch.events)
            assert not message.HasField("loss"), message
            if message.HasField("heartbeat"):
                [books] = message.heartbeat.books
                if books.matched == self.ran and books.queued == 0:
                    break
        assert self.heard == books.delivered == self.ran
        assert not books.lost


@pytest.fixture(scope="module")
def target(pods, tmp_path_factory):
    secured = Secured(tmp_path_factory.mktemp("hostile"))
    with secured.agent:
        yield Target(secured)


@pytest.fixture
def observer(target, v1):
    with grpc.insecure_channel(target.agent.grpc) as channel:
        yield v1.ObserverStub(channel)


@contextmanager
def stranger(target, v1):
    """A client of gRPC's own, with a connection of its own."""
    with grpc.insecure_channel(target.agent.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield v1.ObserverStub(channel)


@pytest.fixture
def beside(target, observer, v1, pods):
    """A stream that is not disturbed by what a test does, and an agent that has nothing left of it."""
    stream = WellBehaved(observer, v1, pods["checkout"])
    stream.hears()
    before = target.holds()
    yield stream
    stream.hears()
    node.wait_until(lambda: target.holds_no_more_than(before), PATIENCE_SECONDS, f"the agent holds {before} again")
    assert target.agent.get("/healthz")[0] == 200
    stream.call.cancel()
    node.wait_until(lambda: target.agent.streams() == 0, PATIENCE_SECONDS, "the well-behaved stream is gone")


@both
def test_a_port_scan(target, beside, listener):
    before = target.metric("connections_refused_total")
    for _ in range(MANY):
        target.tcp(listener).close()
    node.wait_until(
        lambda: target.metric("connections_refused_total") >= before + MANY, PATIENCE_SECONDS, "each is counted"
    )
    for _ in range(MANY):
        # With a reset in the place of an end.
        scan = target.tcp(listener)
        scan.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        scan.close()


def test_plain_text_where_tls_is_spoken(target, beside):
    before = target.metric("tls_handshake_failures_total")
    with target.tcp(TLS) as plain:
        plain.sendall(http2.PREFACE + http2.settings())
        # An alert.
        assert len(http2.until_closed(plain, PATIENCE_SECONDS)) < 16
    node.wait_until(lambda: target.metric("tls_handshake_failures_total") >= before + 1, PATIENCE_SECONDS, "it is counted")


def test_tls_where_plain_text_is_spoken(target, beside):
    before = target.metric("connections_refused_total")
    context = ssl._create_unverified_context()
    with target.tcp(PLAIN) as raw, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(raw)
    node.wait_until(lambda: target.metric("connections_refused_total") >= before + 1, PATIENCE_SECONDS, "it is counted")


@both
def test_http1_is_told_what_this_is(target, beside, listener):
    request = b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n"
    with target.connect(listener) as browser:
        browser.sendall(request)
        answer = http2.until_closed(browser, PATIENCE_SECONDS).decode()
        assert answer.startswith("HTTP/1.1 505 ") and "gRPC" in answer, answer
    if listener == TLS:
        # Who says so in its handshake does not get that far.
        with pytest.raises((ssl.SSLError, ConnectionError)):
            target.connect(listener, alpn="http/1.1").recv(1)


@both
def test_headers_without_end(target, beside, listener):
    before = target.memory()
    with target.http2(listener) as connection:
        # Continuations of headers that never end.
        connection.sendall(http2.frame(http2.HEADERS, 0, 1, http2.call("Subscribe")))
        piece = http2.frame(http2.CONTINUATION, 0, 1, http2.fields([("x", "y" * 16000)]))
        with pytest.raises(OSError):
            for _ in range(10000):
                connection.sendall(piece)
    assert target.memory() < before + GROWTH_BYTES


def test_headers_that_are_too_large(target, v1, beside):
    # The call is refused, or its connection ends; the next one is as good as ever.
    for size in (20 << 10, 200 << 10, 2 << 20):
        with stranger(target, v1) as large:
            with pytest.raises(grpc.RpcError) as refused:
                large.GetStatus(v1.GetStatusRequest(), metadata=[("x-large", "y" * size)], timeout=PATIENCE_SECONDS)
            code = grpc.StatusCode
            assert refused.value.code() in (code.RESOURCE_EXHAUSTED, code.INTERNAL, code.UNAVAILABLE, code.UNKNOWN), refused.value
            again = large.GetStatus(v1.GetStatusRequest(), timeout=PATIENCE_SECONDS, wait_for_ready=True)
            assert again.node == NODE


@both
def test_a_message_that_says_it_is_enormous(target, beside, listener):
    before = target.memory()
    with target.http2(listener) as connection:
        # Four GiB, of which a few bytes come.
        said = struct.pack(">BI", 0, 0xFFFF_FFFF) + b"few"
        connection.sendall(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call("Subscribe")) + http2.frame(http2.DATA, 0, 1, said))
        received = b""
        connection.settimeout(PATIENCE_SECONDS)
        # The answer has no body: its only headers end it.
        while not any(kind == http2.HEADERS and flags & http2.END_STREAM for kind, flags, _, _ in http2.frames(received)):
            more = connection.recv(1 << 16)
            assert more, "the connection ended without an answer"
            received += more
    assert target.memory() < before + GROWTH_BYTES


@both
def test_connections_that_begin_and_go_no_further(target, beside, listener):
    # Of TLS the beginning of a ClientHello; of HTTP/2 all but the last byte of its first words.
    said = {PLAIN: http2.PREFACE[:-1], TLS: bytes([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])}[listener]
    with ExitStack() as stack:
        begun = [stack.enter_context(target.tcp(listener)) for _ in range(MANY)]
        for connection in begun:
            with suppress(OSError):  # The oldest make room at once.
                connection.sendall(said)
        # Who means it gets in meanwhile.
        with target.http2(listener) as speaks:
            assert speaks.recv(9)[3] == http2.SETTINGS
        beside.hears()
        for connection in begun:
            http2.until_closed(connection, BEGIN_SECONDS + PATIENCE_SECONDS)


@both
def test_first_words_byte_by_byte(target, beside, listener):
    with target.connect(listener) as connection:
        said = drip(connection, http2.PREFACE, seconds=1)
        assert said < len(http2.PREFACE), "there was time for all of it"


def drip(connection: socket.socket, text: bytes, seconds: float) -> int:
    """Says it byte by byte, one in so many seconds, until the other side closes. Gives how many it took."""
    for said, byte in enumerate(text):
        try:
            connection.sendall(bytes([byte]))
            readable, _, _ = select.select([connection], [], [], seconds)
            if readable and not connection.recv(1 << 16):
                return said
        except OSError:
            return said
    return len(text)


def test_requests_for_health_byte_by_byte(target, beside):
    host, port = target.agent.http.split(":")
    # More than there are places: CONNECTIONS of agent/src/metrics.rs.
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(100)]
        for connection in slow:
            with suppress(OSError):  # The oldest make room at once.
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a")
        # The kubelet has a second for it by default, which is not measured here; it does not wait until one of them ends.
        assert target.agent.get("/healthz") == (200, "ok\n")
        said = drip(slow[-1], b"b" * 100, seconds=1)
        assert said < 100, "there was time for all of it"
        for connection in slow:
            http2.until_closed(connection, BEGIN_SECONDS + PATIENCE_SECONDS)


def flood(pod, times: int) -> None:
    """Opens a file so often: that is faster than starting programs."""
    pod.run("/bin/sh", "-c", f"i=0; while [ $i -lt {times} ]; do : </dev/null; i=$((i+1)); done")


def opens(v1, pod, label: str):
    """A request for what a pod opens, which can be told from others by a label that is no pod's lack."""
    selector = v1.Selector(pods=[pod.name], label_selector=f"!{label}")
    return v1.SubscribeRequest(kinds=[v1.KIND_FILE_OPEN], selector=selector, queue_bytes=QUEUE_BYTES)


def test_who_does_not_read_loses_by_itself_and_is_noticed(target, observer, v1, pods, beside):
    web, stop = pods["web"], threading.Event()
    lost_before = target.metric('events_lost_total{kind="file_open",stage="client_queue"}')

    def books() -> dict:
        """Of each stream that asks for what is opened, by its label."""
        streams = observer.GetStatus(v1.GetStatusRequest(), timeout=PATIENCE_SECONDS).subscriptions
        return {
            stream.request.selector.label_selector[1:]: stream.books[0]
            for stream in streams
            if v1.KIND_FILE_OPEN in stream.request.kinds
        }

    def sip(connection: socket.socket) -> None:
        with suppress(OSError):
            while not stop.is_set() and connection.recv(1):
                stop.wait(1)

    with ExitStack() as stack:
        names = []
        for listener in (PLAIN, TLS):
            for how in ("never", "sips", "greedy"):
                # The greedy one says that it has room for everything, so that nothing but its socket holds the agent back.
                room = {"_4": 0x7FFF_FFFF} if how == "greedy" else {}
                connection = stack.enter_context(target.http2(listener, receive_bytes=4096, **room))
                if how == "greedy":
                    connection.sendall(http2.frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFF_FFFF - 65535)))
                names.append(f"{how}-{listener}")
                connection.sendall(http2.subscribe(1, opens(v1, web, names[-1])))
                if how == "sips":
                    reader = threading.Thread(target=sip, args=(connection,))
                    reader.start()
                    stack.callback(reader.join)
        stack.callback(stop.set)
        node.wait_until(lambda: sorted(books()) == sorted(names), PATIENCE_SECONDS, "all of them are subscribed")
        before, peak, flooded = target.memory(), 0, 0
        seen = {}
        # Until each has lost something; what they have been sent stays in sockets, some MiB of it.
        while not seen or not all(one.lost for one in seen.values()):
            assert flooded < 400_000, seen
            flood(web, 20_000)
            flooded += 20_000
            peak = max(peak, target.memory())
            seen = books()
            assert sorted(seen) == sorted(names), "one is gone before it has lost anything"
        assert peak < before + GROWTH_BYTES
        for name, one in seen.items():
            assert [lost.stage for lost in one.lost] == [v1.LOSS_STAGE_CLIENT_QUEUE], name
            assert one.matched == one.delivered + one.queued + sum(lost.count for lost in one.lost), name
        assert target.metric('events_lost_total{kind="file_open",stage="client_queue"}') > lost_before
        beside.hears()
        # None of them answers pings.
        node.wait_until(lambda: not books(), KEEPALIVE_SECONDS + PATIENCE_SECONDS, "those that do not answer are gone")


def test_who_reads_late_is_told_what_it_lost(target, observer, v1, pods, beside):
    web = pods["web"]
    request = opens(v1, web, "late")
    request.heartbeat_interval.FromMilliseconds(100)

    def lost() -> int:
        streams = observer.GetStatus(v1.GetStatusRequest(), timeout=PATIENCE_SECONDS).subscriptions
        return sum(one.count for stream in streams for books in stream.books for one in books.lost)

    with stranger(target, v1) as late:
        call = late.Subscribe(request, timeout=300)
        assert next(call).HasField("plan")
        flooded = 0
        # gRPC's own client answers pings, and its window is full in the end.
        while not lost():
            assert flooded < 400_000
            flood(web, 20_000)
            flooded += 20_000
        beside.hears()
        heard = told = 0
        for message in call:
            heard += len(message.batch.events)
            if message.HasField("loss"):
                assert message.loss.stage == v1.LOSS_STAGE_CLIENT_QUEUE
                told += message.loss.count
            if message.HasField("heartbeat"):
                [books] = message.heartbeat.books
                if books.matched >= flooded and books.queued == 0 and heard + told == books.matched:
                    break
        call.cancel()
    assert told > 0
    assert (heard, told) == (books.delivered, sum(one.count for one in books.lost))


WRONG = {
    "data of no stream": http2.frame(http2.DATA, 0, 0, b"x"),
    "data of a stream that is not open": http2.frame(http2.DATA, 0, 1, b"x"),
    "headers of an even stream": http2.frame(http2.HEADERS, http2.END_HEADERS, 2, http2.call("GetStatus")),
    "headers that are no HPACK": http2.frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff" * 50),
    "settings of a wrong length": http2.frame(http2.SETTINGS, 0, 0, b"xyz"),
    "settings of a stream": http2.frame(http2.SETTINGS, 0, 1),
    "a window that grows by nothing": http2.frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)),
    "a window without bounds": http2.frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFF_FFFF)) * 2,
    "a ping of a wrong length": http2.frame(http2.PING, 0, 0, b"ping"),
    "a frame that is too large": struct.pack(">I", 0xFF_FFFF)[1:] + bytes([http2.DATA, 0, 0, 0, 0, 1]),
    "a continuation of nothing": http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, b""),
    "a push": http2.frame(5, http2.END_HEADERS, 1, struct.pack(">I", 2) + http2.call("GetStatus")),
}


@both
def test_frames_that_are_wrong(target, beside, listener):
    for what, wrong in WRONG.items():
        with target.http2(listener) as connection:
            connection.sendall(wrong)
            kinds = [kind for kind, *_ in http2.frames(http2.until_closed(connection, PATIENCE_SECONDS))]
            assert http2.GOAWAY in kinds, (what, kinds)


@both
def test_frames_that_are_garbage(target, beside, listener):
    # The same each time, so that what fails once fails again.
    dice = random.Random(1)
    for _ in range(50):
        with target.http2(listener) as connection, suppress(OSError):
            for _ in range(1000):
                kind, flags, stream = dice.randrange(12), dice.randrange(256), dice.randrange(4)
                connection.sendall(http2.frame(kind, flags, stream, dice.randbytes(dice.randrange(64))))
            connection.shutdown(socket.SHUT_WR)


@both
def test_streams_that_are_reset_at_once(target, v1, pods, beside, listener):
    before = target.memory()
    request = v1.SubscribeRequest(kinds=[v1.KIND_EXEC], selector=v1.Selector(pods=[pods["web"].name]))
    reset = struct.pack(">I", http2.CANCEL)
    received = b""
    with target.http2(listener) as connection, suppress(OSError):
        for stream in range(1, 20_001, 2):
            connection.sendall(http2.subscribe(stream, request) + http2.frame(http2.RST_STREAM, 0, stream, reset))
            if select.select([connection], [], [], 0)[0]:
                more = connection.recv(1 << 16)
                received += more
                if not more or any(kind == http2.GOAWAY for kind, *_ in http2.frames(received)):
                    break
    assert target.memory() < before + GROWTH_BYTES


@both
def test_pings_and_settings_without_end(target, beside, listener):
    before = target.memory()
    for piece in (http2.frame(http2.PING, 0, 0, bytes(8)), http2.settings(_3=1)):
        with target.http2(listener, receive_bytes=4096) as connection:
            # Their answers are not read, and in the end nothing more is taken: here, as often as that is a time-out of ours.
            connection.settimeout(5)
            with suppress(OSError):
                for _ in range(200):
                    connection.sendall(1000 * piece)
            assert target.memory() < before + GROWTH_BYTES
