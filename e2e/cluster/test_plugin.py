"""`kubectl dinle`: the streams of all nodes that matter as one, through the API server, with a user's own rights."""

import itertools
import json
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import yaml
from node import wait_until
from proxy import Proxy

from conftest import PATIENCE_SECONDS, SOON_SECONDS, agents_of, attached, empty_namespace, listening, sleeper, start

# The agents' namespace, and everything that a listener needs there.
AGENTS = "dinle"
LIST = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
FORWARD = {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]}

NUMBERS = itertools.count()


@pytest.fixture
def shop(kubectl, agents):
    """A namespace of the test's own. Its predecessor's may take a while to go."""
    with empty_namespace(kubectl, f"dinle-e2e-plugin-{next(NUMBERS)}") as name:
        yield name


def run(kubectl, namespace: str, pod: str, times: int) -> None:
    """Executes /bin/true in a pod, so many times."""
    script = f"i=0; while [ $i -lt {times} ]; do /bin/true {pod}; i=$((i+1)); done"
    kubectl("-n", namespace, "exec", pod, "--", "/bin/sh", "-c", script)


# Longer than anybody waits: a pod whose stop got lost stops all the same.
ROUNDS_MAX = 100 * PATIENCE_SECONDS


def run_until_stopped(kubectl, namespace: str, pod: str) -> int:
    """Executes /bin/true in a pod again and again, some hundred times a second at most. Gives how often."""
    rounds = f"while [ $i -lt {ROUNDS_MAX} ] && [ ! -e /stop ]; do /bin/true {pod}; i=$((i+1)); /bin/sleep 0.01; done"
    return int(kubectl("-n", namespace, "exec", pod, "--", "/bin/sh", "-c", f"i=0; {rounds}; echo $i"))


def stop_running(kubectl, namespace: str, pod: str) -> None:
    kubectl("-n", namespace, "exec", pod, "--", "/bin/sh", "-c", ": >/stop")


class Watch:
    """A running `kubectl dinle watch -o json`."""

    def __init__(self, command: list[str], environment: dict):
        self.changed = threading.Condition()
        self.events, self.said = [], []
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.threads = [
            threading.Thread(target=self.read, args=(self.process.stdout, lambda line: self.events.append(json.loads(line)))),
            threading.Thread(target=self.read, args=(self.process.stderr, lambda line: self.said.append(line.rstrip()))),
        ]
        for thread in self.threads:
            thread.start()

    def read(self, pipe, take) -> None:
        for line in pipe:
            with self.changed:
                take(line)
                self.changed.notify_all()

    def wait(self, condition, what: str) -> None:
        with self.changed:
            held = self.changed.wait_for(condition, PATIENCE_SECONDS)
            assert held, f"{what}: not within {PATIENCE_SECONDS} s; it said {self.said}, and told {self.events[-5:]}"

    def trues(self, pod: str) -> int:
        """How often /bin/true was told of a pod."""
        return sum(event["exec"]["args"] == ["/bin/true", pod] for event in self.events)

    def booked(self) -> int:
        """How many events came: those in the books of all nodes, and those after the books, which are told beside them."""
        numbers = [number for line in self.said for number in re.findall(r"\bdelivered (?:exec )?([\d,]+)", line)]
        return sum(int(number.replace(",", "")) for number in numbers)

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(PATIENCE_SECONDS)
        for thread in self.threads:
            thread.join()
        return code


@contextmanager
def watching(plugin, namespace: str, *arguments: str, nodes: set[str] = frozenset(), kubeconfig: str | None = None):
    """A watch of executions in a namespace that nobody else listens to, once each of these nodes has its stream."""
    watch = Watch(*plugin("watch", "--kinds", "exec", "-o", "json", "-n", namespace, *arguments, kubeconfig=kubeconfig))
    try:
        wait_until(lambda: listening(plugin, namespace, set(nodes)), PATIENCE_SECONDS, f"streams from {nodes}: {watch.said}")
        attached(plugin, namespace)
        yield watch
    finally:
        watch.process.kill()
        watch.process.wait()


def test_all_nodes_are_one_stream_in_order_with_books_of_each(kubectl, agents, shop, plugin):
    where = {f"web-{node}": node for node in agents}
    start(kubectl, *(sleeper(shop, name, node) for name, node in where.items()))
    with watching(plugin, shop, "-l", "app=web", nodes=set(agents)) as watch, ThreadPoolExecutor(len(where)) as threads:
        running = {name: threads.submit(run_until_stopped, kubectl, shop, name) for name in where}
        try:
            # None has stopped by then, so that what happens on one node happens in between what happens on the others.
            watch.wait(lambda: all(watch.trues(name) >= 100 for name in where), "100 of each")
        finally:
            for name in where:
                stop_running(kubectl, shop, name)
        ran = {name: times.result() for name, times in running.items()}
        watch.wait(lambda: all(watch.trues(name) == ran[name] for name in where), f"all of {ran}")
        assert watch.stop() == 0
    assert {event["workload"]["pod"]: event["workload"]["node"] for event in watch.events} == where
    # Fractions of a second have as many digits as they need.
    times = [event["time"].removesuffix("Z") for event in watch.events]
    assert times == sorted(times)
    for node in agents:
        assert len([line for line in watch.said if line.startswith(f"{node}: books: ")]) == 1, watch.said
    assert watch.booked() == len(watch.events), watch.said
    assert not [line for line in watch.said if re.search(r"\blost [1-9]", line)], watch.said


def test_only_the_nodes_of_what_is_asked_for_are_asked(kubectl, agents, shop, plugin):
    first, second = sorted(agents)[:2]
    start(kubectl, sleeper(shop, "here", first), sleeper(shop, "there", second))
    with watching(plugin, shop, "here", nodes={first}) as watch:
        run(kubectl, shop, "there", 3)
        run(kubectl, shop, "here", 3)
        watch.wait(lambda: watch.trues("here") == 3, "3 of the pod that was asked for")
        assert watch.stop() == 0
    assert watch.trues("there") == 0
    assert not any(line.startswith(f"{second}:") for line in watch.said)


def test_a_pod_that_starts_on_another_node_later_is_heard(kubectl, agents, shop, plugin):
    first, second = sorted(agents)[:2]
    start(kubectl, sleeper(shop, "early", first, "moving"))
    with watching(plugin, shop, "-l", "app=moving", nodes={first}) as watch:
        start(kubectl, sleeper(shop, "late", second, "moving"))
        wait_until(lambda: listening(plugin, shop, {first, second}), PATIENCE_SECONDS, "a stream from the other node")
        attached(plugin, shop)
        run(kubectl, shop, "late", 5)
        watch.wait(lambda: watch.trues("late") == 5, "5 of the pod that came later")
        assert watch.stop() == 0


def test_an_agent_that_is_replaced_is_heard_again_and_the_gap_is_told(kubectl, agents, shop, plugin):
    first, second = sorted(agents)[:2]
    start(kubectl, sleeper(shop, "one", first), sleeper(shop, "two", second))
    with watching(plugin, shop, nodes={first, second}) as watch:
        [agent] = [
            pod["metadata"]["name"]
            for pod in kubectl.json("-n", AGENTS, "get", "pods", "-l", "app.kubernetes.io/name=dinle")["items"]
            if pod["spec"]["nodeName"] == first
        ]
        kubectl("-n", AGENTS, "delete", "pod", agent, "--wait=false")
        again = re.compile(rf"^{first}: heard again; what happened there in the [\d.]+ s since [\d:.]+ is not told$")
        watch.wait(lambda: any(again.match(line) for line in watch.said), "that the node is heard again")
        assert any(line.startswith(f"{first}: not heard any more: ") for line in watch.said)
        assert not any(line.startswith(f"{second}: not heard") for line in watch.said), "the others go on"
        run(kubectl, shop, "one", 4)
        run(kubectl, shop, "two", 4)
        watch.wait(lambda: watch.trues("one") == 4 and watch.trues("two") == 4, "4 of each")
        assert watch.stop() == 0


def test_who_will_not_go_on_hears_who_is_gone_and_ends_when_nobody_is_left(kubectl, agents, shop, plugin):
    first, second = sorted(agents)[:2]
    before = agents_of(kubectl, AGENTS)
    start(kubectl, sleeper(shop, "one", first), sleeper(shop, "two", second))
    with watching(plugin, shop, "--reconnect", "0s", nodes={first, second}) as watch:
        run(kubectl, shop, "one", 3)
        watch.wait(lambda: watch.trues("one") == 3, "3 of the first node")

        def replace(node: str) -> None:
            kubectl("-n", AGENTS, "delete", "pod", before[node]["metadata"]["name"], "--wait=false")
            gone = re.compile(rf"^{node}: not heard any more: (?!.*trying again)")
            watch.wait(lambda: any(gone.match(line) for line in watch.said), f"that {node} is not heard any more")
            wait_until(lambda: is_new(node), PATIENCE_SECONDS, f"another agent on {node}")

        def is_new(node: str) -> bool:
            agent = agents_of(kubectl, AGENTS).get(node)
            conditions = agent["status"].get("conditions", []) if agent else []
            ready = any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)
            return ready and agent["metadata"]["uid"] != before[node]["metadata"]["uid"]

        replace(first)
        # There is an agent again by now, which would be told of those.
        run(kubectl, shop, "one", 4)
        run(kubectl, shop, "two", 5)
        watch.wait(lambda: watch.trues("two") == 5, "5 of the node that goes on")
        assert not listening(plugin, shop, {first})
        assert watch.process.poll() is None
        replace(second)
        assert watch.process.wait(PATIENCE_SECONDS) == 3
        watch.stop()
    assert (watch.trues("one"), watch.trues("two")) == (3, 5)
    assert not [line for line in watch.said if "heard again" in line or "heard from now on" in line], watch.said
    for node in (first, second):
        assert any(re.match(rf"^{node}: not heard since [\d:.]+: .", line) for line in watch.said), watch.said
    assert watch.booked() == len(watch.events), watch.said


def through(proxy: Proxy, config: dict) -> dict:
    """The same kubeconfig, by another way."""
    [entry] = config["clusters"]
    server = urlsplit(entry["cluster"]["server"])
    entry["cluster"] |= {"server": f"https://{proxy.address}", "tls-server-name": server.hostname}
    return config


def test_when_the_way_to_the_api_server_breaks_the_streams_go_on(kubectl, agents, shop, plugin, tmp_path):
    nodes = sorted(agents)[:2]
    start(kubectl, *(sleeper(shop, f"on-{node}", node) for node in nodes))
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    server = urlsplit(config["clusters"][0]["cluster"]["server"])
    kubeconfig = tmp_path / "kubeconfig"
    with Proxy(f"{server.hostname}:{server.port or 443}") as proxy:
        kubeconfig.write_text(yaml.safe_dump(through(proxy, config)))
        with watching(plugin, shop, nodes=set(nodes), kubeconfig=str(kubeconfig)) as watch:
            for turn in (1, 2):
                for node in nodes:
                    run(kubectl, shop, f"on-{node}", 7)
                watch.wait(lambda: all(watch.trues(f"on-{node}") == 20 * turn - 13 for node in nodes), "7 of each node")
                proxy.sever(refuse=True)
                broke = lambda node: sum(line.startswith(f"{node}: not heard any more: ") for line in watch.said)  # noqa: E731
                watch.wait(lambda: all(broke(node) == turn for node in nodes), "that it is not heard any more")
                # Nobody is connected.
                for node in nodes:
                    run(kubectl, shop, f"on-{node}", 13)
                proxy.sever(refuse=False)
                watch.wait(lambda: all(watch.trues(f"on-{node}") == 20 * turn for node in nodes), "what happened meanwhile")
            assert watch.stop() == 0
    for node in nodes:
        again = [line for line in watch.said if line.startswith(f"{node}: heard again after ")]
        assert len(again) == 2 and "comes now" in again[0], watch.said
    assert not any("lost" in line and "lost 0" not in line and "told as lost" not in line for line in watch.said), watch.said


def test_a_count_is_that_of_all_nodes_together(kubectl, agents, shop, plugin):
    start(kubectl, *(sleeper(shop, f"web-{node}", node) for node in agents))
    with watching(plugin, shop, "--count", "5", nodes=set(agents)) as watch:
        for node in agents:
            run(kubectl, shop, f"web-{node}", 4)
        assert watch.process.wait(PATIENCE_SECONDS) == 0
        watch.stop()
    assert len(watch.events) == 5
    # What came is told by its node, in the books or beside them, also what was not printed.
    assert len([line for line in watch.said if ": books: " in line]) == len(agents), watch.said
    beyond = [int(line.split()[0]) for line in watch.said if "events that came beyond --count" in line]
    assert watch.booked() == 5 + sum(beyond), watch.said


@contextmanager
def user(kubectl, tmp_path, rules: dict[str, list[dict]]):
    """The kubeconfig of somebody who may do this much in these namespaces."""
    name = "dinle-e2e-user"
    made = []
    try:
        for namespace, allowed in rules.items():
            meta = {"namespace": namespace, "name": name}
            kubectl.create(
                {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": allowed},
                {
                    "apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": "RoleBinding",
                    "metadata": meta,
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                    "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}],
                },
            )
            made.append(namespace)
        config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
        for entry in config["users"]:
            entry["user"]["as"] = name
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        yield str(path)
    finally:
        for namespace in made:
            kubectl("-n", namespace, "delete", "role,rolebinding", name)


@pytest.mark.parametrize(
    ("in_agents", "in_shop", "expected"),
    [
        ([], [LIST], f"you may not list and watch pods in namespace {AGENTS}"),
        ([LIST, FORWARD], [], "you may not list and watch pods in namespace dinle-e2e-plugin-"),
        ([LIST], [LIST], "it takes the permission to `get` and `create` `pods/portforward` in that namespace"),
    ],
)
def test_what_a_user_may_not_do_is_said(kubectl, agents, shop, plugin, tmp_path, in_agents, in_shop, expected):
    start(kubectl, sleeper(shop, "web", sorted(agents)[0]))
    rules = {namespace: rules for namespace, rules in ((AGENTS, in_agents), (shop, in_shop)) if rules}
    with user(kubectl, tmp_path, rules) as kubeconfig:
        command, environment = plugin("watch", "-n", shop, kubeconfig=kubeconfig)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert (done.returncode, done.stdout) == (1, "")
    assert expected in done.stderr


def test_a_user_with_rights_in_two_namespaces_alone_is_served(kubectl, agents, shop, plugin, tmp_path):
    node = sorted(agents)[0]
    start(kubectl, sleeper(shop, "web", node))
    with user(kubectl, tmp_path, {AGENTS: [LIST, FORWARD], shop: [LIST]}) as kubeconfig:
        command, environment = plugin("workloads", "-n", shop, "web", kubeconfig=kubeconfig)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert {tuple(line.split()[:3]) for line in done.stdout.splitlines()[1:]} == {(node, shop, "web")}


def test_a_cluster_without_agents_says_so(kubectl, agents, shop, plugin):
    command, environment = plugin("watch", "-n", shop, "--agent-namespace", shop)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1
    assert f"no pod in namespace {shop} has the labels" in done.stderr
    assert "--agent-namespace names another one" in done.stderr


def test_that_some_nodes_are_not_heard_is_told_by_the_exit_status(kubectl, agents, shop, plugin):
    heard, other = sorted(agents)[:2]
    start(kubectl, sleeper(shop, "here", heard), sleeper(shop, "there", other))
    # With this label of one agent's, the other is none. Another test may have replaced the pod that was installed.
    label, pod = "dinle-e2e/heard", agents_of(kubectl, AGENTS)[heard]["metadata"]["name"]
    kubectl("-n", AGENTS, "label", "pod", pod, f"{label}=yes")
    try:
        for asked in (["workloads"], ["watch", "--explain"], ["watch", "--duration", "3s"]):
            command, environment = plugin(*asked, "-n", shop, "--agent-selector", label)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            assert done.returncode == 3, f"{asked}: {done}"
            assert re.search(rf"^{other}: .*no agent runs there$", done.stderr, re.MULTILINE), f"{asked}: {done}"
            assert heard in done.stdout or asked[-1] == "3s", f"{asked}: {done}"
    finally:
        kubectl("-n", AGENTS, "label", "pod", pod, f"{label}-")


def test_a_template_is_for_each_event_of_all_nodes(kubectl, agents, shop, plugin):
    start(kubectl, *(sleeper(shop, f"web-{node}", node) for node in agents))
    arguments = ("watch", "-n", shop, "--kinds", "exec", "--count", str(len(agents)))
    command, environment = plugin(*arguments, "-o", 'jsonpath={.workload.node} {.exec.args[1]}{"\\n"}')
    watch = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: listening(plugin, shop, set(agents)), PATIENCE_SECONDS, "streams from all nodes")
        attached(plugin, shop)
        for node in agents:
            kubectl("-n", shop, "exec", f"web-{node}", "--", "/bin/true", f"in-{node}")
        told, said = watch.communicate(timeout=PATIENCE_SECONDS)
    finally:
        watch.kill()
        watch.wait()
    assert sorted(told.splitlines()) == sorted(f"{node} in-{node}" for node in agents), said


def test_a_doctor_in_an_agents_pod_is_content(kubectl, agents):
    said = kubectl("-n", AGENTS, "exec", "daemonset/dinle", "--", "/dinle", "doctor")
    lines = [line.split() for line in said.splitlines()]
    assert not [line for line in lines if line[0] == "MISSING"], said
    [pods] = [line for line in lines if line[:2] == ["ok", "pods"]]
    assert pods[2:5] == ["kube", "tells", "of"] and pods[-1] in agents, said
    assert ["less", "rights"] in [line[:2] for line in lines], "without SYSLOG: the chart's default"
