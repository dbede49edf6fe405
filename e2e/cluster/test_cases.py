"""The classic cases, played by pods and answered by the command line from outside, through `kubectl port-forward`.

DINLE names the binary; the newest of target/*/debug/dinle by default.
"""

import json
import subprocess
import sys

import pytest
from node import binary

from conftest import IMAGE, PATIENCE_SECONDS, ROOT, empty_namespace, pod_of

# Each plays its part over and over: whoever begins to listen hears the next time.
LOGROTATE = """
mkdir -p /var/log
cat > /tmp/logrotate <<'END'
#!/bin/sh
rm /var/log/myapp.log.1
END
chmod +x /tmp/logrotate
while :; do echo lines > /var/log/myapp.log.1; /tmp/logrotate; sleep 0.5; done
"""
# The server ends without reading what it was sent.
RESETTER = """
while :; do
  nc -l -p 7777 -e /bin/true &
  sleep 0.3; { echo hello; sleep 0.2; echo again; } | nc 127.0.0.1 7777; wait
done
"""
FSYNCER = "while :; do dd if=/dev/zero of=/data/file bs=4k count=4 conv=fsync; sleep 0.5; done"


def pod(namespace: str, name: str, node: str, script: str) -> dict:
    container = {"command": ["/bin/sh", "-c", script], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    return pod_of(container, namespace, name, node, volumes=[{"name": "data", "emptyDir": {}}])


@pytest.fixture(scope="module")
def namespace(kubectl):
    # One of its own: what these pods do is nobody else's.
    with empty_namespace(kubectl, "dinle-e2e-cases") as name:
        yield name


@pytest.fixture(scope="module")
def cases(kubectl, namespace, addresses):
    """The three pods on the first node, and the address of its agent."""
    node = sorted(addresses)[0]
    scripts = {"rotating": LOGROTATE, "resetting": RESETTER, "syncing": FSYNCER}
    kubectl.create(*(pod(namespace, name, node, script) for name, script in scripts.items()))
    try:
        kubectl(
            "-n", namespace, "wait", "--for=condition=Ready", f"--timeout={PATIENCE_SECONDS}s",
            *(f"pod/{name}" for name in scripts),
        )  # fmt: skip
        yield node, addresses[node]
    finally:
        kubectl.delete_pods(namespace, *scripts)


def ask(address: str, namespace: str, *words: str) -> list[dict]:
    """Events that `dinle` prints."""
    command = [binary(), *words, "-n", namespace, "-o", "json", "--address", address]
    done = subprocess.run(
        [*command, "--duration", f"{PATIENCE_SECONDS}s"], capture_output=True, text=True, timeout=PATIENCE_SECONDS * 2
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_who_deleted_my_file(cases, namespace):
    node, address = cases
    path = "/var/log/myapp.log.1"
    [event] = ask(address, namespace, "filesnoop", "--deleted", "--path", path, "--count", "1")
    workload = event["workload"]
    assert (workload["node"], workload["pod"], workload["container"]) == (node, "rotating", "main")
    deleted, process = event["fileDelete"], event["process"]
    # open_truncate where the pod writes the file anew before it is gone.
    assert (deleted["path"], deleted["method"]) == (path, "DELETE_METHOD_UNLINK")
    assert "logrotate" in (process["comm"], process["parentComm"])


def test_why_do_my_connections_drop(cases, namespace):
    node, address = cases
    [event] = ask(address, namespace, "tcpreset", "--count", "1")
    assert (event["workload"]["node"], event["workload"]["pod"]) == (node, "resetting")
    assert 7777 in (event["tcpReset"]["local"]["port"], event["tcpReset"]["remote"]["port"])
    [event] = ask(address, namespace, "tcplife", "--count", "1")
    assert event["workload"]["pod"] == "resetting"


def test_is_it_the_disk(cases, namespace):
    node, address = cases
    [event] = ask(address, namespace, "biosnoop", "--comm", "dd", "--count", "1")
    assert (event["workload"]["node"], event["workload"]["pod"]) == (node, "syncing")
    assert event["blockIo"]["disk"] and event["process"]["comm"] == "dd"


def test_what_the_documents_show_is_what_comes(kubectl, agents):
    done = subprocess.run(
        [sys.executable, ROOT / "e2e/cases", "--check", "--image", IMAGE],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=10 * PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
