"""Series that a real Prometheus scrapes, and what PromQL then says of a workload that is known."""

import json
import subprocess
import sys
import urllib.parse
import urllib.request
from contextlib import contextmanager

import pytest

import node
from conftest import OURS, PATIENCE_SECONDS, RECEIVERS

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
REFUSED = """
import socket, sys
for _ in range(int(sys.argv[2])):
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    except ConnectionRefusedError:
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


@contextmanager
def loop_device(directory):
    image = directory / "disk"
    image.write_bytes(b"\0" * (1 << 20))
    device = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True)
    if device.returncode:
        pytest.skip(f"there is no loop device: {device.stderr}")
    try:
        yield device.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", device.stdout.strip()], check=True)


def check(text: bytes) -> None:
    done = subprocess.run([RECEIVERS / "usr/bin/promtool", "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done


def work(pods, device: str) -> None:
    pods["web"].run("/bin/true", times=23)
    pods["checkout"].run("/bin/true", times=3)
    port = node.free_port()
    server = pods["web"].start(sys.executable, "-c", SERVER, str(port), "5")
    pods["checkout"].run(sys.executable, "-c", CLIENT, str(port), "5")
    assert server.wait(PATIENCE_SECONDS) == 0
    pods["checkout"].run(sys.executable, "-c", REFUSED, str(node.free_port()), "7")
    pods["web"].run("/bin/dd", "if=/dev/zero", f"of={device}", "bs=4096", "count=29", "oflag=direct", "status=none")


def test_prometheus_tells_what_pods_did(exporting, pods, v1, tmp_path):
    with loop_device(tmp_path) as device:
        disk = device.rpartition("/")[2]
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
                    "filter": {"disk": [{"exact": disk}]},
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
            work(pods, device)
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
