"""The chart as a whole, and what holds whatever the values are."""

import base64
import json
import re
import subprocess

import kubernetes_validate
import dashboards
import pytest
import yaml
from readme import comments, readme, walk
from rendered import CHART, ROOT, by_kind, check_kept, helm_python, is_test, load, objects, texts


def found(pattern: str, file: str = "config.rs") -> str:
    match = re.search(pattern, (ROOT / "agent/src" / file).read_text())
    assert match, f"agent/src/{file} has nothing like {pattern}: change the test with it"
    return match[1]


@pytest.mark.parametrize("kubernetes", ["v1.25.0", "v1.37.0"])
def test_lints(kubernetes):
    report = helm_python.lint(CHART, strict=True, kube_version=kubernetes)
    assert (report["errors"], report["messages"]) == ([], [])


def test_the_readme_is_of_these_values():
    check_kept(CHART / "README.md", readme())


def test_each_value_has_a_default_and_a_comment():
    described = comments()
    schema = {path: node for path, node, _ in walk()}
    defaults = load(CHART / "values.yaml")
    for path, node in schema.items():
        value = defaults
        for key in path:
            assert isinstance(value, dict) and key in value, (
                f"{'.'.join(path)} is in values.schema.json, but not in values.yaml"
            )
            value = value[key]
        assert described[path] or "properties" in node, f"{'.'.join(path)} has no comment in values.yaml"


def test_every_object_of_ours_refuses_unknown_keys():
    for path, node, _ in walk():
        if "properties" in node:
            assert node["additionalProperties"] is False, f"{'.'.join(path)} in values.schema.json takes any key"


def test_dashboards_come_as_they_are():
    made = by_kind({"dashboards": {"enabled": True, "annotations": {"folder": "Nodes"}}})["ConfigMap"]
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert made["metadata"]["annotations"] == {"folder": "Nodes"}
    assert {name: json.loads(text) for name, text in made["data"].items()} == {
        f"dinle-{name}.json": one for name, one in dashboards.dashboards().items()
    }


def test_alerts_are_those_of_the_file():
    made = by_kind({"alerts": {"enabled": True}})["PrometheusRule"]
    assert made["spec"] == load(CHART / "alerts/dinle.yaml")


def test_what_helm_packs_is_what_a_release_needs(tmp_path):
    archive = helm_python.package(CHART, destination=tmp_path)
    chart = helm_python.Chart.load(archive)
    names = {file["name"] for file in chart.files}
    assert "README.md" in names
    assert [name for name in names if "scenarios" in name] == []
    assert chart.render(name="dinle", namespace="dinle") == helm_python.Chart.load(CHART).render(
        name="dinle", namespace="dinle"
    )


def test_artifact_hub_can_read_the_annotations():
    chart = load(CHART / "Chart.yaml")
    annotations = {name.removeprefix("artifacthub.io/"): value for name, value in chart["annotations"].items()}
    assert annotations["category"] in {
        "ai-machine-learning", "database", "integration-delivery", "monitoring-logging", "networking", "security", "storage",
        "streaming-messaging",
    }  # fmt: skip
    assert annotations["license"] == "Apache-2.0"
    changes = yaml.safe_load(annotations["changes"])
    assert changes and {change["kind"] for change in changes} <= {
        "added",
        "changed",
        "deprecated",
        "removed",
        "fixed",
        "security",
    }
    links = [link["url"] for link in yaml.safe_load(annotations["links"])]
    for url in [*links, chart["icon"]]:
        path = re.fullmatch(r"https://(?:github|raw\.githubusercontent)\.com/dinle/dinle/(?:tree/|blob/)?main/(.+)", url)
        assert path and (ROOT / path[1]).exists(), f"{url} names nothing in this repository"


def test_nothing_is_allowed_that_is_not_needed():
    pod = by_kind()["DaemonSet"]["spec"]["template"]["spec"]
    [agent] = pod["containers"]
    assert agent["securityContext"] == {
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "capabilities": {"drop": ["ALL"], "add": ["BPF", "PERFMON"]},
    }
    assert [key for key in pod if key.startswith("host")] == []
    assert [mount for mount in agent["volumeMounts"] if not mount["readOnly"]] == []
    assert by_kind()["ClusterRole"]["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    assert [argument for argument in agent["args"] if argument.startswith(("--listen", "--insecure"))] == []


def test_the_grace_period_is_longer_than_the_drain():
    drain = int(found(r"DRAIN: Duration = Duration::from_secs\((\d+)\)"))
    exporters = int(found(r"DRAIN: std::time::Duration = std::time::Duration::from_secs\((\d+)\)", "export.rs"))
    reader = int(found(r"const PATIENCE: Duration = Duration::from_secs\((\d+)\)", "app.rs"))
    [grace] = [node for path, node, _ in walk() if path == ("terminationGracePeriodSeconds",)]
    # One after the other.
    assert grace["minimum"] > drain + exporters + reader
    assert by_kind()["DaemonSet"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= grace["minimum"]
    told = comments()[("terminationGracePeriodSeconds",)]
    assert f"Streams get {drain} seconds" in told and f"exporters {exporters} to bring" in told


def test_exporters_may_have_each_kind():
    contract = "".join(path.read_text() for path in (ROOT / "proto/dinle/v1").glob("*.proto"))
    kinds = {name.lower() for name in re.findall(r"^  KIND_(\w+) = [1-9]", contract, re.MULTILINE)}
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["exporters"]["items"]["properties"]["kinds"]["items"]["enum"]) == kinds


EXPORTERS = [{"name": "audit", "kinds": ["exec"], "stdout": {}}]
SENSORS = ["process", "file", "tcp", "block", "drop"]


@pytest.mark.parametrize(
    "values, role",
    [
        ({"auth": {"mode": "kube"}, "exporters": EXPORTERS}, "debugger"),
        ({"auth": {"mode": "kube", "roles": {"exporters": "viewer"}}, "exporters": EXPORTERS}, "viewer"),
        ({"auth": {"mode": "kube", "roles": {"create": True}}, "exporters": EXPORTERS}, "debugger"),
        ({"auth": {"mode": "kube", "roles": {"exporters": ""}}, "exporters": EXPORTERS}, None),
        ({"auth": {"mode": "kube"}, "exporters": EXPORTERS, "rbac": {"create": False}}, None),
        ({"auth": {"mode": "kube"}}, None),
        ({"exporters": EXPORTERS}, None),
    ],
)
def test_exporters_have_the_role_that_was_chosen_and_it_is_there(values, role):
    made = [object for object in objects(values) if not is_test(object)]
    roles = {object["metadata"]["name"]: object["rules"] for object in made if object["kind"] == "ClusterRole"}
    bindings = [object for object in made if object["kind"] == "ClusterRoleBinding" and object["subjects"][0]["kind"] == "Group"]
    told = "group dinle:exporters" in texts(values)["dinle/templates/NOTES.txt"]
    assert told == (bool(values.get("exporters")) and "auth" in values)
    if role is None:
        assert bindings == []
        assert set(roles) <= {"dinle"}
        return
    [binding] = bindings
    assert binding["subjects"] == [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": found('EXPORTERS: &str = "(.+)"', "admission.rs")}]
    assert binding["roleRef"]["name"] == f"dinle-{role}"
    arguments = [f"{sensor}/args" for sensor in SENSORS] if role == "debugger" else []
    assert roles[f"dinle-{role}"][0] == {"apiGroups": ["dinle.dev"], "resources": SENSORS + arguments, "verbs": ["watch"]}
    # Others are made only if they are asked for.
    assert ("dinle-viewer" in roles) == (role == "viewer" or "create" in values["auth"].get("roles", {}))


def test_ports_are_those_that_the_agent_and_its_clients_take_by_default():
    grpc, http = (
        found(r'default_value = "127.0.0.1:(\d+)",\s*env = "DINLE_LISTEN"'),
        found(r'"127.0.0.1:(\d+)",\s*env = "DINLE_HTTP"'),
    )
    exposed = {"grpc": {"insecure": True}, "networkPolicy": {"enabled": True, "grpcFrom": [{"podSelector": {}}]}}
    [agent] = by_kind(exposed)["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert f"--http=0.0.0.0:{http}" in agent["args"] and f"--listen=0.0.0.0:{grpc}" in agent["args"]
    assert {port["name"]: str(port["containerPort"]) for port in agent["ports"]} == {"http": http, "grpc": grpc}
    [rule] = by_kind(exposed)["NetworkPolicy"]["spec"]["ingress"]
    assert [str(port["port"]) for port in rule["ports"]] == [grpc]
    assert f" {grpc}:{grpc}\n" in texts()["dinle/templates/NOTES.txt"]


@pytest.mark.parametrize(
    "values",
    [{}, {"podLabels": {"a": "b"}, "commonLabels": {"c": "d"}}, {"nameOverride": "ears"}, {"fullnameOverride": "ears"}],
)
def test_selectors_select_the_agents_and_nothing_else(values):
    values |= {"podMonitor": {"enabled": True}, "networkPolicy": {"enabled": True, "metricsFrom": [{"podSelector": {}}]}}
    kinds = by_kind(values, name="one")
    labels = kinds["DaemonSet"]["spec"]["template"]["metadata"]["labels"].items()
    [test] = [object for object in objects(values, name="one") if is_test(object) and object["kind"] == "Pod"]
    # `kubectl dinle` looks for these, whatever the names are.
    assert {("app.kubernetes.io/part-of", "dinle"), ("app.kubernetes.io/component", "agent")} <= labels
    selectors = [
        kinds["DaemonSet"]["spec"]["selector"]["matchLabels"],
        kinds["PodMonitor"]["spec"]["selector"]["matchLabels"],
        kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert set(selector) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
        assert selector.items() <= labels
        # A DaemonSet would take the test's pod for one of its own.
        assert not selector.items() <= test["metadata"]["labels"].items()


def test_a_new_version_of_the_chart_alone_replaces_no_agent():
    template = by_kind()["DaemonSet"]["spec"]["template"]
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(template["metadata"]["labels"])


def test_long_names_are_cut_so_that_each_object_may_have_them():
    names = [object["metadata"]["name"] for object in objects({"nameOverride": "e" * 53}, name="r" * 53)]
    assert names and max(map(len, names)) <= 63


def test_probes_restart_an_agent_only_for_what_a_restart_mends():
    [agent] = by_kind()["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    paths = {name: agent[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}


def test_the_test_goes_where_agents_are_and_may_do_no_more_than_people():
    values = {"nodeSelector": {"pool": "storage"}, "fullnameOverride": "ears", "namespaceOverride": "other"}
    tests = {object["kind"]: object for object in objects(values) if is_test(object)}
    assert set(tests) == {"ServiceAccount", "Role", "RoleBinding", "Pod"}
    assert {(object["metadata"]["name"], object["metadata"]["namespace"]) for object in tests.values()} == {
        ("ears-test", "other")
    }
    assert tests["Role"]["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
    ]
    pod = tests["Pod"]["spec"]
    assert pod["nodeSelector"] == by_kind(values)["DaemonSet"]["spec"]["template"]["spec"]["nodeSelector"]
    [container] = pod["containers"]
    assert container["args"][:2] == ["selftest", "--kube"]
    assert {variable["name"] for variable in container["env"]} == {"POD_NAME", "POD_NAMESPACE", "NODE_NAME"}
    for object in tests.values():
        policy = object["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
        # A pod that failed stays for its log.
        assert policy == "before-hook-creation,hook-succeeded"


def test_without_tests_nothing_of_them_is_left():
    values = {"tests": {"enabled": False}}
    assert [object for object in objects(values) if is_test(object)] == []
    assert "helm test" not in texts(values)["dinle/templates/NOTES.txt"]


def test_certificates_that_helm_makes_are_those_that_both_sides_ask_for(tmp_path):
    values = {"grpc": {"tls": {"generate": True}}, "fullnameOverride": "ears"}
    secrets = {object["metadata"]["name"]: object for object in objects(values) if object["kind"] == "Secret"}
    assert set(secrets) == {"ears-tls", "ears-client-tls"}
    for name, secret in secrets.items():
        files = {file: tmp_path / f"{name}.{file}" for file in ["ca.crt", "tls.crt", "tls.key"]}
        for file, path in files.items():
            path.write_bytes(base64.b64decode(secret["data"][file]))
        purpose = ["-purpose", "sslserver", "-verify_hostname", "ears"] if name == "ears-tls" else ["-purpose", "sslclient"]
        openssl("verify", *purpose, "-CAfile", files["ca.crt"], files["tls.crt"])
        told = openssl("x509", "-noout", "-checkend", 9 * 365 * 86400, "-pubkey", "-in", files["tls.crt"])
        assert openssl("pkey", "-pubout", "-in", files["tls.key"]) in told
    authorities = {secret["data"]["ca.crt"] for secret in secrets.values()}
    assert len(authorities) == 1
    subject = openssl("x509", "-noout", "-subject", "-in", tmp_path / "ears-client-tls.tls.crt")
    # The user, in what agents log.
    assert subject.split() == ["subject=CN", "=", "ears-client"]


def openssl(*arguments) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_names_that_look_like_numbers_stay_names(version):
    values = {"auth": {"mode": "kube", "roles": {"create": True}}, "networkPolicy": {"enabled": True}, "podMonitor": {"enabled": True}}
    values |= {"nameOverride": "007", "priorityClassName": "1e3", "grpc": {"tls": {"secretName": "0x10"}}, "serviceAccount": {"name": "12"}}
    values["networkPolicy"] |= {"metricsFrom": [{"podSelector": {}}], "grpcFrom": [{"podSelector": {}}]}
    for object in objects(values, name="2024", namespace="123"):
        texts = [object["metadata"]["name"], *object["metadata"]["labels"].values()]
        assert all(isinstance(text, str) for text in texts), object["metadata"]
        if object["kind"] != "PodMonitor":
            kubernetes_validate.validate(object, version, strict=True)
