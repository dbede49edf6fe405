"""Every event names its pod, whatever the order in which the kubelet, the API server and the kernel speak."""

import os
from pathlib import Path

import pytest
import yaml
from node import wait_until

from conftest import CONTAINER, PATIENCE_SECONDS, SOON_SECONDS, pod_of

# Pods in all, and how many at a time: enough for every order of events that there is, few enough for a small machine.
PODS = 50
BATCH = 5

# One of each QoS class: a kubelet nests their cgroups differently.
RESOURCES = [
    {"limits": {"cpu": "50m", "memory": "32Mi"}},
    {"requests": {"cpu": "10m"}},
    {},
]


def commands(name: str) -> list[list[str]]:
    """What the container of a pod executes, its entrypoint first. Every fifth pod ends with its first program."""
    if int(name.split("-")[1]) % BATCH == BATCH - 1:
        return [["/bin/true", name]]
    script = "/bin/true $0; exec /bin/sleep 3600"
    return [["/bin/sh", "-c", script, name], ["/bin/true", name], ["/bin/sleep", "3600"]]


def pod(namespace: str, name: str, node: str) -> dict:
    number = int(name.split("-")[1])
    container = {"command": commands(name)[0], "resources": RESOURCES[number % len(RESOURCES)]}
    return pod_of(container, namespace, name, node, labels={"app": "e2e"}, restartPolicy="Never")


def executed(events, name: str) -> list[list[str]]:
    """What the container of a pod executed, from its entrypoint on: before that the runtime itself is in its cgroup."""
    entrypoint = commands(name)[0]
    cgroup = next((event.cgroup_id for event in events if list(event.exec.args) == entrypoint), None)
    arguments = [list(event.exec.args) for event in events if event.cgroup_id == cgroup]
    return arguments[arguments.index(entrypoint) :] if cgroup else []


def test_each_exec_of_each_pod_is_named_from_the_first_one_on(kubectl, namespace, listeners):
    nodes = sorted(listeners)
    where = {f"pod-{number:02}": nodes[number % len(nodes)] for number in range(PODS)}
    names = list(where)
    for start in range(0, PODS, BATCH):
        batch = names[start : start + BATCH]
        kubectl.create(*(pod(namespace, name, where[name]) for name in batch))
        for name in batch:
            listener = listeners[where[name]]
            listener.wait(
                lambda: executed(listener.events, name) == commands(name), PATIENCE_SECONDS, f"{commands(name)} in {name}"
            )
        for name in batch:
            if len(commands(name)) == 1:
                # It may be over before the API server knows its container's id.
                continue
            listener = listeners[where[name]]
            # By an update, or by an event where the API server was quicker than the container's first program.
            listener.wait(
                lambda: any(
                    (told.pod, told.container) == (name, CONTAINER)
                    for told in (*listener.updates, *(event.workload for event in listener.events))
                ),
                SOON_SECONDS,
                f"the name of {name}'s container",
            )
        kubectl.delete_pods(namespace, *batch)

    for node, listener in listeners.items():
        assert listener.plan.node == node
        assert listener.losses == []
        for event in listener.events:
            workload = event.workload
            # Nameless, foreign and the other node's events alike would show here.
            assert (workload.node, workload.namespace) == (node, namespace), event
            assert where.get(workload.pod) == node, event
        for name in (name for name in names if where[name] == node):
            # Once more for all, now that nothing comes any more: nothing twice, nothing in another pod's name.
            own = [event for event in listener.events if event.workload.pod == name]
            assert executed(own, name) == commands(name)


def test_a_static_pod_is_named_by_its_mirror(kubectl, namespace, listeners, channels, v1):
    if not (given := os.environ.get("DINLE_STATIC_PODS")):
        pytest.skip("DINLE_STATIC_PODS does not say where a kubelet of this cluster looks for static pods")
    node, directory = given.split("=", 1)
    name = f"static-{node}"
    static = pod(namespace, "static-00", node)
    static["metadata"]["name"] = "static"
    static["spec"]["containers"][0]["command"] = ["/bin/sh", "-c", "while :; do /bin/true static; sleep 0.5; done"]
    del static["spec"]["nodeName"]
    file = Path(directory) / "dinle-static.yaml"
    file.write_text(yaml.safe_dump(static))
    try:
        listener = listeners[node]
        listener.wait(
            lambda: any(
                (event.workload.pod, list(event.exec.args)) == (name, ["/bin/true", "static"]) for event in listener.events
            ),
            PATIENCE_SECONDS,
            f"/bin/true static in {name}",
        )
        # The cgroup bears a hash of the pod's configuration; the API server knows another UID.
        uid = kubectl.json("-n", namespace, "get", "pod", name)["metadata"]["uid"]
        request = v1.ListWorkloadsRequest(selector=v1.Selector(namespaces=[namespace], pods=[name]))
        workloads = v1.ObserverStub(channels[node]).ListWorkloads(request).workloads
        assert {workload.pod_uid for workload in workloads} == {uid}
    finally:
        file.unlink()
        wait_until(
            lambda: not kubectl("-n", namespace, "get", "pod", name, "--ignore-not-found"),
            PATIENCE_SECONDS,
            "the static pod ends",
        )


def test_the_agents_are_ready_and_never_restarted(kubectl, agents):
    # Last in the file: after all of the above.
    pods = kubectl.json("-n", "dinle", "get", "pods", "-l", "app.kubernetes.io/name=dinle")["items"]
    states = {
        pod["metadata"]["name"]: (status["ready"], status["restartCount"])
        for pod in pods
        for status in pod["status"]["containerStatuses"]
    }
    assert states == {name: (True, 0) for name in agents.values()}
