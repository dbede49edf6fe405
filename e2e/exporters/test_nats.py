"""Events in a stream of a real NATS server, which many can read."""

import asyncio
import json
import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from datetime import datetime

import certificates
import nats
import node
import pytest
from conftest import OURS, PATIENCE_SECONDS, RECEIVERS
from google.protobuf import json_format


class Server:
    def __init__(self, directory, *arguments: str, scheme: str = "nats", **known):
        """`known` is how those connect that it lets in."""
        self.port = node.free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.directory = directory
        self.arguments = arguments
        self.known = known

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

    def ask(self, question):
        """Asks as a client does."""

        async def asked():
            client = await nats.connect(self.url, **self.known)
            try:
                return await question(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(asked())

    def make_stream(self, max_msg_size: int = -1):
        self.ask(lambda stream: stream.add_stream(name="DINLE", subjects=["dinle.>"], max_msg_size=max_msg_size))

    def seal_stream(self):
        """It refuses whatever comes from then on."""
        self.ask(lambda stream: stream.update_stream(name="DINLE", subjects=["dinle.>"], sealed=True))

    def delete_stream(self):
        self.ask(lambda stream: stream.delete_stream("DINLE"))

    def messages(self, subject: str = "dinle.>") -> list:
        """Everything of a subject, as somebody reads it who comes later."""

        async def read(stream):
            info = await stream.stream_info("DINLE", subjects_filter=subject)
            subscription = await stream.subscribe(subject, ordered_consumer=True)
            count = sum((info.state.subjects or {}).values())
            return [await subscription.next_msg(timeout=PATIENCE_SECONDS) for _ in range(count)]

        return self.ask(read)


class Deaf:
    """Is where a server was, and shows out whoever comes. Counts them."""

    def __init__(self, port: int):
        self.listener = socket.create_server(("127.0.0.1", port))
        self.count = 0
        self.thread = threading.Thread(target=self.serve)

    def serve(self):
        with suppress(OSError):
            while True:
                self.listener.accept()[0].close()
                self.count += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        # A thread that accepts is not woken by a close.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()


def log(server: Server, **more) -> dict:
    return {
        "name": "log",
        "kinds": ["exec"],
        "selector": OURS,
        "filter": {"binary": [{"exact": "/bin/true"}]},
        "nats": {"url": server.url, "subject": "dinle.{namespace}.{pod}.{kind}", "timeout": "2s", **more},
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
    problem = "no stream of the server takes the subject"
    assert problem in agent.agent.log.read_text()
    told = agent.status("log")
    # The others are in its queue.
    waiting = told.pop("waiting")
    assert problem in told.pop("problem") and 1 <= int(waiting) <= 5
    assert told == {"name": "log", "receiver": "nats"}
    [row] = [line for line in agent.page() if line.startswith("log ")]
    assert row.startswith(f"log nats NO 0 {waiting} 0 0 - ") and problem in row
    server.make_stream()
    agent.wait(lambda: agent.exporter("events_total", "log") == 5, "the stream takes them")
    assert len(server.messages()) == 5
    told = agent.wait(lambda: (told := agent.status("log")).get("up") and told, "it is up")
    assert 0 <= time.time() - datetime.fromisoformat(told.pop("lastSuccess")).timestamp() < PATIENCE_SECONDS
    assert told == {"name": "log", "receiver": "nats", "up": True, "exported": "5"}


def that_has_sent_five(exporting, pods, v1, server):
    """An agent whose server has acknowledged five events, and is gone."""
    with server:
        server.make_stream()
        agent = exporting([log(server)])
        agent.attached(v1, 1)
        pods["web"].run("/bin/true", times=5)
        agent.wait(lambda: agent.exporter("events_total", "log") == 5, "five are acknowledged")
    return agent


def test_a_server_that_goes_and_comes_misses_nothing(exporting, pods, v1, tmp_path):
    server = Server(tmp_path / "nats")
    agent = that_has_sent_five(exporting, pods, v1, server)
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


def test_a_stream_that_refuses_is_mended_in_time_or_is_given_up_after_five_tries(exporting, pods, v1, server):
    server.make_stream()
    server.seal_stream()
    agent = exporting([log(server)])
    agent.attached(v1, 1)
    pods["web"].run("/bin/true")
    agent.wait(lambda: agent.exporter("failures_total", "log", cause="refused") > 0, "it is refused")
    assert "sealed stream" in agent.agent.log.read_text()
    server.delete_stream()
    server.make_stream()
    agent.wait(lambda: agent.exporter("events_total", "log") == 1, "the stream takes it now")
    assert agent.exporter("events_dropped_total", "log") == 0 and len(server.messages()) == 1

    server.seal_stream()
    before = agent.exporter("failures_total", "log")
    pods["web"].run("/bin/true")
    agent.wait(lambda: agent.exporter("events_dropped_total", "log") == 1, "it is given up")
    assert agent.exporter("events_dropped_total", "log", cause="refused") == 1
    # The fifth is no failure any more.
    assert agent.exporter("failures_total", "log") - before == 4
    assert agent.exporter("waiting_events", "log") == 0
    assert "the receiver throws events away" in agent.agent.log.read_text()
    server.delete_stream()
    server.make_stream()
    pods["web"].run("/bin/true", times=2)
    agent.wait(lambda: agent.exporter("events_total", "log") == 3, "it goes on")
    assert len(server.messages()) == 2 and agent.exporter("events_dropped_total", "log") == 1


def test_a_server_that_is_away_is_looked_for_once_at_a_time(exporting, pods, v1, tmp_path):
    """A client that has lost its connection gives up, and the exporter begins another. Else each of them would go on for ever."""
    server = Server(tmp_path / "nats")
    agent = that_has_sent_five(exporting, pods, v1, server)
    with Deaf(server.port) as deaf:
        pods["web"].run("/bin/true", times=7)
        # Four seconds follow until the fifth.
        agent.wait(lambda: agent.exporter("failures_total", "log") >= 4, "four tries")
        came, tries = deaf.count, agent.exporter("failures_total", "log")
        # The client that had the connection looks for another one, once.
        assert 0 < came <= tries + 1, f"{came} connections in {tries} tries"
    with server:
        agent.wait(lambda: agent.exporter("events_total", "log") == 12, "the others follow")
        assert len(server.messages()) == 12


@pytest.mark.parametrize(
    ("lines", "flags", "known"),
    [
        ("dinle\n{}\n", ["--user", "dinle", "--pass", "right"], {"user": "dinle", "password": "right"}),
        ("{}\n", ["--auth", "right"], {"token": "right"}),
    ],
    ids=["password", "token"],
)
def test_who_does_not_know_the_secret_is_not_let_in(exporting, pods, v1, tmp_path, lines, flags, known):
    secret = tmp_path / "secret"
    secret.write_text(lines.format("wrong"))
    with Server(tmp_path / "nats", *flags, **known) as server:
        server.make_stream()
        agent = exporting([log(server, password_file=str(secret))])
        agent.attached(v1, 1)
        pods["web"].run("/bin/true", times=3)
        agent.wait(lambda: agent.exporter("failures_total", "log", cause="unavailable") > 0, "it is refused")
        assert "authorization violation" in agent.agent.log.read_text()
        assert agent.exporter("up", "log") == 0 and server.messages() == []
        secret.write_text(lines.format("right"))
        agent.wait(lambda: agent.exporter("events_total", "log") == 3, "it is let in")
        assert len(server.messages()) == 3 and agent.exporter("events_dropped_total", "log") == 0
        said = agent.agent.log.read_text()
        assert "right" not in said and "wrong" not in said


# Which file is wrong, and what is said of it: of which alert servers send, each has an opinion of its own. Without a file there is none to be mended.
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [("ca_file", "UnknownIssuer"), ("cert_file", "received fatal alert: "), (None, "received fatal alert: ")],
    ids=["authority", "certificate", "none"],
)
def test_tls_with_certificates_on_both_sides(exporting, pods, v1, tmp_path, wrong, reason):
    ours, strangers = (certificates.Authority(tmp_path / name, name) for name in ("ours", "strangers"))
    server_certificate, server_key = ours.sign("server", "/CN=server")
    right, foreign = (
        dict(zip(("ca_file", "cert_file", "key_file"), (authority.path("crt"), *authority.sign("agent", "/CN=agent"))))
        for authority in (ours, strangers)
    )
    used = {name: tmp_path / name for name in right}
    for name, file in used.items():
        # A certificate and its key go together.
        mistaken = wrong and (name == "ca_file") == (wrong == "ca_file")
        file.write_bytes((foreign if mistaken else right)[name].read_bytes())
    trust = ssl.create_default_context(cafile=str(ours.path("crt")))
    trust.load_cert_chain(right["cert_file"], right["key_file"])
    flags = ["--tlsverify", f"--tlscert={server_certificate}", f"--tlskey={server_key}", f"--tlscacert={ours.path('crt')}"]
    with Server(tmp_path / "nats", *flags, scheme="tls", tls=trust) as server:
        server.make_stream()
        files = {name: str(file) for name, file in used.items() if wrong or name == "ca_file"}
        agent = exporting([log(server, tls=files)])
        agent.attached(v1, 1)
        pods["web"].run("/bin/true", times=3)
        agent.wait(lambda: agent.exporter("failures_total", "log", cause="unavailable") > 0, "it is refused")
        assert reason in agent.agent.log.read_text(), agent.agent.log.read_text()
        assert agent.exporter("up", "log") == 0 and server.messages() == []
        if wrong:
            for name, file in used.items():
                file.write_bytes(right[name].read_bytes())
            agent.wait(lambda: agent.exporter("events_total", "log") == 3, "they come over TLS")
            assert len(server.messages()) == 3 and agent.exporter("events_dropped_total", "log") == 0
