"""The embedded cluster's router over real HTTP, with pods behind it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import socket
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.polling import until, until_async
from helpers.serving_replay import GROUP, POD_IP, container
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.machine.router import Backend, Router, Rule
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROUTES = f"{GROUP}/namespaces/default/httproutes"
LISTENER = {"name": "http", "protocol": "HTTP", "port": 8000}


class Site:
    """A cluster with the Services a and b, whose servers say v1 and v2, and its gateways' addresses."""

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self.cluster = cluster
        headers = {"Authorization": f"Bearer {cluster.token}"}
        self.http = httpx.Client(base_url=cluster.url, headers=headers, timeout=20)
        self._names = iter(f"m{number}" for number in range(100))

    def serve(self, name: str, version: str) -> None:
        pod = {"containers": [container({"name": "V", "value": version})]}
        template = {"metadata": {"labels": {"app": name}}, "spec": pod}
        spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}
        self.post("/apis/apps/v1/namespaces/default/deployments", {"metadata": {"name": name}, "spec": spec})
        ports = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}
        self.post("/api/v1/namespaces/default/services", {"metadata": {"name": name}, "spec": ports})

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def get(self, path: str) -> dict[str, Any]:
        return dict(self.http.get(path).json())

    def route(self, *rules: dict[str, Any], gateway: str = "nighttrain", **spec: Any) -> str:
        """A new route whose status is there; its host, and its name."""
        name = next(self._names)
        parents = [{"name": gateway, "namespace": "default"}]
        body = {"parentRefs": parents, "hostnames": [f"{name}.test"], "rules": list(rules), **spec}
        self.post(
            ROUTES,
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": {"name": name},
                "spec": body,
            },
        )
        until(lambda: "status" in self.get(f"{ROUTES}/{name}"))
        return name

    def conditions(self, name: str) -> dict[str, str]:
        parents = self.get(f"{ROUTES}/{name}")["status"]["parents"]
        return {each["type"]: each["reason"] for parent in parents for each in parent["conditions"]}

    def url(self, gateway: str = "nighttrain") -> str:
        path = f"{GROUP}/namespaces/default/gateways/{gateway}"
        found = until(lambda: self.get(path).get("status", {}).get("addresses"))
        return f"http://{found[0]['value']}:{self.get(path)['spec']['listeners'][0]['port']}"

    def ask(
        self, name: str, count: int, gateway: str = "nighttrain", path: str = "/predict", **headers: str
    ) -> Counter[tuple[str, int]]:
        """So many requests; (version, status) -> answers."""
        found: Counter[tuple[str, int]] = Counter()
        with httpx.Client(base_url=self.url(gateway), headers={"Host": f"{name}.test", **headers}) as client:
            for _ in range(count):
                answer = client.get(path)
                found[answer.headers.get("x-model-version", "-"), answer.status_code] += 1
        return found

    def pod(self, app: str) -> dict[str, Any]:
        pods = self.get(f"/api/v1/namespaces/default/pods?labelSelector=app%3D{app}")["items"]
        return dict(pods[0])

    def seen(self, app: str) -> int:
        """How many requests its pod has been asked."""
        return int(httpx.get(f"http://{self.pod(app)['status']['podIP']}:8080/seen").text)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    images = {"localhost/python": sys.executable}
    with EmbeddedCluster(images, serving=Serving(seed=11)) as cluster:
        made = Site(cluster)
        made.serve("a", "v1")
        made.serve("b", "v2")
        spec = {"gatewayClassName": "nighttrain-router-basic", "listeners": [LISTENER]}
        made.post(f"{GROUP}/namespaces/default/gateways", {"metadata": {"name": "basic"}, "spec": spec})
        until(lambda: _is_ready(made, "a") and _is_ready(made, "b"))
        yield made
        made.http.close()


def _is_ready(site: Site, app: str) -> bool:
    conditions = site.pod(app)["status"].get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def to(name: str, weight: int = 1) -> dict[str, Any]:
    return {"name": name, "port": 80, "weight": weight}


def mirror(name: str, **more: Any) -> dict[str, Any]:
    backend = {"name": name, "port": 80}
    return {"type": "RequestMirror", "requestMirror": {"backendRef": backend, **more}}


def near(count: int, total: int, share: float) -> bool:
    """Within four standard deviations; the seed is fixed."""
    return abs(count - total * share) <= 4 * math.sqrt(total * share * (1 - share))


def test_requests_are_shared_out_by_weight(site: Site) -> None:
    name = site.route({"backendRefs": [to("a", 90), to("b", 10)]})
    found = site.ask(name, 600)
    assert found.keys() == {("v1", 200), ("v2", 200)}
    assert near(found["v2", 200], 600, 0.1)


def test_a_changed_route_is_followed(site: Site) -> None:
    name = site.route({"backendRefs": [to("a", 1), to("b", 0)]})
    assert site.ask(name, 20) == {("v1", 200): 20}
    rules = [{"backendRefs": [to("a", 0), to("b", 1)]}]
    patched = site.http.patch(
        f"{ROUTES}/{name}",
        json={"spec": {"rules": rules}},
        headers={"Content-Type": "application/merge-patch+json"},
    )
    patched.raise_for_status()
    until(lambda: site.ask(name, 1) == {("v2", 200): 1})
    assert site.ask(name, 20) == {("v2", 200): 20}


def test_of_several_matches_the_gateway_api_says_which_counts(site: Site) -> None:
    """The longer path before the shorter, then more headers before fewer, in whatever order they stand."""
    canary = {"headers": [{"name": "X-Canary", "value": "yes"}]}
    name = site.route(
        {"backendRefs": [to("a")]},
        {"matches": [canary], "backendRefs": [to("b")]},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/seen"}}], "backendRefs": [to("absent")]},
    )
    assert site.ask(name, 5) == {("v1", 200): 5}
    assert site.ask(name, 5, **{"x-canary": "yes"}) == {("v2", 200): 5}
    assert site.ask(name, 5, **{"x-canary": "no"}) == {("v1", 200): 5}
    assert site.ask(name, 5, path="/seen", **{"x-canary": "yes"}) == {("-", 500): 5}
    assert site.ask(name, 5, path="/seen/more") == {("-", 500): 5}
    assert site.ask(name, 5, path="/seenmore") == {("v1", 200): 5}


def test_another_host_is_not_found(site: Site) -> None:
    site.route({"backendRefs": [to("a")]})
    assert site.ask("nobody", 3) == {("-", 404): 3}


def test_a_mirror_gets_a_copy_and_nobody_sees_its_answer(site: Site) -> None:
    name = site.route({"backendRefs": [to("a")], "filters": [mirror("b")]})
    before = site.seen("b")
    assert site.ask(name, 50) == {("v1", 200): 50}
    until(lambda: site.seen("b") == before + 50)


def test_a_mirror_of_some_percent(site: Site) -> None:
    name = site.route({"backendRefs": [to("a")], "filters": [mirror("b", percent=30)]})
    before = site.seen("b")
    assert site.ask(name, 300) == {("v1", 200): 300}
    until(lambda: near(site.seen("b") - before, 300, 0.3))


def test_a_mirror_that_is_not_there_harms_nobody(site: Site) -> None:
    name = site.route({"backendRefs": [to("a")], "filters": [mirror("absent")]})
    assert site.ask(name, 20) == {("v1", 200): 20}
    assert site.conditions(name)["ResolvedRefs"] == "BackendNotFound"


def test_a_gateway_that_does_not_mirror_says_accepted_and_answers_500(site: Site) -> None:
    """As recorded; what a gateway can do is in its class, and only there."""
    name = site.route({"backendRefs": [to("a")], "filters": [mirror("b")]}, gateway="basic")
    before = site.seen("b")
    assert site.conditions(name) == {"Accepted": "Accepted", "ResolvedRefs": "ResolvedRefs"}
    assert site.ask(name, 20, "basic") == {("-", 500): 20}
    assert site.seen("b") == before
    features = {
        each["metadata"]["name"]: {feature["name"] for feature in each["status"]["supportedFeatures"]}
        for each in site.get(f"{GROUP}/gatewayclasses")["items"]
    }
    mirroring = {"HTTPRouteRequestMirror", "HTTPRouteRequestPercentageMirror"}
    assert features["nighttrain-router"] - features["nighttrain-router-basic"] == mirroring


def test_what_the_router_does_not_do_is_answered_500(site: Site) -> None:
    redirect = {"type": "RequestRedirect", "requestRedirect": {"scheme": "https"}}
    name = site.route({"filters": [redirect]})
    assert site.ask(name, 3) == {("-", 500): 3}


def test_a_route_of_another_namespace_is_taken_where_the_listener_allows_it(site: Site) -> None:
    site.post("/api/v1/namespaces", {"metadata": {"name": "other"}})
    routes = f"{GROUP}/namespaces/other/httproutes"
    parents = [{"name": each, "namespace": "default"} for each in ("nighttrain", "basic")]
    spec = {"parentRefs": parents, "rules": [{"backendRefs": [to("a")]}]}
    site.post(
        routes,
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "m"},
            "spec": spec,
        },
    )
    found = until(lambda: site.get(f"{routes}/m").get("status", {}).get("parents"))
    assert [each["conditions"][0]["status"] for each in found] == ["True", "False"]


def test_a_gateway_that_goes_leaves_its_port(site: Site) -> None:
    gateways = f"{GROUP}/namespaces/default/gateways"
    spec = {"gatewayClassName": "nighttrain-router", "listeners": [LISTENER]}
    site.post(gateways, {"metadata": {"name": "passing"}, "spec": spec})
    url = site.url("passing")
    assert httpx.get(url).status_code == 404
    site.http.delete(f"{gateways}/passing").raise_for_status()

    def refused() -> bool:
        try:
            httpx.get(url)
        except httpx.ConnectError:
            return True
        return False

    until(refused)


def test_a_restart_keeps_the_gateways_address(tmp_path: Path) -> None:
    with EmbeddedCluster(state=tmp_path / "state", serving=Serving()) as cluster:
        before = Site(cluster)
        before.url()
        # Between the two is an address that is free afterwards: asked for anew, they would move up.
        services = "/api/v1/namespaces/default/services"
        before.post(services, {"metadata": {"name": "gone"}, "spec": {"ports": [{"port": 8080}]}})
        spec = {"gatewayClassName": "nighttrain-router", "listeners": [LISTENER]}
        before.post(f"{GROUP}/namespaces/default/gateways", {"metadata": {"name": "second"}, "spec": spec})
        url = before.url("second")
        before.http.delete(f"{services}/gone").raise_for_status()
        before.http.close()
        cluster.restart()
        after = Site(cluster)
        assert after.url("second") == url
        until(lambda: _answers(url))
        after.http.close()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.ConnectError):
        return httpx.get(url).status_code == 404
    return False


def test_a_pod_that_is_killed_under_a_request(site: Site) -> None:
    """Cut before the answer has begun: 502, and no second try."""
    slow = f"""
import asyncio, os
async def serve(reader, writer):
    await reader.readuntil(b'\\r\\n\\r\\n')
    await asyncio.sleep(60)
async def main():
    await (await asyncio.start_server(serve, os.environ['{POD_IP["name"]}'], 8080)).serve_forever()
asyncio.run(main())
"""
    pod = {
        "name": "m",
        "image": "localhost/python:3.11",
        "command": ["python3", "-u", "-c", slow],
        "env": [POD_IP],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    }
    site.post(
        "/api/v1/namespaces/default/pods",
        {"metadata": {"name": "slow", "labels": {"app": "slow"}}, "spec": {"containers": [pod]}},
    )
    ports = {"selector": {"app": "slow"}, "ports": [{"port": 80, "targetPort": 8080}]}
    site.post("/api/v1/namespaces/default/services", {"metadata": {"name": "slow"}, "spec": ports})
    until(lambda: _is_ready(site, "slow"))
    name = site.route({"backendRefs": [to("slow")]})

    async def asked() -> int:
        async with httpx.AsyncClient(base_url=site.url(), timeout=20) as client:
            request = asyncio.create_task(client.get("/", headers={"Host": f"{name}.test"}))
            await asyncio.sleep(0.3)  # it is under way
            pods = "/api/v1/namespaces/default/pods/slow?gracePeriodSeconds=0"
            await asyncio.to_thread(site.http.delete, pods)
            return (await request).status_code

    assert asyncio.run(asked()) == 502
    until(lambda: site.ask(name, 1) == {("-", 503): 1})


# The router alone, before a server of the test's own that says and does exactly what is asked of it.


class Front:
    """A router before one server, and a raw connection to it."""

    def __init__(self, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def __aenter__(self) -> Front:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            with contextlib.suppress(OSError, EOFError):
                await self._answer(reader, writer)
            writer.close()

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        backend = Backend(1, (self._server.sockets[0].getsockname(),))
        rule = Rule("", re.compile("/"), (), (backend,), (), (("X-Set", "yes"),), broken=False)
        self.router = Router(seed=3)
        listener = socket.create_server(("127.0.0.1", 0))
        self._listening = await self.router.listen(listener, lambda: [rule])
        self.reader, self.writer = await asyncio.open_connection(*listener.getsockname())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.writer.close()
        self._listening.close()
        self._server.close()
        await self.router.close()
        # With the router's connections its servers' end, too.
        await asyncio.gather(*self._tasks)

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")


GET = b"GET / HTTP/1.1\r\nHost: m\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def test_an_answer_is_passed_on_piece_by_piece() -> None:
    """The second piece is written when the first has arrived: nothing waits for the whole."""
    arrived = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await arrived.wait()
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")
        await reader.read()

    async with asyncio.timeout(10), Front(answer) as front:
        front.writer.write(GET)
        assert b"transfer-encoding: chunked" in (await front.head()).lower()
        assert await front.reader.readuntil(b"first\r\n") == b"5\r\nfirst\r\n"
        arrived.set()
        assert await front.reader.readuntil(b"0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"


async def test_a_request_with_a_body_in_chunks_arrives_as_it_was_sent() -> None:
    """With the header that the rule sets, without those of the connection."""
    got = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.readuntil(b"0\r\n\r\n"))
        writer.write(EMPTY)

    body = b"4\r\nabcd\r\n0\r\n\r\n"
    async with asyncio.timeout(10), Front(answer) as front:
        front.writer.write(
            b"POST /predict?x=1 HTTP/1.1\r\nHost: m\r\nConnection: keep-alive\r\nX-Set: no\r\n"
            b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert (await front.head()).startswith(b"HTTP/1.1 100 ")
        front.writer.write(body)
        assert (await front.head()).startswith(b"HTTP/1.1 200 ")
    head, _, rest = bytes(got).partition(b"\r\n\r\n")
    assert rest == body
    assert head.split(b"\r\n") == [
        b"POST /predict?x=1 HTTP/1.1",
        b"Host: m",
        b"Transfer-Encoding: chunked",
        b"X-Set: yes",
    ]


async def test_connections_to_servers_are_used_again() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(EMPTY)

    async with asyncio.timeout(10), Front(answer) as front:
        for method in (b"GET", b"HEAD", b"GET"):
            front.writer.write(GET.replace(b"GET", method))
            assert (await front.head()).startswith(b"HTTP/1.1 200 ")
        assert front.connections == 1


async def test_a_server_that_closes_after_each_answer_is_asked_anew() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EMPTY)

    async with asyncio.timeout(10), Front(answer) as front:
        for _ in range(3):
            front.writer.write(GET)
            assert (await front.head()).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.05)  # its end of the connection arrives
        assert front.connections == 3


async def test_an_answer_that_is_cut_is_not_taken_for_the_whole() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    async with asyncio.timeout(10), Front(answer) as front:
        front.writer.write(GET)
        await front.head()
        with pytest.raises((ConnectionError, EOFError)):
            await front.reader.readexactly(10)


async def test_an_answer_before_the_end_of_the_request_is_passed_on() -> None:
    """A server may refuse a body that it has not read."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await reader.read()

    size = 8 * 1024 * 1024
    async with asyncio.timeout(20), Front(answer) as front:
        front.writer.write(b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % size)
        front.writer.write(bytes(size))
        assert (await front.head()).startswith(b"HTTP/1.1 413 ")


async def test_a_server_that_dies_in_the_middle_of_a_request_is_a_bad_gateway() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    size = 8 * 1024 * 1024
    async with asyncio.timeout(20), Front(answer) as front:
        front.writer.write(b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % size)
        front.writer.write(bytes(size))
        assert (await front.head()).startswith(b"HTTP/1.1 502 ")


async def test_a_client_that_goes_ends_its_request_at_the_server() -> None:
    """Or servers that hang would collect the requests of clients that have long given up."""
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with asyncio.timeout(10), Front(answer) as front:
        front.writer.write(GET)
        await until_async(lambda: front.connections)
        front.writer.close()
        await ended.wait()


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: 1, 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + bytes(100_000) + b"\r\n\r\n",
    ],
)
async def test_what_is_no_request_reaches_no_server(request_: bytes) -> None:
    async def answer(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        pytest.fail("nobody may be asked")

    async with asyncio.timeout(10), Front(answer) as front:
        front.writer.write(request_)
        with contextlib.suppress(ConnectionError):
            assert await front.reader.read() == b""
        assert front.connections == 0
