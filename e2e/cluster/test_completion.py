"""Lines that Tab completes from the cluster: in real shells, and through kubectl. It takes no agents."""

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from node import binary, wait_until

from conftest import PATIENCE_SECONDS, SOON_SECONDS, empty_namespace

NAMESPACE = "dinle-e2e-completion"
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")
NAMES = ("dinle", "kubectl-dinle", "kubectl_complete-dinle")
# How each shell is started without anybody's settings, and told of a script.
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
PREPARE = {
    "bash": ["source <({program} completion bash)"],
    "zsh": ["autoload -U compinit; compinit -u -D", "source <({program} completion zsh)"],
    "fish": ["{program} completion fish | source"],
}


@pytest.fixture(scope="module")
def environment(kubectl, tmp_path_factory):
    """An environment with this program by all of its names."""
    directory = tmp_path_factory.mktemp("completion")
    for name in NAMES:
        (directory / name).symlink_to(binary())
    path = f"{directory}:{os.path.dirname(shutil.which(kubectl.program))}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(directory), "TERM": "dumb", "PS1": "$ "}


@pytest.fixture(scope="module")
def shop(kubectl):
    """A namespace with a pod of a deployment. It need not run."""
    labels = {"app": "checkout"}
    spec = {
        # No node has it.
        "nodeSelector": {"dinle-e2e": "nowhere"},
        "automountServiceAccountToken": False,
        "containers": [{"name": "main-container", "image": "localhost/none"}],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": NAMESPACE, "name": "checkout"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }
    with empty_namespace(kubectl, NAMESPACE):
        kubectl.create(deployment)
        names = ("-n", NAMESPACE, "get", "pods", "-o", "jsonpath={.items[*].metadata.name}")
        yield wait_until(lambda: kubectl(*names), PATIENCE_SECONDS, "a pod of the deployment")


@pytest.fixture
def completed(kubectl, environment):
    """What `kubectl dinle` is told of its last word, in which the cursor is."""

    def ask(*words: str) -> list[str]:
        command = [kubectl.program, "__complete", "dinle", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SOON_SECONDS)
        *values, directive = done.stdout.splitlines()
        assert directive in (":4", ":6"), done
        return [value.split("\t")[0] for value in values]

    return ask


def test_names_come_from_the_cluster(completed, shop):
    assert NAMESPACE in completed("watch", "-n", "")
    assert completed("watch", "-n", NAMESPACE[:-2]) == [NAMESPACE]
    assert completed("watch", f"--namespace={NAMESPACE[:-2]}") == [NAMESPACE]
    assert completed("watch", "-n", f"default,{NAMESPACE[:-2]}") == [f"default,{NAMESPACE}"]
    assert completed("tcplife", "-n", NAMESPACE, "") == [shop, "deploy/checkout"]
    assert completed("tcplife", "-n", NAMESPACE, "deployment/") == ["deployment/checkout"]
    assert completed("tcplife", "-n", NAMESPACE, "deploy/checkout", "pod/") == [f"pod/{shop}"]
    assert completed("top", "disk", "-n", NAMESPACE, "-p", "check") == [shop]
    assert completed("top", "disk", "-n", NAMESPACE, "--owner", "") == ["deploy/checkout"]
    assert completed("watch", "-n", NAMESPACE, "-c", "") == ["main-container"]
    assert shop in completed("watch", "-A", "")
    assert completed("watch", "--agent-namespace", NAMESPACE[:-2]) == [NAMESPACE]


def test_what_the_line_says_of_the_cluster_is_followed(completed, kubectl, shop, tmp_path):
    other = tmp_path / "other"
    other.write_text(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    there = ("config", "--kubeconfig", str(other))
    kubectl(*there, "set-context", "--current", "--namespace", NAMESPACE)
    kubectl(*there, "rename-context", kubectl(*there, "current-context").strip(), "elsewhere")
    assert completed("watch", "--kubeconfig", str(other), "--kube-context", "") == ["elsewhere"]
    assert completed("watch", "--kubeconfig", str(other), "check") == [shop], "its context's namespace is meant"
    assert completed("watch", "--kubeconfig", str(other), "--kube-context", "none", "-n", "") == []


def test_who_may_not_list_gets_nothing(completed, kubectl, shop, tmp_path):
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    config["users"][0]["user"]["as"] = "dinle-e2e-nobody"
    nobody = tmp_path / "nobody"
    nobody.write_text(yaml.safe_dump(config))
    assert completed("watch", "--kubeconfig", str(nobody), "-n", NAMESPACE[:-2]) == []
    assert completed("watch", "--kubeconfig", str(nobody), "-n", NAMESPACE, "") == []


class Terminal:
    """A shell that believes that somebody types."""

    def __init__(self, shell: str, environment: dict):
        self.terminal, theirs = pty.openpty()
        # A program makes it the session's terminal: forking a process with gRPC's threads can lose the child.
        command = ["setsid", "--ctty", *SHELLS[shell]]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def wait_for(self, text: str) -> None:
        """Reads until this is on the screen, behind all that was waited for before."""
        deadline = time.monotonic() + SOON_SECONDS
        while text not in self.seen:
            ready, _, _ = select.select([self.terminal], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} did not come within {SOON_SECONDS} s after {self.seen!r}"
            self.seen += os.read(self.terminal, 65536).decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]

    def run(self, line: str) -> None:
        # What is typed is shown, too, but not as what comes of it.
        self.type(f"{line}; echo do''ne\n")
        self.wait_for("done")

    def close(self) -> None:
        os.close(self.terminal)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def terminal(request, environment):
    shell = request.param
    if not shutil.which(SHELLS[shell][0]):
        pytest.skip(f"{shell} is not installed")
    terminal = Terminal(shell, environment)
    yield shell, terminal
    terminal.close()


@pytest.mark.parametrize("terminal", SHELLS, indirect=True)
@pytest.mark.parametrize(("program", "flag"), [("dinle", "--kube "), ("kubectl-dinle", "")])
def test_a_shell_completes_from_the_cluster(terminal, shop, program, flag):
    shell, terminal = terminal
    for line in PREPARE[shell]:
        terminal.run(line.format(program=program))
    terminal.type(f"{program} watch {flag}-n {NAMESPACE[:-4]}\t")
    terminal.wait_for(NAMESPACE[-4:])
    terminal.type(" deploy/che\t")
    terminal.wait_for("deploy/checkout")


@pytest.mark.parametrize("terminal", ["bash"], indirect=True)
def test_kubectl_completes_its_plugin(terminal, kubectl, shop):
    _, terminal = terminal
    if not BASH_COMPLETION.exists():
        pytest.skip("kubectl's script for bash needs the package bash-completion")
    terminal.run(f"source {BASH_COMPLETION}")
    terminal.run(f"source <({kubectl.program} completion bash)")
    terminal.type(f"kubectl dinle watch -n {NAMESPACE[:-4]}\t")
    terminal.wait_for(NAMESPACE[-4:])
    terminal.type(f" --namespace={NAMESPACE[:-4]}\t")
    terminal.wait_for(NAMESPACE)
    terminal.type(" deploy/che\t")
    terminal.wait_for("deploy/checkout")
