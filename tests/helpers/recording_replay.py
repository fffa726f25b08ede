"""Recordings of a real cluster, replayed against the embedded one over HTTP, and compared step by step.

A step is what an observer can tell apart of one object: phase, conditions, container states, counters. Names
that a cluster makes up are replaced by the owner's name and the object's place in the order of creation.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from helpers import RECORDINGS, TESTS
from nighttrain.providers.local.cluster.controllers.pace import BackOff
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.resources import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Iterator

Object = dict[str, Any]
Step = tuple[Any, ...]

FOLDERS = (RECORDINGS, TESTS / "providers" / "local" / "recordings")

# Stream of a recording -> where it is watched.
STREAMS = {
    "jobs": "/apis/batch/v1/namespaces/rec/jobs",
    "pods": "/api/v1/namespaces/rec/pods",
    "events": "/api/v1/namespaces/rec/events",
    "deployments": "/apis/apps/v1/namespaces/rec/deployments",
    "replicasets": "/apis/apps/v1/namespaces/rec/replicasets",
    "endpointslices": "/apis/discovery.k8s.io/v1/namespaces/rec/endpointslices",
}

# Sleeps in the recorded containers: those up to this long were there to end by themselves, the others to be
# cut short.
_SHORT, _OWN_SHORT, _OWN_LONG = 5, 0.6, 60.0

# Where a container is cut short once and ends by itself the next time: longer than the grace period of one
# second, no longer than needed.
_SLEEPS: dict[str, dict[str, float]] = {
    "job-evicted-replaced": {"12": 2.5},
    # Ends by itself inside its grace period.
    "job-evicted-finished-in-grace": {"6": 0.6},
    # Keeps its place while the second Job is refused three times.
    "quota": {"4": 6.0},
}

# A fifth of a cluster's pauses between tries: long enough that what was over before the next try still is.
_PACE = 0.2

# What only one cluster understands.
_OWN = re.compile(r"\b(continue=|resourceVersion=)[^&]*")

# A call answers at once; a watch may be silent as long as a scenario lasts.
_CALL_SECONDS, _SCENARIO_SECONDS = 10.0, 120.0
# From the state that the recording was in to the next call: a program in a container has begun by then.
_SETTLE_SECONDS = 0.4
# So long the embedded cluster may take to come to the state in which the recording made its next call.
_STATE_SECONDS = 12.0
# Nothing new for this long at the end: nothing more will come; the pauses inside a scenario are shorter.
_QUIET_SECONDS = 2.5


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
            (each.method, _OWN.sub(r"\1", _renamed(each.path, names)), each.status, each.reason)
            for each in self.calls
        ]


def _renamed(text: str, names: dict[str, str]) -> str:
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


# Recorded


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
                    _reason(response.get("body")),
                    len(history.changes),
                    float(item["t"]),
                    response.get("body"),
                )
            )
    return history


def scenarios() -> list[str]:
    """Every recording but those of Kueue, an add-on."""
    found = {path.stem for folder in FOLDERS for path in folder.glob("*.jsonl")}
    return sorted(name for name in found if not name.startswith("kueue-"))


def _reason(body: Any) -> str:
    return str(body.get("reason", "")) if isinstance(body, dict) and body.get("kind") == "Status" else ""


# Replayed


class Replay:
    """One scenario on a cluster of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.recorded = recording(name)
        self.seen = History()
        self.late: list[str] = []
        self._learned: dict[str, str] = {}
        self._moved = asyncio.Event()
        self._cluster: EmbeddedCluster

    async def run(self) -> Replay:
        forbidden = {"rec"} if self.name == "forbidden" else set()
        images = {"localhost/python": Path(sys.executable)}
        cluster = self._cluster = EmbeddedCluster(
            images=images,
            forbidden_namespaces=forbidden,
            back_off=BackOff(10 * _PACE, 300 * _PACE),
            job_back_off=BackOff(10 * _PACE, 600 * _PACE),
        )
        await asyncio.to_thread(cluster.start)
        try:
            made = {"metadata": {"name": "rec"}}
            await asyncio.to_thread(cluster.call, lambda store: store.create(NAMESPACES, made))
            headers = {"Authorization": f"Bearer {cluster.token}"}
            async with httpx.AsyncClient(
                base_url=cluster.url, headers=headers, timeout=_CALL_SECONDS
            ) as client:
                await self._play(client)
        finally:
            await asyncio.to_thread(cluster.stop)
        return self

    async def _play(self, client: httpx.AsyncClient) -> None:
        await self._prepare(client)
        # A recording without watches is about calls: those are made at the recorded times.
        streams = STREAMS if self.recorded.changes else {}
        open_ = [asyncio.Event() for _ in streams]
        watches = [
            asyncio.create_task(self._watch(client, stream, begun))
            for stream, begun in zip(streams, open_, strict=True)
        ]
        try:
            async with asyncio.timeout(_STATE_SECONDS):
                await asyncio.gather(*(begun.wait() for begun in open_))
            before = 0.0
            for number, call in enumerate(self.recorded.calls):
                if streams:
                    await self._reach(call.before, f"call {number}")
                    # The containers need a moment to be as far as they were.
                    await asyncio.sleep(_SETTLE_SECONDS if number else 0)
                else:
                    await asyncio.sleep(call.time - before)
                before = call.time
                await self._send(client, call)
            if streams:
                await self._reach(len(self.recorded.changes), "the end")
                await self._quiet()
        finally:
            for task in watches:
                task.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def _prepare(self, client: httpx.AsyncClient) -> None:
        """What the manifests are fitted to."""
        node = (await client.get("/api/v1/nodes/node1")).json()
        self._cpus = float(node["status"]["allocatable"]["cpu"])

    async def _watch(self, client: httpx.AsyncClient, stream: str, begun: asyncio.Event) -> None:
        async with client.stream(
            "GET", STREAMS[stream], params={"watch": "1"}, timeout=_SCENARIO_SECONDS
        ) as response:
            begun.set()
            async for line in response.aiter_lines():
                item = json.loads(line)
                self.seen.changes.append(Change(stream, item["type"], item["object"]))
                self._moved.set()

    async def _reach(self, number: int, what: str) -> None:
        """Wait until every object has been where it was when the recording had seen so many changes."""
        wanted = History(self.recorded.changes[:number]).steps()
        loop = asyncio.get_running_loop()
        end = loop.time() + _STATE_SECONDS
        while not self._arrived(wanted):
            self._moved.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._moved.wait()
            except TimeoutError:
                self.late.append(what)
                return

    def _arrived(self, wanted: dict[tuple[str, str], list[Step]]) -> bool:
        own = self.seen.steps()
        for key, steps in wanted.items():
            if key[0] == "events":
                if not set(steps) <= set(own.get(key, ())):
                    return False
            elif steps[-1] not in own.get(key, ()) or len(own[key]) < len(steps):
                return False
        return True

    async def _quiet(self) -> None:
        """Until nothing more comes."""
        while True:
            self._moved.clear()
            try:
                async with asyncio.timeout(_QUIET_SECONDS):
                    await self._moved.wait()
            except TimeoutError:
                return

    async def _send(self, client: httpx.AsyncClient, call: Call) -> None:
        if call.path.endswith("/resourcequotas"):
            self._cluster.quota(int(call.body["spec"]["hard"]["count/pods"]), "rec")
        own = {new: name for name, new in self.seen.names().items()}
        names = {name: own.get(new, name) for name, new in self.recorded.names().items()}
        names |= self._learned
        path = _renamed(call.path, names)
        body = None if call.body is None else _renamed(json.dumps(self._quicker(call.body)), names)
        response = await client.request(
            call.method, path, content=body, headers={"Content-Type": call.content_type}
        )
        try:
            answer = response.json()
        except ValueError:
            answer = None
        self._learn(call.answer, answer)
        seen = len(self.seen.changes)
        self.seen.calls.append(
            Call(call.method, path, call.content_type, None, response.status_code, _reason(answer), seen)
        )

    def _learn(self, recorded: Any, own: Any) -> None:
        """Versions, uids and continue tokens of the recording, and this cluster's in their place."""
        if not isinstance(recorded, dict) or not isinstance(own, dict):
            return
        for key, value in recorded.items():
            if key in ("resourceVersion", "uid", "continue") and value and own.get(key):
                self._learned[value] = own[key]
            self._learn(value, own.get(key))

    # The recorded manifests, quick to run and to stop.

    def _quicker(self, body: Any) -> Any:
        body = json.loads(json.dumps(body))
        if isinstance(body, dict) and body.get("kind") in ("Job", "Pod", "Deployment"):
            spec = body["spec"]
            for key in ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
                if spec.get(key):
                    spec[key] = 1
            if spec.get("progressDeadlineSeconds") == 8:
                spec["progressDeadlineSeconds"] = 2
            self._quicker_pod(spec["template"]["spec"] if "template" in spec else spec)
        elif isinstance(body, dict) and isinstance(body.get("spec"), dict) and "template" in body["spec"]:
            self._quicker_pod(body["spec"]["template"]["spec"])
        return body

    def _quicker_pod(self, spec: Object) -> None:
        if "terminationGracePeriodSeconds" in spec:
            spec["terminationGracePeriodSeconds"] = 1
        if spec.get("activeDeadlineSeconds"):
            spec["activeDeadlineSeconds"] = 1
        for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
            command = container.get("command") or []
            container["command"] = [self._quicker_text(part) for part in command]
            if any("POD_IP" in part for part in container["command"]):
                field = {"fieldRef": {"fieldPath": "status.podIP"}}
                container["env"] = [*(container.get("env") or []), {"name": "POD_IP", "valueFrom": field}]
            if command[:1] == ["python3"]:
                # Starts in half the time of a whole interpreter.
                container["command"][1:1] = ["-S", "-E"]
            requests = (container.get("resources") or {}).get("requests") or {}
            if requests.get("cpu") == "1500m":
                # Three quarters of the recorded node.
                requests["cpu"] = f"{int(self._cpus * 750)}m"

    def _quicker_text(self, text: str) -> str:
        own = _SLEEPS.get(self.name, {})

        def shorter(match: re.Match[str]) -> str:
            usual = _OWN_SHORT if int(match[1]) <= _SHORT else _OWN_LONG
            return f"sleep({own.get(match[1], usual)})"

        # A server listens on its pod's address: without network namespaces all the others are shared.
        text = text.replace("ThreadingHTTPServer((''", "ThreadingHTTPServer((os.environ['POD_IP']")
        return re.sub(r"sleep\((\d+)\)", shorter, text)


async def replay_all(names: list[str], at_once: int = 8) -> dict[str, Replay]:
    """Several scenarios side by side: most of their time they wait."""
    places = asyncio.Semaphore(at_once)

    async def one(name: str) -> Replay:
        async with places:
            return await Replay(name).run()

    return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))


def difference(recorded: History, seen: History) -> dict[tuple[str, str], tuple[list[Step], list[Step]]]:
    """What is not the same: stream and object -> recorded and seen steps."""
    ours, theirs = seen.steps(), recorded.steps()
    found = {
        key: (theirs.get(key, []), ours.get(key, []))
        for key in {*ours, *theirs}
        if ours.get(key) != theirs.get(key)
    }
    if recorded.answers() != seen.answers():
        found["http", ""] = (recorded.answers(), seen.answers())
    return found
