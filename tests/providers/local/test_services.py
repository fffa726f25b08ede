"""Services on the embedded cluster: endpoints, balancing, switching, refusing."""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Any

import pytest

from helpers.cluster_without_http import Running, condition, script
from nighttrain.providers.local.cluster.machine.network import AddressPool, ClusterNetwork
from nighttrain.providers.local.cluster.store.resources import ENDPOINTSLICES, EVENTS, PODS, SERVICES

if TYPE_CHECKING:
    from pathlib import Path

    from nighttrain.providers.local.cluster.machine.network import Address

PORT = 8080

# Answers each line with its own name, in one connection or many.
ECHO = """
import asyncio, os
async def serve(reader, writer):
    while line := await reader.readline():
        writer.write(os.environ['NAME'].encode() + b' ' + line)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, os.environ['IP'], 8080, backlog=1000)
    await server.serve_forever()
asyncio.run(main())
"""


def echo(name: str, *, labels: dict[str, str], ready: bool = True) -> dict[str, Any]:
    env = [
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    probe = {"tcpSocket": {"port": PORT if ready else 1}, "periodSeconds": 1}
    manifest = script(name, ECHO, env=env, readinessProbe=probe)
    manifest["metadata"]["labels"] = labels
    return manifest


def service(name: str, selector: dict[str, str], port: int = 8000, **spec: Any) -> dict[str, Any]:
    ports = [{"port": port, "targetPort": PORT}]
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": selector, "ports": ports, **spec},
    }


async def ready(cluster: Running, *names: str) -> None:
    for name in names:
        await cluster.until(PODS, name, lambda found: condition(found, "Ready"))


async def endpoints(cluster: Running, wanted: int) -> None:
    """Wait until the Service has as many ready endpoints."""
    with cluster.store.watch(ENDPOINTSLICES) as watcher:
        async for _type, found in watcher:
            if sum(each["conditions"]["ready"] for each in found.get("endpoints") or []) == wanted:
                return


async def ask(address: Address) -> str:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(b"hello\n")
        writer.write_eof()
        return (await reader.read()).decode()
    finally:
        writer.close()
        await writer.wait_closed()


def address_of(cluster: Running, name: str) -> Address:
    spec = cluster.store.get(SERVICES, "default", name)["spec"]
    return spec["clusterIP"], spec["ports"][0]["port"]


async def test_connections_go_to_ready_pods_at_random(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(SERVICES, service("web", {"app": "web"}))
        for name in ("one", "two"):
            cluster.store.create(PODS, echo(name, labels={"app": "web"}))
        cluster.store.create(PODS, echo("unready", labels={"app": "web"}, ready=False))
        cluster.store.create(PODS, echo("other", labels={"app": "other"}))
        await ready(cluster, "one", "two", "other")
        await cluster.pod_phase("unready", "Running")
        await endpoints(cluster, 2)
        answers = [await ask(address_of(cluster, "web")) for _ in range(100)]
        # As kube-proxy does it. Fewer than 20 of 100 come by chance once in a billion runs.
        counts = collections.Counter(answers)
        assert counts.keys() == {"one hello\n", "two hello\n"}
        assert min(counts.values()) >= 20
        assert answers[::2] != answers[:1] * 50
        [found] = cluster.store.list(ENDPOINTSLICES)[0]
        states = {each["targetRef"]["name"]: each["conditions"]["ready"] for each in found["endpoints"]}
        assert states == {"one": True, "two": True, "unready": False}
        assert found["ports"] == [{"name": "", "protocol": "TCP", "port": PORT}]


async def test_without_ready_pods_connections_are_refused(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(SERVICES, service("web", {"app": "web"}))
        cluster.store.create(PODS, echo("only", labels={"app": "web"}))
        await ready(cluster, "only")
        await endpoints(cluster, 1)
        assert await ask(address_of(cluster, "web")) == "only hello\n"
        cluster.store.delete(PODS, "default", "only")
        await endpoints(cluster, 0)
        with pytest.raises(ConnectionRefusedError):
            await ask(address_of(cluster, "web"))


async def test_no_request_is_lost_in_a_switch(tmp_path: Path) -> None:
    """The selector moves from one pod to another and the first is deleted, under load."""
    async with Running(tmp_path) as cluster:
        cluster.store.create(SERVICES, service("web", {"version": "1"}))
        cluster.store.create(PODS, echo("old", labels={"version": "1"}))
        cluster.store.create(PODS, echo("new", labels={"version": "2"}))
        await ready(cluster, "old", "new")
        await endpoints(cluster, 1)
        address = address_of(cluster, "web")
        answers: list[str] = []
        enough = asyncio.Event()

        async def client() -> None:
            for _ in range(250):
                answers.append(await ask(address))
                if len(answers) == 500:
                    enough.set()

        def switch(found: dict[str, Any]) -> None:
            found["spec"]["selector"] = {"version": "2"}

        long_reader, long_writer = await asyncio.open_connection(*address)
        clients = [asyncio.create_task(client()) for _ in range(8)]
        await enough.wait()
        cluster.store.mutate(SERVICES, "default", "web", switch)
        await asyncio.gather(*clients)
        # A connection made before the switch goes on with the pod it has.
        long_writer.write(b"still\n")
        assert await long_reader.readline() == b"old still\n"
        long_writer.close()
        await long_writer.wait_closed()
        cluster.store.delete(PODS, "default", "old")
        assert await ask(address) == "new hello\n"
        counts = collections.Counter(answers)
        assert len(answers) == 2000
        assert set(counts) == {"old hello\n", "new hello\n"}


async def test_headless_service_has_endpoints_and_no_address(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(SERVICES, service("web", {"app": "web"}, clusterIP="None"))
        cluster.store.create(PODS, echo("one", labels={"app": "web"}))
        await ready(cluster, "one")
        await endpoints(cluster, 1)
        assert cluster.store.get(SERVICES, "default", "web")["spec"]["clusterIP"] == "None"


async def test_a_port_that_cannot_be_bound_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Running(tmp_path) as cluster:

        def refuse(_address: Address, _backends: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(cluster.network, "serve", refuse)
        cluster.store.create(SERVICES, service("low", {"app": "web"}, port=80))
        with cluster.store.watch(EVENTS) as watcher:
            async for _type, event in watcher:
                if event["reason"] == "ProxyPortNotBound":
                    break
        assert "ports below 1024 need privileges here" in event["message"]


async def test_deleted_service_stops_listening(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(SERVICES, service("web", {"app": "web"}))
        cluster.store.create(PODS, echo("one", labels={"app": "web"}))
        await ready(cluster, "one")
        await endpoints(cluster, 1)
        address = address_of(cluster, "web")
        cluster.store.delete(SERVICES, "default", "web")
        with cluster.store.watch(ENDPOINTSLICES) as watcher:
            while cluster.store.list(ENDPOINTSLICES)[0]:
                await watcher.next_record()
        # Endpoints and garbage are collected in no fixed order: a few more answers may come.
        for _ in range(100):
            try:
                await ask(address)
            except ConnectionRefusedError:
                return
        pytest.fail("the deleted Service still answers")


# The proxy alone


async def serve(host: str, handler: Any) -> asyncio.Server:
    return await asyncio.start_server(handler, host, PORT)


async def test_a_refusing_pod_is_passed_over() -> None:
    async def hello(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"alive")
        writer.close()

    network = ClusterNetwork()
    dead, alive, front = network.pods.take(), network.pods.take(), (network.services.take(), 8000)
    server = await serve(alive, hello)
    network.serve(front, [(dead, PORT), (alive, PORT)])
    for _ in range(4):
        reader, writer = await asyncio.open_connection(*front)
        assert await reader.read() == b"alive"
        writer.close()
        await writer.wait_closed()
    network.serve(front, [(dead, PORT)])
    reader, writer = await asyncio.open_connection(*front)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()
    await network.close()


async def test_large_bodies_pass_both_ways_and_half_close_is_kept() -> None:
    """More than any buffer holds, to a slow reader; the answer comes after the request's end."""

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = 0
        while data := await reader.read(65536):
            total += len(data)
            await asyncio.sleep(0)
        writer.write(str(total).encode() + b" " + b"x" * total)
        writer.close()

    network = ClusterNetwork()
    pod, front = network.pods.take(), (network.services.take(), 8000)
    server = await serve(pod, count)
    network.serve(front, [(pod, PORT)])
    size = 20_000_000
    reader, writer = await asyncio.open_connection(*front)
    writer.write(b"y" * size)
    await writer.drain()
    writer.write_eof()
    answer = await reader.read()
    assert answer.startswith(str(size).encode())
    assert len(answer) == len(str(size)) + 1 + size
    writer.close()
    await writer.wait_closed()
    server.close()
    await network.close()


async def test_two_clusters_have_different_addresses() -> None:
    first, second = ClusterNetwork(), ClusterNetwork()
    assert first.block != second.block
    await first.close()
    await second.close()


def test_addresses_come_back_last() -> None:
    pool = AddressPool(64, 1, 1)
    taken = [pool.take() for _ in range(254)]
    assert len(set(taken)) == 254
    pool.give_back(taken[7])
    pool.give_back(taken[3])
    assert pool.take() == taken[7]
    assert not pool.claim(taken[5])
    assert pool.claim(taken[3])
    assert not pool.claim("10.96.0.10")
