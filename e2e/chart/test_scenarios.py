"""Whole values files: what they render, and what is refused."""

import copy
import re

import kubernetes_validate
import pytest
from readme import walk
from rendered import CHART, ROOT, SCENARIOS, check_kept, helm_python, load, objects, texts

GOLDEN = ROOT / "e2e/chart/golden"
# Kinds that are not Kubernetes' own.
OTHERS = {"PodMonitor", "PrometheusRule", "Certificate"}
WRONG = sorted((ROOT / "e2e/chart/wrong").glob("*.yaml"))


def named(path):
    return path.stem


@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
def test_renders_what_is_kept(scenario):
    parts = []
    for name, text in texts(load(scenario)).items():
        if not name.endswith(".yaml"):
            text = "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())
        # Certificates that Helm makes are others each time.
        text = re.sub(r"^(  (?:ca\.crt|tls\.crt|tls\.key): )LS0t\S+$", r"\1made", text, flags=re.MULTILINE)
        # They have files of their own.
        text = re.sub(r'^(  dinle-\w+\.json: )".+"$', r"\1kept elsewhere", text, flags=re.MULTILINE)
        parts.append(f"---\n# Source: {name}\n{text}")
    check_kept(GOLDEN / scenario.name, "".join(parts))


def test_nothing_is_kept_of_scenarios_that_are_gone():
    assert {path.name for path in GOLDEN.glob("*")} == {path.name for path in SCENARIOS}


@pytest.mark.parametrize("version", ["1.25", "1.37"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
def test_fits_the_oldest_and_the_newest_kubernetes(scenario, version):
    checked = [object for object in objects(load(scenario)) if object["kind"] not in OTHERS]
    assert checked
    for object in checked:
        kubernetes_validate.validate(object, version, strict=True)


def leaves(values: dict, path: tuple = ()) -> list[tuple]:
    """The paths of all that is no map, or an empty one."""
    found = []
    for key, value in values.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) and value else [(*path, key)]
    return found


def without(values: dict, path: tuple) -> dict:
    values = copy.deepcopy(values)
    below = values
    for key in path[:-1]:
        below = below[key]
    del below[path[-1]]
    return values


def outcome(values: dict):
    try:
        return texts(values)
    except helm_python.HelmError as problem:
        return str(problem)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
def test_each_line_of_a_scenario_does_something(scenario):
    values = load(scenario)
    for path in leaves(values):
        assert outcome(without(values, path)) != outcome(values), f"{'.'.join(path)} in {scenario.name} changes nothing"


def test_each_value_is_in_a_scenario():
    shown = {path for scenario in SCENARIOS for path in leaves(load(scenario))}
    for path, node, _ in walk():
        # Of a map or a list with keys of the user's own, any will do.
        assert "properties" in node or any(one[: len(path)] == path for one in shown), (
            f"no file in charts/dinle/scenarios sets {'.'.join(path)}: add it to everything.yaml, or to one that shows what it is for"
        )


def expected(path) -> str:
    """The first line of a wrong values file: what Helm must say."""
    return path.read_text().splitlines()[0].removeprefix("# ")


@pytest.mark.parametrize("wrong", WRONG, ids=named)
def test_a_wrong_file_is_refused_with_its_reason(wrong):
    with pytest.raises(helm_python.HelmError) as refused:
        texts(load(wrong))
    message = str(refused.value)
    if isinstance(refused.value, helm_python.HelmRenderError):
        # The sentence, whole, and no other.
        assert message.splitlines()[1:] == [expected(wrong)], message
        assert message.splitlines()[0].endswith(": these values contradict each other")
    else:
        problems = [line for line in message.splitlines() if line.startswith("- ")]
        assert len(problems) == 1 and expected(wrong) in problems[0], message


def test_several_contradictions_are_told_at_once():
    with pytest.raises(helm_python.HelmRenderError) as refused:
        texts({"extraArgs": ["--check"], "grpc": {"insecure": True}})
    assert [line.split()[0] for line in str(refused.value).splitlines()[1:]] == ["extraArgs", "grpc.insecure"]


def test_each_refusal_has_a_wrong_file():
    template = (CHART / "templates/_contradictions.tpl").read_text()
    sentences = [line for line in template.splitlines() if re.match(r"({{ \$\w+ }}|[a-z]\w+)[. ]", line)]
    assert len(sentences) > 25
    for sentence in sentences:
        pattern = ".+".join(re.escape(text) for text in re.split(r"{{.*?}}", sentence))
        assert any(re.fullmatch(pattern, expected(wrong)) for wrong in WRONG), (
            f"no file in e2e/chart/wrong is refused with: {sentence}"
        )
