"""What a cluster went through, recorded or replayed, as steps to compare.

A step is what an observer can tell apart of one object: phase, conditions, container states, counters. Names
that a cluster makes up are replaced by the owner's name and the object's place in the order of creation.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from helpers import RECORDINGS, TESTS

if TYPE_CHECKING:
    from collections.abc import Iterator


Object = dict[str, Any]
Step = tuple[Any, ...]
FOLDERS = (RECORDINGS, TESTS / "providers" / "local" / "recordings")

# Recordings with controllers that are no part of a cluster. test_recorded_serving.py replays some of them.
ADD_ONS = ("kueue-", "gateway-", "kserve-", "knative-", "rollouts-")

# Stream of a recording -> where it is watched.
STREAMS = {
    "jobs": "/apis/batch/v1/namespaces/rec/jobs",
    "pods": "/api/v1/namespaces/rec/pods",
    "events": "/api/v1/namespaces/rec/events",
    "deployments": "/apis/apps/v1/namespaces/rec/deployments",
    "replicasets": "/apis/apps/v1/namespaces/rec/replicasets",
    "endpointslices": "/apis/discovery.k8s.io/v1/namespaces/rec/endpointslices",
}

# What only one cluster understands.
_OWN = re.compile(r"\b(continue=|resourceVersion=)[^&]*")


@dataclass(frozen=True)
class Change:
    """One line of a watch."""

    stream: str
    type: str
    object: Object


@dataclass(frozen=True)
class Call:
    """One HTTP exchange; ``before`` is how many changes the recording had seen by then."""

    method: str
    path: str
    content_type: str
    body: Any
    status: int
    reason: str
    before: int
    time: float = 0.0
    answer: Any = None


@dataclass
class History:
    """Everything seen in one run, recorded or replayed."""

    changes: list[Change] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def names(self) -> dict[str, str]:
        """Name made up by the cluster -> the owner's name and a number."""
        found: dict[str, str] = {}
        numbers: Counter[str] = Counter()
        # Streams are separate connections: a pod may be seen before the ReplicaSet that made it.
        for change in sorted(self.changes, key=lambda each: each.stream == "pods"):
            metadata = change.object.get("metadata") or {}
            name = metadata.get("name", "")
            owner = next((each["name"] for each in metadata.get("ownerReferences") or []), None)
            if change.stream == "events" or name in found or owner is None:
                continue
            base = f"{change.stream}/{found.get(owner, owner)}"
            numbers[base] += 1
            found[name] = f"{base.split('/', 1)[1]}#{numbers[base]}"
        return found

    def steps(self) -> dict[tuple[str, str], list[Step]]:
        """Stream and object -> what it went through, without repetitions. Events: by object and component."""
        names = self.names()
        found: dict[tuple[str, str], list[Step]] = {}
        for key, step in self._every_step(names):
            steps = found.setdefault(key, [])
            if key[0] == "events":
                if step not in steps:
                    steps.append(step)
            elif not steps or steps[-1] != step:
                if steps and key[0] == "pods" and _overtaken(steps[-1], step):
                    steps.pop()
                steps.append(step)
        return found

    def _every_step(self, names: dict[str, str]) -> Iterator[tuple[tuple[str, str], Step]]:
        ends: dict[str, set[str]] = {}
        for change in self.changes:
            if change.stream == "endpointslices":
                yield from _endpoint_steps(change, names, ends)
                continue
            key, step = _step(change, names)
            if key is not None:
                yield key, step

    def answers(self) -> list[Step]:
        names = self.names()
        return [
            (each.method, _OWN.sub(r"\1", renamed(each.path, names)), each.status, each.reason)
            for each in self.calls
        ]


def renamed(text: str, names: dict[str, str]) -> str:
    for name, new in names.items():
        text = text.replace(name, new)
    return text


def _step(change: Change, names: dict[str, str]) -> tuple[tuple[str, str] | None, Step]:
    obj = change.object
    if change.stream == "events":
        involved = obj["involvedObject"]
        if involved["kind"] not in ("Job", "Pod", "Deployment", "ReplicaSet") or change.type == "DELETED":
            return None, ()
        name = f"{involved['kind']}/{names.get(involved['name'], involved['name'])}"
        return ("events", f"{name} by {obj['reportingComponent'] or obj['source'].get('component')}"), (
            obj["type"],
            obj["reason"],
        )
    name = obj["metadata"]["name"]
    key = (change.stream, names.get(name, name))
    if change.type == "DELETED":
        return key, ("DELETED",)
    leaving = ("deleting",) if "deletionTimestamp" in obj["metadata"] else ()
    return key, leaving + _STEPS[change.stream](obj)


def _conditions(obj: Object) -> Step:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return tuple(sorted((each["type"], each["status"], each.get("reason", "")) for each in conditions))


def _pod_step(pod: Object) -> Step:
    status = pod.get("status") or {}
    states = tuple(
        _container(each)
        for key in ("initContainerStatuses", "containerStatuses")
        for each in status.get(key) or []
    )
    return (status.get("phase"), status.get("reason", ""), _conditions(pod), states)


def _container(container: Object) -> Step:
    kind, state = next(iter(container["state"].items()))
    last = (container.get("lastState") or {}).get("terminated") or {}
    return (
        container["name"],
        kind,
        state.get("reason"),
        state.get("exitCode"),
        last.get("reason"),
        last.get("exitCode"),
        container["ready"],
        container.get("started"),
        container["restartCount"],
    )


def _job_step(job: Object) -> Step:
    """Conditions in the order of the API, and the counters.

    A real Job controller looks at a Job once a second at most: how many pods are ready is old news by then,
    and a Job on its way out may be gone before its counters are written.
    """
    status = job.get("status") or {}
    conditions = tuple(
        (each["type"], each["status"], each.get("reason", "")) for each in status.get("conditions") or []
    )
    if "deletionTimestamp" in job["metadata"]:
        return (conditions,)
    keys = ("active", "succeeded", "failed", "completedIndexes", "failedIndexes")
    return (conditions, tuple((key, status[key]) for key in keys if key in status))


def _scaled_step(obj: Object) -> Step:
    """Whether all are ready, not how many: they become so one by one or together."""
    if "deletionTimestamp" in obj["metadata"]:
        return ()
    status = obj.get("status") or {}
    number = status.get("replicas", 0)
    ready, available = (status.get(key, 0) >= number for key in ("readyReplicas", "availableReplicas"))
    return (_conditions(obj), number, status.get("updatedReplicas", 0), ready, available)


def _endpoint_steps(
    change: Change, names: dict[str, str], ends: dict[str, set[str]]
) -> Iterator[tuple[tuple[str, str], Step]]:
    """The life of each address of a Service; they come and go independently of one another."""
    name = change.object["metadata"]["name"]
    present = (
        {}
        if change.type == "DELETED"
        else {
            (end.get("targetRef") or {}).get("name", ""): end.get("conditions") or {}
            for end in change.object.get("endpoints") or []
        }
    )
    known = ends.setdefault(name, set())
    for pod, state in present.items():
        step = tuple(state.get(key) for key in ("ready", "serving", "terminating"))
        yield ("endpointslices", f"{names.get(name, name)} {names.get(pod, pod)}"), step
    for pod in known - set(present):
        yield ("endpointslices", f"{names.get(name, name)} {names.get(pod, pod)}"), ("gone",)
    ends[name] = set(present)


def _overtaken(step: Step, following: Step) -> bool:
    """Whether this is the status before the sandbox, which a kubelet writes or leaves out as it pleases."""
    sandbox = "PodReadyToStartContainers"
    if step[0] != "Pending" or following[0] != "Pending" or len(step) != len(following):
        return False
    return (sandbox, "False", "") in step[2] and (sandbox, "True", "") in following[2]


_STEPS = {
    "jobs": _job_step,
    "pods": _pod_step,
    "deployments": _scaled_step,
    "replicasets": _scaled_step,
}


def recording(name: str) -> History:
    """What the real cluster did."""
    path = next(each / f"{name}.jsonl" for each in FOLDERS if (each / f"{name}.jsonl").exists())
    history = History()
    for line in path.read_text().splitlines():
        item = json.loads(line)
        if item["from"] in STREAMS:
            history.changes.append(Change(item["from"], item["type"], item["object"]))
        elif item["from"] == "http" and "request" in item:
            request, response = item["request"], item["response"]
            history.calls.append(
                Call(
                    request["method"],
                    request["path"],
                    request.get("contentType") or "application/json",
                    request.get("body"),
                    response["status"],
                    reason_of(response.get("body")),
                    len(history.changes),
                    float(item["t"]),
                    response.get("body"),
                )
            )
    return history


def scenarios() -> list[str]:
    """Every recording of the cluster itself, without add-ons."""
    found = {path.stem for folder in FOLDERS for path in folder.glob("*.jsonl")}
    return sorted(name for name in found if not name.startswith(ADD_ONS))


def reason_of(body: Any) -> str:
    return str(body.get("reason", "")) if isinstance(body, dict) and body.get("kind") == "Status" else ""
