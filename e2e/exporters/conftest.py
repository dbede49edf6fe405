"""Pods that do what is asked of them, and agents that bring it elsewhere."""

import json
import re
import secrets
import subprocess
import sys
import uuid
from pathlib import Path

import grpc
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "e2e"))

import node  # noqa: E402
import stubs  # noqa: E402
import yaml  # noqa: E402

NODE = "demo-node"
# Any answer that is due at once; a busy machine may take a while.
PATIENCE_SECONDS = 30
# The pods here; others may run some on this machine, too.
OURS = {"namespaces": ["shop", "ops"]}
RECEIVERS = ROOT / "target/receivers"


@pytest.fixture(scope="session")
def pods_file(tmp_path_factory):
    """The pods of the demo, with uids and containers of their own: others may test on this machine, too."""
    file = tmp_path_factory.mktemp("pods") / "pods.json"
    pods = json.loads((ROOT / "e2e/demo-pods.json").read_text())
    for pod in pods["items"]:
        pod["metadata"]["uid"] = str(uuid.uuid4())
        for status in pod["status"]["containerStatuses"]:
            status["containerID"] = f"containerd://{secrets.token_hex(32)}"
    file.write_text(json.dumps(pods))
    return file


@pytest.fixture(scope="session")
def pods(pods_file):
    """Pods by the part of their names before the first dash: checkout, web and logrotate."""
    with node.Cgroups("dinle-exporters") as cgroups:
        yield {name.split("-")[0]: pod for name, pod in cgroups.pods(pods_file).items()}


@pytest.fixture(scope="session")
def v1(tmp_path_factory):
    return stubs.generate(tmp_path_factory.mktemp("stubs"))


class Exporting:
    """An agent with a file of exporters."""

    def __init__(self, pods: Path, file: Path, exporters: list[dict], *arguments: str):
        self.file = file
        self.write(exporters)
        self.agent = node.Agent(pods, NODE, "--exporters", str(file), *arguments)

    def write(self, exporters: list[dict]) -> None:
        """As a ConfigMap is changed: at once."""
        new = self.file.with_suffix(".new")
        new.write_text(yaml.safe_dump({"exporters": exporters}))
        new.replace(self.file)

    def __enter__(self):
        self.agent.__enter__()
        return self

    def __exit__(self, *raised):
        self.agent.__exit__(*raised)

    def metrics(self) -> dict[str, float]:
        text = self.agent.get("/metrics")[1]
        return {name: float(value) for name, value in re.findall(r"^dinle_(\S+) (\S+)$", text, re.MULTILINE)}

    def exporter(self, metric: str, name: str, **labels: str) -> float:
        """One of its metrics; the sum of those that have these labels."""
        wanted = [f'exporter="{name}"', *(f'{label}="{value}"' for label, value in labels.items())]
        return sum(
            value
            for series, value in self.metrics().items()
            if series.startswith(f"exporter_{metric}{{") and all(label in series for label in wanted)
        )

    def wait(self, condition, what: str):
        try:
            return node.wait_until(condition, PATIENCE_SECONDS, what)
        except TimeoutError as problem:
            found = "\n".join(f"{name} {value}" for name, value in self.metrics().items() if name.startswith("exporter"))
            raise AssertionError(f"{problem}\n{found}\n{self.agent.log.read_text()[-4000:]}") from problem

    def told(self) -> list[dict]:
        """What `dinle status` has of exporters."""
        return json.loads(self.ask("-o", "json"))["status"].get("exporters", [])

    def status(self, name: str) -> dict:
        [found] = [exporter for exporter in self.told() if exporter["name"] == name]
        return found

    def page(self) -> list[str]:
        """The lines that it prints, with one blank between columns."""
        return [" ".join(line.split()) for line in self.ask().splitlines()]

    def ask(self, *flags: str) -> str:
        command = [node.binary(), "status", "--address", self.agent.grpc, *flags]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_SECONDS, check=True).stdout

    def streams(self, v1, count: int):
        """Waits until so many streams are there, and gives them by their users."""
        with grpc.insecure_channel(self.agent.grpc) as channel:
            observer = v1.ObserverStub(channel)

            def look():
                subscriptions = observer.GetStatus(v1.GetStatusRequest()).subscriptions
                # None of them is an answer, too.
                return [subscriptions] if len(subscriptions) == count else []

            [found] = self.wait(look, f"{count} streams")
        return {subscription.caller.user: subscription for subscription in found}

    def attached(self, v1, count: int):
        """The same, and until what they need is attached: then all that happens is heard."""
        found = self.streams(v1, count)
        with grpc.insecure_channel(self.agent.grpc) as channel:
            self.agent.attached(v1.ObserverStub(channel), v1)
        return found


@pytest.fixture
def exporting(tmp_path, pods_file):
    """Starts an agent with exporters."""
    started = []

    def start(exporters: list[dict], *arguments: str) -> Exporting:
        exporting = Exporting(pods_file, tmp_path / "exporters.yaml", exporters, *arguments)
        started.append(exporting)
        return exporting.__enter__()

    yield start
    for exporting in started:
        exporting.__exit__(None, None, None)


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MiB that nobody else has: its device."""
    image = tmp_path / "disk"
    image.write_bytes(b"\0" * (1 << 20))
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"there is no loop device: {made.stderr}")
    device = Path(made.stdout.strip())
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)
