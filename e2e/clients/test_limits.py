"""An agent that allows little: who is refused learns why, and others are not disturbed."""

import re
import subprocess
from contextlib import contextmanager

import grpc
import pytest

import node
from conftest import NODE, PATIENCE_SECONDS, PODS

QUEUE_BYTES = 64 << 10


@pytest.fixture(scope="module")
def frugal(pods):
    limits = ("--max-streams", "3", "--max-queue-bytes", str(2 * QUEUE_BYTES))
    with node.Agent(PODS, NODE, *limits) as agent:
        yield agent


@pytest.fixture
def frugal_observer(frugal, v1):
    with grpc.insecure_channel(frugal.grpc) as channel:
        yield v1.ObserverStub(channel)


@contextmanager
def stream(observer, v1, queue_bytes: int):
    """A stream that has begun."""
    call = observer.Subscribe(v1.SubscribeRequest(kinds=[v1.KIND_EXEC], queue_bytes=queue_bytes), timeout=PATIENCE_SECONDS)
    try:
        assert next(call).HasField("plan")
        yield call
    finally:
        call.cancel()


def refusal(observer, v1, queue_bytes: int) -> str:
    with pytest.raises(grpc.RpcError) as refused, stream(observer, v1, queue_bytes):
        pass
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    return refused.value.details()


def metrics(agent) -> dict[str, int]:
    text = agent.get("/metrics")[1]
    return {name: int(value) for name, value in re.findall(r"^dinle_(\S+) (\d+)$", text, re.MULTILINE)}


def test_who_does_not_fit_learns_why_and_comes_in_when_there_is_room(frugal, frugal_observer, v1, pods):
    # Who says nothing asks for no more than there is.
    with stream(frugal_observer, v1, 0):
        assert metrics(frugal)["queue_size_bytes"] == 2 * QUEUE_BYTES
        assert f"{QUEUE_BYTES} bytes" in refusal(frugal_observer, v1, QUEUE_BYTES)
    node.wait_until(lambda: frugal.streams() == 0, PATIENCE_SECONDS, "no stream is left")
    # So does our own client, which has some kept of what was sent.
    command = [node.binary(), "execsnoop", "--address", frugal.grpc, "--duration", "1s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    node.wait_until(lambda: frugal.streams() == 0, PATIENCE_SECONDS, "no stream is left")
    # What never fits is wrong, and not a matter of time.
    with pytest.raises(grpc.RpcError) as refused, stream(frugal_observer, v1, 2 * QUEUE_BYTES + 1):
        pass
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with stream(frugal_observer, v1, QUEUE_BYTES) as first:
        with stream(frugal_observer, v1, QUEUE_BYTES):
            assert "--max-queue-bytes" in refusal(frugal_observer, v1, QUEUE_BYTES)
            told = metrics(frugal)
            assert (told["subscriptions"], told["subscriptions_limit"]) == (2, 3)
            assert told["queue_size_bytes"] == told["queue_size_limit_bytes"] == 2 * QUEUE_BYTES
            assert told['streams_refused_total{limit="queue_bytes"}'] == 2
        node.wait_until(lambda: frugal.streams() == 1, PATIENCE_SECONDS, "one stream is left")
        with stream(frugal_observer, v1, QUEUE_BYTES):
            pass
        # Those that were there hear as before.
        pods["web"].run("/bin/true", times=3)
        heard = 0
        for message in first:
            heard += len(message.batch.events)
            if heard >= 3:
                break
        assert heard == 3


def test_there_are_so_many_streams(pods, v1):
    with node.Agent(PODS, NODE, "--max-streams", "1") as agent, grpc.insecure_channel(agent.grpc) as channel:
        observer = v1.ObserverStub(channel)
        with stream(observer, v1, 0):
            assert refusal(observer, v1, 0).startswith("1 streams are open already")
            # Our own client says the same, and fails.
            command = [node.binary(), "execsnoop", "--address", agent.grpc]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            assert done.returncode == 1 and "--max-streams" in done.stderr, done
            assert metrics(agent)['streams_refused_total{limit="streams"}'] == 2
        node.wait_until(lambda: agent.streams() == 0, PATIENCE_SECONDS, "no stream is left")
        with stream(observer, v1, 0):
            pass


def test_a_request_that_is_too_large_is_not_read(frugal_observer, v1):
    request = v1.SubscribeRequest(kinds=[v1.KIND_EXEC], selector=v1.Selector(pods=["x" * (2 << 20)]))
    with pytest.raises(grpc.RpcError) as refused:
        next(frugal_observer.Subscribe(request, timeout=PATIENCE_SECONDS))
    assert refused.value.code() == grpc.StatusCode.OUT_OF_RANGE
    assert "1048576" in refused.value.details()


def test_what_is_more_than_a_stream_s_rate_is_counted_and_told(frugal_observer, v1, pods):
    rate, times = 5, 200
    request = v1.SubscribeRequest(
        kinds=[v1.KIND_EXEC], selector=v1.Selector(pods=["web-*"]), queue_bytes=QUEUE_BYTES, max_events_per_second=rate
    )
    request.heartbeat_interval.FromMilliseconds(100)
    call = frugal_observer.Subscribe(request, timeout=2 * PATIENCE_SECONDS)
    assert next(call).plan.max_events_per_second == rate
    pods["web"].run("/bin/sh", "-c", f"for i in $(seq {times}); do /bin/true; done")
    delivered, told = 0, 0
    for message in call:
        delivered += len(message.batch.events)
        told += message.loss.count
        if message.HasField("loss"):
            assert message.loss.stage == v1.LOSS_STAGE_RATE_LIMIT
        if message.HasField("heartbeat"):
            [books] = message.heartbeat.books
            # The shell, seq, and what it runs.
            if books.matched == times + 2 and books.queued == 0 and delivered + told == books.matched:
                break
    call.cancel()
    assert books.delivered == delivered >= rate
    assert [(lost.stage, lost.count) for lost in books.lost] == [(v1.LOSS_STAGE_RATE_LIMIT, told)]
    assert told > 0
