"""What the book's pages on sensors show is printed now, too, but for times, numbers and names of the machine.

DINLE_RENEW=1 records it anew.
"""

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from contextlib import suppress

import grpc
import pytest

import node
from conftest import NODE, PATIENCE_SECONDS, PODS, ROOT
from test_top import server
from traffic import DATAGRAMS

sys.path.insert(0, str(ROOT / "e2e/docs"))
import reference  # noqa: E402

BLOCK = re.compile(r"^```console\n\$ (dinle .+)\n((?:.*\n)*?)```$", re.MULTILINE)
PAGES = [ROOT / "docs/quick-start.md", *sorted((ROOT / "docs/sensors").glob("*.md"))]
BLOCKS = [(page, found[1]) for page in PAGES for found in BLOCK.finditer(page.read_text())]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return node.own_pods(PODS, tmp_path_factory.mktemp("pods") / "pods.json")


@pytest.fixture(scope="module")
def pods(file):
    """Pods by the part of their names before the first dash."""
    with node.Cgroups("dinle-book") as cgroups:
        yield {name.split("-")[0]: pod for name, pod in cgroups.pods(file).items()}


@pytest.fixture(scope="module")
def agent(file, pods):
    with node.Agent(file, NODE) as agent:
        yield agent


def programs(shop):
    shop.run("/bin/sleep", "0.1")
    shop.run("/bin/true")


def failures(shop):
    for code in ("exit 3", "kill -9 $$"):
        with suppress(ChildProcessError):
            shop.run("/bin/sh", "-c", code)


def opens(shop):
    for _ in range(2):
        shop.run("/bin/grep", "-q", ".", "/etc/hostname")


def deletions(shop):
    shop.run("/bin/sh", "-c", "echo x >/tmp/dinle-book; : >/tmp/dinle-book; rm /tmp/dinle-book")


def session(shop):
    with server() as port:
        shop.run("/bin/bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}; echo hello >&3; exec 3>&-; sleep 0.1")


def refused(shop):
    with suppress(ChildProcessError):
        shop.run("/bin/bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{node.free_port()} 2>/dev/null")


def reads(shop):
    blocks = ROOT / "target/book-blocks"
    blocks.write_bytes(bytes(2 * 4096))
    subprocess.run(["sync", blocks], check=True)
    # The program is in memory from then on, and is not read by the pod.
    subprocess.run(["dd", "if=/dev/null", "of=/dev/null", "status=none"], check=True)
    try:
        shop.run("dd", f"if={blocks}", "of=/dev/null", "bs=4096", "count=2", "iflag=direct", "status=none")
    finally:
        blocks.unlink()


def datagrams(shop):
    shop.run("unshare", "--net", "/usr/bin/python3", "-c", DATAGRAMS, "5")


# By what the command begins with: who does it.
WORKLOADS = {
    "dinle execsnoop": programs,
    "dinle watch -n shop --kinds exit": failures,
    "dinle opensnoop": opens,
    "dinle filesnoop": deletions,
    "dinle tcplife -n shop --count": session,
    "dinle tcplife -n shop --failed": refused,
    "dinle biosnoop": reads,
    "dinle pktdrop": datagrams,
}


def alike(text: str) -> Counter:
    """Its lines without what is another each time."""
    text = re.sub(r"\b(?:vd|sd|xvd|nvme|dm-|loop)\w+", "DISK", text)
    text = re.sub(r"[0-9a-f]{12}\b|-?[\d.,:]*\d[\d.,:]*", "N", text)
    # A column for a number may hold none, and one that is wider pushes others.
    return Counter(re.sub(r"[ \t]+", " ", line).strip() for line in text.splitlines())


def printed(agent, pods, v1, command: str) -> str:
    """What the command prints of its workload."""
    [workload] = [work for start, work in WORKLOADS.items() if command.startswith(start)]
    before = agent.streams()
    words = [node.binary(), *shlex.split(command)[1:], "--address", agent.grpc, "--duration", "60s"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        node.wait_until(lambda: agent.streams() > before, PATIENCE_SECONDS, "the stream begins")
        try:
            with grpc.insecure_channel(agent.grpc) as channel:
                agent.attached(v1.ObserverStub(channel), v1)
            workload(pods["checkout"])
            out, _ = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, out
    return "".join(f"{line.rstrip()}\n" for line in out.splitlines())


def test_each_page_shows_something():
    assert {page for page, _ in BLOCKS} == set(PAGES)


@pytest.mark.parametrize("page, command", BLOCKS, ids=[f"{page.stem}: {command}" for page, command in BLOCKS])
def test_the_book_shows_what_is_printed(agent, pods, v1, page, command):
    now = printed(agent, pods, v1, command)
    text = page.read_text()
    [shown] = [found[2] for found in BLOCK.finditer(text) if found[1] == command]
    if os.environ.get("DINLE_RENEW"):
        page.write_text(text.replace(f"```console\n$ {command}\n{shown}```", f"```console\n$ {command}\n{now}```"))
        return
    assert alike(shown) == alike(now), f"{page.name} shows\n{shown}\nand this is printed now\n{now}"


def test_the_agent_serves_the_metrics_of_the_book(agent):
    text = agent.get("/metrics")[1]
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\w+) (.*?)\.?$", text, re.MULTILINE))
    served = {name + ("_total" if kind == "counter" else ""): (kind, helps[name]) for name, kind in kinds.items()}
    told = {name: (kind, help) for name, kind, help, _, where in reference.families() if not where}
    assert served == told
    for name, _, _, labels, where in reference.families():
        samples = re.findall(rf"^{name}(?:{{(.*)}})? ", text, re.MULTILINE)
        # A program that nobody needs costs nothing.
        assert where or samples or name == "dinle_program_cpu_ratio", name
        for sample in samples:
            assert re.findall(r'(\w+)="', sample) == labels, name
