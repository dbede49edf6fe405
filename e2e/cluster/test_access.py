"""Who may listen to what: an agent that asks the API server, and callers of all kinds.

The API server is stopped for a while where it runs on this machine, and where the agents' pods can be reached without it.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from certificates import NAME as IN_CERTIFICATES
from certificates import Authority
from node import binary, wait_until

from conftest import CHART, PATIENCE_SECONDS, SOON_SECONDS, agents_of, empty_namespace, forwarded, keep_logs, values
from test_cases import pod

HOME = "dinle-e2e-access"
SHOP, BANK = "dinle-e2e-shop", "dinle-e2e-bank"
RELEASE = "guard"
TICK = ["/bin/true", "s3cret"]
# A file is opened in each round, too.
TICKER = f"while :; do {' '.join(TICK)} </etc/hostname; sleep 0.2; done"
# A permission that is taken away ends a stream within so long: that is promised, and leaves a slow machine 15 s.
WITHDRAWN_SECONDS = 30
# How long streams go on without the API server. The agent asks every 10 s, for 5 s.
GRACE_SECONDS = 10
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def role(name: str, *resources: str) -> dict:
    rules = [{"apiGroups": ["dinle.dev"], "resources": list(resources), "verbs": ["watch"]}]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": f"{RELEASE}-{name}"},
        "rules": rules,
    }


def binding(kind: str, namespace: str | None, name: str, role: str, subject: dict) -> dict:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": f"{RELEASE}-{name}", **({"namespace": namespace} if namespace else {})},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }


def account(name: str) -> dict:
    return {"kind": "ServiceAccount", "namespace": HOME, "name": name}


def user(name: str) -> dict:
    return {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}


def group(name: str) -> dict:
    return {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": name}


# Who may what: name, role, and in which namespaces; None: in all.
VIEWER, DEBUGGER = f"{RELEASE}-dinle-viewer", f"{RELEASE}-dinle-debugger"
BOUND = [
    ("viewer", VIEWER, [SHOP]),
    ("debugger", DEBUGGER, [SHOP]),
    ("both", DEBUGGER, [SHOP, BANK]),
    ("network", f"{RELEASE}-network", [SHOP, BANK]),
    ("everywhere", DEBUGGER, None),
    ("leaver", VIEWER, [SHOP]),
    ("comer", VIEWER, [SHOP]),
]
NAMES = [name for name, _, _ in BOUND] + ["nobody", "fired"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"), "authority")


@pytest.fixture(scope="module")
def guarded(kubectl, helm, authority):
    """A release that asks who callers are. Gives its pods by node; one pod in each of two namespaces ticks on the first node."""
    with ExitStack() as stack:
        for name in (HOME, SHOP, BANK):
            stack.enter_context(empty_namespace(kubectl, name))
        release = stack.enter_context(helm(HOME))
        certificate, key = authority.sign("agent", "/CN=agent")
        files = {"tls.crt": certificate, "tls.key": key, "ca.crt": authority.path("crt")}
        accounts = [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": HOME, "name": name}} for name in NAMES
        ]
        bindings = [
            binding("RoleBinding" if namespace else "ClusterRoleBinding", namespace, name, role_name, account(name))
            for name, role_name, namespaces in BOUND
            for namespace in namespaces or [None]
        ]
        kubectl.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"namespace": HOME, "name": "certificates"},
                "data": {name: base64.b64encode(path.read_bytes()).decode() for name, path in files.items()},
            },
            *accounts,
        )
        own = [role("network", "tcp", "drop"), *bindings, binding("RoleBinding", SHOP, "jane", VIEWER, user("jane"))]
        own.append(binding("RoleBinding", BANK, "auditors", f"{RELEASE}-network", group("auditors")))
        try:
            kubectl.create(*own)
            given = {
                **values(),
                "grpc": {"tls": {"secretName": "certificates"}},
                "auth": {
                    "mode": "kube",
                    "certificates": True,
                    "grace": f"{GRACE_SECONDS}s",
                    "audiences": ["dinle", *audiences(token(kubectl, "nobody", audience=None))],
                    "roles": {"create": True},
                },
            }
            release.install(CHART, RELEASE, given, wait="watcher", timeout=PATIENCE_SECONDS)
            agents = agents_of(kubectl, HOME)
            first = sorted(agents)[0]
            for namespace in (SHOP, BANK):
                kubectl.create(pod(namespace, "tick", first, TICKER))
            for namespace in (SHOP, BANK):
                kubectl("-n", namespace, "wait", "--for=condition=Ready", f"--timeout={PATIENCE_SECONDS}s", "pod/tick")
            yield {first: agents.pop(first), **agents}
        finally:
            keep_logs(kubectl, HOME)
            for namespace in (SHOP, BANK):
                kubectl("-n", namespace, "delete", "pod", "tick", "--ignore-not-found", "--grace-period=0", "--force", "--wait=false")
            release.uninstall(RELEASE, ignore_not_found=True)
            # Those of namespaces go with them.
            for kind in ("clusterrole", "clusterrolebinding"):
                names = [one["metadata"]["name"] for one in own if one["kind"].lower() == kind]
                kubectl("delete", kind, *names, "--ignore-not-found")


def token(kubectl, name: str, audience: str | None = "dinle") -> str:
    meant = ["--audience", audience] if audience else []
    return kubectl("-n", HOME, "create", "token", name, *meant).strip()


def decoded(part: str) -> dict:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def audiences(token: str) -> list[str]:
    return decoded(token.split(".")[1])["aud"]


@pytest.fixture(scope="module")
def address(kubectl, guarded):
    """Where the first node's agent can be reached."""
    node, agent = next(iter(guarded.items()))
    with forwarded(kubectl, HOME, {node: agent["metadata"]["name"]}) as addresses:
        yield addresses[node]


@pytest.fixture(scope="module")
def observer(address, v1):
    with grpc.insecure_channel(address) as channel:
        yield v1.ObserverStub(channel)


def bearing(token: str | None) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")] if token else []


class Stream:
    """Events of a caller, until a condition holds or it ends."""

    def __init__(self, observer, v1, metadata, namespaces=(), kinds=None, **more):
        selector = v1.Selector(namespaces=namespaces, **more)
        request = v1.SubscribeRequest(kinds=kinds or [v1.KIND_EXEC], selector=selector)
        self.call = observer.Subscribe(request, metadata=metadata, timeout=PATIENCE_SECONDS * 2)
        self.events, self.heartbeat, self.problem = [], None, None
        self.plan = next(self.call).plan

    def until(self, condition, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s; the last events are {self.events[-3:]}"
            self.take()

    def take(self) -> bool:
        """The next message. There is one every two seconds at least."""
        try:
            message = next(self.call)
        except grpc.RpcError as problem:
            self.problem = problem
            return False
        self.events += message.batch.events
        if message.HasField("heartbeat"):
            self.heartbeat = message.heartbeat
        return True

    def refused(self, seconds: float) -> grpc.RpcError:
        """How it ends."""
        deadline = time.monotonic() + seconds
        while self.take():
            assert time.monotonic() < deadline, f"it goes on after {seconds} s"
        return self.problem

    def namespaces(self) -> set[str]:
        return {event.workload.namespace for event in self.events}

    def close(self) -> None:
        self.call.cancel()


@contextmanager
def stream(*arguments, **more):
    opened = Stream(*arguments, **more)
    try:
        yield opened
    finally:
        opened.close()


def refusal(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code(), refused.value.details()


def ticks(stream: Stream, namespace: str) -> list:
    return [event for event in stream.events if event.workload.namespace == namespace and event.process.comm == "true"]


def full_name(name: str) -> str:
    return f"system:serviceaccount:{HOME}:{name}"


def test_nobody_is_let_in_without_a_name(kubectl, observer, v1):
    forged = token(kubectl, "both")[:-8] + "AAAAAAAA"
    other = token(kubectl, "both", audience="others")
    for metadata, why in [
        ([], "asks who you are"),
        (bearing("nonsense"), "does not accept that token"),
        (bearing(forged), "does not accept that token"),
        (bearing(other), "dinle"),
        ([("authorization", "Basic amFuZTpwdw==")], "Bearer TOKEN"),
    ]:
        for call in (
            lambda: Stream(observer, v1, metadata, [SHOP]),
            lambda: observer.Explain(v1.ExplainRequest(request=v1.SubscribeRequest(kinds=[v1.KIND_EXEC])), metadata=metadata),
            lambda: observer.GetStatus(v1.GetStatusRequest(), metadata=metadata),
            lambda: observer.ListWorkloads(v1.ListWorkloadsRequest(), metadata=metadata),
            lambda: observer.ListCapabilities(v1.ListCapabilitiesRequest(), metadata=metadata),
        ):
            code, details = refusal(call)
            assert code == UNAUTHENTICATED and why in details, (metadata, code, details)


# Who asks for what: name, namespaces, kinds of events; and what is missing, or None.
@pytest.mark.parametrize(
    "name, namespaces, kinds, missing",
    [
        ("viewer", [SHOP], ["EXEC"], None),
        ("viewer", [SHOP], ["EXEC", "FILE_OPEN", "TCP_SESSION", "BLOCK_IO", "DROP_COUNT"], None),
        ("viewer", [BANK], ["EXEC"], f"process.dinle.dev in namespace {BANK}"),
        ("viewer", [SHOP, BANK], ["EXEC"], f"process.dinle.dev in namespace {BANK}"),
        ("debugger", [SHOP], ["FILE_DELETE"], None),
        ("debugger", [BANK], ["FILE_DELETE"], f"file.dinle.dev in namespace {BANK}"),
        ("both", [SHOP, BANK], ["EXEC", "TCP_RESET"], None),
        ("network", [SHOP, BANK], ["TCP_RESET", "DROP"], None),
        ("network", [SHOP], ["EXEC", "TCP_RESET"], f"process.dinle.dev in namespace {SHOP}"),
        ("network", [BANK], ["BLOCK_LATENCY"], f"block.dinle.dev in namespace {BANK}"),
        ("everywhere", [SHOP, BANK], ["EXEC"], None),
        ("everywhere", [], ["EXEC", "FILE_OPEN", "TCP_SESSION", "BLOCK_IO", "DROP_COUNT"], None),
        ("nobody", [SHOP], ["EXEC"], f"process.dinle.dev in namespace {SHOP}"),
        ("nobody", [], ["EXEC"], "process.dinle.dev in all namespaces"),
    ],
)
def test_who_may_what_is_what_the_cluster_says(kubectl, observer, v1, name, namespaces, kinds, missing):
    kinds = [getattr(v1, f"KIND_{kind}") for kind in kinds]
    metadata = bearing(token(kubectl, name))
    if missing is None:
        with stream(observer, v1, metadata, namespaces, kinds) as opened:
            assert opened.plan.stream_id
        return
    request = v1.SubscribeRequest(kinds=kinds, selector=v1.Selector(namespaces=namespaces))
    for call in (
        lambda: Stream(observer, v1, metadata, namespaces, kinds),
        lambda: observer.Explain(v1.ExplainRequest(request=request), metadata=metadata),
    ):
        code, details = refusal(call)
        assert code == PERMISSION_DENIED, details
        assert details.startswith(f"{full_name(name)} may not watch {missing}"), details


# One kind of each sensor, and whether it has something that only some may see.
SENSORS = {"process": ("EXEC", True), "file": ("FILE_OPEN", True), "tcp": ("TCP_SESSION", False), "block": ("BLOCK_IO", False), "drop": ("DROP", False)}
# Which sensors each of the roles has, and whether with all that there is to see.
ROLES = {VIEWER: (set(SENSORS), False), DEBUGGER: (set(SENSORS), True), f"{RELEASE}-network": ({"tcp", "drop"}, False)}


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("name", ["viewer", "debugger", "both", "network", "everywhere", "nobody"])
def test_each_sensor_in_each_namespace_is_for_whom_the_cluster_says(kubectl, observer, v1, name, sensor):
    [role_name, bound] = next(([role_name, bound] for own, role_name, bound in BOUND if own == name), (None, []))
    sensors, whole = ROLES.get(role_name, (set(), False))
    granted = set() if sensor not in sensors else {SHOP, BANK} if bound is None else set(bound)
    kind, has_arguments = SENSORS[sensor]
    metadata = bearing(token(kubectl, name))
    for namespaces in ([SHOP], [BANK], [SHOP, BANK], []):
        request = v1.SubscribeRequest(kinds=[getattr(v1, f"KIND_{kind}")], selector=v1.Selector(namespaces=namespaces))

        def explain():
            return observer.Explain(v1.ExplainRequest(request=request), metadata=metadata).plan

        # Of all of them, those are heard that may be.
        if granted >= set(namespaces) and granted:
            notes = explain().notes
            redacted = [note for note in notes if "are left out in" in note]
            assert bool(redacted) == (has_arguments and not whole), notes
            left_out = [note for note in notes if note.startswith("left out")]
            # Others have pods there, too, as the agents have.
            assert bool(left_out) == (not namespaces and bound is not None), notes
        else:
            code, details = refusal(explain)
            assert code == PERMISSION_DENIED, details
            missing = [f"in namespace {one}" for one in namespaces if one not in granted] or ["in all namespaces"]
            told = [f"{full_name(name)} may not watch {sensor}.dinle.dev {one}" for one in missing]
            assert any(details.startswith(one) for one in told), details


def test_processes_outside_pods_are_for_who_may_everywhere(kubectl, observer, v1):
    host = v1.HOST_PROCESSES_INCLUDE
    code, details = refusal(lambda: Stream(observer, v1, bearing(token(kubectl, "both")), [SHOP], host_processes=host))
    assert code == PERMISSION_DENIED and "in all namespaces" in details
    with stream(observer, v1, bearing(token(kubectl, "everywhere")), [SHOP], host_processes=host) as opened:
        assert opened.plan.stream_id


def test_of_all_namespaces_those_are_heard_that_may_be_and_the_plan_says_which_not(kubectl, observer, v1):
    with stream(observer, v1, bearing(token(kubectl, "debugger"))) as some, stream(
        observer, v1, bearing(token(kubectl, "everywhere"))
    ) as all:
        all.until(lambda: {SHOP, BANK} <= all.namespaces(), PATIENCE_SECONDS, "both namespaces")
        # By now it would have heard of the other one, too.
        some.until(lambda: len(ticks(some, SHOP)) >= 20, PATIENCE_SECONDS, "twenty ticks")
        assert some.namespaces() == {SHOP}
        [note] = [note for note in some.plan.notes if note.startswith("left out")]
        assert BANK in note and SHOP not in note and "process.dinle.dev" in note, note
        assert {workload.namespace for workload in some.plan.workloads} == {SHOP}
        assert not [note for note in all.plan.notes if note.startswith("left out")]


def test_arguments_and_paths_are_for_who_may_see_them(kubectl, observer, v1):
    kinds = [v1.KIND_EXEC, v1.KIND_FILE_OPEN]
    with stream(observer, v1, bearing(token(kubectl, "viewer")), [SHOP], kinds) as less, stream(
        observer, v1, bearing(token(kubectl, "debugger")), [SHOP], kinds
    ) as more:
        opens = lambda events: [event for event in events if event.kind == v1.KIND_FILE_OPEN]  # noqa: E731
        for one in (less, more):
            one.until(lambda: ticks(one, SHOP) and opens(one.events), PATIENCE_SECONDS, "programs and files")
        for event in ticks(more, SHOP):
            if event.kind == v1.KIND_EXEC:
                assert list(event.exec.args) == TICK and not event.redacted
        assert any(event.file_open.path for event in opens(more.events))
        for event in less.events:
            assert event.redacted
            assert b"s3cret" not in event.SerializeToString()
            assert not event.exec.args and not event.exec.filename and not event.exec.cwd
            assert not event.file_open.path and not event.file_open.filename
            assert event.process.comm and event.workload.pod == "tick"
        assert any("are left out in " + SHOP in note for note in less.plan.notes), less.plan.notes
        assert not any("left out" in note for note in more.plan.notes)


def test_what_else_the_agent_tells_is_for_the_same_people(kubectl, observer, v1):
    def workloads(name: str) -> set[str]:
        told = observer.ListWorkloads(v1.ListWorkloadsRequest(), metadata=bearing(token(kubectl, name)))
        return {workload.namespace for workload in told.workloads}

    assert workloads("viewer") == {SHOP}
    assert workloads("network") == {SHOP, BANK}
    assert {SHOP, BANK, HOME} <= workloads("everywhere")
    for call in (
        lambda: observer.ListWorkloads(v1.ListWorkloadsRequest(), metadata=bearing(token(kubectl, "nobody"))),
        lambda: observer.GetStatus(v1.GetStatusRequest(), metadata=bearing(token(kubectl, "nobody"))),
    ):
        assert refusal(call)[0] == PERMISSION_DENIED

    def listeners(name: str) -> set[str]:
        status = observer.GetStatus(v1.GetStatusRequest(), metadata=bearing(token(kubectl, name)))
        return {one.caller.user for one in status.subscriptions}

    def node(name: str) -> list[bool]:
        """Which of the things about the whole node are told."""
        status = observer.GetStatus(v1.GetStatusRequest(), metadata=bearing(token(kubectl, name)))
        assert status.version and status.node
        return [bool(status.programs), status.HasField("budget"), status.HasField("pod_source"), status.cgroups > 0]

    assert node("everywhere") == [True] * 4
    assert node("both") == [False] * 4

    with stream(observer, v1, bearing(token(kubectl, "viewer")), [SHOP]), stream(
        observer, v1, bearing(token(kubectl, "both")), [BANK]
    ):
        assert {full_name("viewer"), full_name("both")} <= listeners("everywhere")
        assert listeners("viewer") == {full_name("viewer")}

        def listed(name: str) -> tuple[set[str], bool]:
            request = v1.ListSubscriptionsRequest()
            answer = observer.ListSubscriptions(request, metadata=bearing(token(kubectl, name)))
            return {one.caller.user for one in answer.subscriptions}, answer.own_only

        callers, own_only = listed("everywhere")
        assert ({full_name("viewer"), full_name("both")} <= callers, own_only) == (True, False)
        # To be a debugger of a namespace or two is not enough: streams of others are about more than that.
        assert listed("both") == ({full_name("both")}, True)
        # Whoever may watch nothing has no streams.
        assert listed("nobody") == (set(), True)


def test_what_programs_cost_is_known_only_to_who_may_measure(kubectl, observer, v1):
    """Nothing of the chart's defaults is worth that capability. What the agent's own threads take is measured all the same."""
    metadata = bearing(token(kubectl, "everywhere"))

    def budget():
        return observer.GetStatus(v1.GetStatusRequest(), metadata=metadata).budget

    with stream(observer, v1, metadata, [SHOP]) as listening:
        listening.until(lambda: ticks(listening, SHOP), PATIENCE_SECONDS, "a tick")
        wait_until(lambda: budget().HasField("measured"), PATIENCE_SECONDS, "something was measured")
        told = budget()
        assert "CAP_SYS_ADMIN" in told.unmeasured and "kernel.bpf_stats_enabled=1" in told.unmeasured
        assert (told.programs_percent, told.agent_percent > 0) == (0, True)


def test_a_permission_that_is_taken_away_ends_the_stream_and_no_other(kubectl, observer, v1):
    with stream(observer, v1, bearing(token(kubectl, "leaver")), [SHOP]) as leaver, stream(
        observer, v1, bearing(token(kubectl, "viewer")), [SHOP]
    ) as stays:
        leaver.until(lambda: ticks(leaver, SHOP), PATIENCE_SECONDS, "a tick")
        kubectl("-n", SHOP, "delete", "rolebinding", f"{RELEASE}-leaver")
        problem = leaver.refused(WITHDRAWN_SECONDS)
        assert problem.code() == PERMISSION_DENIED
        assert problem.details() == f"{full_name('leaver')} may not watch process.dinle.dev in namespace {SHOP}"
        # It has its last books, and they balance.
        assert leaver.heartbeat.end == v1.END_REASON_PERMISSION
        for books in leaver.heartbeat.books:
            assert (books.matched, books.queued) == (books.delivered + sum(loss.count for loss in books.lost), 0)
        assert sum(books.delivered for books in leaver.heartbeat.books) == len(leaver.events)
        before = len(stays.events)
        stays.until(lambda: len(stays.events) > before + 10, PATIENCE_SECONDS, "more ticks")
        assert refusal(lambda: Stream(observer, v1, bearing(token(kubectl, "leaver")), [SHOP]))[0] == PERMISSION_DENIED


def test_a_permission_that_is_given_holds_for_streams_that_are_open(kubectl, observer, v1):
    with stream(observer, v1, bearing(token(kubectl, "comer"))) as comer:
        comer.until(lambda: ticks(comer, SHOP), PATIENCE_SECONDS, "a tick")
        assert comer.namespaces() == {SHOP}
        kubectl.create(binding("RoleBinding", BANK, "comer", VIEWER, account("comer")))
        comer.until(lambda: ticks(comer, BANK), WITHDRAWN_SECONDS, "a tick of the other namespace")


def test_a_token_that_is_no_longer_good_ends_the_stream(kubectl, observer, v1):
    kubectl.create(binding("RoleBinding", SHOP, "fired", VIEWER, account("fired")))
    with stream(observer, v1, bearing(token(kubectl, "fired")), [SHOP]) as fired:
        fired.until(lambda: ticks(fired, SHOP), PATIENCE_SECONDS, "a tick")
        kubectl("-n", HOME, "delete", "serviceaccount", "fired")
        problem = fired.refused(WITHDRAWN_SECONDS)
        assert (problem.code(), fired.heartbeat.end) == (UNAUTHENTICATED, v1.END_REASON_PERMISSION)


def ending(kubectl, name: str, seconds: int) -> str:
    """A token as the API server would have made it, were it asked for one that ends so soon."""
    key = os.environ.get("DINLE_SERVICE_ACCOUNT_KEY")
    if not key or not Path(key).exists():
        pytest.skip("DINLE_SERVICE_ACCOUNT_KEY does not name the key with which this API server signs tokens, and it makes none for less than 10 minutes")
    head, body, _ = token(kubectl, name).split(".")
    assert decoded(head)["alg"] == "RS256", "this test signs with RSA"
    claims = {**decoded(body), "exp": int(time.time()) + seconds}
    signed = f"{head}.{encoded(json.dumps(claims).encode())}"
    sign = ["openssl", "dgst", "-sha256", "-sign", key]
    signature = subprocess.run(sign, input=signed.encode(), capture_output=True, check=True).stdout
    return f"{signed}.{encoded(signature)}"


# For so long the API server takes tokens that have ended: the leeway of go-jose.
LEEWAY_SECONDS = 60


def test_a_token_ends_by_time(kubectl, observer, v1):
    over = bearing(ending(kubectl, "viewer", -2 * LEEWAY_SECONDS))
    code, details = refusal(lambda: next(observer.Subscribe(v1.SubscribeRequest(kinds=[v1.KIND_EXEC]), metadata=over)))
    assert (code, "may have expired" in details) == (UNAUTHENTICATED, True), details
    with stream(observer, v1, bearing(ending(kubectl, "viewer", 20 - LEEWAY_SECONDS)), [SHOP]) as viewer:
        viewer.until(lambda: ticks(viewer, SHOP), PATIENCE_SECONDS, "a tick")
        problem = viewer.refused(20 + WITHDRAWN_SECONDS)
        assert (problem.code(), viewer.heartbeat.end) == (UNAUTHENTICATED, v1.END_REASON_PERMISSION)


@contextmanager
def over_tls(address: str, authority: Authority, v1, pair: tuple[Path, Path] | None = None):
    files = [path.read_bytes() for path in (pair[1], pair[0])] if pair else []
    credentials = grpc.ssl_channel_credentials(authority.path("crt").read_bytes(), *files)
    options = [("grpc.ssl_target_name_override", IN_CERTIFICATES), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(address, credentials, options) as channel:
        yield v1.ObserverStub(channel)


def test_a_certificate_is_a_name_too(kubectl, guarded, authority, v1):
    node, agent = next(iter(guarded.items()))
    with forwarded(kubectl, HOME, {node: agent["metadata"]["name"]}, 4382) as addresses:
        with over_tls(addresses[node], authority, v1, authority.sign("jane", "/CN=jane/O=team")) as jane:
            with stream(jane, v1, [], [SHOP]) as opened:
                opened.until(lambda: ticks(opened, SHOP), PATIENCE_SECONDS, "a tick")
            code, details = refusal(lambda: Stream(jane, v1, [], [BANK]))
            assert (code, details) == (PERMISSION_DENIED, f"jane may not watch process.dinle.dev in namespace {BANK}")
            with over_tls(addresses[node], authority, v1, authority.sign("kim", "/CN=kim/O=auditors")) as kim:
                with stream(kim, v1, [], [BANK], [v1.KIND_TCP_SESSION]) as opened:
                    assert opened.plan.stream_id
                code, details = refusal(lambda: Stream(kim, v1, [], [BANK]))
                assert (code, details) == (PERMISSION_DENIED, f"kim may not watch process.dinle.dev in namespace {BANK}")
            # Who shows both is who the token says.
            with stream(jane, v1, bearing(token(kubectl, "both")), [BANK]) as opened:
                assert opened.plan.stream_id
        with over_tls(addresses[node], authority, v1) as stranger:
            assert refusal(lambda: Stream(stranger, v1, [], [SHOP]))[0] == UNAUTHENTICATED
            with stream(stranger, v1, bearing(token(kubectl, "viewer")), [SHOP]) as opened:
                assert opened.plan.stream_id
        other = Authority(authority.directory / "other", "other")
        pair = other.sign("forger", "/CN=jane")
        with over_tls(addresses[node], authority, v1, pair) as forger:
            assert refusal(lambda: Stream(forger, v1, [], [SHOP]))[0] == UNAVAILABLE


def test_the_chart_s_own_test_has_a_name(helm, guarded):
    # Fails if its pod does.
    helm(HOME).test(RELEASE, timeout=PATIENCE_SECONDS)


def plugin(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [binary(), *arguments, "--kube", "--agent-namespace", HOME, "--duration", f"{PATIENCE_SECONDS}s"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS * 2, env={**os.environ, **environment}
    )


def test_the_plugin_shows_a_token(kubectl, guarded, tmp_path):
    asked = ("execsnoop", "--namespace", SHOP, "--count", "2", "-o", "json")
    anonymous = plugin(*asked)
    assert anonymous.returncode == 1 and "asks who you are" in anonymous.stderr, anonymous.stderr
    heard = plugin(*asked, "--service-account", f"{HOME}/debugger")
    assert heard.returncode == 0, heard.stderr
    assert [json.loads(line)["workload"]["namespace"] for line in heard.stdout.splitlines()] == [SHOP] * 2
    nobody = plugin(*asked, "--service-account", f"{HOME}/nobody")
    assert nobody.returncode == 1 and f"may not watch process.dinle.dev in namespace {SHOP}" in nobody.stderr, nobody.stderr
    missing = plugin(*asked, "--service-account", f"{HOME}/missing")
    assert missing.returncode == 1 and f"no service account {HOME}/missing" in missing.stderr, missing.stderr

    file = tmp_path / "token"
    file.write_text(token(kubectl, "viewer"))
    table = plugin("execsnoop", "--namespace", SHOP, "--count", "1", "--token-file", str(file))
    assert table.returncode == 0, table.stderr
    assert "(redacted)" in table.stdout and "s3cret" not in table.stdout, table.stdout

    # A kubeconfig with a token of one's own, that may forward ports.
    config = kubectl.json("config", "view", "--raw", "--minify", "--flatten")
    config["users"][0]["user"] = {"token": token(kubectl, "everywhere", audience=None)}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    forwarder = role("forwarder")
    forwarder["rules"] = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
    ]
    bound = binding("ClusterRoleBinding", None, "forwarder", f"{RELEASE}-forwarder", account("everywhere"))
    try:
        kubectl.create(forwarder, bound)
        for own, code in [((), 1), (("--own-token",), 0)]:
            done = plugin(*asked, "--kubeconfig", str(kubeconfig), *own)
            assert done.returncode == code, done.stderr
    finally:
        for kind in ("clusterrole", "clusterrolebinding"):
            kubectl("delete", kind, f"{RELEASE}-forwarder", "--ignore-not-found")


def api_servers() -> list[int]:
    """Processes of this machine that are one."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().startswith("kube-apiserver"):
                pids.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pids


@contextmanager
def stopped(pids: list[int]):
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_without_the_api_server_nobody_new_is_let_in_and_who_is_stays_for_a_while(kubectl, guarded, authority, v1):
    pids = api_servers()
    if len(pids) != 1 or os.geteuid() != 0:
        pytest.skip(f"the API server cannot be stopped from here: {len(pids)} processes of this machine are one")
    direct = f"{next(iter(guarded.values()))['status']['podIP']}:4382"
    try:
        socket.create_connection(direct.rsplit(":", 1), SOON_SECONDS).close()
    except OSError as problem:
        pytest.skip(f"pods cannot be reached from here: {problem}")
    viewer, both = bearing(token(kubectl, "viewer")), bearing(token(kubectl, "both"))
    with over_tls(direct, authority, v1) as observer, stream(observer, v1, viewer, [SHOP]) as opened:
        opened.until(lambda: ticks(opened, SHOP), PATIENCE_SECONDS, "a tick")
        with stopped(pids):
            code, details = refusal(lambda: Stream(observer, v1, both, [SHOP]))
            assert code == UNAVAILABLE and "API server" in details, details
            before = len(opened.events)
            opened.until(lambda: len(opened.events) > before + 10, PATIENCE_SECONDS, "it is still heard")
            problem = opened.refused(GRACE_SECONDS + WITHDRAWN_SECONDS)
            assert problem.code() == UNAVAILABLE, problem
            assert f"for {GRACE_SECONDS} s now" in problem.details(), problem.details()
            assert opened.heartbeat.end == v1.END_REASON_PERMISSION
        def again() -> bool:
            try:
                with stream(observer, v1, viewer, [SHOP]) as anew:
                    return bool(anew.plan.stream_id)
            except grpc.RpcError as problem:
                assert problem.code() == UNAVAILABLE
                return False

        wait_until(again, PATIENCE_SECONDS, "the API server answers again")


def test_refusals_are_counted_and_told_in_the_log(kubectl, guarded, v1):
    node, agent = next(iter(guarded.items()))
    name = agent["metadata"]["name"]
    nobody, viewer = token(kubectl, "nobody"), token(kubectl, "viewer")

    def told(observer) -> str:
        assert refusal(lambda: Stream(observer, v1, bearing(nobody), [SHOP]))[0] == PERMISSION_DENIED
        assert refusal(lambda: Stream(observer, v1, [], [SHOP]))[0] == UNAUTHENTICATED
        with stream(observer, v1, bearing(viewer), [SHOP]) as opened:
            assert opened.plan.stream_id
        log = kubectl("-n", HOME, "logs", name)
        lines = {what: [line for line in log.splitlines() if what in line] for what in ("stream refused", "stream ends")}
        denied = any(full_name("nobody") in line and "PermissionDenied" in line for line in lines["stream refused"])
        unknown = any("Unauthenticated" in line for line in lines["stream refused"])
        ended = any(full_name("viewer") in line and "CLIENT_LEFT" in line for line in lines["stream ends"])
        return log if denied and unknown and ended else ""

    # A port-forward of its own: the one of before may have gone with the API server. Two kubelets of one machine clear away each other's
    # logs now and then.
    with forwarded(kubectl, HOME, {node: name}) as addresses, grpc.insecure_channel(addresses[node]) as channel:
        log = wait_until(lambda: told(v1.ObserverStub(channel)), SOON_SECONDS, "lines of who was refused and who left")
    # Nobody reads a token there.
    assert "eyJ" not in log
    metrics = kubectl("get", "--raw", f"/api/v1/namespaces/{HOME}/pods/{name}:4381/proxy/metrics")
    for reason in ("unauthenticated", "denied"):
        [line] = [line for line in metrics.splitlines() if line.startswith(f'dinle_calls_refused_total{{reason="{reason}"}}')]
        assert int(line.split()[1]) > 0
