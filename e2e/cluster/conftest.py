"""Dinle in the cluster of KUBECONFIG, and one listener for each node's agent.

Environment:
  KUBECONFIG                  the cluster
  KUBECTL                     `kubectl` by default
  DINLE_IMAGE                 image to run; by default localhost/dinle:e2e, which the nodes must have
  DINLE_TEST_IMAGE            what the watched pods run: any with /bin/sh, /bin/true and /bin/sleep; by default localhost/busybox:1
  KUBERNETES_SERVICE_HOST     given to Dinle's pods where it is set, with KUBERNETES_SERVICE_PORT: for clusters without kube-proxy
  DINLE_STATIC_PODS=NODE=DIR  where the kubelet of a node looks for static pods, if that is on this machine
  DINLE_SERVICE_ACCOUNT_KEY   file of the key with which the API server signs tokens, RSA
"""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "e2e"))

import stubs  # noqa: E402
from node import binary, wait_until  # noqa: E402

CHART = ROOT / "charts/dinle"
LOGS = ROOT / "target/cluster"
NAMESPACE = "dinle-e2e"
# A kubelet takes a second for a pod; a loaded one, a dozen pods and a late watch are slower.
PATIENCE_SECONDS = 90
# Each node's agent is replaced after that of another, and kubelets may take a minute to forget a pod that has ended.
ROLLOUT_SECONDS = 300
# What the kernel and the API server know of at once.
SOON_SECONDS = 20
# What the watched pods run, and the name of their container.
IMAGE = os.environ.get("DINLE_TEST_IMAGE", "localhost/busybox:1")
CONTAINER = "main"
# `kubectl dinle` looks for these.
AGENTS = "app.kubernetes.io/part-of=dinle,app.kubernetes.io/component=agent"


class Kubectl:
    def __init__(self):
        self.program = os.environ.get("KUBECTL", "kubectl")

    def __call__(self, *arguments: str, input: str | None = None) -> str:
        done = subprocess.run([self.program, *arguments], input=input, capture_output=True, text=True)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> dict:
        return json.loads(self(*arguments, "-o", "json"))

    def create(self, *objects: dict) -> None:
        self("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def delete_pods(self, namespace: str, *names: str) -> None:
        self("-n", namespace, "delete", "pod", *names, "--grace-period=0", "--force", "--wait=false")


@pytest.fixture(scope="session")
def kubectl():
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set: no cluster to test in")
    return Kubectl()


def pod_of(container: dict, namespace: str, name: str, node: str, labels: dict[str, str] | None = None, **spec) -> dict:
    """A pod to be watched, with one container, of which this much is said; `spec` is what it has besides."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels or {}},
        "spec": {
            # Without the scheduler, so that each node gets its share.
            "nodeName": node,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": CONTAINER, "image": IMAGE, "imagePullPolicy": "IfNotPresent", **container}],
            **spec,
        },
    }


@pytest.fixture(scope="session")
def helm(kubectl):
    """Helm for a namespace: its own code, in this process."""
    library = pytest.importorskip("helm_python", reason="Helm's library is packaged for x86-64 alone")
    return lambda namespace: library.Config(namespace=namespace)


def values() -> dict:
    """The chart's values for this cluster, by what the environment says of it."""
    image = {"repository": "localhost/dinle", "tag": "e2e", "pullPolicy": "Never"}
    if named := os.environ.get("DINLE_IMAGE"):
        pinned, _, digest = named.partition("@")
        repository, _, tag = pinned.rpartition(":")
        # The colon may be a port's.
        if not repository or "/" in tag:
            repository, tag = pinned, "" if digest else "latest"
        image = {"repository": repository, "tag": "" if digest else tag, "digest": digest, "pullPolicy": "IfNotPresent"}
    names = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
    given = [{"name": name, "value": os.environ[name]} for name in names if os.environ.get(name)]
    return {"image": image, "extraEnv": given}


def agents_of(kubectl, namespace: str) -> dict[str, dict]:
    """The pods of the agents in a namespace by node, without those that end, or have none yet."""
    pods = kubectl.json("-n", namespace, "get", "pods", "-l", AGENTS)["items"]
    return {pod["spec"]["nodeName"]: pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and "nodeName" in pod["spec"]}


def keep_logs(kubectl, namespace: str) -> None:
    """Keeps what the agents of a namespace said, in target/cluster."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for arguments in (["describe", "pods"], ["logs", "--prefix", "--tail=-1", "-l", AGENTS]):
        done = subprocess.run([kubectl.program, "-n", namespace, *arguments], capture_output=True, text=True)
        (LOGS / f"{namespace}-{arguments[0]}.log").write_text(done.stdout + done.stderr)
    print(f"what the agents said is in {LOGS}")


@pytest.fixture(scope="session")
def agents(kubectl, helm):
    """Installs Dinle and gives the names of its pods by node."""
    release = helm("dinle")
    try:
        release.install(CHART, "dinle", values(), create_namespace=True, wait="watcher", timeout=PATIENCE_SECONDS)
        yield {node: pod["metadata"]["name"] for node, pod in agents_of(kubectl, "dinle").items()}
    finally:
        keep_logs(kubectl, "dinle")
        release.uninstall("dinle", ignore_not_found=True)
        kubectl("delete", "namespace", "dinle", "--ignore-not-found", "--wait=false")


@contextmanager
def empty_namespace(kubectl, name: str):
    """An empty namespace that pods can be made in."""
    kubectl("create", "namespace", name)
    try:
        # Pods are refused until its service account is there.
        wait_until(
            lambda: kubectl("-n", name, "get", "serviceaccount", "default", "--ignore-not-found"),
            SOON_SECONDS,
            "the default service account",
        )
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def namespace(kubectl):
    with empty_namespace(kubectl, NAMESPACE) as name:
        yield name


@contextmanager
def forwarded(kubectl, namespace: str, pods: dict[str, str], port: int = 4380):
    """Where each node's agent can be reached, through `kubectl port-forward`."""
    forwards, addresses = [], {}
    try:
        for node, pod in pods.items():
            forward = subprocess.Popen(
                [kubectl.program, "-n", namespace, "port-forward", f"pod/{pod}", f":{port}"], stdout=subprocess.PIPE, text=True
            )
            forwards.append(forward)
            addresses[node] = forwarded_to(forward)
        yield addresses
    finally:
        for forward in forwards:
            forward.terminate()
            forward.wait()


def forwarded_to(forward: subprocess.Popen) -> str:
    """The address of a `kubectl port-forward` that was just started."""
    # "Forwarding from 127.0.0.1:41235 -> 4380"
    line = forward.stdout.readline()
    assert line.startswith("Forwarding from "), f"{forward.args} says {line!r}"
    return line.split()[2]


@pytest.fixture(scope="session")
def addresses(kubectl, agents):
    with forwarded(kubectl, "dinle", agents) as addresses:
        yield addresses


@pytest.fixture(scope="session")
def channels(addresses):
    """A gRPC channel to each node's agent."""
    channels = {node: grpc.insecure_channel(address) for node, address in addresses.items()}
    yield channels
    for channel in channels.values():
        channel.close()


@pytest.fixture(scope="session")
def v1(tmp_path_factory):
    return stubs.generate(tmp_path_factory.mktemp("stubs"))


class Listener:
    """Collects what one agent says of a namespace: of the execs there, if nothing else is asked for."""

    def __init__(self, channel: grpc.Channel, v1, namespace: str, kinds: list[int] | None = None):
        self.changed = threading.Condition()
        self.events, self.updates, self.losses = [], [], []
        self.heartbeat, self.ended = None, False
        self.problem = None
        request = v1.SubscribeRequest(kinds=kinds or [v1.KIND_EXEC], selector=v1.Selector(namespaces=[namespace]))
        self.call = v1.ObserverStub(channel).Subscribe(request)
        self.plan = next(self.call).plan
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        try:
            for message in self.call:
                with self.changed:
                    self.events += message.batch.events
                    if message.HasField("workload"):
                        self.updates.append(message.workload.workload)
                    if message.HasField("loss"):
                        self.losses.append(message.loss)
                    if message.HasField("heartbeat"):
                        self.heartbeat = message.heartbeat
                    self.changed.notify_all()
        except grpc.RpcError as problem:
            with self.changed:
                self.problem = problem
                self.changed.notify_all()
        else:
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def wait(self, condition, seconds: float, what: str) -> None:
        """Waits until the condition holds; it is asked after each message."""
        with self.changed:
            held = self.changed.wait_for(lambda: self.problem or condition(), seconds)
            assert not self.problem, f"the stream ended: {self.problem}"
            assert held, f"{what}: not within {seconds} s; the last events are\n{self.events[-5:]}"


@pytest.fixture(scope="session")
def listeners(channels, v1, namespace):
    """A listener for each node, there before any pod of the namespace is."""
    listeners = {node: Listener(channel, v1, namespace) for node, channel in channels.items()}
    yield listeners
    for listener in listeners.values():
        listener.call.cancel()


@pytest.fixture(scope="session")
def plugin(tmp_path_factory):
    """`kubectl dinle`, as kubectl finds it: the same binary by another name."""
    directory = tmp_path_factory.mktemp("plugin")
    (directory / "kubectl-dinle").symlink_to(binary())
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{directory}"}

    def command(*arguments: str, kubeconfig: str | None = None) -> tuple[list[str], dict]:
        extra = {"KUBECONFIG": kubeconfig} if kubeconfig else {}
        return [os.environ.get("KUBECTL", "kubectl"), "dinle", *arguments], environment | extra

    return command


def sleeper(namespace: str, name: str, node: str, app: str = "web") -> dict:
    return pod_of({"command": ["/bin/sleep", "3600"]}, namespace, name, node, labels={"app": app})


def start(kubectl, *pods: dict) -> None:
    kubectl.create(*pods)
    for pod in pods:
        meta = pod["metadata"]
        kubectl("-n", meta["namespace"], "wait", "--for=condition=Ready", f"pod/{meta['name']}", f"--timeout={PATIENCE_SECONDS}s")


def attached(plugin, namespace: str) -> None:
    """Waits until what those who listen to the namespace need is attached."""
    # Whoever is told a plan knows that the kernel reports what was asked for before.
    command, environment = plugin("watch", "--kinds", "exit", "-n", namespace, "--duration", "1s")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done


def listening(plugin, namespace: str, nodes: set[str]) -> bool:
    """Whether each of these nodes has a stream of this namespace. Other tests may have theirs there."""
    command, environment = plugin("status", "-o", "json")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    pages = [json.loads(line)["status"] for line in done.stdout.splitlines()]

    def heard(page: dict) -> bool:
        asked = [stream["request"].get("selector", {}) for stream in page.get("subscriptions", [])]
        return [namespace] in [selector.get("namespaces") for selector in asked]

    return nodes <= {page["node"] for page in pages if heard(page)}
