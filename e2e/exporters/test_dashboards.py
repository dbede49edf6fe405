"""Dashboards and alerts: what they ask for is there, and Prometheus takes it."""

import json
import re
import subprocess
from pathlib import Path

import dashboards
import pytest
import yaml
from conftest import RECEIVERS, ROOT

ALERTS = ROOT / "charts/dinle/alerts/dinle.yaml"
PROMTOOL = RECEIVERS / "usr/bin/promtool"
QUERIES = sorted({query for one in dashboards.dashboards().values() for query in dashboards.queries(one)})


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> list[dict]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("name", dashboards.dashboards())
def test_the_file_is_what_is_drawn(name):
    drawn = dashboards.text(dashboards.dashboards()[name])
    assert (dashboards.DASHBOARDS / f"{name}.json").read_text() == drawn, "run e2e/dashboards.py"


def test_there_is_no_other_file():
    assert {path.stem for path in dashboards.DASHBOARDS.glob("*.json")} == set(dashboards.dashboards())


def test_panels_do_not_overlap_and_are_numbered():
    for one in dashboards.dashboards().values():
        taken = set()
        for panel in one["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken and max(x for x, _ in cells) < dashboards.WIDTH, panel["title"]
            taken |= cells
        numbers = [panel["id"] for panel in one["panels"]]
        assert len(numbers) == len(set(numbers))


def test_prometheus_takes_each_query(tmp_path):
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(QUERIES)]
    file = tmp_path / "queries.yaml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", file)


def test_each_alert_speaks_when_it_should_and_is_silent_else(tmp_path):
    promtool("check", "rules", ALERTS)
    for path in (ALERTS, ROOT / "e2e/exporters/alerts.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    promtool("test", "rules", tmp_path / "alerts.yaml")
    tried = {
        (test["alertname"], bool(test["exp_alerts"]))
        for one in yaml.safe_load((tmp_path / "alerts.yaml").read_text())["tests"]
        for test in one["alert_rule_test"]
    }
    assert tried == {(rule["alert"], speaks) for rule in alerts() for speaks in (True, False)}


def series() -> set[str]:
    """What an exporter of the kind `prometheus` may tell of a pod: a family shows itself only when something has happened."""
    code = (ROOT / "agent/src/export/series.rs").read_text()
    families = re.findall(r'^    \w+ "(\w+)" "dinle\.\S+" "\S+" \[.*?\] \S+ (true|false) "', code, re.MULTILINE)
    assert len(families) > 10
    endings = {"true": ["_bucket", "_sum", "_count"], "false": ["_total"]}
    return {f"dinle_pod_{name}{ending}" for name, histogram in families for ending in endings[histogram]}


def test_what_they_ask_for_is_there(exporting, tmp_path):
    """An agent with everything that adds metrics, but for a certificate and an API server that is asked who callers are."""
    agent = exporting([{"name": "lines", "kinds": ["exec"], "file": {"path": str(tmp_path / "lines")}}])
    there = series() | {"dinle_tls_certificate_expiry_timestamp_seconds", "dinle_calls_refused_total"}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", agent.agent.get("/metrics")[1], re.MULTILINE):
        there.add(f"{name}_total" if kind == "counter" else name)
    asked = {name for query in [*QUERIES, *(rule["expr"] for rule in alerts())] for name in re.findall(r"\bdinle_\w+", query)}
    assert asked - there == set()
    # And what the agent adds for who is known by a token or a certificate is in its code.
    code = (ROOT / "agent/src/metrics.rs").read_text()
    assert '"tls_certificate_expiry_timestamp_seconds"' in code and '"calls_refused"' in code
