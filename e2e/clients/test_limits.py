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
    # What never fits is no matter of time, and our own client says so by its exit status.
    assert refusal(frugal_observer, v1, 2 * QUEUE_BYTES + 1) == f"queue_bytes: is {2 * QUEUE_BYTES + 1}; this agent allows {2 * QUEUE_BYTES} at most"
    command = [node.binary(), "execsnoop", "--address", frugal.grpc, "--queue-bytes", str(2 * QUEUE_BYTES + 1)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 2 and "queue_bytes: is" in done.stderr, done
    with stream(frugal_observer, v1, QUEUE_BYTES) as first:
        with stream(frugal_observer, v1, QUEUE_BYTES):
            assert "--max-queue-bytes" in refusal(frugal_observer, v1, QUEUE_BYTES)
            told = metrics(frugal)
            assert (told["subscriptions"], told["subscriptions_limit"]) == (2, 3)
            assert told["queue_size_bytes"] == told["queue_size_limit_bytes"] == 2 * QUEUE_BYTES
            assert told['streams_refused_total{limit="queue_bytes"}'] == 4
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


def test_a_request_that_is_too_large_or_asks_too_much_is_refused_and_counted(pods, v1):
    def asking(pods: list[str], uids: int = 0):
        return v1.SubscribeRequest(kinds=[v1.KIND_EXEC], selector=v1.Selector(pods=pods), filter=v1.Filter(uids=range(uids)))

    flags = ["--max-request-bytes", "4096", "--max-filter-elements", "3", "--max-events-per-second", "100"]
    with node.Agent(PODS, NODE, *flags) as agent, grpc.insecure_channel(agent.grpc) as channel:
        observer = v1.ObserverStub(channel)

        def refused(call) -> str:
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            return refused.value.details()

        # As large as may be, and a byte more: a field's tag and length, twice, and the kind.
        frame = asking(["x"]).ByteSize() - 1 + 2
        just = asking(["x" * (4096 - frame)])
        assert just.ByteSize() == 4096
        too_large = asking(["x" * (4097 - frame)])
        told = refused(lambda: next(observer.Subscribe(too_large, timeout=PATIENCE_SECONDS)))
        assert told.startswith("request: is larger than 4096 bytes") and "--max-request-bytes" in told
        all_of_it = v1.ListWorkloadsRequest(selector=v1.Selector(pods=["x" * 4096]))
        assert told == refused(lambda: observer.ListWorkloads(all_of_it, timeout=PATIENCE_SECONDS))
        # The other is read: it is a text that is too long.
        assert "selector.pods[0]: is 4" in refused(lambda: next(observer.Subscribe(just, timeout=PATIENCE_SECONDS)))
        assert refused(lambda: next(observer.Subscribe(asking([], 4), timeout=PATIENCE_SECONDS))).startswith("filter.uids: has 4 elements, this agent allows 3")
        for call in [lambda: observer.Explain(v1.ExplainRequest(request=asking(["a"] * 4)), timeout=PATIENCE_SECONDS),
                     lambda: observer.ListWorkloads(v1.ListWorkloadsRequest(selector=asking(["a"] * 4).selector), timeout=PATIENCE_SECONDS)]:
            assert "selector.pods: has 4 elements" in refused(call)
        fast = v1.SubscribeRequest(kinds=[v1.KIND_EXEC], max_events_per_second=101)
        assert "this agent allows 100" in refused(lambda: next(observer.Subscribe(fast, timeout=PATIENCE_SECONDS)))
        call = observer.Subscribe(asking(["a"] * 3, 3), timeout=PATIENCE_SECONDS)
        assert next(call).HasField("plan")
        call.cancel()
        told = metrics(agent)
        counts = {limit: told[f'streams_refused_total{{limit="{limit}"}}'] for limit in ["request_bytes", "filter", "events_per_second", "queue_bytes", "streams"]}
        assert counts == {"request_bytes": 2, "filter": 4, "events_per_second": 1, "queue_bytes": 0, "streams": 0}


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
