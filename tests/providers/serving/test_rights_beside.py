"""The Roles of Argo Rollouts and of KServe in docs/rbac.yaml judge each request of a rollout there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from helpers.played_argo import PlayedArgo, make_route
from helpers.played_kserve import DEFINITIONS, PlayedKServe, definition
from nighttrain.providers import errors
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    HTTPROUTES,
    INFERENCE_SERVICES,
    KNATIVE_REVISIONS,
    ROLLOUTS,
    SERVICES,
    Resource,
)
from nighttrain.providers.serving.backends.argo.backend import ArgoRollouts
from nighttrain.providers.serving.backends.kserve.backend import KServe

from .test_rights import BEST_EFFORT, NAMESPACE, SERVING, Make, Right, in_steps, judged, named, rights

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.local.cluster.server import EmbeddedCluster
    from nighttrain.providers.serving.spec import ServingSpec

ARGO, KSERVE = rights("nighttrain-argo-rollouts"), rights("nighttrain-kserve")
MADE = (ROLLOUTS, INFERENCE_SERVICES, HTTPROUTES, SERVICES, CONFIGMAPS)


@contextlib.asynccontextmanager
async def defined(admin: ClusterClient, reconcile: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """The kinds of the serving systems that are played here; at the end nothing is left of them."""
    for resource in (ROLLOUTS, HTTPROUTES, INFERENCE_SERVICES, KNATIVE_REVISIONS):
        with contextlib.suppress(errors.ObjectExistsError):
            await admin.create(DEFINITIONS, None, definition(resource))
    try:
        yield
    finally:
        for resource in MADE:
            await _delete_all(admin, resource)
        await reconcile()


async def _delete_all(admin: ClusterClient, resource: Resource) -> None:
    for each in (await admin.list(resource, NAMESPACE))["items"]:
        await admin.delete(resource, NAMESPACE, each["metadata"]["name"], propagation="Background")


async def on_argo(client: ClusterClient, admin: ClusterClient, make: Make, route: str | None) -> None:
    argo = PlayedArgo(admin, NAMESPACE)

    def spec(version: str) -> ServingSpec:
        return make(version, namespace=NAMESPACE, replicas=4)

    async with defined(admin, argo.reconcile):
        if route:
            await make_route(admin, NAMESPACE)
        await in_steps(ArgoRollouts(client, http_route=route), client, spec, argo.reconcile)


async def on_kserve(client: ClusterClient, admin: ClusterClient, make: Make, mode: str) -> None:
    kserve = PlayedKServe(admin, namespace=NAMESPACE)

    def spec(version: str) -> ServingSpec:
        return make(version, namespace=NAMESPACE, source=f"s3://models/{version}")

    async with defined(admin, kserve.reconcile):
        backend = KServe(client, mode=mode, sleep=kserve.sleep)
        await in_steps(backend, client, spec, kserve.reconcile)


async def last_lines(client: ClusterClient) -> None:
    """A pod that does not come up is asked for its last lines: no pod runs here, so ask for one."""
    with contextlib.suppress(errors.ObjectNotFoundError):
        await anext(client.logs(NAMESPACE, "absent", tail_lines=1), None)


async def test_argo_rollouts_need_exactly_their_role_beside(
    idle_cluster: EmbeddedCluster, serving_spec: Make
) -> None:
    async with judged(idle_cluster, [*SERVING, *ARGO]) as (client, authorizer, admin):
        for route in (None, "delay-route"):
            await on_argo(client, admin, serving_spec, route)
        await last_lines(client)
    assert authorizer.refused == []
    assert authorizer.used >= set(ARGO)


async def test_kserve_needs_exactly_its_role_beside(
    idle_cluster: EmbeddedCluster, serving_spec: Make
) -> None:
    async with judged(idle_cluster, [*SERVING, *KSERVE]) as (client, authorizer, admin):
        for mode in ("Standard", "Knative"):
            await on_kserve(client, admin, serving_spec, mode)
        await last_lines(client)
    assert authorizer.refused == []
    assert authorizer.used >= set(KSERVE)


def only(role: list[Right]) -> list[Right]:
    """The rights that a Role adds, and that matter."""
    return [each for each in role if each not in {*SERVING, *BEST_EFFORT}]


@pytest.mark.parametrize("right", only(ARGO), ids="-".join)
async def test_a_right_that_argo_rollouts_lack_is_named(
    right: Right, idle_cluster: EmbeddedCluster, serving_spec: Make
) -> None:
    rest = [each for each in [*SERVING, *ARGO] if each != right]
    async with judged(idle_cluster, rest) as (client, authorizer, admin):
        await named(right, on_argo(client, admin, serving_spec, "delay-route"))
    assert set(authorizer.refused) == {right}


@pytest.mark.parametrize("right", only(KSERVE), ids="-".join)
async def test_a_right_that_kserve_lacks_is_named(
    right: Right, idle_cluster: EmbeddedCluster, serving_spec: Make
) -> None:
    mode = "Knative" if right[1] == "revisions" else "Standard"
    rest = [each for each in [*SERVING, *KSERVE] if each != right]
    async with judged(idle_cluster, rest) as (client, authorizer, admin):
        await named(right, on_kserve(client, admin, serving_spec, mode))
    assert set(authorizer.refused) == {right}
