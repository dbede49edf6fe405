"""A connection breaks, and the stream goes on with another one: nothing is missing, or it is told what."""

import json
import signal
import subprocess
import threading
import time
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from node import wait_until
from proxy import Proxy

import node
from conftest import NODE, PATIENCE_SECONDS, PODS


# For a whole stream, of which each wait has a bound of its own.
CALL_SECONDS = 300


@pytest.fixture(scope="module")
def agent(pods):
    """One of its own: streams that are kept are in nobody's way."""
    with node.Agent(PODS, NODE) as agent:
        yield agent


@pytest.fixture(scope="module")
def observer(agent, v1):
    with grpc.insecure_channel(agent.grpc) as channel:
        yield v1.ObserverStub(channel)


@pytest.fixture(scope="module")
def shop(pods):
    return pods["checkout"]


class Stream:
    """Counts what came over all its connections."""

    def __init__(self, v1, window: int = 30, **asked):
        self.v1 = v1
        self.asked = v1.SubscribeRequest(
            kinds=[v1.KIND_EXEC],
            selector=v1.Selector(namespaces=["shop"]),
            heartbeat_interval=Duration(nanos=200_000_000),
            resume_window=Duration(seconds=window),
            **asked,
        )
        self.received, self.plan, self.events, self.sequences = 0, None, [], []
        self.losses, self.heartbeat = [], None

    def resume(self, **more):
        given = {"stream_id": self.plan.stream_id, "token": self.plan.resume_token, "received": self.received, **more}
        return self.v1.SubscribeRequest(resume=self.v1.Resume(**given))

    @contextmanager
    def connected(self, address: str):
        """On a connection of its own."""
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            request = self.resume() if self.plan else self.asked
            self.call = self.v1.ObserverStub(channel).Subscribe(request, timeout=CALL_SECONDS)
            self.take()
            yield self

    def take(self):
        message = next(self.call)
        self.received += 1
        if message.HasField("plan"):
            self.plan = message.plan
        if message.HasField("loss"):
            self.losses.append(message.loss)
        if message.HasField("heartbeat"):
            self.heartbeat = message.heartbeat
        for offset, event in enumerate(message.batch.events):
            self.events.append(event.exec.args[-1])
            self.sequences.append(message.batch.first_sequence + offset)
        return message

    def until(self, condition):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, (self.events[-3:], self.heartbeat)
            self.take()

    def balanced(self, delivered: int):
        """The next books tell of so many."""
        self.heartbeat = None
        self.until(lambda: self.heartbeat and self.heartbeat.books[0].delivered == delivered)
        [books] = self.heartbeat.books
        assert (books.matched, books.queued, list(books.lost)) == (delivered, 0, [])


def only_books(call):
    """It ends without an error. What was on its way already tells of no events."""
    assert {message.WhichOneof("message") for message in call} <= {"heartbeat"}


def runs(pod, first: int, count: int) -> list[str]:
    """Executes so many programs, each with another argument."""
    names = [f"run-{number}" for number in range(first, first + count)]
    for name in names:
        pod.run("/bin/true", name)
    return names


def refusal(observer, request) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        next(observer.Subscribe(request, timeout=PATIENCE_SECONDS))
    return refused.value.code(), refused.value.details()


def open_streams(observer, v1) -> set[int]:
    return {one.stream_id for one in observer.GetStatus(v1.GetStatusRequest()).subscriptions}


def test_what_happens_while_nobody_is_connected_comes_afterwards(agent, v1, shop):
    stream = Stream(v1)
    expected = []
    with stream.connected(agent.grpc):
        expected += runs(shop, 0, 23)
        stream.until(lambda: len(stream.events) == 23)
        assert not stream.plan.resumed
    for turn in (1, 2):
        first = stream.plan
        expected += runs(shop, turn * 100, 29)
        with stream.connected(agent.grpc):
            assert stream.plan.resumed
            assert (stream.plan.stream_id, stream.plan.resume_token) == (first.stream_id, first.resume_token)
            stream.until(lambda: len(stream.events) == len(expected))
            expected += runs(shop, turn * 100 + 50, 7)
            stream.until(lambda: len(stream.events) == len(expected))
            stream.balanced(len(expected))
    assert stream.events == expected
    assert stream.sequences == list(range(1, len(expected) + 1))
    assert not stream.losses


def test_what_was_sent_and_did_not_come_is_sent_again(agent, v1, shop):
    stream = Stream(v1)
    with stream.connected(agent.grpc):
        expected = runs(shop, 0, 5)
        stream.until(lambda: len(stream.events) == 5)
        before = stream.received, list(stream.events), list(stream.sequences)
        expected += runs(shop, 10, 11)
        stream.until(lambda: len(stream.events) == 16)
    # As if nothing of the rest had come.
    stream.received, stream.events, stream.sequences = before
    with stream.connected(agent.grpc):
        stream.until(lambda: len(stream.events) == 16)
        stream.balanced(16)
    assert (stream.events, stream.sequences) == (expected, list(range(1, 17)))
    assert not stream.losses


def test_a_new_connection_takes_the_stream_from_one_that_hangs(agent, v1, shop):
    stream = Stream(v1)
    with stream.connected(agent.grpc):
        expected = runs(shop, 0, 3)
        stream.until(lambda: len(stream.events) == 3)
        old = stream.call
        with stream.connected(agent.grpc):
            # It ends without an error: whoever still listens there is not told what another one gets.
            only_books(old)
            expected += runs(shop, 10, 4)
            stream.until(lambda: len(stream.events) == 7)
            stream.balanced(7)
    assert stream.events == expected


def test_only_who_began_it_can_go_on_and_only_for_a_while(agent, observer, v1, shop):
    stream = Stream(v1, window=1)
    with stream.connected(agent.grpc):
        runs(shop, 0, 3)
        stream.until(lambda: len(stream.events) == 3)
        number = stream.plan.stream_id
        not_found, out_of_range = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE
        for wrong, code in [
            ({"token": bytes(16)}, not_found),
            ({"token": stream.plan.resume_token[:8]}, not_found),
            ({"token": b""}, not_found),
            ({"stream_id": number + 1000}, not_found),
        ]:
            told = refusal(observer, stream.resume(**wrong))
            assert told[0] == code and "begin another one" in told[1], (wrong, told)
        more = stream.resume()
        more.kinds.append(v1.KIND_EXIT)
        assert refusal(observer, more)[0] == grpc.StatusCode.INVALID_ARGUMENT
        # It was none of theirs, and goes on.
        runs(shop, 10, 3)
        stream.until(lambda: len(stream.events) == 6)
        assert number in open_streams(observer, v1)
    # It is kept, and then not.
    wait_until(lambda: number not in open_streams(observer, v1), PATIENCE_SECONDS, "the stream is gone")
    assert refusal(observer, stream.resume())[0] == grpc.StatusCode.NOT_FOUND
    log = agent.log.read_text()
    assert any("stream ends" in line and f"stream={number} " in line and "CLIENT_LEFT" in line for line in log.splitlines())

    unknown = Stream(v1)
    with unknown.connected(agent.grpc):
        pass
    assert refusal(observer, unknown.resume(received=10_000))[0] == out_of_range
    too_long = v1.SubscribeRequest(kinds=[v1.KIND_EXEC], resume_window=Duration(seconds=61))
    assert refusal(observer, too_long)[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_who_leaves_is_gone_at_once(agent, observer, v1):
    stream = Stream(v1)
    with stream.connected(agent.grpc):
        number = stream.plan.stream_id
        strangers = v1.LeaveRequest(stream_id=number, token=bytes(16))
        observer.Leave(strangers)
        assert number in open_streams(observer, v1)
        observer.Leave(v1.LeaveRequest(stream_id=number, token=stream.plan.resume_token))
        assert number not in open_streams(observer, v1)
        only_books(stream.call)
    # It is no error to leave what one has left.
    observer.Leave(v1.LeaveRequest(stream_id=number, token=stream.plan.resume_token))
    assert refusal(observer, stream.resume())[0] == grpc.StatusCode.NOT_FOUND


def test_who_did_not_ask_for_it_leaves_nothing(agent, observer, v1):
    stream = Stream(v1, window=0)
    with stream.connected(agent.grpc):
        assert not stream.plan.resume_token
        number = stream.plan.stream_id
        assert number in open_streams(observer, v1)
    wait_until(lambda: number not in open_streams(observer, v1), PATIENCE_SECONDS, "the stream is gone")
    assert refusal(observer, stream.resume())[0] == grpc.StatusCode.NOT_FOUND


class Watching:
    """`dinle execsnoop`, with what it prints."""

    def __init__(self, address: str, *flags: str):
        command = [node.binary(), "execsnoop", "--address", address, "-n", "shop", "-o", "json", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.out, self.err = [], []
        self.readers = [
            threading.Thread(target=lambda: self.out.extend(json.loads(line)["exec"]["args"][-1] for line in self.process.stdout)),
            threading.Thread(target=self.note),
        ]
        for reader in self.readers:
            reader.start()

    def note(self):
        for line in self.process.stderr:
            self.err.append(line)

    def until(self, condition, what: str):
        wait_until(lambda: condition(self), PATIENCE_SECONDS, f"{what}: {self.out[-3:]} {self.err}")

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_SECONDS)
        for reader in self.readers:
            reader.join()
        return code


def test_the_command_line_goes_on_when_its_connection_breaks(agent, observer, v1, shop):
    before = open_streams(observer, v1)
    expected = []
    with Proxy(agent.grpc) as proxy:
        watching = Watching(proxy.address, "--count", "72")
        wait_until(lambda: open_streams(observer, v1) - before, PATIENCE_SECONDS, "the stream begins")
        agent.attached(observer, v1)
        for turn in range(3):
            expected += runs(shop, turn * 100, 11)
            watching.until(lambda it: len(it.out) == len(expected), "events")
            proxy.sever(refuse=True)
            watching.until(lambda it: sum("trying again" in line for line in it.err) == turn + 1, "it notices")
            expected += runs(shop, turn * 100 + 50, 13)
            proxy.sever(refuse=False)
            watching.until(lambda it: len(it.out) == len(expected), "what happened meanwhile")
        code = watching.wait()
    assert code == 0, watching.err
    assert watching.out == expected
    assert sum(line.startswith("connected again after") for line in watching.err) == 3, watching.err
    # One stream, whose books balance.
    books = [line for line in watching.err if line.startswith("books: ")]
    assert len(books) == 1 and " + lost 0" in books[0], watching.err


def test_the_command_line_leaves_nothing_behind_when_it_is_interrupted(agent, observer, v1):
    before = open_streams(observer, v1)
    watching = Watching(agent.grpc)
    wait_until(lambda: open_streams(observer, v1) - before, PATIENCE_SECONDS, "the stream begins")
    watching.process.send_signal(signal.SIGINT)
    assert watching.wait() == 0
    # One that is left is kept for longer than this waits. Others may end meanwhile.
    assert not open_streams(observer, v1) - before


def test_the_command_line_begins_anew_with_another_agent_and_says_so(pods, v1, shop):
    with node.Agent(PODS, NODE) as first:
        command = first.command
        watching = Watching(first.grpc)
        with grpc.insecure_channel(first.grpc) as channel:
            wait_until(lambda: open_streams(v1.ObserverStub(channel), v1), PATIENCE_SECONDS, "the stream begins")
            first.attached(v1.ObserverStub(channel), v1)
        expected = runs(shop, 0, 5)
        watching.until(lambda it: len(it.out) == 5, "events")
    watching.until(lambda it: any("shuts down; trying again" in line for line in it.err), "it notices")
    second = node.Agent(PODS, NODE)
    second.grpc, second.http, second.command = first.grpc, first.http, command
    with second:
        watching.until(lambda it: any("is not told" in line for line in it.err), "it begins anew")
        expected += runs(shop, 100, 7)
        watching.until(lambda it: len(it.out) == 12, "events of the second")
        watching.process.send_signal(signal.SIGINT)
        code = watching.wait()
    assert (code, watching.out) == (0, expected), watching.err
    assert sum(line.startswith("books: ") for line in watching.err) == 2, watching.err


def test_the_command_line_gives_up_in_the_end(pods, v1):
    with node.Agent(PODS, NODE) as agent:
        watching = Watching(agent.grpc, "--reconnect", "1s")
        with grpc.insecure_channel(agent.grpc) as channel:
            wait_until(lambda: open_streams(v1.ObserverStub(channel), v1), PATIENCE_SECONDS, "the stream begins")
    assert watching.wait() == 1
    assert "could not be reached again for 1 s" in watching.err[-1], watching.err
