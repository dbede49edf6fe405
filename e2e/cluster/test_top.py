"""`dinle top --kube` as somebody at a terminal sees it: several nodes in 24 lines of 80 columns."""

import re

import pytest
from node import binary
from terminal import Terminal

from conftest import attached, empty_namespace, listening, sleeper, start

# Short, so that the names of its pods are whole on a narrow screen.
NAMESPACE = "dinle-top"
PORT = 7777
TABS = ["process", "files", "tcp", "disk", "drops"]

# Executes, makes and deletes files, and sends a thousand bytes, which come back: so many times each.
WORK = f"""
work() {{
  i=0; while [ $i -lt $1 ]; do /bin/true; i=$((i+1)); done
  i=0; while [ $i -lt $2 ]; do : >/gone; rm /gone; i=$((i+1)); done
  i=0; while [ $i -lt $3 ]; do
    nc -l -p {PORT} -e /bin/cat &
    until netstat -ltn | grep -q ":{PORT} "; do sleep 0.1; done
    head -c 1000 /dev/zero | nc 127.0.0.1 {PORT} >/dev/null
    wait; i=$((i+1))
  done
}}
"""


@pytest.fixture(scope="module")
def pods(kubectl, agents):
    """A pod on each of two nodes, by its name."""
    first, second = sorted(agents)[:2]
    with empty_namespace(kubectl, NAMESPACE):
        start(kubectl, sleeper(NAMESPACE, "one", first), sleeper(NAMESPACE, "two", second))
        yield {"one": first, "two": second}
        kubectl.delete_pods(NAMESPACE, "one", "two")


def row(pod: str, *cells: str) -> str:
    """Of a table that has a column for the nodes, unless there is no room for it."""
    return rf"^(?:\S+ )?{NAMESPACE}/{pod} " + " ".join(cells) + "(?: |$)"


def whose(lines: list[str]) -> set[str]:
    return {found[1] for line in lines if (found := re.search(rf"^(?:\S+ )?{NAMESPACE}/(\S+) ", line))}


def check_fits(terminal: Terminal) -> None:
    lines = terminal.lines()
    assert len(lines) == 24 and max(map(len, lines)) <= 80
    tabs = "  ".join(f"{number} {name}" for number, name in enumerate(TABS, 1))
    assert re.fullmatch(rf"dinle top  {tabs} +\d\d:\d\d:\d\d  \d+\.\d s", lines[0]), lines
    assert lines[21].startswith("books: matched ") and lines[23].startswith("Tab tabs  s/S sort"), lines
    assert lines[23].endswith("q quit"), lines


def test_all_nodes_are_on_one_screen(kubectl, pods, plugin):
    def work(pod: str, *times: int) -> None:
        kubectl("-n", NAMESPACE, "exec", pod, "--", "/bin/sh", "-c", f"{WORK} work {' '.join(map(str, times))}")

    # The programs are in memory from then on.
    for pod in pods:
        work(pod, 1, 1, 1)
    shell = ["sh", "-c", 'echo "typed before"; exec "$@"', "sh"]
    with Terminal(*shell, binary(), "top", "--kube", "-n", NAMESPACE) as terminal:
        terminal.shows(r"\brows?, 2 nodes$")
        terminal.until(lambda _: listening(plugin, NAMESPACE, set(pods.values())), "streams from both nodes")
        attached(plugin, NAMESPACE)
        terminal.press("t")
        terminal.shows(r"rows?, since \d\d:\d\d:\d\d, 2 nodes$")
        work("one", 23, 5, 3)
        work("two", 11, 7, 2)

        terminal.shows(row("one", "true", "23", "23", "0"))
        terminal.shows(row("two", "true", "11", "11", "0"))
        for pod, node in pods.items():
            terminal.shows(rf"^{node} {NAMESPACE}/{pod} ")
        check_fits(terminal)
        terminal.press("Tab")
        terminal.shows(row("one", "/gone", "5", "5", "0", "5"))
        terminal.shows(row("two", "/gone", "7", "7", "0", "7"))
        check_fits(terminal)
        terminal.press("3")
        # To a port, and at that port.
        terminal.shows(row("one", "-", rf"\S*:{PORT}", "5.9K", "2.9K", "2.9K", "3"))
        terminal.shows(row("one", str(PORT), r"\S+", "5.9K", "2.9K", "2.9K", "3"))
        terminal.shows(row("two", str(PORT), r"\S+", "3.9K", "2.0K", "2.0K", "2"))
        check_fits(terminal)
        for key, column in [("4", "DISK"), ("5", "REASON")]:
            terminal.press(key)
            terminal.shows(rf"^(?:NODE )?POD .*\b{column}\b")
            check_fits(terminal)

        # Of a row of this pod: then only it is there, in each tab.
        terminal.press("1", "/", f"{NAMESPACE}/two", "Enter")
        terminal.until(lambda lines: whose(lines) == {"two"}, "only the rows with that text")
        terminal.press("Enter")
        # The text has done what it was for.
        terminal.shows(rf"^\d+ of \d+ rows, pod {NAMESPACE}/two, since \S+, 2 nodes$")
        terminal.shows("^main true 11 11 0 ")
        assert not any(re.match("main true 23 ", line) for line in terminal.squeezed())
        terminal.press("2")
        terminal.shows("^main /gone 7 7 0 7")
        terminal.until(lambda lines: sum("/gone" in line for line in lines) == 1, "of this pod alone")
        assert not whose(terminal.squeezed()), "its name is in the second line, and no column is spent on it"
        terminal.press("Esc")
        terminal.until(lambda lines: whose(lines) == {"one", "two"}, "both pods")

        assert not terminal.restored()
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.restored()
        # Lines are longer than the screen is wide.
        for node in pods.values():
            books = rf"{node}: books: exec matched [\d,]+ = delivered [\d,]+ \+ lost 0"
            terminal.until(lambda _: re.search(books, "".join(terminal.lines())), f"the books of {node}")
        lines = terminal.lines()
        assert lines[0] == "typed before" and not any("dinle top" in line for line in lines), lines
