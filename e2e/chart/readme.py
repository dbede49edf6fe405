"""Makes the chart's README of values.yaml, whose comments it takes, values.schema.json and the scenarios."""

import json

import yaml
from rendered import CHART, SCENARIOS

INTRODUCTION = """\
# The chart of Dinle

An agent on each node, as a DaemonSet. It listens to the node's pods with eBPF while somebody subscribes.

```sh
helm install dinle charts/dinle --namespace dinle --create-namespace --set image.repository=REGISTRY/dinle
helm test dinle --namespace dinle --logs
```

`helm install` then prints how to listen. Kubernetes 1.20 or later; the objects are checked against the schemas of 1.25 and 1.37.

## What it may do

| | by default | more |
|---|---|---|
| user | 0, because Kubernetes gives capabilities to no other | |
| capabilities | none but `BPF` and `PERFMON` | `kernelSymbols`, `budget.measurePrograms`, `extraCapabilities`, `privileged` |
| seccomp | `RuntimeDefault` | `securityContext` |
| file system | read-only; the node's `/sys/fs/cgroup` is mounted, read-only | `extraVolumes` |
| network | the pod's own; gRPC on its loopback, metrics and probes on its address | `grpc.tls`, `grpc.insecure` |
| processes | the pod's own | `hostPID` |
| the API server | get, list and watch pods | `rbac.create: false` for less |

Who may get or create `pods/portforward` in the agents' namespace may listen to every pod of the cluster.

An agent that is told to stop ends its streams in order: each gets its last events and its books. So the grace period must be longer than the time for that.

## Values

Keys that are not listed here are refused, and so are values that contradict each other; the message says what to change.

| value | type | default | meaning |
|---|---|---|---|
"""

EXAMPLES = """
## Examples

Each file in `scenarios` is a complete one, for `--values`:

| file | for |
|---|---|
"""


def comments() -> dict[tuple[str, ...], str]:
    """The comment above each key of values.yaml."""
    found, path, lines = {}, [], []
    for line in (CHART / "values.yaml").read_text().splitlines():
        text = line.strip()
        if text.startswith("# "):
            lines.append(text[2:])
        elif not text:
            lines = []
        else:
            # Two spaces a level.
            depth = (len(line) - len(line.lstrip())) // 2
            path = [*path[:depth], text.split(":", 1)[0]]
            found[tuple(path)] = " ".join(lines)
            lines = []
    return found


def kind(schema: dict) -> str:
    if "enum" in schema:
        return " or ".join(f"`{value}`" if value else "nothing" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(kind(one) for one in schema["anyOf"])
    if schema["type"] == "array":
        return "list"
    return {"object": "map", "boolean": "true or false", "integer": "number", "number": "number", "string": "text"}[schema["type"]]


def walk() -> list[tuple[tuple[str, ...], dict, object]]:
    """Each key that the schema names, with its schema and its default; sections before what is in them."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    found = []

    def visit(path: tuple[str, ...], node: dict, default: object) -> None:
        if reference := node.get("$ref"):
            node = schema["definitions"][reference.rsplit("/", 1)[1]]
        if path:
            found.append((path, node, default))
        for name, below in node.get("properties", {}).items():
            # Helm's own, with nothing of ours in it.
            if (*path, name) != ("global",):
                visit((*path, name), below, default.get(name) if isinstance(default, dict) else None)

    visit((), schema, yaml.safe_load((CHART / "values.yaml").read_text()))
    return found


def readme() -> str:
    described = comments()
    rows = []
    for path, schema, default in walk():
        meaning = described.get(path, "").replace("|", "\\|")
        section = "properties" in schema
        if meaning or not section:
            shown = "" if section else f"`{json.dumps(default)}`"
            rows.append(f"| `{'.'.join(path)}` | {kind(schema)} | {shown} | {meaning} |\n")
    examples = [
        f"| [{path.name}](scenarios/{path.name}) | {path.read_text().splitlines()[0].removeprefix('# ')} |\n"
        for path in SCENARIOS
    ]
    return "".join([INTRODUCTION, *rows, EXAMPLES, *examples])
