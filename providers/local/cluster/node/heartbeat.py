"""The node's sign of life: its Lease, renewed all the time, and now and then its status."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store.errors import ApiError
from nighttrain.providers.local.cluster.store.resources import LEASES, NODES
from nighttrain.providers.local.cluster.store.store import timestamp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nighttrain.providers.local.cluster.store.store import Object, Store

_log = logging.getLogger(__name__)

NAMESPACE = "kube-node-lease"

# A kubelet's numbers: a Lease of 40 s, renewed after a quarter of it.
LEASE_SECONDS = 40
RENEW_SECONDS = 10.0
# A status in which nothing changed is reported every five minutes.
_RENEWALS_PER_REPORT = 30


async def keep(
    store: Store,
    node: str,
    reachable: asyncio.Event,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Give the signs of life until cancelled; none while the node is cut off."""
    renewals = 0
    while True:
        await reachable.wait()
        try:
            renew(store, node)
            if renewals and renewals % _RENEWALS_PER_REPORT == 0:
                _report(store, node)
        except ApiError as error:
            # Somebody deleted the namespace: there may be another one the next time.
            _log.debug("the lease of %s: %s", node, error)
        renewals += 1
        await sleep(RENEW_SECONDS)


def renew(store: Store, node: str) -> None:
    """:raises ApiError: the Lease cannot be stored"""
    spec = {
        "holderIdentity": node,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": store.clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    if store.mutate(LEASES, NAMESPACE, node, lambda lease: lease.update(spec=spec)) is not None:
        return
    metadata: Object = {"name": node, "namespace": NAMESPACE}
    owner = store.find(NODES, None, node)
    if owner is not None:
        reference = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner["metadata"]["uid"]}
        metadata["ownerReferences"] = [reference]
    store.create(LEASES, {"metadata": metadata, "spec": spec})


def _report(store: Store, node: str) -> None:
    now = timestamp(store.clock())

    def report(known: Object) -> None:
        for condition in (known.get("status") or {}).get("conditions") or ():
            condition["lastHeartbeatTime"] = now

    store.mutate(NODES, None, node, report)
