"""Series that a real Prometheus scrapes, and what PromQL then says of a workload that is known."""

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

import node
from conftest import OURS, PATIENCE_SECONDS, RECEIVERS
from traffic import DATAGRAMS, LOSSY, REFUSED, RESETS

ACCEPTS = {
    "text": "text/plain;version=0.0.4",
    "openmetrics": "application/openmetrics-text;version=1.0.0",
    "protobuf": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
}

# Serves so many connections: reads all of each, and answers.
SERVER = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
for _ in range(int(sys.argv[2])):
    with server.accept()[0] as peer:
        while peer.recv(65536):
            pass
        peer.sendall(b"y" * 500)
"""
CLIENT = """
import socket, sys, time
for _ in range(int(sys.argv[2])):
    for _ in range(500):
        try:
            peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
            break
        except ConnectionRefusedError:
            time.sleep(0.02)
    with peer:
        peer.sendall(b"x" * 1000)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass
"""


def scrape(agent, path: str, accept: str) -> bytes:
    request = urllib.request.Request(f"http://{agent.agent.http}{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return answer.read()


class Prometheus:
    """A real one, which scrapes each second."""

    def __init__(self, directory, agent, paths: list[str], *features: str):
        self.address = f"127.0.0.1:{node.free_port()}"
        jobs = [
            {
                "job_name": path.rpartition("/")[2],
                "scrape_interval": "1s",
                "metrics_path": path,
                "static_configs": [{"targets": [agent.agent.http]}],
            }
            for path in paths
        ]
        directory.mkdir()
        config = directory / "prometheus.yml"
        # JSON is YAML.
        config.write_text(json.dumps({"scrape_configs": jobs}))
        self.command = [
            RECEIVERS / "usr/bin/prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address={self.address}",
            f"--web.console.libraries={directory}",
            f"--web.console.templates={directory}",
            *features,
        ]
        self.log = directory / "log"

    def __enter__(self):
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)

    def query(self, promql: str):
        """The vector as a list of labels and values."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': promql})}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
                found = json.load(answer)["data"]["result"]
        except OSError:
            return []
        return [(one["metric"], float(one["value"][1]) if "value" in one else one["histogram"][1]) for one in found]

    def wait(self, promql: str, expected: float):
        seen = []

        def told() -> bool:
            seen[:] = self.query(promql)
            return [value for _, value in seen] == [expected]

        try:
            node.wait_until(told, PATIENCE_SECONDS, f"{promql} is {expected}")
        except TimeoutError as problem:
            raise AssertionError(f"{problem}; it is {seen}\n{self.log.read_text()[-2000:]}") from problem


def check(text: bytes) -> None:
    done = subprocess.run([RECEIVERS / "usr/bin/promtool", "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done


def work(pods, disk) -> None:
    pods["web"].run("/bin/true", times=23)
    pods["checkout"].run("/bin/true", times=3)
    port = node.free_port()
    server = pods["web"].start(sys.executable, "-c", SERVER, str(port), "5")
    pods["checkout"].run(sys.executable, "-c", CLIENT, str(port), "5")
    assert server.wait(PATIENCE_SECONDS) == 0
    pods["checkout"].run(sys.executable, "-c", REFUSED, str(node.free_port()), "7")
    pods["web"].run("/bin/dd", "if=/dev/zero", f"of={disk}", "bs=4096", "count=29", "oflag=direct", "status=none")


def test_prometheus_tells_what_pods_did(exporting, pods, v1, tmp_path, disk):
    agent = exporting(
        [
            {
                "name": "series",
                "kinds": ["exec", "tcp_session", "tcp_connect", "tcp_reset"],
                "selector": OURS,
                "interval": "1s",
                "prometheus": {"top": 50},
            },
            {
                "name": "disks",
                "kinds": ["block_latency"],
                "filter": {"disk": [{"exact": disk.name}]},
                "interval": "1s",
                "prometheus": {},
            },
        ]
    )
    agent.attached(v1, 2)
    paths = ["/metrics", "/metrics/series", "/metrics/disks"]
    classic = Prometheus(tmp_path / "classic", agent, paths)
    native = Prometheus(tmp_path / "native", agent, paths, "--enable-feature=native-histograms", "--enable-feature=exemplar-storage")
    with classic, native:
        began = time.monotonic()
        work(pods, disk)
        took = time.monotonic() - began
        for prometheus in [classic, native]:
            check_all(prometheus)
        # Classic and native histograms tell the same.
        classic.wait('sum(dinle_pod_io_device_seconds_count{pod="web-0",operation="write"})', 29)
        classic.wait('sum(dinle_pod_io_device_seconds_bucket{pod="web-0",le="+Inf"})', 29)
        native.wait('histogram_count(sum(dinle_pod_io_device_seconds{pod="web-0",operation="write"}))', 29)
        [(_, low)] = classic.query("histogram_quantile(0.5, sum by (le) (dinle_pod_io_device_seconds_bucket))")
        [(_, high)] = native.query("histogram_quantile(0.5, sum(dinle_pod_io_device_seconds))")
        assert low / 2 <= high <= 2 * low
        [(_, classic_sum)] = classic.query("sum(dinle_pod_io_device_seconds_sum)")
        native.wait("histogram_sum(sum(dinle_pod_io_device_seconds))", classic_sum)
        assert classic_sum > 0
        # One request followed the other, and each was queued or in the device.
        [(_, queued)] = classic.query('sum(dinle_pod_io_queued_seconds_total{pod="web-0",operation="write"})')
        assert 0 < queued < queued + classic_sum < took
        # An exemplar tells who it was.
        url = f"http://{native.address}/api/v1/query_exemplars?query=dinle_pod_execs_total&start=0&end=9999999999"
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
            exemplars = json.load(answer)["data"]
        assert "dd" in {one["labels"]["comm"] for series in exemplars for one in series["exemplars"]}
    for path in paths[1:]:
        check(scrape(agent, path, ACCEPTS["text"]))
    text = scrape(agent, "/metrics/series", ACCEPTS["openmetrics"]).decode()
    assert text.endswith("# EOF\n") and ' # {comm="' in text
    assert scrape(agent, "/metrics/series", ACCEPTS["protobuf"])
    # The agent's own metrics name no pods.
    assert "web-0" not in agent.agent.get("/metrics")[1]
    assert agent.agent.get("/metrics/none")[0] == 404


def check_all(prometheus: Prometheus) -> None:
    web, checkout = 'namespace="shop",pod="web-0"', 'namespace="shop",pod=~"checkout-.*"'
    # /bin/true, the server and dd.
    prometheus.wait(f"sum(dinle_pod_execs_total{{{web}}})", 23 + 1 + 1)
    # /bin/true and two clients.
    prometheus.wait(f"sum(dinle_pod_execs_total{{{checkout}}})", 3 + 2)
    prometheus.wait(f'sum(dinle_pod_tcp_connections_total{{{web},direction="accept"}})', 5)
    prometheus.wait(f'sum(dinle_pod_tcp_connections_total{{{checkout},direction="connect"}})', 5)
    prometheus.wait(f'sum(dinle_pod_tcp_bytes_total{{{web},direction="received"}})', 5 * 1000)
    prometheus.wait(f'sum(dinle_pod_tcp_bytes_total{{{web},direction="sent"}})', 5 * 500)
    prometheus.wait(f'sum(dinle_pod_tcp_bytes_total{{{checkout},direction="sent"}})', 5 * 1000)
    prometheus.wait(f'sum(dinle_pod_io_bytes_total{{{web},operation="write"}})', 29 * 4096)
    # Each client found the server there, or tried again.
    prometheus.wait(f'sum(dinle_pod_tcp_connect_failures_total{{{checkout},error="ECONNREFUSED"}} >= 7) > bool 0', 1)
    prometheus.wait('sum(dinle_exporter_events_dropped_total{exporter="series"})', 0)
    prometheus.wait("sum(up)", 3)


def test_pods_beyond_the_top_are_added_up(exporting, pods, v1):
    agent = exporting([{"name": "series", "kinds": ["exec"], "selector": OURS, "prometheus": {"top": 1, "grace": "1s"}}])
    agent.attached(v1, 1)
    pods["web"].run("/bin/true", times=23)
    agent.wait(lambda: agent.exporter("events_total", "series") == 23, "23 events are counted")
    pods["checkout"].run("/bin/true", times=3)
    pods["logrotate"].run("/bin/true", times=2)
    expected = {'{namespace="shop",pod="web-0"} 23', '{namespace="",pod="(rest)"} 5'}

    def told() -> set[str]:
        text = scrape(agent, "/metrics/series", ACCEPTS["text"]).decode()
        return {line.removeprefix("dinle_pod_execs_total") for line in text.splitlines() if line.startswith("dinle_pod_execs_total")}

    agent.wait(lambda: told() == expected, "one pod, and the rest")


# Opens, and makes files go in each way, so many times.
FILES = """
import os, sys
directory = sys.argv[1]
def path(name):
    return f"{directory}/{name}"
def fails(do, times):
    for _ in range(times):
        try:
            do(path("missing"))
        except FileNotFoundError:
            continue
        sys.exit("that should not be there")
for _ in range(29):
    open(path("there")).close()
fails(open, 7)
for number in range(5):
    os.unlink(path(f"unlinked-{number}"))
fails(os.unlink, 3)
for number in range(2):
    os.rmdir(path(f"directory-{number}"))
for number in range(4):
    os.replace(path(f"new-{number}"), path(f"old-{number}"))
for number in range(6):
    os.truncate(path(f"truncated-{number}"), 0)
open(path("there"), "w").close()
"""


def series(agent, exporter: str) -> dict[str, dict[str, float]]:
    """Series by their pods' names up to the first dash: as `execs_total`, or `exits_total ok` with the values of labels."""
    found = {}
    text = scrape(agent, f"/metrics/{exporter}", ACCEPTS["text"]).decode()
    for family, labels, value in re.findall(r"^dinle_pod_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert labels.pop("namespace") in OURS["namespaces"], text
        pod = labels.pop("pod").split("-")[0]
        assert found.setdefault(pod, {}).setdefault(" ".join([family, *labels.values()]), float(value)) == float(value)
    return found


def test_each_series_counts_what_was_done(exporting, pods, v1, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, count in [("unlinked", 5), ("new", 4), ("old", 4), ("truncated", 6)]:
        for number in range(count):
            (tree / f"{name}-{number}").write_text("something")
    for number in range(2):
        (tree / f"directory-{number}").mkdir()
    (tree / "there").write_text("something")
    tcp = ["tcp_session", "tcp_connect", "tcp_reset"]
    common = {"selector": OURS, "interval": "1s", "prometheus": {}}
    agent = exporting(
        [
            {"name": "processes", "kinds": ["exec", "exit", "fork"], **common},
            {"name": "files", "kinds": ["file_open", "file_delete"], "filter": {"path": [{"prefix": f"{tree}/"}]}, **common},
            {"name": "network", "kinds": [*tcp, "drop_count"], **common},
        ]
    )
    agent.attached(v1, 3)
    web, checkout, logrotate = pods["web"], pods["checkout"], pods["logrotate"]
    web.run("/bin/true", times=23)
    for status, times, command in [(1, 5, ["/bin/false"]), (-9, 3, ["/bin/sh", "-c", "kill -KILL $$"])]:
        for _ in range(times):
            assert web.start(*command).wait(PATIENCE_SECONDS) == status
    web.run("/bin/sh", "-c", "for i in 1 2 3 4 5 6 7; do /bin/true; done; exit 0")
    web.run(sys.executable, "-c", FILES, str(tree))
    lossy = checkout.start(sys.executable, "-c", LOSSY, stdout=subprocess.PIPE, text=True)
    sent_again = int(lossy.communicate(timeout=PATIENCE_SECONDS)[0])
    assert lossy.returncode == 0 and sent_again >= 2
    checkout.run(sys.executable, "-c", REFUSED, str(node.free_port()), "7")
    logrotate.run(sys.executable, "-c", RESETS, "4")
    logrotate.run("unshare", "--net", sys.executable, "-c", DATAGRAMS, "6")

    def same(exporter: str, expected: dict[str, dict[str, float]], found) -> None:
        try:
            agent.wait(lambda: found() == expected, f"{exporter} counts what was done")
        except AssertionError:
            assert found() == expected
            raise

    same(
        "processes",
        {
            "web": {
                "execs_total": 23 + 5 + 3 + (1 + 7) + 1,
                "exits_total ok": 23 + (1 + 7) + 1,
                "exits_total failed": 5,
                "exits_total signal": 3,
                "forks_total": 7,
            },
            "checkout": {"execs_total": 2, "exits_total ok": 2},
            # One becomes the other.
            "logrotate": {"execs_total": 1 + 2, "exits_total ok": 2},
        },
        lambda: series(agent, "processes"),
    )
    same(
        "files",
        {
            "web": {
                "file_opens_total ok": 29 + 1,
                "file_opens_total failed": 7,
                "file_deletes_total unlink ok": 5,
                "file_deletes_total unlink failed": 3,
                "file_deletes_total rmdir ok": 2,
                "file_deletes_total rename ok": 4,
                "file_deletes_total truncate ok": 6,
                "file_deletes_total open_truncate ok": 1,
            }
        },
        lambda: series(agent, "files"),
    )

    def network() -> dict[str, dict[str, float]]:
        # What TCP itself throws away differs from kernel to kernel.
        own = lambda name: not name.startswith("drops_total") or name == "drops_total NO_SOCKET"  # noqa: E731
        told = series(agent, "network")
        told["checkout"].pop("drops_total NO_SOCKET", None)
        return {pod: {name: value for name, value in all_of.items() if own(name)} for pod, all_of in told.items()}

    same(
        "network",
        {
            "checkout": {
                "tcp_connections_total connect": 1,
                "tcp_connections_total accept": 1,
                "tcp_bytes_total sent": 700,
                "tcp_bytes_total received": 700,
                "tcp_retransmits_total": sent_again,
                "tcp_connect_failures_total ECONNREFUSED": 7,
                "tcp_resets_total received": 7,
            },
            "logrotate": {
                "tcp_connections_total connect": 4,
                "tcp_connections_total accept": 4,
                "tcp_bytes_total sent": 4 * (10 + 20),
                "tcp_bytes_total received": 4 * (10 + 20),
                "tcp_retransmits_total": 0,
                "tcp_resets_total sent": 4,
                "tcp_resets_total received": 4,
                "drops_total NO_SOCKET": 6,
            },
        },
        network,
    )
