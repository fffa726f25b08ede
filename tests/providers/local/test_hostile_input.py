"""Requests nobody should send: each is answered, none is a 500, and the next honest request is served."""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.honest_objects import KINDS, SPACE, Kind
from helpers.malformed_requests import Strike, generated, request, strike
from nighttrain.providers.local.cluster.controllers.pace import BackOff
from nighttrain.providers.local.cluster.machine.janitor import marked_processes
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.resources import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Another seed makes other requests: NIGHTTRAIN_HOSTILE_SEED=7 ./run test ... -k strikes
SEED = int(os.environ.get("NIGHTTRAIN_HOSTILE_SEED", "20261124"))
REQUESTS, REQUESTS_AT_ANYTHING, STRIKES_AT_RUNNING = 5000, 2000, 500
BATCH = 250
# After so many strikes the honest objects are made again.
PAUSE = 50
# A request that takes longer than this hangs: the whole of them takes less than a minute.
SECONDS = 10.0


@pytest.fixture(scope="module")
def victim() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(containers=False) as cluster:
        yield cluster


class Sender:
    """Requests as bytes on a socket: HTTP libraries refuse to send the worst of them."""

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self._cluster = cluster
        self._connection: socket.socket | None = None

    def send(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; status 0 if the server closed the connection without one."""
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._cluster.port), SECONDS)
        try:
            self._connection.sendall(request)
            status, body, stays = self._answer(with_body=not request.startswith(b"HEAD "))
        except ConnectionError:
            status, body, stays = 0, b"", False
        if not stays:
            self.close()
        return status, body

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answer(self, *, with_body: bool) -> tuple[int, bytes, bool]:
        assert self._connection is not None
        received = b""
        while b"\r\n\r\n" not in received:
            piece = self._connection.recv(65536)
            if not piece:
                return 0, received, False
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
        if not with_body:
            return status, body, True
        if length is None:
            # A stream, or an answer without a body: the connection is not worth another request.
            return status, body, False
        while len(body) < length and (piece := self._connection.recv(65536)):
            body += piece
        return status, body, b"connection: close" not in lines and len(body) == length


def is_healthy(cluster: EmbeddedCluster) -> bool:
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with httpx.Client(base_url=cluster.url, headers=headers, timeout=SECONDS) as http:
        maps = "/api/v1/namespaces/kube-public/configmaps"
        made = http.post(maps, json={"metadata": {"generateName": "honest-"}})
        return made.status_code == 201 and http.get(f"{maps}/{made.json()['metadata']['name']}").is_success


class Struck:
    """Sends strikes, keeps the honest objects there, and notes what went wrong."""

    def __init__(self, cluster: EmbeddedCluster, kinds: tuple[Kind, ...]) -> None:
        self._token = cluster.token
        self._sender = Sender(cluster)
        self._kinds = kinds
        self.done: Counter[tuple[str, str]] = Counter()
        """Writes that succeeded, by method and kind."""
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []

    def send(self, told: str, raw: bytes) -> tuple[int, bytes]:
        began = time.monotonic()
        try:
            status, body = self._sender.send(raw)
        except TimeoutError:
            self._sender.close()
            self.wrong.append(f"no answer: {told}")
            return 0, b""
        took = time.monotonic() - began
        self.statuses[status] += 1
        if not 200 <= status < 500 and status != 501:
            self.wrong.append(f"{status} {body[:300]!r}: {told}")
        if took > SECONDS / 2:
            self.wrong.append(f"{took:.1f} s: {told}")
        return status, body

    def strike(self, number: int, strike: Strike) -> None:
        body = strike.body
        if strike.label:
            status, found = self.send(
                f"get {strike.kind.place}", request(self._token, "GET", strike.kind.place)
            )
            body = json.loads(found) if status == 200 else strike.kind.object
            body["metadata"].setdefault("labels", {})["n"] = strike.label
        status, _ = self.send(f"{number}: {strike}", strike.raw(self._token, body))
        if 200 <= status < 300:
            self.done[strike.method, strike.kind.kind] += 1

    def ask(self, method: str, target: str, body: Any = None, media: str = "application/json") -> int:
        """An honest request; its status."""
        told = f"honest {method} {target}"
        raw = b"" if body is None else json.dumps(body).encode()
        return self.send(told, request(self._token, method, target, raw, {"Content-Type": media}))[0]

    def restore(self) -> None:
        """Make the honest objects that are gone, free those that are held back, and look at all as tables."""
        for kind in self._kinds:
            if self.ask("GET", kind.place) == 200:
                free = {"metadata": {"finalizers": None}}
                self.ask("PATCH", kind.place, free, "application/merge-patch+json")
            else:
                self.ask("POST", kind.path, kind.object)
            headers = {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}
            self.send(f"table {kind.path}", request(self._token, "GET", kind.path, b"", headers))

    def close(self) -> None:
        self._sender.close()

    def check(self, seed: int) -> None:
        count = sum(self.statuses.values())
        assert not self.wrong, f"{len(self.wrong)} of {count}, seed {seed}: " + "\n".join(self.wrong[:20])


def strike_all(cluster: EmbeddedCluster, kinds: tuple[Kind, ...], seed: int, count: int) -> Struck:
    chance = random.Random(seed)
    struck = Struck(cluster, kinds)
    struck.ask("POST", "/api/v1/namespaces", {"metadata": {"name": SPACE}})
    for number in range(count):
        if number % PAUSE == 0:
            struck.restore()
        struck.strike(number, strike(chance))
        if number % BATCH == BATCH - 1:
            assert is_healthy(cluster), f"seed {seed}, {number}"
    struck.restore()
    struck.close()
    return struck


def test_every_served_kind_is_struck() -> None:
    custom = {"Thing"}
    assert {kind.kind for kind in KINDS} == {resource.kind for resource in BUILT_IN} | custom


def test_five_thousand_strikes_at_honest_objects(
    victim: EmbeddedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    struck = strike_all(victim, KINDS, SEED, REQUESTS)
    struck.check(SEED)
    assert "Traceback" not in caplog.text
    # Most are refused for a reason; requests that all ended at the door would prove little.
    for method, least in (("POST", 60), ("PUT", 100), ("PATCH", 300), ("DELETE", 100)):
        found = {kind: count for (each, kind), count in struck.done.items() if each == method}
        assert sum(found.values()) >= least, (method, found)
        without = {kind.kind for kind in KINDS} - set(found)
        assert not without, f"no {method} of {without} succeeded"
    assert {200, 201, 400, 404, 405, 409, 415, 422} <= set(struck.statuses), struck.statuses


def test_strikes_at_what_runs(caplog: pytest.LogCaptureFixture) -> None:
    images = {"trainer": sys.executable}
    with EmbeddedCluster(
        images=images, back_off=BackOff(0.1, 0.5), job_back_off=BackOff(0.1, 0.5)
    ) as cluster:
        headers = {"Authorization": f"Bearer {cluster.token}"}
        with httpx.Client(base_url=cluster.url, headers=headers, timeout=SECONDS) as http:
            [node] = http.get("/api/v1/nodes").json()["items"]
            cluster_id = node["status"]["nodeInfo"]["machineID"]
            struck = strike_all(cluster, KINDS, SEED, STRIKES_AT_RUNNING)
            struck.check(SEED)
            assert sum(count for (method, _), count in struck.done.items() if method == "PATCH") >= 30
            _until(lambda: bool(marked_processes(cluster_id)))
            _delete_all(http)
            _until(lambda: not marked_processes(cluster_id))
    assert not marked_processes(cluster_id)
    assert "Traceback" not in caplog.text


def _delete_all(http: httpx.Client) -> None:
    """Every object of the struck namespace, at once, whatever holds it back."""
    merge = {"Content-Type": "application/merge-patch+json"}
    spaced = [kind for kind in KINDS if f"/namespaces/{SPACE}/" in kind.path]
    # Owners first: they would make new pods.
    for kind in sorted(spaced, key=lambda kind: kind.kind == "Pod"):
        for obj in http.get(kind.path).json().get("items", ()):
            path = f"{kind.path}/{obj['metadata']['name']}"
            http.patch(path, json={"metadata": {"finalizers": None}}, headers=merge)
            http.request("DELETE", path, json={"gracePeriodSeconds": 0})


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_requests_at_anything(victim: EmbeddedCluster, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(SEED)
    struck = Struck(victim, ())
    for number in range(REQUESTS_AT_ANYTHING):
        raw, told = generated(chance, victim.token)
        struck.send(f"{number}: {told}", raw)
        if number % BATCH == BATCH - 1:
            assert is_healthy(victim), told
    struck.close()
    struck.check(SEED)
    assert {200, 201, 400, 404, 405, 415} <= set(struck.statuses), struck.statuses
    assert "Traceback" not in caplog.text


def send(cluster: EmbeddedCluster, raw: bytes) -> tuple[int, bytes]:
    sender = Sender(cluster)
    try:
        return sender.send(raw)
    finally:
        sender.close()


MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.mark.parametrize("declared", [True, False])
def test_a_huge_body_is_refused_before_it_is_read(victim: EmbeddedCluster, declared: bool) -> None:
    size = 64 * 1024 * 1024
    head = request(victim.token, "POST", MAPS)
    how = b"Content-Length: %d" % size if declared else b"Transfer-Encoding: chunked"
    head = head.replace(b"Content-Length: 0", how)
    piece = b"x" * 65536
    framed = piece if declared else b"%x\r\n%s\r\n" % (len(piece), piece)
    sent = 0
    with socket.create_connection(("127.0.0.1", victim.port), SECONDS) as connection:
        connection.sendall(head)
        try:
            while sent < size:
                connection.sendall(framed)
                sent += len(piece)
        except ConnectionError:
            pass
        # The answer may be lost with the reset that follows what was sent in vain.
        try:
            answer = connection.recv(65536)
        except ConnectionError:
            answer = b""
    assert sent < size / 2, "the server took it all"
    assert not answer or answer.startswith(b"HTTP/1.1 413 ")
    assert is_healthy(victim)


def test_a_body_above_the_limit_is_a_413(victim: EmbeddedCluster) -> None:
    data = {"metadata": {"name": "large"}, "data": {"key": "x" * (3 * 1024 * 1024)}}
    headers = {"Authorization": f"Bearer {victim.token}"}
    answer = httpx.post(f"{victim.url}{MAPS}", json=data, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (413, "RequestEntityTooLarge")


@pytest.mark.parametrize("media", ["application/json", "application/merge-patch+json"])
@pytest.mark.parametrize("opening", [b'{"a":', b"["])
def test_very_deep_documents_are_refused(victim: EmbeddedCluster, media: str, opening: bytes) -> None:
    body = opening * 200_000
    method, target = ("PATCH", f"{MAPS}/deep") if "patch" in media else ("POST", MAPS)
    status, _ = send(victim, request(victim.token, method, target, body, {"Content-Type": media}))
    assert 400 <= status < 500
    assert is_healthy(victim)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /api HTTP/9.9\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /api\x00/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[::1/api HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: x\r\n" + b"X-H: " + b"v" * 200_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http_does_no_harm(victim: EmbeddedCluster, raw: bytes) -> None:
    status, _ = send(victim, raw)
    assert status == 0 or 200 <= status < 500
    assert is_healthy(victim)


def test_half_requests_do_not_hold_up_others(victim: EmbeddedCluster) -> None:
    held = [socket.create_connection(("127.0.0.1", victim.port), SECONDS) for _ in range(100)]
    try:
        for number, connection in enumerate(held):
            half = request(victim.token, "POST", MAPS, b'{"metadata": {"name": "half"}}')
            connection.sendall(half[: 5 + number])
        assert is_healthy(victim)
    finally:
        for connection in held:
            connection.close()
    assert is_healthy(victim)


def test_it_listens_on_loopback_only_and_asks_for_its_token() -> None:
    with EmbeddedCluster(containers=False, trust_own_user=False) as cluster:
        listening = _listening_addresses(cluster.port)
        assert listening == {"127.0.0.1"}
        for path in ("/api", "/api/v1/namespaces/default/secrets", "/version", "/openapi/v3", "/apis"):
            assert httpx.get(f"{cluster.url}{path}").status_code in (401, 403)
            wrong = {"Authorization": "Bearer wrong"}
            assert httpx.get(f"{cluster.url}{path}", headers=wrong).status_code == 401
            right = {"Authorization": f"Bearer {cluster.token}"}
            assert httpx.get(f"{cluster.url}{path}", headers=right).status_code == 200


def _listening_addresses(port: int) -> set[str]:
    import psutil

    return {
        each.laddr.ip
        for each in psutil.Process().net_connections("inet")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    }
