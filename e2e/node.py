"""A node to test on: an agent, and pods without Kubernetes. For the demo and for the Python tests; needs root and nothing but Python.

A pod here is what the agent sees of one: cgroup directories as a kubelet lays them out, with real processes in them.
"""

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# An agent loads its programs and walks the cgroups in well under a second; a busy machine may be ten times slower.
READY_SECONDS = 20
# A killed process leaves its cgroup at once, but for what it waits for in the kernel.
EMPTY_SECONDS = 10
# The agent drains its streams before it ends.
STOP_SECONDS = 15


class Unusable(Exception):
    """This machine lacks something; the text says what and how to mend it."""


def binary() -> Path:
    """The newest binary that cargo built, or the one that DINLE names."""
    if named := os.environ.get("DINLE"):
        return Path(named)
    built = sorted(ROOT.glob("target/*/debug/dinle"), key=lambda path: path.stat().st_mtime)
    if not built:
        raise Unusable("no target/*/debug/dinle; run `make build` first")
    return built[-1]


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted: /sys/fs/cgroup, or `unified` below it on a hybrid machine."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2" and where.startswith("/sys/fs/cgroup"):
            return Path(where)
    raise Unusable("no cgroup v2 below /sys/fs/cgroup; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_pods(file: Path, out: Path) -> Path:
    """Writes the pods of a file with ids of their own: others on this machine may run the same."""
    text = file.read_text()
    pods = json.loads(text)["items"]
    ids = {pod["metadata"]["uid"]: str(uuid.uuid4()) for pod in pods}
    containers = [status["containerID"].split("//")[1] for pod in pods for status in pod["status"]["containerStatuses"]]
    for old, new in {**ids, **{old: uuid.uuid4().hex * 2 for old in containers}}.items():
        text = text.replace(old, new)
    out.write_text(text)
    return out


def wait_until(condition, seconds: float, what: str):
    """Asks until `condition` gives something true, which is returned; gives up with an error that names `what`."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


class Cgroups:
    """A subtree of cgroup v2 that is removed, with all that runs in it, at the end of a `with`."""

    def __init__(self, name: str):
        self.root = cgroup_root() / f"{name}-{os.getpid()}"

    def __enter__(self):
        self.root.mkdir()
        return self

    def __exit__(self, *_):
        self.remove(self.root)

    def pods(self, file: Path) -> dict[str, "Pod"]:
        """Makes the pods of a file as `kubectl get pods -o json` prints it; the keys are their names."""
        items = json.loads(file.read_text())["items"]
        return {item["metadata"]["name"]: Pod(self, item) for item in items}

    def remove(self, top: Path) -> None:
        """Ends every process below `top` and removes the directories."""
        directories = [Path(path) for path, *_ in os.walk(top, topdown=False)]
        for directory in directories:
            kill_all(directory)
        for directory in directories:
            wait_until(lambda: not processes(directory), EMPTY_SECONDS, f"processes of {directory} end")
            directory.rmdir()


def processes(directory: Path) -> list[int]:
    """The processes of one cgroup; those that only wait to be reaped are not listed there."""
    return [int(pid) for pid in (directory / "cgroup.procs").read_text().split()]


def kill_all(directory: Path) -> None:
    """Kills what runs in one cgroup, also what is being forked."""
    with suppress(OSError):  # since Linux 5.14
        (directory / "cgroup.kill").write_text("1")
        return
    deadline = time.monotonic() + EMPTY_SECONDS
    while (pids := processes(directory)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Pod:
    """The cgroups of one pod, and who runs in them."""

    def __init__(self, cgroups: Cgroups, item: dict):
        self.namespace = item["metadata"]["namespace"]
        self.name = item["metadata"]["name"]
        self.uid = item["metadata"]["uid"]
        qos = item["status"]["qosClass"].lower()
        # A guaranteed pod has no level of its own in a kubelet's tree.
        level = cgroups.root / "kubepods" / ("" if qos == "guaranteed" else qos)
        self.directory = level / f"pod{self.uid}"
        self.containers = {
            status["name"]: self.directory / status["containerID"].removeprefix("containerd://")
            for status in item["status"]["containerStatuses"]
        }
        for directory in self.containers.values():
            directory.mkdir(parents=True)

    def start(self, *command: str, container: str | None = None, **options) -> subprocess.Popen:
        """Starts a command in a container; the first one if none is named. Its `execve` already happens inside."""
        directory = self.containers[container] if container else next(iter(self.containers.values()))
        # A shell of its own moves itself, and not a `preexec_fn`: forking a process with gRPC's threads can lose the child.
        enter = ["/bin/sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', directory]
        # A session of its own: Ctrl-C is for whoever watches.
        return subprocess.Popen([*enter, *command], start_new_session=True, stdin=subprocess.DEVNULL, **options)

    def run(self, *command: str, times: int = 1, container: str | None = None) -> None:
        """Runs a command so many times, each to its end, which is a good one."""
        for _ in range(times):
            if status := self.start(*command, container=container).wait():
                raise ChildProcessError(f"{command[0]} in {self.name} ended with {status}")


class Agent:
    """`dinle agent` on free loopback ports, ready once `with` is entered; its log is in a temporary directory."""

    def __init__(self, pods: Path, node: str, *arguments: str, listen: tuple[str, ...] = ()):
        """It also listens at `listen`."""
        self.grpc = f"127.0.0.1:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}"
        self.command = [
            binary(),
            "agent",
            *("--listen", ",".join([self.grpc, *listen])),
            *("--http", self.http),
            *("--pods", f"file:{pods}"),
            *("--node-name", node),
            *arguments,
        ]

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="dinle-")
        self.log = Path(self.directory.name) / "agent.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(self.ready, READY_SECONDS, "the agent becomes ready")
        except BaseException as problem:
            log = self.log.read_text()
            self.__exit__()
            if isinstance(problem, Exception):
                raise Unusable(f"{problem}; its log ends with:\n{log[-4000:]}") from problem
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Unusable(f"the agent did not end within {STOP_SECONDS} s of SIGTERM") from None
        finally:
            self.directory.cleanup()

    def get(self, path: str) -> tuple[int, str]:
        """What its HTTP side answers: status and body."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def streams(self) -> int:
        """How many subscriptions are open, by the agent's metrics."""
        found = re.search(r"^dinle_subscriptions (\d+)$", self.get("/metrics")[1], re.MULTILINE)
        if not found:
            raise ChildProcessError("the agent's metrics have no dinle_subscriptions")
        return int(found[1])

    def attached(self, observer, v1) -> None:
        """Waits until what all who are listed need is attached: then everything that happens is heard."""
        # Whoever is told a plan knows that the kernel reports what was asked for before.
        call = observer.Subscribe(v1.SubscribeRequest(kinds=[v1.KIND_EXIT]), timeout=READY_SECONDS)
        number = next(call).plan.stream_id
        assert number
        call.cancel()

        def gone() -> bool:
            return all(one.stream_id != number for one in observer.GetStatus(v1.GetStatusRequest()).subscriptions)

        wait_until(gone, READY_SECONDS, "the stream that asked is gone")

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise ChildProcessError(f"the agent ended with {self.process.returncode}")
        with suppress(OSError):
            return self.get("/readyz")[0] == 200
        return False
