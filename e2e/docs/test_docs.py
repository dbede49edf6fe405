"""What the documents say can be run, and agrees.

DINLE names the binary; the newest of target/*/debug/dinle by default.
"""

import re
import shlex
import subprocess

import picture
import pytest
from node import ROOT, binary, free_port

DOCUMENTS = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference")]
# In a block or in a line; what has an ellipsis is not all of it.
COMMAND = re.compile(r"(?:^(?:\$ |sudo )*|`(?:sudo )?)(?:kubectl )?dinle ([a-z][^`\n…]*)(?:$|`)", re.MULTILINE)
# These ask no agent.
ALONE = {"agent", "completion", "config", "doctor", "help", "man", "version"}

# The first line of a screen is none.
SCREEN = "top  1 "

COMMANDS = sorted({command.strip() for document in DOCUMENTS for command in COMMAND.findall(document.read_text()) if not command.startswith(SCREEN)})


def test_there_are_commands():
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_can_be_given(command):
    words = shlex.split(command, comments=True)
    # Nobody listens there: what is wrong with the command is told before that is found out.
    alone, clusters = words[0] in ALONE, "--service-account" in words
    address = [] if "--address" in words else ["--address", f"127.0.0.1:{free_port()}"]
    rest = ["--help"] if alone else ["--kubeconfig", "/nowhere/kubeconfig"] if clusters else address
    done = subprocess.run([binary(), *words, *rest], capture_output=True, text=True, timeout=60)
    if words[0] in ALONE:
        assert done.returncode == 0, done.stderr
    elif clusters:
        assert (done.returncode, "/nowhere/kubeconfig" in done.stderr) == (1, True), done.stderr
    elif words[0] == "top" and not {"process", "files", "tcp", "disk", "drops"} & set(words):
        # All of them take a terminal.
        assert (done.returncode, "only a terminal" in done.stderr) == (2, True), done.stderr
    elif "--address" in words:
        # Its files are not here.
        assert done.returncode == 1, done.stderr
    else:
        assert (done.returncode, "cannot connect" in done.stderr) == (1, True), done.stderr


def test_the_picture_is_of_the_cases():
    assert picture.PICTURE.read_text() == picture.svg(picture.CASES.read_text()), "run `e2e/cases --draw`"


def test_each_case_has_its_manifest():
    told = re.findall(r"^kubectl apply -f (\S+)$", picture.CASES.read_text(), re.MULTILINE)
    assert sorted(told) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/cases").glob("*.yaml"))
