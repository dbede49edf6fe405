"""An agent, the pods of demo-pods.json, and clients made from the contract alone."""

import subprocess
import sys
from pathlib import Path

import grpc
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "e2e"))

import node  # noqa: E402
import stubs  # noqa: E402

PODS = ROOT / "e2e/demo-pods.json"
NODE = "demo-node"
# Any answer that is due at once; a busy machine may take a while.
PATIENCE_SECONDS = 20


@pytest.fixture(scope="session")
def pods():
    """Pods by the part of their names before the first dash: checkout, web and logrotate."""
    with node.Cgroups("dinle-clients") as cgroups:
        yield {name.split("-")[0]: pod for name, pod in cgroups.pods(PODS).items()}


@pytest.fixture(scope="session")
def agent(pods):
    with node.Agent(PODS, NODE) as agent:
        yield agent


@pytest.fixture(scope="session")
def channel(agent):
    with grpc.insecure_channel(agent.grpc) as channel:
        yield channel


@pytest.fixture(scope="session")
def v1(tmp_path_factory):
    return stubs.generate(tmp_path_factory.mktemp("stubs"))


@pytest.fixture(scope="session")
def observer(channel, v1):
    return v1.ObserverStub(channel)


@pytest.fixture
def streams(observer, v1):
    """A function that waits until exactly so many streams are open."""

    def wait(count: int) -> None:
        node.wait_until(
            lambda: len(observer.GetStatus(v1.GetStatusRequest()).subscriptions) == count,
            PATIENCE_SECONDS,
            f"{count} open streams",
        )

    return wait


@pytest.fixture(scope="session")
def curl(agent):
    """`buf curl` of one method; the rest are its flags. Gives the running process, its output as text."""

    def start(method: str, *flags: str) -> subprocess.Popen:
        return subprocess.Popen(
            [
                Path(sys.executable).with_name("buf"),
                "curl",
                *("--protocol", "grpc", "--http2-prior-knowledge"),
                *flags,
                f"http://{agent.grpc}{method}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
