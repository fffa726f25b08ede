"""The cells that kubectl prints: as the API server makes them of an object."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from nighttrain.providers.local.cluster.store.resources import NODES, PODS, SERVICES, ResourceType
from nighttrain.providers.local.cluster.tables.tables import table

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
Object = dict[str, Any]


def row(resource: ResourceType, **obj: Any) -> Object:
    """The cells by their column; ``metadata`` may be left out."""
    metadata = {"name": "one", "creationTimestamp": "2026-01-02T11:59:00Z", **obj.pop("metadata", {})}
    shown = table(resource, [{"metadata": metadata, **obj}], {}, now=NOW)
    names = [each["name"] for each in shown["columnDefinitions"]]
    return dict(zip(names, shown["rows"][0]["cells"], strict=True))


RUNNING = {"running": {"startedAt": "2026-01-02T11:59:10Z"}}
COMPLETED = {"terminated": {"exitCode": 0, "reason": "Completed"}}


def ended(code: int, **more: Any) -> Object:
    return {"terminated": {"exitCode": code, **more}}


def waiting(reason: str) -> Object:
    return {"waiting": {"reason": reason}}


def container(name: str, state: Object, **more: Any) -> Object:
    return {"name": name, "state": state, "ready": "running" in state, "restartCount": 0, **more}


def pod(
    *mains: Object,
    inits: tuple[Object, ...] = (),
    sidecars: tuple[str, ...] = (),
    conditions: tuple[str, ...] = (),
    metadata: Object | None = None,
    phase: str = "Running",
    **status: Any,
) -> Object:
    names = [each["name"] for each in inits]
    spec = {
        "containers": [{"name": each["name"]} for each in mains],
        "initContainers": [
            {"name": name, **({"restartPolicy": "Always"} if name in sidecars else {})} for name in names
        ],
    }
    status = {
        "phase": phase,
        "containerStatuses": list(mains),
        "initContainerStatuses": list(inits),
        "conditions": [{"type": each, "status": "True"} for each in conditions],
        **status,
    }
    return {"spec": spec, "status": status, "metadata": metadata or {}}


SIDE = container("side", RUNNING, started=True)
NOT_STARTED = container("side", RUNNING, started=False, ready=False)
MAIN = container("main", RUNNING)
BEGINS = container("main", waiting("PodInitializing"))
BOTH = ("Initialized", "Ready")
GOING = {"deletionTimestamp": "2026-01-02T12:00:00Z"}


@pytest.mark.parametrize(
    ("shown", "obj"),
    [
        ("0/1 Pending", {**pod(phase="Pending"), "spec": {"containers": [{"name": "main"}]}}),
        ("1/1 Running", pod(MAIN, conditions=BOTH)),
        ("0/1 ImagePullBackOff", pod(container("main", waiting("ImagePullBackOff")), phase="Pending")),
        ("0/1 Completed", pod(container("main", COMPLETED), phase="Succeeded")),
        ("0/1 Error", pod(container("main", ended(3, reason="Error")), phase="Failed")),
        ("0/1 ExitCode:3", pod(container("main", ended(3)), phase="Failed")),
        ("0/1 Signal:9", pod(container("main", ended(137, signal=9)), phase="Failed")),
        ("0/1 Evicted", pod(container("main", RUNNING, ready=False), phase="Failed", reason="Evicted")),
        ("1/2 NotReady", pod(container("a", COMPLETED), MAIN, conditions=("Initialized",))),
        ("1/2 Running", pod(container("a", COMPLETED), MAIN, conditions=BOTH)),
        ("1/2 Error", pod(container("a", ended(1, reason="Error")), MAIN)),
        ("2/2 Running", pod(MAIN, inits=(SIDE,), sidecars=("side",), conditions=BOTH)),
        ("0/2 Init:0/1", pod(BEGINS, inits=(NOT_STARTED,), sidecars=("side",), phase="Pending")),
        ("1/2 PodInitializing", pod(BEGINS, inits=(SIDE,), sidecars=("side",), phase="Pending")),
        ("1/2 Completed", pod(container("main", COMPLETED), inits=(SIDE,), sidecars=("side",))),
        (
            "1/2 Init:1/2",
            pod(BEGINS, inits=(SIDE, container("setup", RUNNING)), sidecars=("side",), phase="Pending"),
        ),
        (
            "0/1 Init:1/2",
            pod(
                BEGINS,
                inits=(container("a", COMPLETED), container("b", waiting("PodInitializing"))),
                phase="Pending",
            ),
        ),
        (
            "0/1 Init:CrashLoopBackOff",
            pod(BEGINS, inits=(container("a", waiting("CrashLoopBackOff")),), phase="Pending"),
        ),
        ("0/1 Init:Error", pod(BEGINS, inits=(container("a", ended(1, reason="Error")),), phase="Failed")),
        ("0/1 Init:ExitCode:1", pod(BEGINS, inits=(container("a", ended(1)),), phase="Failed")),
        # A sidecar that crashes later; the main container counts all the same.
        (
            "1/2 Init:CrashLoopBackOff",
            pod(
                MAIN,
                inits=(container("side", waiting("CrashLoopBackOff"), started=False),),
                sidecars=("side",),
                conditions=("Initialized",),
            ),
        ),
        ("1/1 Terminating", pod(MAIN, metadata=GOING)),
        ("0/1 Completed", pod(container("main", COMPLETED), phase="Succeeded", metadata=GOING)),
        ("1/1 Unknown", pod(MAIN, metadata=GOING, reason="NodeLost")),
    ],
)
def test_ready_and_status_of_a_pod(shown: str, obj: Object) -> None:
    cells = row(PODS, **obj)
    assert f"{cells['Ready']} {cells['Status']}" == shown


def test_restarts_of_a_pod() -> None:
    last = {"terminated": {"exitCode": 1, "finishedAt": "2026-01-02T11:59:30Z"}}
    side = container("side", RUNNING, started=True, restartCount=2, lastState=last)
    setup = container("setup", COMPLETED, restartCount=5)
    main = container("main", RUNNING, restartCount=1)
    running = pod(main, inits=(side, setup), sidecars=("side",), conditions=BOTH)
    assert row(PODS, **running)["Restarts"] == "3 (30s ago)"
    trying = pod(BEGINS, inits=(container("setup", waiting("CrashLoopBackOff"), restartCount=4),))
    assert row(PODS, **trying)["Restarts"] == "4"


def test_wide_columns_of_a_pod() -> None:
    shown = pod(MAIN, conditions=BOTH, podIP="127.0.0.9")
    shown["spec"]["nodeName"] = "node1"
    cells = row(PODS, **shown)
    assert [cells[name] for name in ("IP", "Node")] == ["127.0.0.9", "node1"]


def test_the_ports_of_a_service() -> None:
    ports = [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]
    assert row(SERVICES, spec={"ports": ports})["Port(s)"] == "80:30080/TCP,53/UDP"


def test_other_kinds_have_a_name_and_an_age() -> None:
    assert row(NODES, spec={}) == {"Name": "one", "Age": "60s"}


def test_a_time_that_is_none_is_unknown() -> None:
    assert row(NODES, metadata={"creationTimestamp": "2026-13-99T99:99:99Z"})["Age"] == "<unknown>"
