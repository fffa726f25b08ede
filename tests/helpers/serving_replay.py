"""Recordings of a gateway and of KServe, replayed against the embedded cluster's stand-ins over HTTP.

A call is made once everything has passed that the recording had seen before it; a client asks all the time.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx

from helpers import RECORDINGS, TESTS
from helpers.polling import until_async
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Callable

Object = dict[str, Any]
State = tuple[Any, ...]
Key = tuple[str, str]

GROUP = "/apis/gateway.networking.k8s.io/v1"
STREAMS = {
    "services": "/api/v1/namespaces/rec/services",
    "deployments": "/apis/apps/v1/namespaces/rec/deployments",
    "endpointslices": "/apis/discovery.k8s.io/v1/namespaces/rec/endpointslices",
    "httproutes": f"{GROUP}/namespaces/rec/httproutes",
    "inferenceservices": "/apis/serving.kserve.io/v1beta1/namespaces/rec/inferenceservices",
}
# Stands for the recorded server, whose program the recordings leave out: "later" is unready after some time,
# and SIGTERM ends it only when the gateway has followed.
SERVER = """
import asyncio, os, signal, time
V, BAD, START = os.environ['V'], os.environ.get('BAD'), time.time()
seen = 0
async def serve(reader, writer):
    global seen
    while True:
        try:
            head = await reader.readuntil(b'\\r\\n\\r\\n')
        except Exception:
            return writer.close()
        path = head.split(b' ')[1]
        seen += path == b'/predict'
        bad = path == b'/ready' and (BAD == 'unready' or BAD == 'later' and time.time() > START + 4)
        body = str(seen) if path == b'/seen' else V
        writer.write((f'HTTP/1.1 {503 if bad else 200} OK\\r\\nx-model-version: {V}\\r\\n'
                      f'content-length: {len(body)}\\r\\n\\r\\n{body}').encode())
async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: loop.call_later(0.8, os._exit, 0))
    await (await asyncio.start_server(serve, os.environ['POD_IP'], 8080)).serve_forever()
asyncio.run(main())
"""
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
COMMAND = ["python3", "-S", "-E", "-u", "-c", SERVER]
# So long it may take until what was recorded has passed here, too.
_STATE_SECONDS = 25.0
_JUST_NOW_SECONDS = 0.2
# The recorded gateway follows within two seconds, and the recordings waited five: the same, but faster.
# What the plain gateway scenarios show had no lag that can be seen.
ROUTE_LAG = 0.5
_ANSWERS_SECONDS = 1.25


def container(*env: Object) -> Object:
    """A server container as recorded."""
    probe = {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1}
    ports = [{"containerPort": 8080}]
    return {
        "name": "kserve-container",
        "image": "localhost/python:3.11",
        "command": COMMAND,
        "env": [POD_IP, *env],
        "ports": ports,
        "readinessProbe": probe,
    }


def state_of(stream: str, type_: str, obj: Object) -> list[tuple[str, State]]:
    """What is compared of an object: (which of its histories, state)."""
    if stream == "endpointslices":
        ready = sum(each["conditions"]["ready"] for each in obj.get("endpoints") or ())
        return [("", ("ready", 0 if type_ == "DELETED" else ready))]
    if type_ == "DELETED":
        return [("", ("gone",))]
    spec, status = obj["spec"], obj.get("status") or {}
    if stream == "deployments":
        return [("", ("replicas", spec["replicas"]))]
    if stream == "httproutes":
        weights = [
            (each["name"], each.get("weight")) for rule in spec["rules"] for each in rule["backendRefs"]
        ]
        reasons = [c["reason"] for parent in status.get("parents") or () for c in parent["conditions"]]
        found: list[tuple[str, State]] = [(" weights", ("weights", *weights))]
        return [*found, (" status", ("status", *reasons))] if reasons else found
    if stream == "inferenceservices":
        conditions = {each["type"]: each for each in status.get("conditions") or ()}
        predictor = conditions.get("PredictorReady", {}).get("reason")
        # Before the Deployment has said something: recorded now and then, and soon over.
        if predictor in (None, "NewReplicaSetCreated"):
            return []
        canaries = [(e["name"], e["ready"], e["trafficPercent"]) for e in status.get("canaryStatuses") or ()]
        told = [(f" {name}", (each["status"], _reason(each))) for name, each in conditions.items()]
        return [(" canaries", ("canaries", *canaries)), *told]
    return [("", ("there",))]


def _name(obj: Object) -> str:
    """A slice's own name is made up: its Service's is used."""
    labels = obj["metadata"].get("labels") or {}
    return str(labels.get("kubernetes.io/service-name") or obj["metadata"]["name"])


def _reason(condition: Object) -> str:
    """Its reason. Which of the two routes is not ready yet is a race that was recorded both ways."""
    reason = condition.get("reason", "")
    return "no route" if reason == "ParentStatusNotAvailable" or "Deployment NotReady" in reason else reason


class History:
    """The states that each object went through, when, and the answers."""

    def __init__(self) -> None:
        self.states: dict[Key, list[tuple[float, State]]] = defaultdict(list)

    def add(self, time: float, stream: str, type_: str, obj: Object) -> None:
        for part, state in state_of(stream, type_, obj):
            known = self.states[stream, _name(obj) + part]
            if not known or known[-1][1] != state:
                known.append((time, state))

    def orders(self) -> dict[Key, list[State]]:
        return {key: [state for _, state in known] for key, known in self.states.items()}

    def has(self, other: History) -> bool:
        """Whether all that another one has seen has passed here."""
        own = self.orders()
        return all(own.get(key, [])[: len(states)] == states for key, states in other.orders().items())

    def when(self, stream: str, name: str, holds: Callable[[State], bool]) -> float:
        """The first time of a state."""
        return next(time for time, state in self.states[stream, name] if holds(state))


def recorded(name: str) -> list[Object]:
    packed = TESTS / "providers" / "serving" / "backends" / "recordings" / f"{name}.jsonl.gz"
    text = (
        gzip.decompress(packed.read_bytes())
        if packed.exists()
        else (RECORDINGS / f"{name}.jsonl").read_bytes()
    )
    return [json.loads(line) for line in text.splitlines()]


def history_of(lines: list[Object]) -> History:
    """What a recording's watches saw."""
    history = History()
    for line in lines:
        if line["from"] in STREAMS:
            history.add(line["t"], line["from"], line["type"], line["object"])
    return history


class Replay:
    """One scenario on a cluster of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines = recorded(name)
        self.is_plain = name.startswith("gateway-")
        self.answered = asyncio.Event()
        self.settled = 0.3 if self.is_plain else _ANSWERS_SECONDS
        self.streams = {line["from"] for line in self.lines} & STREAMS.keys()
        self.own = History()
        self.answers: list[tuple[float, str, int]] = []
        self.calls: list[tuple[str, int, int]] = []
        self.counted: dict[str, Counter[tuple[str, int]]] = {}
        self.called: dict[str, float] = {}

    async def run(self) -> Replay:
        images = {"localhost/python": sys.executable}
        lag = 0.0 if self.is_plain else ROUTE_LAG
        serving = Serving(seed=13, status_lag=0.03, route_lag=lag)
        cluster = EmbeddedCluster(images, serving=serving)
        await asyncio.to_thread(cluster.start)
        try:
            headers = {"Authorization": f"Bearer {cluster.token}"}
            async with httpx.AsyncClient(base_url=cluster.url, headers=headers, timeout=20) as self.http:
                await self._play()
        finally:
            await asyncio.to_thread(cluster.stop)
        return self

    async def _play(self) -> None:
        await self._prepare()
        tasks = [asyncio.create_task(self._watch(stream)) for stream in self.streams]
        asking: asyncio.Task[None] | None = None
        host = next((line["host"] for line in self.lines if "by_second" in line), "")
        try:
            for line in self.lines:
                # An event of a call is written before its answer now and then.
                before = [each for each in self.lines if each["t"] < line["t"] - _JUST_NOW_SECONDS]
                if line["from"] == "http" and line["request"]["method"] != "GET":
                    await self._caught_up(before)
                    await self._call(line)
                elif line["from"] == "client" and "by_version" in line:
                    await self._caught_up(before)
                    await self._count(line)
                elif (
                    host and line["from"] == "httproutes" and line["object"].get("status") and asking is None
                ):
                    await self._caught_up(before)
                    asking = asyncio.create_task(self._ask(host))
                    await self.answered.wait()
            await self._caught_up(self.lines)
            if asking is not None:
                # What is lost is lost around the last call; on a busy machine few have asked by now.
                await until_async(lambda: len(self.answers) > 30)
        finally:
            for task in [*tasks, *([asking] if asking else [])]:
                task.cancel()
            await asyncio.gather(*tasks, *([asking] if asking else []), return_exceptions=True)

    async def _prepare(self) -> None:
        await self._post("/api/v1/namespaces", {"metadata": {"name": "rec"}})
        runtime = {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "ServingRuntime",
            "metadata": {"name": "test"},
            "spec": {"supportedModelFormats": [{"name": "test"}], "containers": [container()]},
        }
        await self._post("/apis/serving.kserve.io/v1alpha1/namespaces/rec/servingruntimes", runtime)
        gateway = f"{GROUP}/namespaces/rec/gateways"
        known = [
            line for line in self.lines if line["from"] == "http" and "/gateways" in line["request"]["path"]
        ]
        if known and known[0]["response"]["status"] == 409:
            body = known[0]["request"]["body"]
            spec = {**body["spec"], "gatewayClassName": "nighttrain-router-basic"}
            await self._post(gateway, {**body, "spec": spec})
        found = await self.http.get(f"{GROUP}/namespaces/default/gateways/nighttrain")
        self.address = found.json()["status"]["addresses"][0]["value"] + ":8080"

    async def _post(self, path: str, body: Object) -> None:
        (await self.http.post(path, json=body)).raise_for_status()

    async def _call(self, line: Object) -> None:
        request = line["request"]
        body = request.get("body")
        if "noport" in str(body):
            return  # a rule in CEL, which is not checked here
        if request["method"] == "PATCH" and self.answers:
            await asyncio.sleep(self.settled)
        if "/gateways" in request["path"]:
            body = {**body, "spec": {**body["spec"], "gatewayClassName": "nighttrain-router-basic"}}
        if "/deployments" in request["path"] and body:
            spec = body["spec"]["template"]["spec"]
            spec["containers"] = [container(*spec["containers"][0]["env"])]
        headers = {"Content-Type": request.get("contentType") or "application/json"}
        content = json.dumps(body).encode() if body is not None else None
        self.called[line.get("note") or ""] = asyncio.get_running_loop().time()
        answer = await self.http.request(request["method"], request["path"], content=content, headers=headers)
        self.calls.append((request["path"], line["response"]["status"], answer.status_code))
        if "/gateways" in request["path"] and self.is_plain:
            self.address = await self._address()

    async def _address(self) -> str:
        while True:
            found = await self.http.get(f"{GROUP}/namespaces/rec/gateways/gw")
            with suppress(KeyError):
                host = found.json()["status"]["addresses"][0]["value"]
                return f"{host}:{found.json()['spec']['listeners'][0]['port']}"
            await asyncio.sleep(0.05)

    async def _caught_up(self, lines: list[Object]) -> None:
        wanted = history_of(lines)
        end = asyncio.get_running_loop().time() + _STATE_SECONDS
        while not self.own.has(wanted):
            if asyncio.get_running_loop().time() > end:
                return  # the comparison says what is missing
            await asyncio.sleep(0.02)

    async def _watch(self, stream: str) -> None:
        loop = asyncio.get_running_loop()
        url = f"{STREAMS[stream]}?watch=true"
        async with self.http.stream("GET", url, timeout=None) as answer:
            async for line in answer.aiter_lines():
                event = json.loads(line)
                self.own.add(loop.time(), stream, event["type"], event["object"])

    async def _ask(self, host: str) -> None:
        """A steady load from the moment on when the service answers."""
        async with httpx.AsyncClient(timeout=5) as http:
            while True:
                version, status = await self._answer(http, host, {})
                if self.answers or status == 200:
                    self.answered.set()
                    self.answers.append((asyncio.get_running_loop().time(), version, status))
                await asyncio.sleep(0.01)

    async def _answer(self, http: httpx.AsyncClient, host: str, headers: dict[str, str]) -> tuple[str, int]:
        answer = await http.get(f"http://{self.address}/predict", headers={"Host": host, **headers})
        return answer.headers.get("x-model-version", "-"), answer.status_code

    async def _count(self, line: Object) -> None:
        """As many requests as recorded, up to 200."""
        await asyncio.sleep(self.settled)
        found: Counter[tuple[str, int]] = Counter()
        async with httpx.AsyncClient(timeout=5) as http:
            for _ in range(min(200, line["requests"])):
                found[await self._answer(http, line["host"], line.get("headers") or {})] += 1
        self.counted[line["note"]] = found


async def replay_all(names: list[str], at_once: int) -> dict[str, Replay]:
    """Several scenarios, ``at_once`` at a time."""
    free = asyncio.Semaphore(at_once)

    async def one(name: str) -> Replay:
        async with free:
            return await Replay(name).run()

    return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))
