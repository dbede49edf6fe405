"""Events and sums in a collector, field by field."""

import os
import subprocess
import sys
import time

import certificates
import grpc
import node
import pytest
from conftest import NODE, OURS, PATIENCE_SECONDS
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from traffic import DATAGRAMS, LOSSY, NOBODY, RESETS

import collector
from collector import any_value, attributes

TRUE = {"filter": {"binary": [{"exact": "/bin/true"}]}}
RECEIVERS = {"grpc": collector.Grpc, "http": collector.Http}


def lake(port: int, scheme: str = "http", **more) -> dict:
    return {
        "name": "lake",
        "kinds": ["exec"],
        "selector": {"pods": ["web-*"]},
        **TRUE,
        "otlp": {"endpoint": f"{scheme}://127.0.0.1:{port}", **more},
    }


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_each_event_is_a_record(exporting, pods, v1, tmp_path, protocol):
    headers = tmp_path / "headers"
    headers.write_text("x-tenant: shop\nauthorization: Bearer secret\n")
    with RECEIVERS[protocol]() as receiver:
        agent = exporting([lake(receiver.port, protocol=protocol, headers_file=str(headers))])
        agent.attached(v1, 1)
        before = time.time_ns()
        process = pods["web"].start("/bin/true", "an argument")
        assert process.wait() == 0
        agent.wait(lambda: receiver.records(), "a record has come")
        [(resource, record)] = receiver.records()
        owner = {"service.name": "web", "service.namespace": "shop", "k8s.statefulset.name": "web", "k8s.pod.label.app": "web"}
        [container] = pods["web"].containers.values()
        assert resource == {
            "k8s.node.name": NODE,
            "k8s.namespace.name": "shop",
            "k8s.pod.name": "web-0",
            "k8s.container.name": "server",
            "k8s.pod.uid": pods["web"].uid,
            "container.id": container.name,
            "container.image.name": "registry.example/web",
            "container.image.tags": ["3.2"],
            **owner,
        }
        [logs] = receiver.logs[0].resource_logs
        [scope] = logs.scope_logs
        assert scope.scope.name == "dinle" and scope.scope.version
        assert logs.schema_url == scope.schema_url and logs.schema_url.startswith("https://opentelemetry.io/schemas/")
        assert record.event_name == "dinle.exec"
        assert (record.severity_number, record.severity_text) == (logs_pb2.SEVERITY_NUMBER_INFO, "INFO")
        assert before - 10**9 < record.time_unix_nano <= record.observed_time_unix_nano < time.time_ns() + 10**9
        told = attributes(record.attributes)
        assert told.pop("dinle.cgroup.id") == container.stat().st_ino
        assert told.pop("process.creation.time").endswith("Z")
        assert told.pop("process.vpid") > 0 and told.pop("process.parent_pid") > 0
        assert told == {
            "dinle.kind": "exec",
            "process.pid": process.pid,
            "process.real_user.id": 0,
            "process.executable.name": "true",
            "process.executable.path": "/bin/true",
            "process.command_args": ["/bin/true", "an argument"],
            "process.working_directory": os.getcwd(),
        }
        body = any_value(record.body)
        assert body["filename"] == "/bin/true" and body["args"] == ["/bin/true", "an argument"]
        assert receiver.headers[0]["x-tenant"] == "shop"
        assert receiver.headers[0]["authorization"] == "Bearer secret"
        assert "secret" not in agent.agent.log.read_text()


def test_other_kinds_follow_the_conventions(exporting, pods, v1, tmp_path):
    with collector.Grpc() as receiver:
        exporter = lake(receiver.port)
        del exporter["filter"]
        exporter["kinds"] = ["exit", "file_delete", "tcp_connect"]
        agent = exporting([exporter])
        agent.attached(v1, 1)
        victim = tmp_path / "victim"
        victim.write_text("12345")
        pods["web"].run("/bin/rm", str(victim))
        port = node.free_port()
        code = f"import socket, sys\ntry: socket.create_connection(('127.0.0.1', {port}))\nexcept OSError: sys.exit(3)"
        assert pods["web"].start(sys.executable, "-c", code).wait() == 3

        def found(name: str, **wanted) -> list[dict]:
            all_of = [attributes(record.attributes) for _, record in receiver.records() if record.event_name == f"dinle.{name}"]
            return [told for told in all_of if all(told.get(key.replace("__", ".")) == value for key, value in wanted.items())]

        agent.wait(lambda: found("exit", process__exit__code=3), "the exit has come")
        agent.wait(lambda: found("file_delete", file__path=str(victim)), "the deletion has come")
        [delete] = found("file_delete", file__path=str(victim))
        assert delete["file.name"] == "victim" and delete["dinle.file.delete.method"] == "unlink"
        assert delete["process.executable.name"] == "rm" and "error.type" not in delete
        agent.wait(lambda: found("tcp_connect", network__peer__port=port), "the connect has come")
        [connect] = found("tcp_connect", network__peer__port=port)
        assert connect["error.type"] == "ECONNREFUSED"
        assert (connect["network.transport"], connect["network.type"]) == ("tcp", "ipv4")
        assert connect["network.peer.address"] == "127.0.0.1"


def test_each_kind_has_all_of_its_attributes(exporting, pods, v1, disk):
    names = ["tcp_session", "tcp_reset", "tcp_retransmit", "block_io", "block_latency", "drop", "drop_count"]
    web = pods["web"]
    with collector.Grpc() as receiver:
        exporter = lake(receiver.port)
        del exporter["filter"]
        agent = exporting([{**exporter, "kinds": names, "interval": "1s"}])
        agent.attached(v1, 1)

        def told(*command: str) -> tuple[int, list[int]]:
            """Runs it, and gives its id and the numbers that it prints."""
            process = web.start(*command, stdout=subprocess.PIPE, text=True)
            printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
            assert process.returncode == 0
            return process.pid, [int(word) for word in printed.split()]

        resetting, [client, server] = told(sys.executable, "-c", RESETS, "1")
        losing, [sent_again] = told(sys.executable, "-c", LOSSY)
        sending, _ = told("unshare", "--net", sys.executable, "-c", DATAGRAMS, "1")
        writing, _ = told("/bin/dd", "if=/dev/zero", f"of={disk}", "bs=4096", "count=1", "oflag=direct", "status=none")

        def found(kind: str, **wanted) -> list[tuple[dict, dict]]:
            """Attributes and body of the records that have these attributes."""
            wanted = {key.replace("__", "."): value for key, value in wanted.items()}
            all_of = [
                (attributes(record.attributes), any_value(record.body))
                for _, record in receiver.records()
                if record.event_name == f"dinle.{kind}"
            ]
            return [one for one in all_of if wanted.items() <= one[0].items()]

        def one(kind: str, **wanted) -> tuple[dict, dict]:
            agent.wait(lambda: found(kind, **wanted), f"{kind} with {wanted}")
            [(own, body)] = found(kind, **wanted)
            assert own.pop("dinle.kind") == kind
            [container] = web.containers.values()
            # Of a packet the pod may be known, and no more.
            allowed = [container, web.directory] if kind.startswith("drop") else [container]
            assert own.pop("dinle.cgroup.id") in [directory.stat().st_ino for directory in allowed]
            return own, body

        def of_process(pid: int, comm: str, own: dict) -> dict:
            """Without what tells of the process, which must be this one."""
            assert own.pop("process.creation.time").endswith("Z")
            assert own.pop("process.vpid") > 0 and own.pop("process.parent_pid") > 0
            process = {key: own.pop(key) for key in list(own) if key.startswith("process.")}
            assert process == {"process.pid": pid, "process.real_user.id": 0, "process.executable.name": comm}
            return own

        python = os.path.basename(sys.executable)
        ends = {"network.transport": "tcp", "network.type": "ipv4", "network.local.address": "127.0.0.1", "network.peer.address": "127.0.0.1"}
        towards = {"network.local.port": client, "network.peer.port": server}
        back = {"network.local.port": server, "network.peer.port": client}
        established = {**ends, "network.connection.state": "established"}

        own, _ = one("tcp_session", network__local__port=client)
        assert of_process(resetting, python, own) == {
            **established,
            **towards,
            "dinle.tcp.bytes_sent": 10,
            "dinle.tcp.bytes_received": 20,
            "dinle.tcp.retransmits": 0,
            "error.type": "ECONNRESET",
        }
        own, _ = one("tcp_session", network__peer__port=client)
        assert of_process(resetting, python, own) == {
            **established,
            **back,
            "dinle.tcp.bytes_sent": 20,
            "dinle.tcp.bytes_received": 10,
            "dinle.tcp.retransmits": 0,
        }
        own, body = one("tcp_reset", network__peer__port=client)
        # Not every kernel gives one.
        assert own.pop("dinle.tcp.reset.reason", None) == body.get("reason")
        assert of_process(resetting, python, own) == {**established, **back, "network.io.direction": "transmit"}
        own, _ = one("tcp_reset", network__local__port=client)
        assert {key: own[key] for key in own if not key.startswith("process.")} == {
            **established,
            **towards,
            "network.io.direction": "receive",
        }

        agent.wait(lambda: len(found("tcp_retransmit", process__pid=losing)) == sent_again, "each segment that was sent again")
        [(lost, _)] = found("tcp_session", process__pid=losing, dinle__tcp__bytes_sent=700)
        for own, body in found("tcp_retransmit", process__pid=losing):
            assert {key: own[key] for key in own if not key.startswith(("process.", "dinle.kind", "dinle.cgroup"))} == {
                **established,
                "network.local.port": lost["network.local.port"],
                "network.peer.port": lost["network.peer.port"],
                "network.io.direction": "transmit",
                "dinle.tcp.bytes": 700,
            }
        assert lost["dinle.tcp.retransmits"] == sent_again

        written = {"system.device": disk.name, "disk.io.direction": "write", "dinle.disk.operation": "write", "dinle.disk.bytes": 4096}
        own, _ = one("block_io", system__device=disk.name)
        assert of_process(writing, "dd", own) == written
        own, _ = one("block_latency", system__device=disk.name, dinle__disk__operation="write")
        assert own == {**written, "dinle.disk.operations": 1}

        # Of IP's header, UDP's and what was sent.
        size = 20 + 8 + 12
        dropped = {"network.transport": "udp", "network.type": "ipv4", "destination.port": NOBODY, "dinle.drop.reason": "NO_SOCKET"}
        own, body = one("drop", destination__port=NOBODY)
        assert own.pop("source.port") == body["source"]["port"] > 0
        assert own.pop("dinle.drop.location") == body["location"]
        if "process.pid" in own:
            own = of_process(sending, python, own)
        assert own == {
            **dropped,
            "source.address": "127.0.0.1",
            "destination.address": "127.0.0.1",
            "network.interface.name": "lo",
            "dinle.drop.bytes": size,
        }
        own, _ = one("drop_count", destination__port=NOBODY)
        assert own == {**dropped, "dinle.drop.packets": 1, "dinle.drop.bytes": size}


@pytest.mark.parametrize(
    ("protocol", "answers", "cause"),
    [
        ("grpc", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED], "unavailable"),
        ("http", [503, 429], "unavailable"),
        # Who may not now may be let in later.
        ("grpc", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED], "refused"),
        ("http", [401, 403], "refused"),
    ],
)
def test_what_is_not_taken_now_is_sent_again(exporting, pods, v1, protocol, answers, cause):
    with RECEIVERS[protocol]() as receiver:
        receiver.answers = list(answers)
        agent = exporting([lake(receiver.port, protocol=protocol)])
        agent.attached(v1, 1)
        pods["web"].run("/bin/true", times=5)
        agent.wait(lambda: agent.exporter("events_total", "lake") == 5, "all come at the third try at the latest")
        assert len(receiver.records()) == 5
        assert agent.exporter("failures_total", "lake", cause=cause) == 2
        assert agent.exporter("events_dropped_total", "lake") == 0


@pytest.mark.parametrize(("protocol", "answer"), [("grpc", grpc.StatusCode.INVALID_ARGUMENT), ("http", 400)])
def test_what_is_never_taken_is_counted_and_holds_up_nothing(exporting, pods, v1, protocol, answer):
    with RECEIVERS[protocol]() as receiver:
        receiver.answers = [answer] * 20
        agent = exporting([lake(receiver.port, protocol=protocol)])
        agent.attached(v1, 1)
        pods["web"].run("/bin/true", times=3)
        agent.wait(lambda: agent.exporter("events_dropped_total", "lake", cause="refused") == 3, "three are dropped")
        receiver.answers = []
        pods["web"].run("/bin/true", times=2)
        agent.wait(lambda: agent.exporter("events_total", "lake") == 2, "it goes on")
        assert len(receiver.records()) == 2


def resident(agent) -> int:
    return int(agent.metrics()["resident_memory_bytes"])


def test_a_collector_that_is_away_costs_no_memory_and_what_is_lost_is_counted(exporting, pods, v1):
    port = node.free_port()
    exporter = {**lake(port), "queue_bytes": 65536}
    del exporter["filter"]
    agent = exporting([exporter])
    agent.attached(v1, 1)
    times, matched = 2000, 0

    def burst():
        nonlocal matched
        pods["web"].run("/bin/sh", "-c", f"for i in $(seq {times}); do /bin/true; done")
        matched += times + 2

    burst()
    agent.wait(lambda: agent.exporter("events_dropped_total", "lake", cause="unavailable") > 0, "the queue runs over")
    # What is taken once and kept, such as the allocator's own, is there after another one.
    burst()
    before = resident(agent)
    for _ in range(5):
        burst()
    # What five more bursts brought would be twenty times the queue.
    assert resident(agent) - before < 4 << 20
    assert agent.agent.get("/healthz")[0] == 200 and agent.exporter("up", "lake") == 0
    with collector.Grpc(port) as receiver:
        agent.wait(lambda: agent.exporter("up", "lake") == 1, "it is taken again")

        def balance() -> bool:
            return sum(agent.exporter(f"events_{what}total", "lake") for what in ("", "dropped_", "lost_")) == matched

        agent.wait(balance, "every event is there or counted")
        assert len(receiver.records()) == agent.exporter("events_total", "lake")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_sums_are_metrics(exporting, pods, v1, protocol):
    with RECEIVERS[protocol]() as receiver:
        exporter = {
            "name": "sums",
            "kinds": ["exec", "tcp_connect"],
            "selector": OURS,
            "otlp": {"endpoint": f"http://127.0.0.1:{receiver.port}", "protocol": protocol, "signal": "metrics", "interval": "1s"},
        }
        agent = exporting([exporter])
        agent.attached(v1, 1)
        pods["web"].run("/bin/true", times=23)
        # One that is missed is made up for by the next.
        receiver.answers = [503 if protocol == "http" else grpc.StatusCode.UNAVAILABLE]
        pods["checkout"].run("/bin/true", times=3)
        code = f"import socket\ntry: socket.create_connection(('127.0.0.1', {node.free_port()}))\nexcept OSError: pass"
        pods["web"].run(sys.executable, "-c", code)

        def told(name: str, pod: str, **own: str):
            return receiver.points().get((name, pod, frozenset((key.replace("__", "."), value) for key, value in own.items())))

        agent.wait(lambda: (found := told("dinle.process.execs", "web-0")) and found[2].as_int == 24, "24 programs")
        checkout = pods["checkout"].name
        agent.wait(lambda: (found := told("dinle.process.execs", checkout)) and found[2].as_int == 3, "3 programs")
        agent.wait(lambda: told("dinle.tcp.connect_failures", "web-0", error__type="ECONNREFUSED"), "a failure")
        metric, data, point = told("dinle.process.execs", "web-0")
        assert metric.unit == "{exec}" and metric.description
        assert data.is_monotonic and data.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
        assert 0 < point.start_time_unix_nano < point.time_unix_nano <= time.time_ns()


def test_tls_with_certificates_on_both_sides(exporting, pods, v1, tmp_path):
    authority = certificates.Authority(tmp_path / "tls", "authority")
    (server, server_key), (client, client_key) = authority.sign("server", "/CN=server"), authority.sign("client", "/CN=agent")
    tls = (server.read_bytes(), server_key.read_bytes(), authority.path("crt").read_bytes())
    files = {"ca_file": str(authority.path("crt")), "cert_file": str(client), "key_file": str(client_key)}
    with collector.Grpc(tls=tls) as receiver:
        agent = exporting([lake(receiver.port, "https", tls={**files, "ca_file": str(tmp_path / "none")})])
        agent.attached(v1, 1)
        pods["web"].run("/bin/true", times=5)
        # Who signed the collector's certificate is not known: nothing is sent.
        agent.wait(lambda: agent.exporter("failures_total", "lake", cause="unavailable") > 0, "it is not trusted")
        assert f"{tmp_path}/none cannot be read" in agent.agent.log.read_text()
        # The file comes: it is read at the next try.
        (tmp_path / "none").write_bytes(authority.path("crt").read_bytes())
        agent.wait(lambda: len(receiver.records()) == 5, "they come over TLS")
