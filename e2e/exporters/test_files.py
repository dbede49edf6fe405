"""JSON lines in files and on standard output, and files that change."""

import gzip
import json
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

import node
import pytest
import yaml
from conftest import NODE, PATIENCE_SECONDS
from google.protobuf import json_format

AUDIT = {"name": "audit", "kinds": ["exec"], "selector": {"pods": ["web-*"]}}


def events(v1, text: str) -> list:
    """Each line as the contract has it: what is not in it is refused."""
    return [json_format.Parse(line, v1.Event()) for line in text.splitlines()]


def old(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-*Z{path.suffix}*"))


def test_a_file_has_what_the_pods_do(exporting, pods, v1, tmp_path):
    path = tmp_path / "logs/audit.jsonl"
    agent = exporting([{**AUDIT, "filter": {"binary": [{"exact": "/bin/true"}]}, "file": {"path": str(path)}}])
    [(user, subscription)] = agent.attached(v1, 1).items()
    # It is listed like every other stream.
    assert user == "dinle:exporter:audit" and subscription.caller.peer == "exporter"
    assert list(subscription.request.selector.pods) == ["web-*"]
    pods["web"].run("/bin/true", "x", times=23)
    pods["checkout"].run("/bin/true", times=3)
    agent.wait(lambda: agent.exporter("events_total", "audit") == 23, "23 events are exported")
    found = events(v1, path.read_text())
    assert [list(event.exec.args) for event in found] == [["/bin/true", "x"]] * 23
    assert {(e.workload.namespace, e.workload.pod, e.workload.node) for e in found} == {("shop", "web-0", NODE)}
    assert agent.exporter("bytes_total", "audit") == path.stat().st_size
    assert agent.exporter("up", "audit") == 1 and agent.exporter("events_dropped_total", "audit") == 0
    # It is in the log as every other stream is.
    assert 'user="dinle:exporter:audit"' in agent.agent.log.read_text()


def test_full_files_are_compressed_and_the_oldest_go(exporting, pods, v1, tmp_path):
    path = tmp_path / "audit.jsonl"
    sink = {"path": str(path), "max_bytes": 65536, "keep": 2}
    agent = exporting([{**AUDIT, "file": sink}])
    agent.attached(v1, 1)
    times = 600
    for _ in range(4):
        before = agent.exporter("events_total", "audit")
        pods["web"].run("/bin/sh", "-c", f"for i in $(seq {times}); do /bin/true; done")
        agent.wait(lambda: agent.exporter("events_total", "audit") == before + times + 2, "all events are exported")
    agent.wait(lambda: [p.suffix for p in old(path)] == [".gz"] * 2, "two old files are left, compressed")
    agent.wait(lambda: not list(tmp_path.glob("*.part")), "nothing is half done")
    for file in old(path):
        text = gzip.decompress(file.read_bytes()).decode()
        assert 0 < len(text) <= 65536 and events(v1, text)
    assert agent.exporter("up", "audit") == 1


def test_standard_output_has_lines_alone(pods, pods_file, v1, tmp_path):
    file = tmp_path / "exporters.yaml"
    file.write_text(json.dumps({"exporters": [{**AUDIT, "stdout": {}}]}))
    agent = node.Agent(pods_file, NODE, "--exporters", str(file))
    out = tmp_path / "out"
    agent.command = ["sh", "-c", f'exec "$@" >{out}', "sh", *map(str, agent.command)]
    with agent:
        node.wait_until(lambda: agent.streams() == 1, PATIENCE_SECONDS, "the exporter listens")

        def told():
            pods["web"].run("/bin/true")
            return out.read_text()

        node.wait_until(told, PATIENCE_SECONDS, "something is printed")
    # What came last was written before it ended.
    assert {event.exec.filename for event in events(v1, out.read_text())} >= {"/bin/true"}


@contextmanager
def small_disk(directory: Path, size: str):
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "dinle", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_full_disk_is_met_counted_and_told(exporting, pods, v1, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "128k"):
        path = disk / "audit.jsonl"
        agent = exporting([{**AUDIT, "queue_bytes": 65536, "file": {"path": str(path)}}])
        agent.attached(v1, 1)
        times, rounds = 1000, 0
        # What is on the disk and what fits into the queue is less than this.
        while agent.exporter("events_dropped_total", "audit", cause="no_space") == 0:
            pods["web"].run("/bin/sh", "-c", f"for i in $(seq {times}); do /bin/true; done")
            rounds += 1
            assert rounds < 20
        assert agent.exporter("up", "audit") == 0
        assert agent.exporter("failures_total", "audit", cause="no_space") >= 1
        assert "No space left on device" in agent.agent.log.read_text()
        assert "No space left on device" in agent.status("audit")["problem"]
        [row] = [line for line in agent.page() if line.startswith("audit ")]
        assert re.search(r" NO [\d,]+ [\d,]+ .*[1-9][\d,]* no_space\b", row), row
        # The agent is as well as before, and what the file has is whole.
        assert agent.agent.get("/healthz")[0] == 200
        written = len(events(v1, path.read_text()))
        assert written == agent.exporter("events_total", "audit")
        # Room comes back, and so do the events; what is missing is what was counted.
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        agent.wait(lambda: agent.exporter("up", "audit") == 1, "the file is written again")
        matched = rounds * (times + 2)

        def balance() -> bool:
            dropped, lost = (agent.exporter(f"events_{what}_total", "audit") for what in ("dropped", "lost"))
            return agent.exporter("events_total", "audit") + dropped + lost == matched

        agent.wait(balance, "every event is in the file or counted")
        assert len(events(v1, path.read_text())) == agent.exporter("events_total", "audit")
        assert "events are taken again" in agent.agent.log.read_text()
        agent.__exit__(None, None, None)
        agent.__exit__ = lambda *_: None


def test_what_changes_in_the_file_changes_what_runs(exporting, pods, v1, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    first = {**AUDIT, "name": "one", "file": {"path": str(one)}}
    second = {**AUDIT, "name": "two", "file": {"path": str(two)}}
    agent = exporting([first])
    before = agent.attached(v1, 1)
    # A file that is wrong changes nothing, and says so.
    agent.write([first, {**second, "kinds": ["exek"]}])
    agent.wait(lambda: agent.metrics()["exporters_file_current"] == 0, "the mistake is seen")
    assert agent.metrics()["exporters_reload_failures_total"] == 1
    assert "exporters[1].kinds[0]: there is no kind `exek`" in agent.agent.log.read_text()
    # One that is right is taken, and who did not change goes on.
    agent.write([first, second])
    after = agent.attached(v1, 2)
    assert after["dinle:exporter:one"].stream_id == before["dinle:exporter:one"].stream_id
    assert agent.metrics()["exporters_file_current"] == 1
    assert [exporter["name"] for exporter in agent.told()] == ["one", "two"]
    pods["web"].run("/bin/true", times=5)
    agent.wait(lambda: agent.exporter("events_total", "two") == 5, "the new one exports")
    agent.wait(lambda: agent.exporter("events_total", "one") == 5, "the old one exports")
    # Who changes begins anew and counts on.
    agent.write([{**first, "kinds": ["exit"]}])
    agent.wait(lambda: [*agent.streams(v1, 1)] == ["dinle:exporter:one"], "one is left")
    agent.wait(lambda: len(agent.attached(v1, 1)) == 1, "it listens")
    pods["web"].run("/bin/true")
    agent.wait(lambda: agent.exporter("events_total", "one") >= 6, "it goes on to count")
    assert events(v1, one.read_text())[-1].kind == v1.KIND_EXIT
    agent.write([])
    agent.streams(v1, 0)
    assert not [name for name in agent.metrics() if name.startswith("exporter_events_total{")]
    assert not agent.told() and "EXPORTER" not in "".join(agent.page())


def check(text: str, tmp_path: Path) -> subprocess.CompletedProcess:
    file = tmp_path / "exporters.yaml"
    file.write_text(text)
    return subprocess.run([node.binary(), "config", "check", file], capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def test_a_file_can_be_checked_beforehand(tmp_path):
    done = check("exporters:\n- {name: a, kinds: [exec], stdout: {}}\n", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "OK: a (stdout)\n", "")
    done = check("exporters:\n- {name: a, kinds: [exec], stdout: {}, file: {path: /a}}\n- {name: b, kinds: [exek]}\n", tmp_path)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 3)
    assert lines[0].startswith(f"{tmp_path}/exporters.yaml:2:3: exporters[0]: has stdout and file")
    assert lines[1].startswith(f"{tmp_path}/exporters.yaml:3:21: exporters[1].kinds[0]: there is no kind `exek`")
    # The agent does not begin with it either.
    command = [node.binary(), "agent", "--exporters", tmp_path / "exporters.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1 and "exporters[1].kinds[0]" in done.stderr
    done = subprocess.run([node.binary(), "config", "check", tmp_path / "none"], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1 and "cannot be read" in done.stderr


EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", (node.ROOT / "docs/exporters.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_each_example_is_right(text, tmp_path):
    done = check(text, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scenario", ["everything", "exporters"])
def test_what_the_chart_gives_agents_is_right(scenario, tmp_path):
    values = yaml.safe_load((node.ROOT / f"charts/dinle/scenarios/{scenario}.yaml").read_text())
    done = check(yaml.safe_dump({"exporters": values["exporters"]}), tmp_path)
    assert done.returncode == 0, done.stderr
