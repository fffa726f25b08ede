"""One question to an endpoint, through the API server or past it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from helpers.server_proxy import SeenRequest, ServerProxy, api_refusal
from nighttrain.providers.deployment_target.predictions import ask
from nighttrain.providers.deployment_target.standing import Standing
from nighttrain.providers.errors import ServingError
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.serving.backends.base import EndpointStatus

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

PATH = "/api/v1/namespaces/default/services/delay:http/proxy/invocations"
QUESTION = {"dataframe_split": {"columns": ["a"], "data": [[1]]}}


def standing(address: str) -> Standing:
    status = EndpointStatus(
        endpoint="delay",
        namespace="default",
        model_name="delay",
        stable_version="1",
        previous_version=None,
        candidate_version=None,
        url="http://delay.default.svc:8080",
        cluster_ip_url=address,
        ready_replicas=1,
        replicas=1,
        switched_at="",
    )
    return Standing(name="delay", namespace="default", status=status, kept=None, annotations={})


@asynccontextmanager
async def api_server(
    cluster: EmbeddedCluster, answer: Callable[[], web.Response]
) -> AsyncIterator[tuple[ClusterClient, ServerProxy]]:
    """One that passes requests on to Services, as a real one does; the embedded one does not."""

    def judge(seen: SeenRequest) -> web.Response | None:
        return answer() if seen.path == PATH and seen.method == "POST" else None

    async with (
        ServerProxy(cluster.url, cluster.token, judge=judge) as server,
        await ClusterClient.open(ClusterConfig(kubeconfig_content=server.kubeconfig(token="t"))) as client,
    ):
        yield client, server


async def test_the_api_server_is_asked_first_and_once(idle_cluster: EmbeddedCluster) -> None:
    def answer() -> web.Response:
        return web.json_response({"predictions": [3.0]})

    async with api_server(idle_cluster, answer) as (client, server):
        assert await ask(client, standing("http://127.0.0.1:9"), QUESTION) == {"predictions": [3.0]}
        assert len(server.seen) == 1


async def test_an_answer_that_is_a_list_is_the_predictions(idle_cluster: EmbeddedCluster) -> None:
    async with api_server(idle_cluster, lambda: web.json_response([3.0])) as (client, _):
        assert await ask(client, standing("http://127.0.0.1:9"), QUESTION) == {"predictions": [3.0]}
    async with api_server(idle_cluster, lambda: web.Response(text="<html>")) as (client, _):
        with pytest.raises(ServingError, match="not JSON: <html>"):
            await ask(client, standing("http://127.0.0.1:9"), QUESTION)


async def test_what_the_model_refuses_is_told_and_not_sent_again(idle_cluster: EmbeddedCluster) -> None:
    def answer() -> web.Response:
        said = {"error_code": "BAD_REQUEST", "message": "the column b is missing"}
        return web.json_response(said, status=400)

    async with api_server(idle_cluster, answer) as (client, server):
        with pytest.raises(ServingError, match="the column b is missing"):
            await ask(client, standing("http://127.0.0.1:9"), QUESTION)
        assert len(server.seen) == 1


async def test_without_the_right_the_endpoints_own_address_is_asked(idle_cluster: EmbeddedCluster) -> None:
    asked: list[object] = []

    async def serve(request: web.Request) -> web.Response:
        asked.append((request.path, await request.json()))
        return web.json_response({"predictions": [4.0]})

    app = web.Application()
    app.router.add_post("/invocations", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with api_server(idle_cluster, refusal) as (client, _):
            found = await ask(client, standing(f"http://127.0.0.1:{port}"), QUESTION)
    finally:
        await runner.cleanup()
    assert found == {"predictions": [4.0]}
    assert asked == [("/invocations", QUESTION)]
    async with api_server(idle_cluster, refusal) as (client, _):
        with pytest.raises(ServingError, match=r"Through the API server: .*services/proxy.* At its own"):
            await ask(client, standing(f"http://127.0.0.1:{port}"), QUESTION)


def refusal() -> web.Response:
    return api_refusal(403, "Forbidden", 'User "ann" cannot create resource "services/proxy"')
