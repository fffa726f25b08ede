"""What people change with kubectl: patches, server-side apply, and the commands that make one object each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.kubectl import DEPLOYMENT, IMAGE, Kubectl

pytestmark = pytest.mark.kubectl

CONFIGMAP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {kind: settings}}
data: {a: "1", b: "1"}
"""


def data(kubectl: Kubectl) -> dict[str, str]:
    found: dict[str, str] = json.loads(kubectl("get", "configmap", "settings", "-o", "json")).get("data", {})
    return found


def managers(kubectl: Kubectl) -> set[str]:
    path = "jsonpath={.metadata.managedFields[*].manager}"
    return set(kubectl("get", "configmap", "settings", "--show-managed-fields", "-o", path).split())


def test_create_from_a_file(kubectl: Kubectl) -> None:
    assert "configmap/settings created" in kubectl("create", "-f", "-", stdin=CONFIGMAP)
    again = kubectl.run("create", "-f", "-", stdin=CONFIGMAP)
    assert again.returncode != 0
    assert 'configmaps "settings" already exists' in again.stderr
    wrong = kubectl.run("create", "-f", "-", stdin=CONFIGMAP.replace("data", "date"))
    assert 'unknown field "date"' in wrong.stderr


def test_patches_of_every_type(kubectl: Kubectl) -> None:
    kubectl(
        "create", "-f", "-", stdin=DEPLOYMENT.replace("NAME", "web").replace("replicas: 1", "replicas: 0")
    )

    def spec() -> Any:
        return json.loads(kubectl("get", "deployment", "web", "-o", "json"))["spec"]

    change: Any = [
        {"op": "test", "path": "/spec/replicas", "value": 0},
        {"op": "add", "path": "/spec/template/spec/containers/0/args", "value": ["x"]},
    ]
    kubectl("patch", "deployment", "web", "--type=json", "-p", json.dumps(change))
    assert spec()["template"]["spec"]["containers"][0]["args"] == ["x"]
    change[0]["value"] = 1
    said = kubectl.refused("patch", "deployment", "web", "--type=json", "-p", json.dumps(change))
    assert "The request is invalid" in said
    # A strategic patch merges containers by name; a merge patch has the whole list.
    containers = {"containers": [{"name": "main", "env": [{"name": "A", "value": "1"}]}]}
    change = json.dumps({"spec": {"template": {"spec": containers}}})
    kubectl("patch", "deployment", "web", "--type=strategic", "-p", change)
    (container,) = spec()["template"]["spec"]["containers"]
    assert (container["args"], container["env"]) == (["x"], [{"name": "A", "value": "1"}])
    containers["containers"][0]["image"] = "other"
    change = json.dumps({"spec": {"template": {"spec": containers}}})
    kubectl("patch", "deployment", "web", "--type=merge", "-p", change)
    (container,) = spec()["template"]["spec"]["containers"]
    assert (container["image"], "args" in container) == ("other", False)


def test_run_with_arguments_alone(kubectl: Kubectl) -> None:
    code = "print('ran')"
    kubectl("run", "one", f"--image={IMAGE}", "--restart=Never", "--", "python3", "-S", "-c", code)
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/one", "--timeout=30s")
    assert kubectl("logs", "one") == "ran\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("auth", "whoami"), "the selfsubjectreviews API is not enabled"),
        (("auth", "can-i", "--list"), "could not find the requested resource"),
        (("auth", "can-i", "create", "jobs"), "could not find the requested resource"),
        (("explain", "job.spec"), "not found in OpenAPI schema"),
        (("create", "token", "default"), "could not find the requested resource"),
        (("create", "role", "r", "--verb=get", "--resource=pods"), "could not find the requested resource"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_not_there(kubectl: Kubectl, arguments: tuple[str, ...], said: str) -> None:
    assert said in kubectl.refused(*arguments)


def test_pruning_needs_the_kinds_to_be_named(kubectl: Kubectl) -> None:
    prune = ("apply", "--prune", "-l", "kind=settings", "-f", "-")
    kubectl("apply", "-f", "-", stdin=CONFIGMAP)
    other = CONFIGMAP.replace("name: settings", "name: other")
    every = kubectl.run(*prune, stdin=other)
    assert every.returncode != 0
    assert 'no matches for kind "' in every.stderr
    pruned = kubectl(*prune, "--prune-allowlist=core/v1/ConfigMap", stdin=other)
    assert "configmap/settings pruned" in pruned
