"""What an exporter may hear: that of an agent that asks the API server, with one binding or another, and without."""

import json
import re
import time
from contextlib import ExitStack, suppress
from datetime import datetime, timezone

import pytest
from node import wait_until

from conftest import CHART, PATIENCE_SECONDS, SOON_SECONDS, agents_of, empty_namespace, keep_logs, values
from test_access import TICK, TICKER, WITHDRAWN_SECONDS, binding, group, user
from test_cases import pod

HOME = "dinle-e2e-exporters"
SHOP, BANK = "dinle-e2e-sold", "dinle-e2e-saved"
# As the bindings of the other tests are named, whose names these are not.
RELEASE = "export"
VIEWER = f"{RELEASE}-dinle-viewer"
EXPORTER = "dinle:exporter:audit"
# An exporter tries again within so long, and the agent's answers hold for a while.
TRIED_SECONDS = 60
# A log that was cleared away is begun anew within so long.
LOG_SECONDS = 30


def given(role: str) -> dict:
    return {
        **values(),
        "auth": {"mode": "kube", "roles": {"create": True, "exporters": role}},
        "exporters": [
            {"name": "audit", "kinds": ["exec"], "selector": {"namespaces": [SHOP]}, "stdout": {}},
            {"name": "all", "kinds": ["exec"], "prometheus": {}},
        ],
    }


def now() -> str:
    """As events have it."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


class Exporting:
    """The agent of a node, and what it exports."""

    def __init__(self, kubectl, release, agent: str):
        self.kubectl, self.release, self.agent = kubectl, release, agent

    def metric(self, name: str, exporter: str = "audit", cause: str | None = None) -> float:
        text = self.kubectl("get", "--raw", f"/api/v1/namespaces/{HOME}/pods/{self.agent}:4381/proxy/metrics")
        wanted = [f'exporter="{exporter}"', *([f'cause="{cause}"'] if cause else [])]
        lines = [line for line in text.splitlines() if line.startswith(f"dinle_exporter_{name}{{")]
        [line] = [line for line in lines if all(label in line for label in wanted)]
        return float(line.split()[-1])

    def denied(self) -> float:
        return self.metric("failures_total", cause="denied")

    def log(self) -> list[str]:
        """Not all of it: kubelets that share a machine clear away the logs of each other's pods. So nothing is asked for here that is said once."""
        with suppress(AssertionError):
            return self.kubectl("-n", HOME, "logs", self.agent).splitlines()
        return []

    def exported(self) -> list[dict]:
        """What came out of its standard output."""
        return [json.loads(line) for line in self.log() if line.startswith("{")]

    def ticks(self, since: str = "") -> list[dict]:
        """Those after a time."""
        ticks = [event for event in self.exported() if event.get("process", {}).get("comm") == "true"]
        return [event for event in ticks if event["time"] > since]

    def upgrade(self, role: str) -> None:
        self.release.upgrade(CHART, RELEASE, given(role), wait="watcher", timeout=PATIENCE_SECONDS)

    def begins(self) -> None:
        wait_until(lambda: self.metric("up") == 1, TRIED_SECONDS, "the exporter is permitted")

    def is_over(self) -> None:
        """It ends in the time that is promised, and nothing comes after it."""
        wait_until(lambda: self.metric("up") == 0, WITHDRAWN_SECONDS, "its stream ends")
        events, tries = self.metric("events_total"), self.denied()
        wait_until(lambda: self.denied() >= tries + 2, 2 * TRIED_SECONDS, "it asks again, and is refused")
        assert (self.metric("events_total"), self.metric("up")) == (events, 0)


@pytest.fixture(scope="module")
def exporting(kubectl, helm):
    """A release whose exporters nothing is bound to. A pod in each of two namespaces ticks on the node of the agent that is given."""
    with ExitStack() as stack:
        for name in (HOME, SHOP, BANK):
            stack.enter_context(empty_namespace(kubectl, name))
        release = stack.enter_context(helm(HOME))
        try:
            release.install(CHART, RELEASE, given(""), wait="watcher", timeout=PATIENCE_SECONDS)
            node, agent = min(agents_of(kubectl, HOME).items())
            for namespace in (SHOP, BANK):
                kubectl.create(pod(namespace, "tick", node, TICKER))
            for namespace in (SHOP, BANK):
                kubectl("-n", namespace, "wait", "--for=condition=Ready", f"--timeout={PATIENCE_SECONDS}s", "pod/tick")
            yield Exporting(kubectl, release, agent["metadata"]["name"])
        finally:
            keep_logs(kubectl, HOME)
            for namespace in (SHOP, BANK):
                kubectl("-n", namespace, "delete", "pod", "tick", "--ignore-not-found", "--grace-period=0", "--force", "--wait=false")
            release.uninstall(RELEASE, ignore_not_found=True)


def test_without_a_binding_nothing_is_exported_and_the_cause_is_counted(exporting):
    tries = exporting.denied()
    wait_until(lambda: exporting.denied() >= tries + 2, 2 * TRIED_SECONDS, "it asks again, and is refused")
    # The others are asked about by themselves.
    assert exporting.metric("failures_total", "all", "denied") > 0
    for name in ("audit", "all"):
        assert (exporting.metric("up", name), exporting.metric("events_total", name)) == (0, 0)
    assert exporting.exported() == []


def test_a_binding_is_all_that_an_exporter_needs_and_without_it_the_stream_ends(kubectl, exporting):
    kubectl.create(binding("RoleBinding", SHOP, "audit", VIEWER, user(EXPORTER)))
    exporting.begins()
    ticks = wait_until(exporting.ticks, LOG_SECONDS, "ticks")
    for event in ticks:
        assert event["redacted"] and event["workload"]["pod"] == "tick", event
    assert "s3cret" not in "".join(exporting.log())
    # The binding was that one's alone.
    assert exporting.metric("up", "all") == 0
    kubectl("-n", SHOP, "delete", "rolebinding", binding("RoleBinding", SHOP, "audit", VIEWER, user(EXPORTER))["metadata"]["name"])
    exporting.is_over()


def test_a_group_is_bound_to_all_of_them_and_only_what_it_may_is_heard(kubectl, exporting):
    bound = binding("RoleBinding", SHOP, "exporters", f"{RELEASE}-dinle-debugger", group("dinle:exporters"))
    kubectl.create(bound)
    exporting.begins()
    wait_until(lambda: any(event["exec"].get("args") == TICK for event in exporting.ticks()), LOG_SECONDS, "a tick with arguments")
    wait_until(lambda: exporting.metric("up", "all") == 1, TRIED_SECONDS, "the other one, too")
    # It asks for all namespaces, and hears one of them.
    path = f"/api/v1/namespaces/{HOME}/pods/{exporting.agent}:4381/proxy/metrics/all"
    series = wait_until(lambda: re.findall(r"^dinle_pod_execs_total{.*", kubectl("get", "--raw", path), re.M), SOON_SECONDS, "series")
    assert all(f'namespace="{SHOP}"' in one or 'namespace=""' in one for one in series), series
    kubectl("-n", SHOP, "delete", "rolebinding", bound["metadata"]["name"])
    exporting.is_over()


def test_the_chart_binds_what_lets_exporters_hear_everything(kubectl, exporting):
    before = now()
    exporting.upgrade("debugger")
    exporting.begins()
    [last] = wait_until(lambda: exporting.ticks(before)[-1:], LOG_SECONDS, "ticks")
    assert last["exec"]["args"] == TICK and "redacted" not in last
    wait_until(lambda: exporting.metric("up", "all") == 1, TRIED_SECONDS, "the other one, too")
    # Without arguments: the stream ends, and one without them goes on.
    denied, began = exporting.denied(), time.monotonic()
    exporting.upgrade("viewer")
    wait_until(lambda: exporting.denied() > denied, WITHDRAWN_SECONDS, "the stream ends")
    exporting.begins()
    wait_until(lambda: any(tick.get("redacted") for tick in exporting.ticks(before)), LOG_SECONDS, f"ticks without arguments, {time.monotonic() - began} s after")
    exporting.upgrade("")
    exporting.is_over()
