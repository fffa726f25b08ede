"""What people look at with kubectl: columns, descriptions, watches, logs, events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.kubectl import DEPLOYMENT, Kubectl, container

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kubectl

SLEEP = "import time; time.sleep(600)"


def opens(gate: Path, before: str = "", after: str = "") -> str:
    """A program that goes on once the file is there."""
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)"
    return f"{before}\n{wait}\n{after}"


def columns(line: str, *names: str) -> list[str]:
    """Some of the columns of a table's only row."""
    header, row = line.splitlines()
    return [row[header.index(name) :].split("  ")[0].strip() for name in names]


def test_a_watch_shows_each_change(kubectl: Kubectl, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    kubectl.pod("one", restartPolicy="Never", containers=[container("main", opens(gate))])
    kubectl("wait", "--for=condition=Ready", "pod/one", "--timeout=30s")
    with kubectl.reading("get", "pod", "one", "-w") as lines:
        assert lines.readline().split()[:3] == ["NAME", "READY", "STATUS"]
        assert lines.readline().split()[:3] == ["one", "1/1", "Running"]
        gate.touch()
        assert next(line for line in lines if "Completed" in line).split()[:2] == ["one", "0/1"]


def test_a_followed_log_ends_with_its_container(kubectl: Kubectl, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = opens(gate, "print('first')", "print('last')")
    kubectl.pod("one", restartPolicy="Never", containers=[container("main", code)])
    kubectl("wait", "--for=condition=Ready", "pod/one", "--timeout=30s")
    with kubectl.reading("logs", "-f", "one") as lines:
        assert lines.readline() == "first\n"
        gate.touch()
        assert lines.read() == "last\n"


def test_a_log_since_a_moment_leaves_out_what_was_before(kubectl: Kubectl) -> None:
    code = "import time\nfor i in range(10_000): print('tick', i); time.sleep(0.2)"
    kubectl.pod("one", terminationGracePeriodSeconds=0, containers=[container("main", code)])
    kubectl("wait", "--for=condition=Ready", "pod/one", "--timeout=30s")
    with kubectl.reading("logs", "-f", "one", "--timestamps") as lines:
        moment = next(line for line in lines if line.endswith(" tick 12\n")).split(" ")[0]
    # Seconds are what is asked with: tick 12 is at most one second after this moment, tick 0 two before.
    later = kubectl("logs", "one", f"--since-time={moment}").splitlines()
    assert "tick 12" in later
    assert "tick 0" not in later
    assert "tick 0" not in kubectl("logs", "one", "--since=1s").splitlines()
    assert "tick 0" in kubectl("logs", "one", "--since=1h").splitlines()


def test_logs_of_one_of_several_containers(kubectl: Kubectl) -> None:
    both = [container(name, f"print('this is {name}')") for name in ("a", "b")]
    kubectl.pod("one", restartPolicy="Never", containers=both)
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/one", "--timeout=30s")
    assert kubectl("logs", "one", "-c", "b") == "this is b\n"
    assert 'Defaulted container "a" out of: a, b' in kubectl.run("logs", "one").stderr
    every = kubectl("logs", "one", "--all-containers", "--prefix")
    assert sorted(every.splitlines()) == ["[pod/one/a] this is a", "[pod/one/b] this is b"]


def test_columns_of_pods(kubectl: Kubectl) -> None:
    side = container("side", SLEEP, restartPolicy="Always")
    kubectl.pod(
        "one",
        terminationGracePeriodSeconds=0,
        initContainers=[side],
        containers=[container("main", SLEEP)],
    )
    kubectl("wait", "--for=condition=Ready", "pod/one", "--timeout=30s")
    ip = kubectl("get", "pod", "one", "-o", "jsonpath={.status.podIP}")
    shown = kubectl("get", "pod", "one", "-o", "wide")
    assert columns(shown, "READY", "STATUS", "IP", "NODE") == [*("2/2", "Running", ip, "node1")]


def test_a_pod_of_which_one_container_has_ended_is_not_ready(kubectl: Kubectl) -> None:
    both = [container("ends", "pass"), container("stays", SLEEP)]
    kubectl.pod("one", restartPolicy="Never", terminationGracePeriodSeconds=0, containers=both)
    ended = "jsonpath={.status.containerStatuses[0].state.terminated.reason}=Completed"
    kubectl("wait", f"--for={ended}", "pod/one", "--timeout=30s")
    assert columns(kubectl("get", "pod", "one"), "READY", "STATUS") == ["1/2", "NotReady"]


def test_describe_a_node(kubectl: Kubectl) -> None:
    done = kubectl.run("describe", "node", "node1")
    assert "kubelet is posting ready status" in done.stdout


def test_describe_a_deployment_and_its_service(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=DEPLOYMENT.replace("NAME", "web"))
    kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    shown = kubectl("describe", "deployment", "web")
    assert "1 desired | 1 updated | 1 total | 1 available | 0 unavailable" in shown
    assert "StrategyType:           RollingUpdate" in shown
    assert "NewReplicaSet:   web-" in shown
    assert "ScalingReplicaSet" in shown
    kubectl("expose", "deployment", "web", "--port=80", "--target-port=8080")
    ip = kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}")
    endpoints = "jsonpath={.endpoints[0].conditions.ready}=true"
    kubectl(
        *("wait", f"--for={endpoints}", "endpointslice", "-l", "kubernetes.io/service-name=web"),
        "--timeout=30s",
    )
    service = kubectl("describe", "service", "web")
    assert "Selector:                 app=web" in service
    assert f"{ip}:8080" in service


def test_events(kubectl: Kubectl) -> None:
    kubectl.pod("one", restartPolicy="Never", containers=[container("main", "pass")])
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/one", "--timeout=30s")
    reasons = [line.split()[2] for line in kubectl("events", "--for", "pod/one").splitlines()[1:]]
    assert sorted(reasons) == ["Created", "Pulled", "Scheduled", "Started"]
