"""Makes the book's pages of reference: from the contract, the chart and the command line."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from node import ROOT, binary

REFERENCE = ROOT / "docs/reference"
# What is kept of what is made is written anew in the place of being compared.
RENEW = "DINLE_RENEW"

Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in Field.Type.items()}


def check_kept(path: Path, text: str) -> None:
    """The file holds this text, or is given it."""
    if os.environ.get(RENEW):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    kept = path.read_text() if path.exists() else ""
    assert kept == text, (
        f"{path.relative_to(ROOT)} is not what is made now; if the difference is wanted: {RENEW}=1 e2e/run-tests docs"
    )


def files() -> list[descriptor_pb2.FileDescriptorProto]:
    """The contract's files, with their comments."""
    proto = ROOT / "proto"
    names = sorted(str(path.relative_to(proto)) for path in proto.glob("dinle/v1/*.proto"))
    well_known = Path(protoc.__file__).with_name("_proto")
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "set"
        flags = [f"-I{proto}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={out}"]
        assert protoc.main(["protoc", *flags, *names]) == 0, "protoc does not take the contract; see its messages above"
        found = descriptor_pb2.FileDescriptorSet()
        found.ParseFromString(out.read_bytes())
    return list(found.file)


def comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """By the path of what they stand before."""
    return {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in file.source_code_info.location
        if location.leading_comments
    }


def anchor(heading: str) -> str:
    """As mdBook and GitHub make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def api() -> str:
    """Services, messages and enums of the contract."""
    services, messages, enums = [], [], []
    for file in files():
        told = comments(file)
        for at, service in enumerate(file.service):
            rows = [f"## Service {service.name}\n", told.get((6, at), ""), "", "| method | request | response | |", "|---|---|---|---|"]
            for number, method in enumerate(service.method):
                stream = "stream of " if method.server_streaming else ""
                request, response = link(method.input_type), link(method.output_type)
                rows.append(f"| `{method.name}` | {request} | {stream}{response} | {cell(told.get((6, at, 2, number), ''))} |")
            services.append("\n".join(rows) + "\n")
        for at, message in enumerate(file.message_type):
            messages.append((message.name, message_page(message, (4, at), told)))
        for at, enum in enumerate(file.enum_type):
            enums.append((enum.name, enum_page(enum, (5, at), told)))
    parts = [
        "# API\n",
        "<!-- Made of proto/dinle/v1 by e2e/docs. -->\n",
        "The gRPC API, package `dinle.v1`. Reflection (v1 and v1alpha) and health checks are on. [Other clients](../clients.md#grpc) "
        "shows how to ask.\n",
        *services,
        *(page for _, page in sorted(messages)),
        *(page for _, page in sorted(enums)),
    ]
    return "\n".join(parts)


def link(name: str) -> str:
    short = name.rsplit(".", 1)[1]
    if name.startswith(".google"):
        return f"`{name.removeprefix('.')}`"
    return f"[{short}](#{anchor(short)})"


def message_page(message, path, told) -> str:
    rows = [f"## {message.name}\n", told.get(path, ""), ""]
    if message.field:
        rows += ["| field | number | type | |", "|---|---|---|---|"]
    for at, field in enumerate(message.field):
        kind = link(field.type_name) if field.type_name else f"`{SCALARS[field.type]}`"
        if field.label == Field.LABEL_REPEATED:
            kind = entries(message, field) or f"repeated {kind}"
        elif field.proto3_optional:
            kind = f"optional {kind}"
        elif field.HasField("oneof_index"):
            kind = f"{kind}, one of `{message.oneof_decl[field.oneof_index].name}`"
        rows.append(f"| `{field.name}` | {field.number} | {kind} | {cell(told.get((*path, 2, at), ''))} |")
    return "\n".join(rows) + "\n"


def entries(message, field) -> str | None:
    """The type of a map."""
    nested = {one.name: one for one in message.nested_type}
    entry = nested.get(field.type_name.rsplit(".", 1)[-1]) if field.type_name else None
    if not entry or not entry.options.map_entry:
        return None
    key, value = entry.field
    return "map of `{}` to {}".format(SCALARS[key.type], link(value.type_name) if value.type_name else f"`{SCALARS[value.type]}`")


def enum_page(enum, path, told) -> str:
    rows = [f"## {enum.name}\n", told.get(path, ""), "", "| value | number | |", "|---|---|---|"]
    for at, value in enumerate(enum.value):
        rows.append(f"| `{value.name}` | {value.number} | {cell(told.get((*path, 2, at), ''))} |")
    return "\n".join(rows) + "\n"


def values() -> str:
    """The chart's values."""
    sys.path.insert(0, str(ROOT / "e2e/chart"))
    import json

    import readme

    described, rows = readme.comments(), []
    for path, schema, default in readme.walk():
        meaning = cell(described.get(path, ""))
        section = "properties" in schema
        if meaning or not section:
            shown = "" if section else f"`{json.dumps(default)}`"
            rows.append(f"| `{'.'.join(path)}` | {readme.kind(schema)} | {shown} | {meaning} |")
    return "\n".join(
        [
            "# Values of the chart\n",
            "<!-- Made of charts/dinle/values.yaml and values.schema.json by e2e/docs. -->\n",
            "Keys that are not listed here are refused, and so are values that contradict each other; the message says what to change. "
            f"[The chart's page]({BLOB}/charts/dinle/README.md) has examples.\n",
            "| value | type | default | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


BLOB = "https://github.com/dinle/dinle/blob/main"


def help_of(*command: str) -> str:
    # As wide as the page.
    done = subprocess.run(
        [binary(), *command, "--help", "--color", "never"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={key: value for key, value in os.environ.items() if not key.startswith("DINLE_")} | {"COLUMNS": "110"},
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def commands(*within: str) -> list[str]:
    """Names of the commands, in the order of the help: each before those that are below it, such as `config check`."""
    listed = help_of(*within).partition("Commands:\n")[2].split("\n\n", 1)[0]
    names = [name for name in re.findall(r"^  ([a-z]+)", listed, re.MULTILINE) if name != "help"]
    return [" ".join(command) for name in names for command in [(*within, name), *((below,) for below in commands(*within, name))]]


def cli() -> str:
    """The command line, as --help tells of it."""
    pages = [
        f"## dinle {name}\n\n```text\n{help_of(*name.split())}\n```\n"
        for name in commands()
    ]
    return "\n".join(
        [
            "# Command line\n",
            "<!-- Made of `dinle … --help` by e2e/docs. -->\n",
            "What `dinle COMMAND --help` says. `kubectl dinle COMMAND` is the same with `--kube`. `dinle man` writes the same as pages for "
            "`man`, and `dinle completion` what shells take.\n",
            f"```text\n{help_of()}\n```\n",
            *pages,
        ]
    )


# A family, by `encode_descriptor` or by the closure `one`, which says what all of its families have in common.
FAMILY = re.compile(r'(encode_descriptor|\bone)\(\s*"(\w+)",\s*"((?:[^"\\]|\\.)*)",\s*([^;]*?)\)(?:\?|\n\})', re.DOTALL)
ONE = re.compile(r"let mut one = .*?\n +\};", re.DOTALL)
LABEL = re.compile(r'\("(\w+)", ')


def families() -> list[tuple[str, str, str, list[str], str]]:
    """Name, type, help and labels of each metric in the code, and where it is there."""
    source = (ROOT / "agent/src/metrics.rs").read_text().split("\n#[cfg(test)]")[0]
    source = source.split("impl Collector for Metrics", 1)[1]
    exporters = (ROOT / "agent/src/metrics/exporters.rs").read_text().split("\n#[cfg(test)]")[0]
    found = families_in(source)
    found += [(*family[:-1], "with `--exporters`") for family in families_in(exporters)]
    return sorted(found)


def families_in(source: str) -> list[tuple[str, str, str, list[str], str]]:
    # What closure `one` makes, from where it is defined.
    common = re.search(r"let labels = \|.*?\n    \};", source, re.DOTALL)
    common = LABEL.findall(common[0]) if common else []
    ones = [(one.start(), "counter" if ", counter)" in one[0] else "gauge", common if "&labels(" in one[0] else []) for one in ONE.finditer(source)]
    conditions = [(m.start(), m.end() + source[m.end() :].index("\n        }\n"), m[1]) for m in re.finditer(r"\n        if let Some\((\w+)\) = \w+ \{", source)]
    found = []
    matches = list(FAMILY.finditer(source))
    for at, match in enumerate(matches):
        how, name, help, rest = match.groups()
        if how == "one":
            kind, labels = [(kind, labels) for start, kind, labels in ones if start < match.start()][-1]
        else:
            kind = "counter" if "counter" in rest else "gauge"
            until = matches[at + 1].start() if at + 1 < len(matches) else len(source)
            below = source[match.end() : until]
            labels = LABEL.findall(below) if "encode_family" in below else []
            if "Some(&" in rest:
                name += "_bytes"
        when = [condition for start, end, condition in conditions if start < match.start() < end]
        where = {"tls": "with TLS", "auth": "with `--auth kube`"}[when[0]] if when else ""
        suffix = "_total" if kind == "counter" else ""
        found.append((f"dinle_{name}{suffix}", kind, help, list(dict.fromkeys(labels)), where))
    return found


def metrics() -> str:
    """The agent's metrics."""
    rows = [
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {cell(help)} | {where} |"
        for name, kind, help, labels, where in families()
    ]
    return "\n".join(
        [
            "# Metrics\n",
            "<!-- Made of agent/src/metrics.rs and agent/src/metrics/exporters.rs by e2e/docs. -->\n",
            "What an agent serves at `/metrics` (`--http`), for Prometheus, in the format of OpenMetrics. It asks nobody who they are, and "
            "names neither pods nor users. What an agent that exports tells of that is [explained there](../exporters.md#when-a-receiver-is-slow-or-away); "
            "series of pods are at [`/metrics/NAME`](../exporters.md#prometheus).\n",
            "| name | type | labels | meaning | |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
