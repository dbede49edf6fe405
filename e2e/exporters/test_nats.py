"""Events in a stream of a real NATS server, which many can read."""

import asyncio
import json
import subprocess

import nats
import node
import pytest
from conftest import OURS, PATIENCE_SECONDS, RECEIVERS
from google.protobuf import json_format


class Server:
    def __init__(self, directory, *arguments: str):
        self.port = node.free_port()
        self.directory = directory
        self.arguments = arguments

    def __enter__(self):
        command = [RECEIVERS / "usr/sbin/nats-server", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", self.directory, *self.arguments]
        self.directory.mkdir(exist_ok=True)
        with (self.directory / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        node.wait_until(lambda: "Server is ready" in (self.directory / "log").read_text(), PATIENCE_SECONDS, "the server is ready")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)
        (self.directory / "log").unlink()

    def ask(self, question, **options):
        """Asks as a client does."""

        async def asked():
            client = await nats.connect(f"nats://127.0.0.1:{self.port}", **options)
            try:
                return await question(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(asked())

    def make_stream(self, max_msg_size: int = -1, **options):
        self.ask(lambda stream: stream.add_stream(name="DINLE", subjects=["dinle.>"], max_msg_size=max_msg_size), **options)

    def messages(self, subject: str = "dinle.>", **options) -> list:
        """Everything of a subject, as somebody reads it who comes later."""

        async def read(stream):
            info = await stream.stream_info("DINLE", subjects_filter=subject)
            subscription = await stream.subscribe(subject, ordered_consumer=True)
            count = sum((info.state.subjects or {}).values())
            return [await subscription.next_msg(timeout=PATIENCE_SECONDS) for _ in range(count)]

        return self.ask(read, **options)


def log(server: Server, **more) -> dict:
    return {
        "name": "log",
        "kinds": ["exec"],
        "selector": OURS,
        "filter": {"binary": [{"exact": "/bin/true"}]},
        "nats": {"url": f"nats://127.0.0.1:{server.port}", "subject": "dinle.{namespace}.{pod}.{kind}", "timeout": "2s", **more},
    }


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path / "nats") as server:
        yield server


def test_many_can_read_what_happened(exporting, pods, v1, server):
    server.make_stream()
    agent = exporting([log(server)])
    agent.attached(v1, 1)
    pods["web"].run("/bin/true", times=23)
    pods["logrotate"].run("/bin/true", times=3)
    agent.wait(lambda: agent.exporter("events_total", "log") == 26, "all are acknowledged")
    web = server.messages("dinle.shop.web-0.exec")
    assert len(web) == 23 and len(server.messages("dinle.ops.>")) == 3
    events = [json_format.Parse(message.data, v1.Event()) for message in web]
    assert {(event.workload.pod, event.exec.filename) for event in events} == {("web-0", "/bin/true")}
    assert agent.exporter("bytes_total", "log") == sum(len(message.data) for message in server.messages())
    # Each has a number of its own, by which the stream knows what comes twice.
    assert len({message.headers["Nats-Msg-Id"] for message in server.messages()}) == 26
    assert [event["time"] for event in map(lambda m: json.loads(m.data), web)] == sorted(json.loads(m.data)["time"] for m in web)


def test_a_stream_that_is_missing_is_said_and_waited_for(exporting, pods, v1, server):
    agent = exporting([log(server)])
    agent.attached(v1, 1)
    pods["web"].run("/bin/true", times=5)
    agent.wait(lambda: agent.exporter("failures_total", "log", cause="refused") > 0, "nobody takes it")
    assert "no stream of the server takes the subject" in agent.agent.log.read_text()
    server.make_stream()
    agent.wait(lambda: agent.exporter("events_total", "log") == 5, "the stream takes them")
    assert len(server.messages()) == 5


def test_a_server_that_goes_and_comes_misses_nothing(exporting, pods, v1, tmp_path):
    server = Server(tmp_path / "nats")
    with server:
        server.make_stream()
        agent = exporting([log(server)])
        agent.attached(v1, 1)
        pods["web"].run("/bin/true", times=5)
        agent.wait(lambda: agent.exporter("events_total", "log") == 5, "five are acknowledged")
    pods["web"].run("/bin/true", times=7)
    agent.wait(lambda: agent.exporter("up", "log") == 0, "the server is missed")
    with server:
        agent.wait(lambda: agent.exporter("events_total", "log") == 12, "the others follow")
        assert len(server.messages()) == 12
    assert agent.exporter("events_dropped_total", "log") == 0


def test_one_event_that_a_stream_does_not_take_holds_up_no_other(exporting, pods, v1, server):
    server.make_stream(max_msg_size=2048)
    agent = exporting([log(server)])
    agent.attached(v1, 1)
    pods["web"].run("/bin/true", "x" * 1900)
    pods["web"].run("/bin/true", times=3)
    agent.wait(lambda: agent.exporter("events_total", "log") == 3, "the others are acknowledged")
    assert agent.exporter("events_dropped_total", "log", cause="too_large") == 1
    assert len(server.messages()) == 3 and agent.exporter("waiting_events", "log") == 0


def test_who_does_not_know_the_password_is_not_let_in(exporting, pods, v1, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("dinle\nwrong\n")
    with Server(tmp_path / "nats", "--user", "dinle", "--pass", "right") as server:
        known = {"user": "dinle", "password": "right"}
        server.make_stream(**known)
        agent = exporting([log(server, password_file=str(secret))])
        agent.attached(v1, 1)
        pods["web"].run("/bin/true", times=3)
        agent.wait(lambda: agent.exporter("failures_total", "log", cause="unavailable") > 0, "it is refused")
        secret.write_text("dinle\nright\n")
        agent.wait(lambda: agent.exporter("events_total", "log") == 3, "it is let in")
        assert len(server.messages(**known)) == 3
        assert "right" not in agent.agent.log.read_text()
