"""Recordings of a real cluster, replayed against the embedded one over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import httpx

from helpers.recorded_histories import (
    STREAMS,
    Call,
    Change,
    History,
    Object,
    Step,
    reason_of,
    recording,
    renamed,
)
from nighttrain.providers.local.cluster.controllers.pace import BackOff
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.resources import NAMESPACES

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

# A call answers at once; a watch may be silent as long as a scenario lasts.
_CALL_SECONDS, _SCENARIO_SECONDS = 10.0, 120.0

# From the state that the recording was in to the next call: a program in a container has begun by then.
_SETTLE_SECONDS = 0.4

# So long the embedded cluster may take to come to the state in which the recording made its next call.
_STATE_SECONDS = 12.0

# Nothing new for this long at the end: nothing more will come; the pauses inside a scenario are shorter.
_QUIET_SECONDS = 2.5


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
        path = renamed(call.path, names)
        body = None if call.body is None else renamed(json.dumps(self._quicker(call.body)), names)
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
            Call(call.method, path, call.content_type, None, response.status_code, reason_of(answer), seen)
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
