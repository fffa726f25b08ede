"""What people type: kubectl as it is installed, against a cluster that runs containers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from helpers.kubectl import DEPLOYMENT, IMAGE, JOB, Kubectl

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kubectl

SETTINGS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: b}
"""


def test_get_in_every_form(kubectl: Kubectl) -> None:
    kubectl.job("one")
    kubectl.finish("one")
    header, row = kubectl("get", "jobs").splitlines()
    assert header.split() == ["NAME", "STATUS", "COMPLETIONS", "DURATION", "AGE"]
    assert row.split()[:3] == ["one", "Complete", "1/1"]
    assert "Complete" in kubectl("get", "jobs", "-o", "wide")
    assert json.loads(kubectl("get", "job", "one", "-o", "json"))["spec"]["backoffLimit"] == 6
    assert "backoffLimit: 6" in kubectl("get", "job", "one", "-o", "yaml")
    assert kubectl("get", "job", "one", "-o", "jsonpath={.status.succeeded}") == "1"
    assert kubectl("get", "jobs", "-l", "colour=red", "-o", "name").strip() == "job.batch/one"
    assert kubectl("get", "jobs", "-l", "colour!=red", "-o", "name") == ""
    assert "one" in kubectl("get", "jobs", "-A")
    assert "Completed" in kubectl("get", "pods", "-o", "wide")
    assert "job.batch/one" in kubectl("get", "all")


def test_get_watches(kubectl: Kubectl) -> None:
    kubectl.job("one")
    kubectl.finish("one")
    lines = kubectl("get", "jobs", "-w", "--request-timeout=2s").splitlines()
    assert lines[1].split()[:2] == ["one", "Complete"]


def test_describe(kubectl: Kubectl) -> None:
    kubectl.job("one")
    kubectl.finish("one")
    shown = kubectl("describe", "job", "one")
    assert "Backoff Limit:    6" in shown
    assert "SuccessfulCreate" in shown
    pod = kubectl("describe", "pods", "-l", "job-name=one")
    assert "Reason:       Completed" in pod
    assert "Started" in pod
    assert "KubeletReady" in kubectl("describe", "nodes")


def test_logs(kubectl: Kubectl) -> None:
    kubectl.job("one", "for i in range(3): print('line', i)")
    kubectl.finish("one")
    assert kubectl("logs", "job/one") == "line 0\nline 1\nline 2\n"
    assert kubectl("logs", "-f", "job/one", "-c", "main") == "line 0\nline 1\nline 2\n"
    assert kubectl("logs", "job/one", "--tail=1") == "line 2\n"
    assert kubectl("logs", "job/one", "--since=1h").count("\n") == 3
    stamped = kubectl("logs", "job/one", "--timestamps").splitlines()
    assert [line.split(" ", 1)[1] for line in stamped] == ["line 0", "line 1", "line 2"]
    assert "not valid" in kubectl.refused("logs", "job/one", "-c", "none")


def test_create_what_has_a_command_of_its_own(kubectl: Kubectl) -> None:
    assert "does not read protobuf" in kubectl.refused("create", "namespace", "another")
    command = ("create", "configmap", "settings", "--from-literal=a=b")
    refused = kubectl.refused(*command)
    assert "write the object with --dry-run=client -o yaml and send it with kubectl apply -f -" in refused
    kubectl("apply", "-f", "-", stdin=kubectl(*command, "--dry-run=client", "-o", "yaml"))
    assert kubectl("get", "configmap", "settings", "-o", "jsonpath={.data.a}") == "b"
    kubectl.deployment("web")
    kubectl("expose", "deployment", "web", "--port=80", "--target-port=8080")
    assert kubectl("get", "service", "web", "-o", "jsonpath={.spec.ports[0].targetPort}") == "8080"
    kubectl("run", "two", f"--image={IMAGE}", "--restart=Never", "--command", "--", "python3", "-c", "pass")
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/two", "--timeout=30s")


def test_apply_says_what_it_did(kubectl: Kubectl) -> None:
    text = JOB.replace("NAME", "one").replace("CODE", "pass")
    assert "created" in kubectl("apply", "-f", "-", stdin=text)
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=text)
    assert "configured" in kubectl("apply", "-f", "-", stdin=text.replace("red", "blue"))
    assert kubectl("get", "job", "one", "-o", "jsonpath={.metadata.labels.colour}") == "blue"


def test_apply_refuses_misspelt_fields(kubectl: Kubectl) -> None:
    text = DEPLOYMENT.replace("NAME", "one").replace("replicas:", "replicaz:")
    done = kubectl.run("apply", "-f", "-", stdin=text)
    assert done.returncode != 0
    assert 'unknown field "spec.replicaz"' in done.stderr


def test_apply_on_the_server_is_refused(kubectl: Kubectl) -> None:
    refused = kubectl.run("apply", "--server-side", "-f", "-", stdin=DEPLOYMENT.replace("NAME", "one"))
    assert refused.returncode != 0
    assert "has no server-side apply: with kubectl, leave out --server-side" in refused.stderr


def test_change_an_object(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=SETTINGS)
    kubectl("label", "configmap", "settings", "x=y")
    kubectl("annotate", "configmap", "settings", "note=text")
    kubectl("patch", "configmap", "settings", "-p", '{"data":{"c":"d"}}')
    found: dict[str, Any] = json.loads(kubectl("get", "configmap", "settings", "-o", "json"))
    assert found["metadata"]["labels"] == {"x": "y"}
    assert found["metadata"]["annotations"] == {"note": "text"}
    assert found["data"] == {"a": "b", "c": "d"}
    kubectl("label", "configmap", "settings", "x-")
    assert kubectl("get", "configmap", "settings", "-o", "jsonpath={.metadata.labels}") == ""


def test_roll_out_and_back(kubectl: Kubectl) -> None:
    kubectl.deployment("web")
    kubectl("set", "env", "deployment/web", "VERSION=2")
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    assert "2         <none>" in kubectl("rollout", "history", "deployment/web")
    assert "rolled back" in kubectl("rollout", "undo", "deployment/web")
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    revision = "jsonpath={.metadata.annotations.deployment\\.kubernetes\\.io/revision}"
    assert kubectl("get", "deployment", "web", "-o", revision) == "3"
    kubectl("rollout", "restart", "deployment/web")
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")


def test_scale(kubectl: Kubectl) -> None:
    kubectl.deployment("web")
    assert "scaled" in kubectl("scale", "deployment/web", "--replicas=2")
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    assert kubectl("get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}") == "2"
    assert "Expected replicas to be 1" in kubectl.refused(
        "scale", "deployment/web", "--replicas=3", "--current-replicas=1"
    )


def test_events(kubectl: Kubectl) -> None:
    kubectl.job("one")
    kubectl.finish("one")
    assert "SuccessfulCreate" in kubectl("events", "--for", "job/one")
    assert "one." in kubectl("get", "events", "--sort-by=.lastTimestamp")


def test_delete_waits_until_it_is_gone(kubectl: Kubectl) -> None:
    kubectl.job("one", "import time; time.sleep(600)")
    assert "deleted" in kubectl("delete", "job", "one", "--timeout=40s", "--grace-period=1")
    assert "NotFound" in kubectl.refused("get", "job", "one")


def test_diff(kubectl: Kubectl) -> None:
    text = DEPLOYMENT.replace("NAME", "web")
    kubectl("apply", "-f", "-", stdin=text)
    assert kubectl("diff", "-f", "-", stdin=text) == ""
    changed = kubectl.run("diff", "-f", "-", stdin=text.replace("replicas: 1", "replicas: 3"))
    assert changed.returncode == 1
    assert "+  replicas: 3" in changed.stdout


def test_what_is_served(kubectl: Kubectl) -> None:
    shown = kubectl("api-resources")
    assert "deployments" in shown
    assert "batch/v1" in kubectl("api-versions")
    assert "Server Version: v1." in kubectl("version")


@pytest.mark.parametrize(
    "arguments",
    [
        ("exec", "one", "--", "true"),
        ("cp", "one:/etc/hostname", "copied"),
        ("port-forward", "pod/one", ":80"),
        ("top", "pods"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_not_served_is_refused_clearly(
    kubectl: Kubectl, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import time; time.sleep(600)"
    kubectl("run", "one", f"--image={IMAGE}", "--command", "--", "python3", "-S", "-c", code)
    kubectl("wait", "--for=condition=Ready", "pod/one", "--timeout=30s")
    said = kubectl.refused(*arguments)
    assert "embedded cluster" in said or "Metrics API not available" in said
    kubectl("delete", "pod", "one", "--grace-period=0", "--force")
