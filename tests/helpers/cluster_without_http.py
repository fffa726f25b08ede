"""A whole embedded cluster inside a test's own event loop, without HTTP, and recordings to compare with."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import RECORDINGS
from helpers.polling import until
from nighttrain.providers.local.cluster.controllers.controllers import Controllers
from nighttrain.providers.local.cluster.controllers.pace import BackOff
from nighttrain.providers.local.cluster.machine.images import ImageTable
from nighttrain.providers.local.cluster.machine.mounts import Namespaces
from nighttrain.providers.local.cluster.machine.network import ClusterNetwork
from nighttrain.providers.local.cluster.node.kubelet import Kubelet
from nighttrain.providers.local.cluster.rules.admission import Admission
from nighttrain.providers.local.cluster.store.resources import EVENTS, JOBS, NAMESPACES, PODS, ResourceType
from nighttrain.providers.local.cluster.store.store import EventType, Store

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE = "localhost/python:3.11"
# Starts in half the time of a whole interpreter.
PYTHON = ["python3", "-S", "-E", "-u", "-c"]

Object = dict[str, Any]


class Running:
    """Store, kubelet, controllers and network, with short pauses instead of a cluster's long ones."""

    def __init__(self, directory: Path, *, namespaces: Namespaces = Namespaces.AUTO) -> None:
        self.network = ClusterNetwork()
        admission = Admission(self.network.services)
        self.store = admission.store = Store(admit=admission.admit, release=admission.release)
        self.store.create(NAMESPACES, {"metadata": {"name": "default"}})
        images = ImageTable({"localhost/python": Path(sys.executable)})
        self.kubelet = Kubelet(
            self.store, images, directory, self.network, back_off=BackOff(0.2, 1), namespaces=namespaces
        )
        admission.claims = self.kubelet.claims
        self.controllers = Controllers(self.store, self.network, job_back_off=BackOff(0.3, 1))
        self.seen: dict[ResourceType, list[tuple[str, Object]]] = {}
        self._watchers = {resource: self.store.watch(resource) for resource in (PODS, JOBS, EVENTS)}

    async def __aenter__(self) -> Running:
        await self.kubelet.start()
        await self.controllers.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.controllers.stop()
        await self.kubelet.stop()
        await self.network.close()

    async def until(
        self, resource: ResourceType, name: str, holds: Callable[[Object | None], Any], seconds: float = 10
    ) -> Object:
        """Wait, by watching, until the object is as wanted."""
        with self.store.watch(resource, since_revision=self.store.revision) as watcher:
            async with asyncio.timeout(seconds):
                while not holds(found := self.store.find(resource, "default", name)):
                    async for _type, obj in watcher:
                        if obj["metadata"]["name"] == name:
                            break
        return found or {}

    async def pod_phase(self, name: str, *phases: str) -> Object:
        return await self.until(PODS, name, lambda pod: pod and pod.get("status", {}).get("phase") in phases)

    async def gone(self, resource: ResourceType, name: str) -> None:
        await self.until(resource, name, lambda obj: obj is None)

    async def log(self, pod: Object, **options: Any) -> str:
        return b"".join([piece async for piece in self.kubelet.open_log(pod, **options)]).decode()

    def history(self, resource: ResourceType) -> list[tuple[str, Object]]:
        """Every change since the start, in order."""
        seen = self.seen.setdefault(resource, [])
        seen += [(type_, record.object) for type_, record in self._watchers[resource].drain()]
        return seen

    async def event(self, name: str, reason: str) -> str:
        """Wait for an event of an object; its message."""
        with self.store.watch(EVENTS) as watcher:
            async for _type, event in watcher:
                if event["involvedObject"]["name"] == name and event["reason"] == reason:
                    return str(event["message"])
        raise AssertionError("the watch ended")

    def events(self, name: str) -> list[tuple[str, str]]:
        """Reason and message of an object's events, in order of their first time."""
        return [
            (event["reason"], event["message"])
            for type_, event in self.history(EVENTS)
            if type_ == "ADDED" and event["involvedObject"]["name"] == name
        ]


async def process_ends(number: int) -> None:
    """Return once the process is gone; an error after five seconds."""
    await asyncio.to_thread(
        until, lambda: not Path(f"/proc/{number}").exists(), 5, f"process {number} to end"
    )


def pod(name: str, *command: str, grace: int = 1, spec: Object | None = None, **container: Any) -> Object:
    main = {
        "name": "main",
        "image": IMAGE,
        "command": list(command),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **container,
    }
    base = {"restartPolicy": "Never", "terminationGracePeriodSeconds": grace, "containers": [main]}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": {**base, **(spec or {})}}


def script(name: str, code: str, **options: Any) -> Object:
    return pod(name, *PYTHON, code, **options)


def job(name: str, code: str, *, grace: int = 1, **spec: Any) -> Object:
    template = {"spec": script(name, code, grace=grace)["spec"]}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"backoffLimit": 0, "template": template, **spec},
    }


def condition(obj: Object | None, type_: str, status: str = "True") -> Object | None:
    for each in ((obj or {}).get("status") or {}).get("conditions") or []:
        if each["type"] == type_ and each["status"] == status:
            return dict(each)
    return None


# Recordings


class Recording:
    """What a real cluster did in one scenario."""

    def __init__(self, name: str) -> None:
        lines = (RECORDINGS / f"{name}.jsonl").read_text().splitlines()
        self.lines = [json.loads(line) for line in lines]

    def manifest(self) -> Object:
        """The Job that was created, in our namespace, quick to run and to stop."""
        for line in self.lines:
            if line["from"] == "http" and line["request"]["method"] == "POST":
                body: Object = line["request"]["body"]
                break
        body["metadata"]["namespace"] = "default"
        spec = body["spec"]["template"]["spec"]
        spec["terminationGracePeriodSeconds"] = 1
        if "activeDeadlineSeconds" in body["spec"]:
            body["spec"]["activeDeadlineSeconds"] = 1
        for container in spec["containers"]:
            container["command"] = [_quicker(part) for part in container["command"]]
        return body

    def changes(self, stream: str) -> list[tuple[str, Object]]:
        return [(line["type"], line["object"]) for line in self.lines if line["from"] == stream]

    def event_reasons(self) -> set[tuple[str, str, str]]:
        return reasons(self.changes("events"))


def _quicker(text: str) -> str:
    # Whoever slept 5 s or less was to end by itself, within the grace period if there was one.
    return re.sub(r"sleep\((\d+)\)", lambda match: f"sleep({0.6 if int(match[1]) <= 5 else 60})", text)


def reasons(changes: list[tuple[str, Object]]) -> set[tuple[str, str, str]]:
    return {(each["type"], each["involvedObject"]["kind"], each["reason"]) for _type, each in changes}


def job_steps(changes: list[tuple[str, Object]]) -> list[tuple[Any, ...]]:
    """The Job's conditions as they came, without repetitions."""
    steps: list[tuple[Any, ...]] = []
    for type_, obj in changes:
        conditions = (obj.get("status") or {}).get("conditions") or []
        step = tuple(
            (each["type"], each["status"], each.get("reason"), _nameless(each.get("message") or ""))
            for each in conditions
        )
        step = ("DELETED",) if type_ == EventType.DELETED else step
        if step and (not steps or steps[-1] != step):
            steps.append(step)
    return steps


def _nameless(message: str) -> str:
    """Without the namespace and the random letters of a pod's name."""
    return re.sub(r"\b(?:rec|default)/([a-z0-9]+)-[a-z0-9]{5}\b", r"\1", message)


def final_counts(changes: list[tuple[str, Object]]) -> Object:
    status = changes[-1][1].get("status") or {}
    keys = (
        "active",
        "succeeded",
        "failed",
        "terminating",
        "ready",
        "uncountedTerminatedPods",
        "completedIndexes",
    )
    return {key: status[key] for key in keys if key in status}


def pod_steps(changes: list[tuple[str, Object]]) -> list[list[tuple[Any, ...]]]:
    """For each pod in order of creation: phase, container states, condition reasons, without repetitions."""
    pods: dict[str, list[tuple[Any, ...]]] = {}
    for type_, obj in changes:
        status = obj.get("status") or {}
        states = tuple(
            _state(each)
            for key in ("initContainerStatuses", "containerStatuses")
            for each in status.get(key) or []
        )
        known = {
            each["type"]: (each["status"], each.get("reason")) for each in status.get("conditions") or []
        }
        step: tuple[Any, ...] = (status.get("phase"), states, tuple(sorted(known.items())))
        if type_ == EventType.DELETED:
            step = ("DELETED", states, ())
        steps = pods.setdefault(obj["metadata"]["uid"], [])
        if not steps or steps[-1] != step:
            steps.append(step)
    return list(pods.values())


def _state(container: Object) -> tuple[Any, ...]:
    kind, state = next(iter(container["state"].items()))
    return (
        container["name"],
        kind,
        state.get("reason"),
        state.get("exitCode"),
        container["ready"],
        container["started"],
        container["restartCount"],
    )
