"""The controllers of the embedded cluster, started and stopped together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.controllers.deployment_controller import DeploymentController
from nighttrain.providers.local.cluster.controllers.endpoints_controller import EndpointsController
from nighttrain.providers.local.cluster.controllers.garbage_collector import GarbageCollector
from nighttrain.providers.local.cluster.controllers.gateway_controller import GatewayController, Serving
from nighttrain.providers.local.cluster.controllers.inference_controller import InferenceController
from nighttrain.providers.local.cluster.controllers.job_controller import JobController
from nighttrain.providers.local.cluster.controllers.pace import BackOff, Pace
from nighttrain.providers.local.cluster.controllers.reconcile import ReconcileLoop
from nighttrain.providers.local.cluster.controllers.replicaset_controller import ReplicaSetController
from nighttrain.providers.local.cluster.controllers.scheduler import Scheduler
from nighttrain.providers.local.cluster.kinds.crds import install_serving
from nighttrain.providers.local.cluster.store.resources import BUILT_IN, EVENTS, LEASES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nighttrain.providers.local.cluster.machine.network import ClusterNetwork
    from nighttrain.providers.local.cluster.store.store import Store

# Pauses between a Job's failed pods, a real Job controller's: ten seconds, doubled up to ten minutes.
JOB_BACK_OFF = BackOff(first=10.0, longest=600.0)


class Controllers:
    """Scheduling, Jobs, ReplicaSets, Deployments, Services and garbage collection.

    The time is the store's clock; ``sleep`` waits for what comes later (deadlines, pauses, TTLs). With
    ``serving`` there are a gateway and KServe too.
    """

    def __init__(
        self,
        store: Store,
        network: ClusterNetwork,
        *,
        job_back_off: BackOff = JOB_BACK_OFF,
        job_pace: Pace | None = None,
        serving: Serving | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        # Events and leases own nothing, and nobody owns them: no need to watch.
        watched = tuple(resource for resource in BUILT_IN if resource not in (EVENTS, LEASES))
        types = install_serving(store) if serving is not None else {}
        self._loop = ReconcileLoop(store, (*watched, *types.values()), sleep)
        self._gateways: GatewayController | None = None
        for controller in (
            JobController(self._loop, job_back_off, job_pace),
            ReplicaSetController(self._loop),
            DeploymentController(self._loop),
            EndpointsController(self._loop, network),
            GarbageCollector(self._loop, (*BUILT_IN, *types.values())),
        ):
            self._loop.add(controller)
        if serving is not None:
            self._gateways = GatewayController(self._loop, network, types, serving)
            self._loop.add(self._gateways)
            self._loop.add(InferenceController(self._loop, types, serving.step_lag))
        self._scheduler = Scheduler(store)

    async def start(self) -> None:
        self._loop.start()
        self._scheduler.start()

    async def stop(self) -> None:
        await self._scheduler.stop()
        await self._loop.stop()
        if self._gateways is not None:
            await self._gateways.close()
