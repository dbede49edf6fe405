"""`dinle top` as somebody at a terminal sees it: 24 lines of 80 columns, and keys."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pytest
from proxy import Proxy
from terminal import Terminal
from traffic import DATAGRAMS, NOBODY

import node
from conftest import NODE, PATIENCE_SECONDS, PODS, ROOT

# Sends a thousand bytes to a port, and waits until the other side has closed.
SESSION = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as one:
    one.sendall(bytes(1000))
    one.shutdown(socket.SHUT_WR)
    one.recv(1)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return node.own_pods(PODS, tmp_path_factory.mktemp("pods") / "pods.json")


@pytest.fixture(scope="module")
def pods(file):
    """Pods by the part of their names before the first dash."""
    with node.Cgroups("dinle-top") as cgroups:
        yield {name.split("-")[0]: pod for name, pod in cgroups.pods(file).items()}


@pytest.fixture(scope="module")
def agent(file, pods):
    with node.Agent(file, NODE) as agent:
        yield agent


@pytest.fixture
def top(agent):
    """Starts `dinle top` in the namespace `shop`, and waits until it hears the agent."""

    @contextmanager
    def start(*flags: str, address: str = agent.grpc, columns: int = 80, lines: int = 24, **environment: str):
        # Something is on the screen before.
        shell = ["sh", "-c", 'echo "typed before"; exec "$@"', "sh"]
        command = [*shell, node.binary(), "top", *flags, "-n", "shop", "--address", address]
        with Terminal(*command, columns=columns, lines=lines, **environment) as terminal:
            terminal.shows(rf"\brows?, node {NODE}$")
            yield terminal

    return start


@contextmanager
def server():
    """A port of a process outside of pods; what is sent there is read to its end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        while client.recv(65536):
                            pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]


def balanced(lines: list[str]) -> bool:
    """All that matched was delivered, by the books."""
    found = [re.fullmatch(r"books: matched ([\d,]+) = delivered ([\d,]+) \+ lost 0", line) for line in lines]
    return any(books and books[1] == books[2] != "0" for books in found)


def row(*cells) -> str:
    return "^" + " ".join(cells) + r"(?: |$)"


# By its name, or of a palette of 256.
RED = {"red", "cd0000"}
CHECKOUT, WEB = r"shop/checkout\S*", "shop/web-0"


SCREEN = re.compile(r"^```text\n(dinle top .*\n(?:.*\n)*?)```$", re.MULTILINE)


def check_page(lines: list[str]):
    """The book shows such a screen; DINLE_RENEW=1 records it anew."""
    page = ROOT / "docs/top.md"
    text = page.read_text()
    shown = SCREEN.search(text)[1]
    if os.environ.get("DINLE_RENEW"):
        page.write_text(text.replace(shown, "".join(f"{line}\n" for line in lines)))
        return

    def frame(lines: list[str]) -> list[str]:
        names = next(line for line in lines if line.startswith("POD "))
        return [lines[0][:60].rstrip(), " ".join(names.split()), lines[-1]]

    assert frame(shown.splitlines()) == frame(lines)


def test_each_tab_counts_what_was_done(top, pods):
    shop = pods["checkout"]
    blocks = ROOT / "target/top-blocks"
    blocks.write_bytes(bytes(7 * 4096))
    subprocess.run(["sync", blocks], check=True)

    def work(port: int) -> None:
        shop.run("/bin/true", times=23)
        with suppress(ChildProcessError):
            shop.run("/bin/false")
        shop.run("/bin/grep", "-q", ".", "/etc/hostname", times=29)
        shop.run(sys.executable, "-c", SESSION, str(port), times=3)
        shop.run("dd", f"if={blocks}", "of=/dev/null", "bs=4096", "count=7", "iflag=direct", "status=none")
        shop.run("unshare", "--net", sys.executable, "-c", DATAGRAMS, "5")

    try:
        with server() as port:
            # The programs are in memory from then on, and are not read by the pod.
            work(port)
        with top() as terminal, server() as port:
            # All since the beginning, and not by the second.
            terminal.press("t")
            terminal.shows(r"rows?, since \d\d:\d\d:\d\d")
            work(port)

            terminal.shows(row(CHECKOUT, "true", "23", "23", "0"))
            terminal.shows(row(CHECKOUT, "false", "1", "1", "1"))
            terminal.shows(r"processes that ended, by how lo")
            terminal.until(balanced, "all of it in the books")
            check_page(terminal.lines())
            terminal.press("Tab", "/", "/hostname", "Enter")
            terminal.shows(row(r"\S+", r"\S+/hostname", "29", "0", "0", "0"))
            terminal.press("Esc")
            terminal.shows(r"^\d+ rows, since")
            terminal.press("3")
            # Of the peer there is room for its end.
            terminal.shows(row(CHECKOUT, "-", rf"\S*:{port}", "2.9K", "2.9K", "0", "3"))
            terminal.press("4")
            terminal.shows(row(CHECKOUT, r"\w+", "read", "28.0K", "7"))
            terminal.shows(r"\b7 requests by time in the device")
            terminal.press("5")
            terminal.shows(row(CHECKOUT, "NO_SOCKET", "UDP", str(NOBODY), "5"))
            terminal.until(balanced, "all of it in the books")
            lines = terminal.lines()
            assert lines[0].startswith("dinle top  1 process  2 files  3 tcp  4 disk  5 drops"), lines
            assert lines[23].startswith("Tab tabs  s/S sort"), lines
    finally:
        blocks.unlink()


def test_rows_are_sorted_filtered_and_zoomed_into(top, pods):
    with top("process") as terminal:
        assert terminal.lines()[0].startswith("dinle top  1 process   "), "only what was asked for has a tab"
        terminal.press("t")
        pods["checkout"].run("/bin/true", times=3)
        pods["web"].run("/bin/true", times=11)
        terminal.shows(row(CHECKOUT, "true", "3", "3"))
        terminal.shows(row(WEB, "true", "11", "11"))

        def pods_in_order(lines):
            return [line.split(" ")[0] for line in lines if line.startswith("shop/")]

        by_count = pods_in_order(terminal.squeezed())
        assert by_count[0] == WEB, "the largest first"
        terminal.press("S")
        terminal.until(lambda lines: pods_in_order(lines) == by_count[::-1], "the smallest first")
        assert any("EXECS▲" in line for line in terminal.lines())
        terminal.press("S", "s")
        terminal.shows("EXITS▼")

        terminal.press("/", "WEB")
        terminal.shows("^only rows with: WEB▏")
        terminal.until(lambda lines: pods_in_order(lines) == [WEB], "only web")
        terminal.press("Enter")
        terminal.shows(r'^1 of 2 rows, with "WEB", since')
        terminal.press("Esc")
        terminal.until(lambda lines: len(pods_in_order(lines)) == 2, "both again")

        terminal.press("Down", "Enter")
        terminal.shows(r"^1 of 2 rows, pod shop/checkout")
        terminal.shows(row("app", "true", "3", "3"))
        terminal.press("Esc")
        terminal.shows(r"^2 rows, since")
        terminal.press("?")
        terminal.shows("only the pod of this row, in all tabs")
        terminal.press("?")
        terminal.until(lambda lines: not any("another tab" in line for line in lines), "the help is gone")


def test_what_is_shown_is_held_and_all_is_counted(top, pods):
    with top("process") as terminal:
        terminal.press("t")
        pods["web"].run("/bin/true", times=5)
        terminal.shows(row(WEB, "true", "5", "5"))
        terminal.press(" ")
        terminal.shows("PAUSED")
        pods["web"].run("/bin/true", times=6)
        # The books go on, 2 events for each of 11.
        terminal.shows(r"^books: matched 22 = delivered 22 \+ lost 0$")
        assert any(re.search(row(WEB, "true", "5", "5"), line) for line in terminal.squeezed())
        terminal.press(" ")
        terminal.shows(row(WEB, "true", "11", "11"))
        terminal.until(lambda lines: "PAUSED" not in lines[0], "it goes on")


def test_it_takes_any_size(top, pods):
    with top() as terminal:
        terminal.press("t")
        pods["web"].run("/bin/true", times=4)
        terminal.shows(row(WEB, "true", "4", "4"))
        # Lines of the tabs, of the books and of the keys, where there is room for them.
        for columns, lines, books, keys in [(40, 12, 9, 11), (120, 40, 37, 39), (20, 4, 3, None), (80, 24, 21, 23)]:
            terminal.resize(columns, lines)

            def fits(shown: list[str], books=books, keys=keys) -> bool:
                foot = keys is None or shown[keys].startswith("Tab tabs")
                return shown[0].startswith("dinle top") and shown[books].startswith("books:") and foot

            terminal.until(fits, f"{columns} × {lines}")
            assert len(terminal.lines()) == lines
        terminal.shows(row(WEB, "true", "4", "4"))
        assert terminal.lines()[23].startswith("Tab tabs")


def listening(agent) -> set[str]:
    """The numbers of the streams that are open."""
    command = [node.binary(), "subscriptions", "-o", "json", "--address", agent.grpc]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    return {json.loads(line)["streamId"] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("how", ["q", "Ctrl-C", signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_whoever_quits_gets_the_terminal_back_and_the_books(top, agent, pods, how):
    # Of one that was killed, in another test, the stream is kept for a while.
    before = listening(agent)
    with top("process") as terminal:
        assert not terminal.restored(), "keys are read as they are pressed"
        [own] = listening(agent) - before
        assert b"\x1b[?1049h" in terminal.raw and b"\x1b[?25l" in terminal.raw
        pods["web"].run("/bin/true", times=2)
        terminal.shows(r"^books: matched 4 = delivered 4 \+ lost 0$")
        terminal.process.send_signal(how) if isinstance(how, signal.Signals) else terminal.press(how)
        assert terminal.wait() == 0
        assert terminal.restored()
        books = "books: exec matched 2 = delivered 2 + lost 0; exit matched 2 = delivered 2 + lost 0"
        # They are longer than a line.
        terminal.until(lambda _: books in "".join(terminal.lines()), "the books")
        lines = terminal.lines()
        assert lines[0] == "typed before" and not any("dinle top" in line for line in lines), lines
        assert b"\x1b[?25h" in terminal.raw.rsplit(b"\x1b[?25l", 1)[1], "the cursor is seen again"
    node.wait_until(lambda: own not in listening(agent), PATIENCE_SECONDS, "the stream is gone")


def test_a_connection_that_breaks_is_told_and_comes_back(agent, top, pods):
    with Proxy(agent.grpc) as proxy, top("process", address=proxy.address) as terminal:
        terminal.press("t")
        pods["web"].run("/bin/true", times=3)
        terminal.shows(row(WEB, "true", "3", "3"))
        proxy.sever(refuse=True)
        terminal.shows(rf"node {NODE}: NOT HEARD$")
        terminal.shows(rf"^{NODE}: not heard: .*")
        assert terminal.color_of(f"{NODE}: not heard") in RED
        # Keys do what they do.
        terminal.press("?")
        terminal.shows("another tab")
        terminal.press("?")
        pods["web"].run("/bin/true", times=4)
        proxy.sever(refuse=False)
        terminal.shows(row(WEB, "true", "7", "7"))
        terminal.shows(rf"node {NODE}$")
        terminal.shows(r"^connected again after \d+\.\d s")
        proxy.sever(refuse=True)
        terminal.shows("NOT HEARD")
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.restored()


def test_losses_are_red_and_counted(top, pods):
    for environment, colors in [({}, RED), ({"NO_COLOR": "1"}, {"default"})]:
        with top("process", "--rate-limit", "3", **environment) as terminal:
            pods["web"].run("/bin/true", times=40)
            lost = terminal.shows(r"^books: matched 80 = delivered (\d+) \+ lost (\d+) \(RATE_LIMIT (\d+)\)$")
            assert int(lost[1]) + int(lost[2]) == 80 and lost[2] == lost[3] != "0"
            assert terminal.color_of("books:") in colors
            if environment:
                # 30 to 38, 40 to 48 and 90 to 97 are colours.
                assert not re.search(rb"\x1b\[(?:[\d;]*;)?(?:[34][0-8]|9[0-7])(?:;[\d;]*)?m", terminal.raw)


def test_an_agent_that_is_not_there_is_told_on_a_terminal_that_is_given_back():
    address = f"127.0.0.1:{node.free_port()}"
    with Terminal(node.binary(), "top", "--address", address) as terminal:
        assert terminal.wait() == 1
        assert terminal.restored()
        terminal.until(lambda lines: "cannot connect" in " ".join(lines), "why")


# As a plugin of the kubeconfig asks for a password, and knows it from then on.
LOGIN = """#!/bin/sh
if ! test -e "$0.done"; then
    echo "Password: " > /dev/tty
    read -r password
    test "$password" = secret || exit 1
    touch "$0.done"
fi
echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"t"}}'
"""
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: me}}}}]
clusters: [{{name: here, cluster: {{server: "http://{server}"}}}}]
users:
- name: me
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: {command}
      interactiveMode: IfAvailable
"""


def test_whoever_must_log_in_is_asked_before_the_view_takes_the_terminal(tmp_path):
    login, config = tmp_path / "login", tmp_path / "config"
    login.write_text(LOGIN)
    login.chmod(0o755)
    config.write_text(KUBECONFIG.format(server=f"127.0.0.1:{node.free_port()}", command=login))
    with Terminal(node.binary(), "top", "--kubeconfig", config) as terminal:
        terminal.shows("^Password:")
        assert terminal.restored() and b"\x1b[?1049h" not in terminal.raw
        terminal.press("secret", "Enter")
        terminal.until(lambda _: b"\x1b[?1049h" in terminal.raw, "the view")
        terminal.press("q")
        terminal.wait()
        assert terminal.restored()
    (tmp_path / "login.done").unlink()
    with Terminal(node.binary(), "top", "--kubeconfig", config) as terminal:
        terminal.shows("^Password:")
        terminal.press("Ctrl-C")
        assert terminal.wait() == -signal.SIGINT


def test_without_a_terminal_of_its_own_it_says_what_to_do(agent):
    master, slave = os.openpty()
    try:
        # Output goes to a terminal, which is nobody's.
        command = [node.binary(), "top", "--address", agent.grpc]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.PIPE, text=True, timeout=60, start_new_session=True)
    finally:
        os.close(slave)
        os.close(master)
    assert done.returncode == 2
    assert "the view needs a terminal" in done.stderr and "name a ranking and pipe it" in done.stderr


def test_whoever_reads_lines_gets_tables(agent, pods):
    def piped(*flags: str) -> subprocess.CompletedProcess:
        command = [node.binary(), "top", *flags, "-n", "shop", "--address", agent.grpc]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    refused = piped()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "only a terminal has room for all: name one, such as `dinle top files`" in refused.stderr
    table = piped("drops", "--duration", "2s")
    assert table.returncode == 0, table.stderr
    names = "NODE NAMESPACE POD CONTAINER REASON PROTO PORT PACKETS/s BYTES/s"
    assert " ".join(table.stdout.splitlines()[0].split()) == names
    assert "\x1b" not in table.stdout
    wrong = piped("process", "--sort", "size")
    assert wrong.returncode == 2 and "--sort size: there is no such column" in wrong.stderr
