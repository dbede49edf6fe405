"""Dinle in the cluster of KUBECONFIG, and one listener for each node's agent.

Environment:
  KUBECONFIG                  the cluster
  KUBECTL                     `kubectl` by default
  DINLE_IMAGE                 image to run; by default localhost/dinle:e2e, which the nodes must have
  DINLE_TEST_IMAGE            what the watched pods run: any with /bin/sh, /bin/true and /bin/sleep; by default localhost/busybox:1
  KUBERNETES_SERVICE_HOST     given to the agents where it is set, with KUBERNETES_SERVICE_PORT: for clusters without kube-proxy
  DINLE_STATIC_PODS=NODE=DIR  where the kubelet of a node looks for static pods, if that is on this machine
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
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "e2e"))

import stubs  # noqa: E402
from node import wait_until  # noqa: E402

MANIFEST = ROOT / "e2e/manifests/dinle.yaml"
LOGS = ROOT / "target/cluster"
NAMESPACE = "dinle-e2e"
# A kubelet takes a second for a pod; a loaded one, a dozen pods and a late watch are slower.
PATIENCE_SECONDS = 90
# What the kernel and the API server know of at once.
SOON_SECONDS = 20


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


def manifest() -> list[dict]:
    """The manifest, with what the environment says of this cluster."""
    objects = list(yaml.safe_load_all(MANIFEST.read_text()))
    [agent] = [
        container
        for object in objects
        if object["kind"] == "DaemonSet"
        for container in object["spec"]["template"]["spec"]["containers"]
    ]
    if image := os.environ.get("DINLE_IMAGE"):
        agent |= {"image": image, "imagePullPolicy": "IfNotPresent"}
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        if value := os.environ.get(name):
            agent["env"].append({"name": name, "value": value})
    return objects


@pytest.fixture(scope="session")
def agents(kubectl):
    """Installs Dinle and gives the names of its pods by node. Keeps their logs in target/cluster."""
    kubectl("apply", "-f", "-", input=yaml.safe_dump_all(manifest()))
    try:
        kubectl("-n", "dinle", "rollout", "status", "daemonset/dinle", f"--timeout={PATIENCE_SECONDS}s")
        pods = kubectl.json("-n", "dinle", "get", "pods", "-l", "app.kubernetes.io/name=dinle")["items"]
        yield {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in pods}
    finally:
        LOGS.mkdir(parents=True, exist_ok=True)
        for arguments in (["describe", "pods"], ["logs", "--prefix", "--tail=-1", "-l", "app.kubernetes.io/name=dinle"]):
            done = subprocess.run([kubectl.program, "-n", "dinle", *arguments], capture_output=True, text=True)
            (LOGS / f"{arguments[0]}.log").write_text(done.stdout + done.stderr)
        print(f"what the agents said is in {LOGS}")
        kubectl("delete", "-f", str(MANIFEST), "--ignore-not-found", "--wait=false")


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


@pytest.fixture(scope="session")
def addresses(kubectl, agents):
    """Where each node's agent can be reached, through `kubectl port-forward`."""
    forwards, addresses = [], {}
    try:
        for node, pod in agents.items():
            forward = subprocess.Popen(
                [kubectl.program, "-n", "dinle", "port-forward", f"pod/{pod}", ":4380"], stdout=subprocess.PIPE, text=True
            )
            forwards.append(forward)
            # "Forwarding from 127.0.0.1:41235 -> 4380"
            line = forward.stdout.readline()
            assert line.startswith("Forwarding from "), f"kubectl port-forward to {pod} says {line!r}"
            addresses[node] = line.split()[2]
        yield addresses
    finally:
        for forward in forwards:
            forward.terminate()
            forward.wait()


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
    """Collects what one agent says of the execs in a namespace."""

    def __init__(self, channel: grpc.Channel, v1, namespace: str):
        self.changed = threading.Condition()
        self.events, self.updates, self.losses = [], [], []
        self.problem = None
        request = v1.SubscribeRequest(kinds=[v1.KIND_EXEC], selector=v1.Selector(namespaces=[namespace]))
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
                    self.changed.notify_all()
        except grpc.RpcError as problem:
            with self.changed:
                self.problem = problem
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
