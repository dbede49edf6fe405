"""The life of a release: Helm installs, tests, upgrades, rolls back and removes it, while somebody listens.

What is left in the kernel after it can be seen where the nodes are on this machine, as in a cluster that DINLE_CLUSTER makes.
"""

import base64
import ctypes
import json
import os
import platform
import re
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from certificates import NAME as IN_CERTIFICATES
from certificates import Authority
from google.protobuf import json_format
from node import binary, wait_until

from conftest import (
    CHART,
    PATIENCE_SECONDS,
    ROLLOUT_SECONDS,
    Listener,
    agents_of,
    empty_namespace,
    forwarded,
    forwarded_to,
    keep_logs,
    values,
)
from test_cases import pod

# All that Helm makes for the release has this in its name.
NAME = "ears"
NAMESPACE = "dinle-e2e-release"
CERTIFICATES = "certificates"
TICKER = "while :; do /bin/true tick; sleep 0.2; done"
TICK = ["/bin/true", "tick"]

# From linux/bpf.h, and the numbers of bpf(2).
BPF_PROG_GET_NEXT_ID = 11
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}


@pytest.fixture(scope="module")
def namespace(kubectl):
    """Pods that execute something all the time, one on each node."""
    with empty_namespace(kubectl, "dinle-e2e-ticks") as name:
        nodes = [node["metadata"]["name"] for node in kubectl.json("get", "nodes", "-l", "kubernetes.io/os=linux")["items"]]
        kubectl.create(*(pod(name, f"tick-{node}", node, TICKER) for node in nodes))
        kubectl(
            "-n",
            name,
            "wait",
            "--for=condition=Ready",
            f"--timeout={PATIENCE_SECONDS}s",
            *(f"pod/tick-{node}" for node in nodes),
        )
        yield name
        kubectl.delete_pods(name, *(f"tick-{node}" for node in nodes))


@contextmanager
def listening(kubectl, v1, namespace: str):
    """A listener for each node's agent of the release, that has heard something already."""
    with ExitStack() as stack:
        pods = {node: pod["metadata"]["name"] for node, pod in agents_of(kubectl, NAMESPACE).items()}
        addresses = stack.enter_context(forwarded(kubectl, NAMESPACE, pods))
        listeners = {}
        for node, address in addresses.items():
            channel = stack.enter_context(grpc.insecure_channel(address))
            listeners[node] = Listener(channel, v1, namespace, [v1.KIND_EXEC, v1.KIND_DROP])
        for node, listener in listeners.items():
            listener.wait(lambda: heard(listener, node), PATIENCE_SECONDS, f"{TICK} on {node}")
        yield listeners
        for listener in listeners.values():
            listener.call.cancel()


def heard(listener: Listener, node: str) -> bool:
    return any(
        (event.workload.node, event.workload.pod, list(event.exec.args)) == (node, f"tick-{node}", TICK)
        for event in listener.events
    )


def check_drained(v1, listeners: dict[str, Listener]) -> None:
    """Each stream was ended by its agent, in order: what matched was delivered, or its loss was told."""
    for node, listener in listeners.items():
        listener.wait(lambda: listener.ended, PATIENCE_SECONDS, f"the end of the stream of {node}")
        assert listener.heartbeat.end == v1.END_REASON_SHUTDOWN
        for books in listener.heartbeat.books:
            assert (books.matched, books.queued) == (books.delivered + sum(loss.count for loss in books.lost), 0)
        assert sum(books.delivered for books in listener.heartbeat.books) == len(listener.events)


def drop_limits(v1, listeners: dict[str, Listener]) -> dict[str, set[str]]:
    """What each node's agent says that it cannot tell of dropped packets."""
    told = {
        node: [one for one in listener.plan.capabilities if one.kind == v1.KIND_DROP] for node, listener in listeners.items()
    }
    return {node: set(capability.limits) for node, [capability] in told.items()}


def check_replaced(kubectl, before: dict[str, dict]) -> None:
    after = agents_of(kubectl, NAMESPACE)
    assert set(after) == set(before)
    for node, agent in after.items():
        assert agent["metadata"]["uid"] != before[node]["metadata"]["uid"], f"{node} still has the agent of before"


def programs_of(agents: dict[str, dict], listeners: dict[str, Listener]) -> set[int]:
    """The ids of the programs that these agents hold, as far as they run in this machine's kernel."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    here = [agents[node]["metadata"]["uid"] for node, listener in listeners.items() if listener.plan.boot_id == boot_id]
    if not here or os.geteuid() != 0:
        return set()
    # In cgroup paths of systemd, dashes are underscores.
    names = [name for uid in here for name in (uid, uid.replace("-", "_"))]
    ids = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(name in (process / "cgroup").read_text() for name in names):
                for descriptor in (process / "fdinfo").iterdir():
                    ids |= {int(id) for id in re.findall(r"^prog_id:\s+(\d+)$", descriptor.read_text(), re.MULTILINE)}
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    assert ids, f"agents run in this kernel, in the pods {here}, but no process there holds an eBPF program"
    # Or else their absence later would mean nothing.
    assert ids <= loaded_programs()
    return ids


def loaded_programs() -> set[int]:
    """The ids of all programs in this machine's kernel."""
    libc = ctypes.CDLL(None, use_errno=True)
    # start_id, next_id, open_flags
    attributes = (ctypes.c_uint32 * 3)()
    ids = set()
    while libc.syscall(BPF_SYSCALL[platform.machine()], BPF_PROG_GET_NEXT_ID, attributes, ctypes.sizeof(attributes)) == 0:
        attributes[0] = attributes[1]
        ids.add(attributes[1])
    return ids


def check_unloaded(ids: set[int]) -> None:
    # The kernel frees programs a moment after the last one who held them has gone.
    if ids:
        wait_until(
            lambda: not ids & loaded_programs(), PATIENCE_SECONDS, f"programs of agents that are gone are unloaded ({ids})"
        )


def left_over(kubectl) -> set[str]:
    """Objects of any kind and namespace with the release's name in theirs. Events only tell of them."""
    kinds = kubectl("api-resources", "--verbs=list", "-o", "name").split()
    listed = ",".join(kind for kind in kinds if kind.split(".")[0] != "events")
    names = kubectl("get", listed, "--all-namespaces", "--ignore-not-found", "-o", "name").split()
    return {name for name in names if NAME in name.split("/", 1)[1]}


def check_notes(kubectl, v1, notes: str, node: str, tmp_path: Path) -> None:
    """What Helm tells people to type works."""
    port_forward = re.search(r"^ *(kubectl .*port-forward .*) 4380:4380$", notes, re.MULTILINE)[1]
    shell = f'kubectl() {{ command "$PROGRAM" "$@"; }}; NODE={node}; {port_forward} :4380'
    environment = {**os.environ, "PROGRAM": kubectl.program}
    with subprocess.Popen(
        ["bash", "-c", shell], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as forward:
        try:
            channel = grpc.insecure_channel(forwarded_to(forward))
            assert v1.ObserverStub(channel).GetStatus(v1.GetStatusRequest()).node == node
        finally:
            os.killpg(forward.pid, 15)

    request, method = re.search(r"^ *grpcurl -plaintext -d '(.*)' localhost:4380 (\S+)$", notes, re.MULTILINE).groups()
    assert json_format.Parse(request, v1.SubscribeRequest()).kinds
    service, _, call = method.partition("/")
    assert call in v1.DESCRIPTOR.pool.FindServiceByName(service).methods_by_name

    # kubectl finds its plugins on PATH by their names.
    (tmp_path / "kubectl-dinle").symlink_to(Path(binary()).resolve())
    plugin = re.search(r"^ *kubectl (dinle .*)$", notes, re.MULTILINE)[1].split()
    done = subprocess.run(
        [kubectl.program, *plugin, "--count", "1", "--duration", f"{PATIENCE_SECONDS}s", "-o", "json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        timeout=PATIENCE_SECONDS * 2,
    )
    assert done.returncode == 0, f"kubectl {' '.join(plugin)}: {done.stderr}"
    [event] = map(json.loads, done.stdout.splitlines())
    assert event["exec"]


def check_tls(kubectl, v1, name: str, roots: bytes, certificate: bytes, key: bytes) -> None:
    """Besides the agents' own loopback there is a port for those who have a certificate."""
    pods = {node: pod["metadata"]["name"] for node, pod in agents_of(kubectl, NAMESPACE).items()}
    with forwarded(kubectl, NAMESPACE, pods, 4382) as addresses:
        for node, address in addresses.items():
            for pair in [(key, certificate), ()]:
                credentials = grpc.ssl_channel_credentials(roots, *pair)
                options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
                with grpc.secure_channel(address, credentials, options) as channel:
                    ask = v1.ObserverStub(channel).GetStatus
                    if pair:
                        assert ask(v1.GetStatusRequest(), timeout=PATIENCE_SECONDS).node == node
                    else:
                        with pytest.raises(grpc.RpcError) as refused:
                            ask(v1.GetStatusRequest(), timeout=PATIENCE_SECONDS)
                        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def generated(kubectl, notes: str, directory: Path) -> tuple[str, tuple[bytes, ...]]:
    """The name in the certificate that Helm made for agents, and the files for listeners, as the notes say how to get them."""
    [fetch] = re.findall(r"^ *(\(umask 077; for FILE in .*; done\))$", notes, re.MULTILINE)
    shell = f'kubectl() {{ command "$PROGRAM" "$@"; }}; {fetch}'
    subprocess.run(["bash", "-c", shell], cwd=directory, check=True, env={**os.environ, "PROGRAM": kubectl.program})
    assert (directory / "tls.key").stat().st_mode & 0o777 == 0o600
    [name] = re.findall(r" --tls-server-name (\S+)$", notes, re.MULTILINE)
    return name, tuple((directory / file).read_bytes() for file in ["ca.crt", "tls.crt", "tls.key"])


def secret(authority: Authority) -> dict:
    certificate, key = authority.sign("agent", "/CN=agent")
    files = {"tls.crt": certificate, "tls.key": key, "ca.crt": authority.path("crt")}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"namespace": NAMESPACE, "name": CERTIFICATES},
        "data": {name: base64.b64encode(path.read_bytes()).decode() for name, path in files.items()},
    }


def test_a_release_lives_and_leaves_nothing(kubectl, helm, v1, namespace, tmp_path):
    nodes = {
        name.removeprefix("tick-") for name in kubectl("-n", namespace, "get", "pods", "-o", "name").replace("pod/", "").split()
    }
    with empty_namespace(kubectl, NAMESPACE), helm(NAMESPACE) as release:
        try:
            waited = {"wait": "watcher", "timeout": ROLLOUT_SECONDS}
            made_up = {**values(), "grpc": {"tls": {"generate": True}}}
            installed = release.install(CHART, NAME, made_up, **waited)
            first = agents_of(kubectl, NAMESPACE)
            made = {f"daemonset.apps/{NAME}-dinle", f"clusterrole.rbac.authorization.k8s.io/{NAME}-dinle"}
            assert made <= left_over(kubectl)
            # Helm came back when every one was ready.
            assert set(first) == nodes
            assert all(status["ready"] for agent in first.values() for status in agent["status"]["containerStatuses"])
            check_notes(kubectl, v1, installed["notes"], sorted(nodes)[0], tmp_path)

            name, files = generated(kubectl, installed["notes"], tmp_path)
            check_tls(kubectl, v1, name, *files)

            # Fails if the pod does.
            release.test(NAME, timeout=PATIENCE_SECONDS)
            assert {name for name in left_over(kubectl) if "-test" in name} == set()

            # With the certificates of before, nothing changes.
            upgraded = release.upgrade(CHART, NAME, made_up, **waited)
            assert generated(kubectl, upgraded["notes"], tmp_path) == (name, files)
            assert {node: pod["metadata"]["uid"] for node, pod in agents_of(kubectl, NAMESPACE).items()} == {
                node: pod["metadata"]["uid"] for node, pod in first.items()
            }

            with listening(kubectl, v1, namespace) as listeners:
                less = drop_limits(v1, listeners)
                held = programs_of(first, listeners)
                authority = Authority(tmp_path, "authority")
                certificate, key = (path.read_bytes() for path in authority.sign("jane", "/CN=jane"))
                kubectl.create(secret(authority))
                changed = {"hostPID": True, "kernelSymbols": True, "grpc": {"tls": {"secretName": CERTIFICATES}}}
                release.upgrade(CHART, NAME, {**values(), **changed}, **waited)
                check_drained(v1, listeners)
            check_replaced(kubectl, first)
            check_unloaded(held)
            check_tls(kubectl, v1, IN_CERTIFICATES, authority.path("crt").read_bytes(), certificate, key)

            second = agents_of(kubectl, NAMESPACE)
            with listening(kubectl, v1, namespace) as listeners:
                for node, limits in drop_limits(v1, listeners).items():
                    assert limits < less[node], "with hostPID and kernelSymbols, dropped packets should be told better"
                held = programs_of(second, listeners)
                release.rollback(NAME, **waited)
                check_drained(v1, listeners)
            check_replaced(kubectl, second)
            check_unloaded(held)
            assert [(one["revision"], one["status"]) for one in release.history(NAME)] == [
                (1, "superseded"),
                (2, "superseded"),
                (3, "superseded"),
                (4, "deployed"),
            ]

            with listening(kubectl, v1, namespace) as listeners:
                assert drop_limits(v1, listeners) == less
                held = programs_of(agents_of(kubectl, NAMESPACE), listeners)
                # Removed while somebody listens.
                release.uninstall(NAME, wait="watcher", timeout=ROLLOUT_SECONDS)
                check_drained(v1, listeners)
            wait_until(lambda: not left_over(kubectl), ROLLOUT_SECONDS, f"nothing with {NAME} in its name is left")
            check_unloaded(held)
        except BaseException:
            keep_logs(kubectl, NAMESPACE)
            raise
        finally:
            # Nothing but what a failure left.
            release.uninstall(NAME, ignore_not_found=True)


def test_what_the_chart_refuses_leaves_a_release_as_it_was(kubectl, helm, agents):
    release = helm("dinle")
    before = release.history("dinle")
    # Not those that were installed: another test may have replaced one.
    pods = {node: pod["metadata"]["uid"] for node, pod in agents_of(kubectl, "dinle").items()}
    with pytest.raises(Exception, match="privileged is true, which gives every capability"):
        release.upgrade(CHART, "dinle", {**values(), "privileged": True, "extraCapabilities": ["SYSLOG"]})
    if "podmonitors.monitoring.coreos.com" not in kubectl("api-resources", "-o", "name").split():
        with pytest.raises(Exception, match='no matches for kind "PodMonitor"'):
            release.upgrade(CHART, "dinle", {**values(), "podMonitor": {"enabled": True}})
    deployed = [one["revision"] for one in release.history("dinle") if one["status"] == "deployed"]
    assert deployed == [one["revision"] for one in before if one["status"] == "deployed"]
    assert {node: pod["metadata"]["uid"] for node, pod in agents_of(kubectl, "dinle").items()} == pods
