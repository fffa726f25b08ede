"""The embedded cluster's router over real HTTP, with pods behind it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.polling import until, until_async
from helpers.serving_replay import GROUP, POD_IP, container
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    print('asked', flush=True)
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
            pod = "/api/v1/namespaces/default/pods/slow"
            await until_async(lambda: "asked" in site.http.get(f"{pod}/log").text)
            await asyncio.to_thread(site.http.delete, f"{pod}?gracePeriodSeconds=0")
            return (await request).status_code

    assert asyncio.run(asked()) == 502
    until(lambda: site.ask(name, 1) == {("-", 503): 1})
