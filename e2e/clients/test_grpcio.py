"""Python's grpcio: a client that shares no code with the agent."""

import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from node import wait_until

from conftest import NODE, PATIENCE_SECONDS

# For a whole stream, of which each wait has a bound of its own.
CALL_SECONDS = 300

# Prime numbers, so that an event counted twice or a pair lost shows in the sum.
IN_SCOPE = 23
OUT_OF_SCOPE = 29


@pytest.fixture
def subscribe(observer):
    """Begins streams, which are over when the test is, whatever becomes of it."""
    calls = []

    def begin(request):
        calls.append(observer.Subscribe(request, timeout=CALL_SECONDS))
        return calls[-1]

    yield begin
    for call in calls:
        call.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_the_services(channel, version):
    # The messages of both versions are the same on the wire.
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    [answer] = ask(iter(requests), timeout=PATIENCE_SECONDS)
    services = {service.name for service in answer.list_services_response.service}
    assert {"dinle.v1.Observer", "grpc.health.v1.Health"} <= services


@pytest.mark.parametrize("service", ["", "dinle.v1.Observer"])
def test_health_is_serving(channel, service):
    health = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_SECONDS)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_subscribe_sees_every_exec_in_scope_and_none_outside(subscribe, v1, pods, streams):
    request = v1.SubscribeRequest(selector=v1.Selector(pods=["web-*"]), kinds=[v1.KIND_EXEC])
    request.heartbeat_interval.FromMilliseconds(100)
    call = subscribe(request)
    plan = next(call).plan
    assert [(workload.namespace, workload.pod) for workload in plan.workloads if workload.container_id] == [("shop", "web-0")]
    assert plan.node == NODE

    pods["checkout"].run("/bin/true", "out of scope", times=OUT_OF_SCOPE)
    pods["web"].run("/bin/true", "in scope", times=IN_SCOPE)

    events, lost = [], 0
    deadline = time.monotonic() + PATIENCE_SECONDS
    for message in call:
        assert time.monotonic() < deadline, (len(events), lost)
        events += message.batch.events
        lost += message.loss.count
        if message.HasField("heartbeat"):
            [books] = message.heartbeat.books
            # What ran before the last in scope was settled before it: the ring keeps its order.
            if books.matched >= IN_SCOPE and books.queued == 0:
                break
    call.cancel()
    streams(0)

    assert lost == 0
    assert (books.matched, books.delivered) == (IN_SCOPE, IN_SCOPE)
    assert len(events) == IN_SCOPE
    for event in events:
        assert event.kind == v1.KIND_EXEC
        assert list(event.exec.args) == ["/bin/true", "in scope"]
        workload = event.workload
        assert (workload.node, workload.namespace, workload.pod, workload.container) == (NODE, "shop", "web-0", "server")


@pytest.mark.parametrize(
    "request_of, field",
    [
        (lambda v1: v1.SubscribeRequest(), "kinds"),
        (lambda v1: v1.SubscribeRequest(kinds=[v1.KIND_EXEC], queue_bytes=1), "queue_bytes"),
        (
            lambda v1: v1.SubscribeRequest(kinds=[v1.KIND_EXEC], selector=v1.Selector(label_selector="app in (")),
            "selector.label_selector",
        ),
        (
            lambda v1: v1.SubscribeRequest(kinds=[v1.KIND_EXEC], filter=v1.Filter(comm=[v1.StringMatch(glob="[")])),
            "filter.comm[0].glob",
        ),
        (lambda v1: v1.SubscribeRequest(kinds=[v1.KIND_EXEC], filter=v1.Filter(exit_failed=True)), "filter.exit_failed"),
    ],
    ids=["kinds", "queue_bytes", "label_selector", "glob", "exit_failed"],
)
def test_a_bad_request_is_refused_by_the_name_of_its_field(observer, v1, request_of, field):
    with pytest.raises(grpc.RpcError) as refusal:
        next(observer.Subscribe(request_of(v1), timeout=PATIENCE_SECONDS))
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in refusal.value.details()


def test_who_listens_to_what_is_listed(observer, subscribe, v1, streams):
    request = v1.SubscribeRequest(kinds=[v1.KIND_EXIT], selector=v1.Selector(namespaces=["shop"]))
    streams(0)
    first = subscribe(request)
    ids = [next(first).plan.stream_id]
    second = subscribe(v1.SubscribeRequest(kinds=[v1.KIND_EXEC]))
    ids.append(next(second).plan.stream_id)
    streams(2)
    answer = observer.ListSubscriptions(v1.ListSubscriptionsRequest())
    # Nobody is asked who they are, so that there is nobody from whom to keep it.
    assert (answer.node, answer.own_only) == (NODE, False)
    assert [one.stream_id for one in answer.subscriptions] == ids
    assert answer.subscriptions[0].request == request
    assert [[books.kind for books in one.books] for one in answer.subscriptions] == [[v1.KIND_EXIT], [v1.KIND_EXEC]]
    assert all(one.caller.peer for one in answer.subscriptions)
    first.cancel()
    streams(1)
    answer = observer.ListSubscriptions(v1.ListSubscriptionsRequest())
    assert [one.stream_id for one in answer.subscriptions] == ids[1:]
    second.cancel()
    streams(0)


def test_a_stream_that_is_cancelled_leaves_nothing_attached(observer, subscribe, v1, streams):
    call = subscribe(v1.SubscribeRequest(kinds=[v1.KIND_EXEC, v1.KIND_EXIT]))
    next(call)
    streams(1)
    call.cancel()
    streams(0)

    def detached():
        programs = observer.GetStatus(v1.GetStatusRequest()).programs
        assert programs, "the agent tells of no program at all"
        # The cgroup tracker is the only one that may stay.
        return not [program for program in programs if program.attached and "cgroup" not in program.hook]

    wait_until(detached, PATIENCE_SECONDS, "the programs of exec and exit are detached")
