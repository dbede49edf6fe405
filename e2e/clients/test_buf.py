"""`buf curl`: grpc-go, which learns the contract from the agent's reflection."""

import json

from conftest import NODE, PATIENCE_SECONDS

METHODS = ["Explain", "GetStatus", "Leave", "ListCapabilities", "ListSubscriptions", "ListWorkloads", "Subscribe"]


def finish(process) -> str:
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out


def messages(text: str) -> list[dict]:
    """The JSON documents that follow each other in a text."""
    decoder, found, text = json.JSONDecoder(), [], text.strip()
    while text:
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:].lstrip()
    return found


def test_lists_the_methods(curl):
    listed = finish(curl("", "--list-methods")).split()
    assert [f"dinle.v1.Observer/{method}" for method in METHODS] == sorted(
        method for method in listed if method.startswith("dinle.v1.Observer/")
    )


def test_lists_workloads(curl, pods):
    request = json.dumps({"selector": {"namespaces": ["ops"]}})
    [answer] = messages(finish(curl("/dinle.v1.Observer/ListWorkloads", "--data", request)))
    containers = [workload for workload in answer["workloads"] if "container" in workload]
    assert [(w["node"], w["namespace"], w["container"], w["state"]) for w in containers] == [
        (NODE, "ops", "rotate", "IDENTITY_STATE_CONTAINER")
    ]
    assert containers[0]["pod"] == pods["logrotate"].name
    assert containers[0]["owner"] == {"kind": "Job", "name": "logrotate-29384610"}


def test_subscribes_until_enough_events_came(curl, pods, streams, agent, observer, v1):
    request = json.dumps({"kinds": ["KIND_EXEC"], "selector": {"namespaces": ["shop"]}, "maxEvents": "3"})
    process = curl("/dinle.v1.Observer/Subscribe", "--data", request)
    streams(1)
    agent.attached(observer, v1)
    pods["web"].run("/bin/true", times=5)
    answers = messages(finish(process))
    streams(0)

    assert "plan" in answers[0]
    events = [event for answer in answers for event in answer.get("batch", {}).get("events", [])]
    assert [(event["kind"], event["workload"]["pod"], event["exec"]["args"]) for event in events] == [
        ("KIND_EXEC", "web-0", ["/bin/true"])
    ] * 3
    assert answers[-1]["heartbeat"]["end"] == "END_REASON_MAX_EVENTS"


def test_a_bad_request_is_refused_by_the_name_of_its_field(curl):
    process = curl("/dinle.v1.Observer/Subscribe", "--data", json.dumps({"kinds": ["KIND_EXEC"], "heartbeatInterval": "0.01s"}))
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode != 0
    problem = json.loads(err)
    assert problem["code"] == "invalid_argument"
    assert "heartbeat_interval" in problem["message"]
