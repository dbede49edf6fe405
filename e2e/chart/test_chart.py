"""The chart, rendered by Helm's own code."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

helm_python = pytest.importorskip("helm_python", reason="Helm's library is packaged for x86-64 alone")

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "charts/dinle"
MANIFEST = ROOT / "e2e/manifests/dinle.yaml"


def render(values: dict | None = None) -> dict[str, dict]:
    """What the chart renders, by kind."""
    rendered = helm_python.Chart.load(CHART).render(values, name="dinle", namespace="dinle")
    texts = [text for name, text in rendered.items() if name.endswith(".yaml")]
    objects = [object for text in texts for object in yaml.safe_load_all(text) if object]
    return {object["kind"]: object for object in objects}


def test_lints():
    report = helm_python.lint(CHART, strict=True)
    assert report["errors"] == []
    # An icon is recommended, with severity 1.
    assert [message for message in report["messages"] if message["severity"] > 1] == []


def test_runs_what_the_cluster_tests_run():
    tested = {object["kind"]: object for object in yaml.safe_load_all(MANIFEST.read_text())}
    values = {"image": {"tag": "e2e", "pullPolicy": "Never"}}
    rendered = render(values)
    assert rendered["ClusterRole"]["rules"] == tested["ClusterRole"]["rules"]
    assert rendered["ClusterRoleBinding"]["subjects"] == tested["ClusterRoleBinding"]["subjects"]
    assert rendered["ServiceAccount"]["metadata"]["name"] == tested["ServiceAccount"]["metadata"]["name"]
    assert rendered["DaemonSet"]["spec"]["template"]["spec"] == tested["DaemonSet"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_fits_the_oldest_and_the_newest_kubernetes(version):
    for object in [*yaml.safe_load_all(MANIFEST.read_text()), *render().values()]:
        kubernetes_validate.validate(object, version, strict=True)


def test_the_selector_is_in_the_labels_of_the_pod():
    spec = render({"podLabels": {"team": "platform"}})["DaemonSet"]["spec"]
    assert spec["template"]["metadata"]["labels"] == {"team": "platform", **spec["selector"]["matchLabels"]}


def test_every_value_arrives():
    values = {
        "fullnameOverride": "ears",
        "image": {"repository": "registry.example/dinle", "digest": f"sha256:{'0' * 64}"},
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccount": {"name": "listener", "annotations": {"a": "b"}},
        "extraArgs": ["--ring-bytes=1048576"],
        "extraEnv": [{"name": "RUST_LOG", "value": "debug"}],
        "priorityClassName": "system-node-critical",
        "podAnnotations": {"c": "d"},
    }
    rendered = render(values)
    pod = rendered["DaemonSet"]["spec"]["template"]
    [agent] = pod["spec"]["containers"]
    assert {object["metadata"]["name"] for object in rendered.values()} == {"ears", "listener"}
    assert rendered["ServiceAccount"]["metadata"]["annotations"] == {"a": "b"}
    assert agent["image"] == f"registry.example/dinle@sha256:{'0' * 64}"
    assert agent["args"][-1] == "--ring-bytes=1048576"
    assert agent["env"][-1] == {"name": "RUST_LOG", "value": "debug"}
    assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["spec"]["serviceAccountName"] == "listener"
    assert pod["spec"]["priorityClassName"] == "system-node-critical"
    assert pod["metadata"]["annotations"] == {"c": "d"}


def test_what_is_not_wanted_is_left_out():
    rendered = render({"rbac": {"create": False}, "serviceAccount": {"create": False}})
    assert set(rendered) == {"DaemonSet"}
    assert rendered["DaemonSet"]["spec"]["template"]["spec"]["serviceAccountName"] == "default"


@pytest.mark.parametrize(
    "values, word",
    [
        ({"imge": {}}, "imge"),
        ({"image": {"repository": ""}}, "repository"),
        ({"image": {"digest": "sha256:0"}}, "digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"extraArgs": "--check"}, "extraArgs"),
        ({"podLabels": {"a": 1}}, "podLabels"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(values, word):
    with pytest.raises(helm_python.HelmError, match=word):
        render(values)
