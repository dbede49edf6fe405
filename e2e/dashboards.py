#!/usr/bin/env python3
"""Draws Grafana's dashboards: what would be a thousand lines of JSON each is a line a panel here.

    e2e/dashboards.py    writes charts/dinle/dashboards/*.json
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DASHBOARDS = ROOT / "charts/dinle/dashboards"

# Grafana's grid is so wide.
WIDTH = 24
HEIGHT = 8
# The oldest Grafana whose dashboards look like this: 10.4.
SCHEMA = 39
SOURCE = {"type": "prometheus", "uid": "$datasource"}


@dataclass
class Panel:
    """A graph. Queries are pairs of PromQL and the name of what comes of it."""

    title: str
    queries: list[tuple[str, str]]
    unit: str = "short"
    help: str = ""
    width: int = WIDTH // 2
    kind: str = "timeseries"
    stacked: bool = False


@dataclass
class Row:
    """Panels below a headline: a question."""

    title: str
    panels: list[Panel] = field(default_factory=list)


def panel(number: int, x: int, y: int, panel: Panel) -> dict:
    defaults = {"unit": panel.unit}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 10,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
        options = {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}, "tooltip": {"mode": "multi", "sort": "desc"}}
    elif panel.kind == "heatmap":
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "legend": {"show": True}}
    else:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name"}
    targets = []
    for at, (query, name) in enumerate(panel.queries):
        target = {"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": query, "legendFormat": name}
        if panel.kind == "heatmap":
            target["format"] = "heatmap"
        targets.append(target)
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def variable(name: str, query: str, several: bool = True) -> dict:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": several,
        "includeAll": several,
        "allValue": ".*" if several else None,
    }


def dashboard(name: str, title: str, description: str, variables: list[dict], rows: list[Row]) -> dict:
    panels, number, y = [], 1, 0
    for row in rows:
        panels.append({"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}, "panels": []})
        number, y, x = number + 1, y + 1, 0
        for one in row.panels:
            if x + one.width > WIDTH:
                x, y = 0, y + HEIGHT
            panels.append(panel(number, x, y, one))
            number, x = number + 1, x + one.width
        y += HEIGHT
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": f"dinle-{name}",
        "title": title,
        "description": description,
        "tags": ["dinle"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, *variables]},
        "links": [{"type": "dashboards", "tags": ["dinle"], "title": "Dinle", "asDropdown": True, "includeVars": True, "keepTime": True}],
        "panels": panels,
    }


RATE = "$__rate_interval"


def rate(metric: str, where: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[{RATE}]))"


def top(query: str) -> str:
    return f"topk(10, {query})"


def questions(where: str, by: str, name: str) -> list[Row]:
    """The four questions, of the pods that `where` chooses; a line for each `by`."""

    def per(metric: str, *labels: str) -> str:
        query = rate(f"dinle_pod_{metric}", where, ", ".join([*by.split(", "), *labels]))
        return top(query) if by == "namespace, pod" else query

    return [
        Row(
            "Who deletes my file?",
            [
                Panel("Files whose content went", [(per("file_deletes_total", "method", "result"), f"{name} {{{{method}}}} {{{{result}}}}")], "ops", "Unlinked, replaced by a rename, or truncated. `dinle filesnoop --deleted` says which, and by whom.", 8),
                Panel("Files opened", [(per("file_opens_total", "result"), f"{name} {{{{result}}}}")], "ops", "", 8),
                Panel("Programs executed", [(per("execs_total"), name)], "ops", "`dinle execsnoop` says which.", 8),
            ],
        ),
        Row(
            "Why do my connections drop?",
            [
                Panel("Connections", [(per("tcp_connections_total", "direction"), f"{name} {{{{direction}}}}")], "cps", "Sessions that began: told when they end, or at the next report.", 6),
                Panel("Connects that failed", [(per("tcp_connect_failures_total", "error"), f"{name} {{{{error}}}}")], "cps", "By errno. `dinle watch --kinds tcp_connect` says to whom.", 6),
                Panel("Resets", [(per("tcp_resets_total", "direction"), f"{name} {{{{direction}}}}")], "cps", "`dinle tcpreset` says by whom, in which state, and why.", 6),
                Panel("Segments sent again", [(per("tcp_retransmits_total"), name)], "pps", "", 6),
                Panel("Bytes", [(per("tcp_bytes_total", "direction"), f"{name} {{{{direction}}}}")], "Bps", "Payload, each byte once.", WIDTH),
            ],
        ),
        Row(
            "Is the disk slow, or the program lazy?",
            [
                Panel("Bytes of requests to disks", [(per("io_bytes_total", "operation"), f"{name} {{{{operation}}}}")], "Bps", "", 8),
                Panel(
                    "Time of a request in the disk, 99th percentile",
                    [(f"histogram_quantile(0.99, sum by ({by}, operation, le) (rate(dinle_pod_io_device_seconds_bucket{{{where}}}[{RATE}])))", f"{name} {{{{operation}}}}")],
                    "s",
                    "The disk is slow.",
                    8,
                ),
                Panel("Time that requests waited for the disk", [(per("io_queued_seconds_total", "operation"), f"{name} {{{{operation}}}}")], "percentunit", "Seconds of waiting in a second: the disk has more to do than it can.", 8),
                Panel("How long requests take", [(f"sum by (le) (rate(dinle_pod_io_device_seconds_bucket{{{where}}}[{RATE}]))", "{{le}}")], "s", "", WIDTH, "heatmap"),
            ],
        ),
        Row(
            "Which packets are dropped, and why?",
            [Panel("Packets dropped", [(per("drops_total", "reason"), f"{name} {{{{reason}}}}")], "pps", "The kernel's reasons. `dinle pktdrop` says where in it.", WIDTH)],
        ),
    ]


def health(where: str) -> list[Row]:
    """How the agents fare, and what they lose."""

    def one(metric: str, more: str = "") -> str:
        return f"{metric}{{{where}{more}}}"

    return [
        Row(
            "Is all of it told?",
            [
                Panel("Events lost", [(f"{rate('dinle_events_lost_total', where, 'node, kind, stage')} > 0", "{{node}} {{kind}} {{stage}}")], "cps", "Nothing here: nothing was lost.", 12, stacked=True),
                Panel("Events delivered", [(rate("dinle_events_delivered_total", where, "node, kind"), "{{node}} {{kind}}")], "cps", "", 12, stacked=True),
                Panel("Streams refused", [(rate("dinle_streams_refused_total", where, "node, limit"), "{{node}} {{limit}}"), (rate("dinle_calls_refused_total", where, "node, reason"), "{{node}} {{reason}}")], "cps", "", 12),
                Panel("Exporters: lost and dropped", [(f"{rate('dinle_exporter_events_lost_total', where, 'node, exporter, stage')} > 0", "{{node}} {{exporter}} {{stage}}"), (f"{rate('dinle_exporter_events_dropped_total', where, 'node, exporter, cause')} > 0", "{{node}} {{exporter}} {{cause}}")], "cps", "", 12, stacked=True),
            ],
        ),
        Row(
            "What does listening cost?",
            [
                Panel("CPU", [(one("dinle_programs_cpu_ratio"), "{{node}} programs"), (one("dinle_agent_cpu_ratio"), "{{node}} agent"), (f"{one('dinle_budget_cpu_ratio')} > 0", "{{node}} budget")], "percentunit", "Of one CPU, in seconds in which it was measured.", 8),
                Panel("CPU of each program", [(top(one("dinle_program_cpu_ratio")), "{{node}} {{hook}}")], "percentunit", "", 8),
                Panel("Memory", [(one("dinle_resident_memory_bytes"), "{{node}}")], "bytes", "", 8),
                Panel("Streams", [(one("dinle_subscriptions"), "{{node}}")], "short", "", 8),
                Panel("Kinds that are told less", [(one("dinle_budget_shed"), "{{node}}")], "short", "Because the agent was over its budget.", 8),
                Panel("How full", [(f"{one('dinle_capacity_used')} / {one('dinle_capacity')}", "{{node}} {{what}}")], "percentunit", "Of everything that has a bound: docs/limits.md.", 8),
            ],
        ),
        Row(
            "Is it well?",
            [
                Panel("Pods are known", [(one("dinle_pods_synced"), "{{node}}")], "bool_yes_no", "", 8, "stat"),
                Panel("Kinds that this kernel cannot tell", [(f"{one('dinle_kind_available')} == 0", "{{node}} {{kind}}")], "bool_yes_no", "", 8, "stat"),
                Panel("Runs that the kernel skipped", [(rate("dinle_program_skipped_total", where, "node, hook"), "{{node}} {{hook}}")], "cps", "", 8),
            ],
        ),
    ]


def dashboards() -> dict[str, dict]:
    node = variable("node", "label_values(dinle_pods_synced, node)")
    namespace = variable("namespace", 'label_values({__name__=~"dinle_pod_.+"}, namespace)', several=False)
    everywhere = 'node=~"$node"'
    of_namespace = 'namespace="$namespace"'
    of_pod = 'namespace="$namespace", pod="$pod"'
    pods = variable("pod", 'label_values({__name__=~"dinle_pod_.+", namespace="$namespace"}, pod)', several=False)
    return {
        "node": dashboard(
            "node",
            "Dinle / Nodes",
            "What the pods of nodes do, and how the agents fare that listen to them.",
            [node],
            [*health(everywhere), *questions(everywhere, "namespace, pod", "{{namespace}}/{{pod}}")],
        ),
        "namespace": dashboard(
            "namespace",
            "Dinle / Namespace",
            "What the pods of a namespace do: those that do most.",
            [namespace],
            questions(of_namespace, "namespace, pod", "{{pod}}"),
        ),
        "pod": dashboard(
            "pod",
            "Dinle / Pod",
            "What one pod does.",
            [namespace, pods],
            questions(of_pod, "pod", "{{pod}}"),
        ),
    }


def text(one: dict) -> str:
    return json.dumps(one, indent=1) + "\n"


def queries(one: dict) -> list[str]:
    """Every query of a dashboard, as Grafana would send it."""
    found = [target["expr"] for panel in one["panels"] for target in panel.get("targets", [])]
    for name, value in ((RATE, "1m"), ("$node", ".*"), ("$namespace", "shop"), ("$pod", "web")):
        found = [query.replace(name, value) for query in found]
    return found


if __name__ == "__main__":
    DASHBOARDS.mkdir(exist_ok=True)
    for name, one in dashboards().items():
        (DASHBOARDS / f"{name}.json").write_text(text(one))
