"""The node's signs of life, in virtual seconds."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.node import heartbeat
from nighttrain.providers.local.cluster.rules.admission import Admission
from nighttrain.providers.local.cluster.store.resources import LEASES, NAMESPACES, NODES
from nighttrain.providers.local.cluster.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A store with a node, and a time that passes when somebody sleeps: until its end, where all stops."""

    def __init__(self, *, seconds: float, when: dict[int, Callable[[], Any]] | None = None) -> None:
        self.now = START
        self.end = START + timedelta(seconds=seconds)
        self.when = when or {}
        admission = Admission()
        self.store = admission.store = Store(admit=admission.admit, clock=lambda: self.now)
        self.store.create(NAMESPACES, {"metadata": {"name": heartbeat.NAMESPACE}})
        condition = {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}
        status = {"conditions": [condition]}
        self.node = self.store.create(NODES, {"metadata": {"name": "node1"}, "status": status})
        self.reachable = asyncio.Event()
        self.reachable.set()
        self.renewed: list[float] = []

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.renewed.append(self.seconds())
        self.now += timedelta(seconds=seconds)
        if self.now >= self.end:
            raise asyncio.CancelledError
        self.when.pop(int((self.now - START).total_seconds()), lambda: None)()

    def seconds(self) -> float:
        """When the Lease was last renewed."""
        lease = self.store.get(LEASES, heartbeat.NAMESPACE, "node1")
        return (datetime.fromisoformat(lease["spec"]["renewTime"]) - START).total_seconds()

    async def run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await heartbeat.keep(self.store, "node1", self.reachable, sleep=self.sleep)


async def test_the_lease_is_renewed_every_ten_seconds() -> None:
    world = World(seconds=40)
    await world.run()
    assert world.renewed == [0, 10, 20, 30]
    lease = world.store.get(LEASES, heartbeat.NAMESPACE, "node1")
    assert lease["spec"] == {
        "holderIdentity": "node1",
        "leaseDurationSeconds": 40,
        "renewTime": "2026-01-01T00:00:30.000000Z",
    }
    (owner,) = lease["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Node", world.node["metadata"]["uid"])


async def test_the_status_is_reported_every_five_minutes() -> None:
    world = World(seconds=899)
    await world.run()
    (condition,) = world.store.get(NODES, None, "node1")["status"]["conditions"]
    assert condition["lastHeartbeatTime"] == "2026-01-01T00:10:00Z"


async def test_a_lease_that_was_deleted_comes_again() -> None:
    world = World(seconds=30)
    world.when[10] = lambda: world.store.delete(LEASES, heartbeat.NAMESPACE, "node1")
    await world.run()
    assert world.renewed == [0, 10, 20]


async def test_nothing_is_renewed_while_the_node_is_cut_off() -> None:
    world = World(seconds=100)
    world.when[20] = world.reachable.clear
    task = asyncio.create_task(world.run())
    # Each turn of the loop that does something sleeps once; without the node it stands still.
    for _ in range(50):
        await asyncio.sleep(0)
    assert world.renewed == [0, 10]
    world.now += timedelta(seconds=30)
    world.reachable.set()
    await task
    assert world.renewed == [0, 10, *range(50, 100, 10)]
