"""Rollouts by processes that are killed at any call, with faults of the API and hands that interfere.

The API server and MLflow are real, controllers and time are played. The short form runs in CI; all of them:

    pytest tests/faults/test_rollouts_killed.py -s -n 0 --schedules 300
    pytest tests/faults/test_rollouts_killed.py -s -n 0 --first-schedule 17 --schedules 1
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import stamina

from helpers.clusters import connected
from helpers.played_endpoint import RestingPlan
from helpers.promotions import made
from helpers.rollout_schedules import ENDPOINT, Scene, schedule_of
from nighttrain.providers.kubernetes.api.client import ClusterConfig
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    NAMESPACES,
    PODS,
    SERVICES,
    Resource,
)
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.registry.history.changes import Changes
from nighttrain.providers.registry.history.entries import Kind
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import promote
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.rollouts.state import Phase, State
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer
    from nighttrain.providers.kubernetes.api.client import ClusterClient

pytestmark = [pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(3 * 3600)]

# A sample for CI: about a second each.
SCHEDULES = 12

_PREFIX = "nighttrain.dev/"
HALF_WAY = frozenset(
    _PREFIX + name
    for name in (
        "candidate-version",
        "candidate-percent",
        "candidate-replicas",
        "mirror-percent",
        "scaled-down",
        "scaled-up",
        "replaced",
    )
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with (
        stamina.set_testing(True, attempts=10, cap=True),
        EmbeddedCluster(containers=False, faults=RestingPlan()) as running,
    ):
        yield running


async def named(client: ClusterClient, resource: Resource, namespace: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in (await client.list(resource, namespace))["items"]}


async def broken(scene: Scene, end: State, registry: ModelRegistry) -> list[str]:
    """Which promises the end does not keep."""
    found: list[str] = []
    touched = {(hand.what, hand.version) for hand in scene.done}
    services = await named(scene.client, SERVICES, scene.namespace)
    deployments = await named(scene.client, DEPLOYMENTS, scene.namespace)
    service = services[ENDPOINT]
    selector, marks = service["spec"]["selector"], service["metadata"]["annotations"]
    edited = scene.edited is not None and selector == scene.edited
    if end.phase is Phase.STOPPED:
        if not edited:
            found.append(f"stopped, and the selector is {selector}: {end.reason}")
    else:
        serves = "2" if end.phase is Phase.PROMOTED else "1"
        if selector != version_labels(ENDPOINT, serves):
            found.append(f"{end.phase}, and the Service selects {selector}")
        if marks[_PREFIX + "stable-version"] != serves:
            found.append(f"{end.phase}, and the stable version is {marks[_PREFIX + 'stable-version']}")
        alias = (await registry.version_by_alias(scene.model, "champion")).version
        if alias != serves:
            found.append(f"{end.phase}, and version {alias} has the alias")
        for each in [service, *deployments.values()]:
            if left := HALF_WAY & each["metadata"].get("annotations", {}).keys():
                found.append(f"{each['metadata']['name']} keeps {sorted(left)}")
        kept = {scene.schedule.kept} - {""}
        if ("delete", "1") in touched or ("delete", "2") in touched:
            kept -= {"2"}
        up = {"1", "2"} if serves == "2" else {"1", *kept}
        if deployments.keys() - {f"{ENDPOINT}-v{version}" for version in up}:
            found.append(f"stray: {sorted(deployments)}")
        if missing := {f"{ENDPOINT}-v{version}" for version in up - {"2"}} - deployments.keys():
            found.append(f"gone: {sorted(missing)}")
        if services.keys() - {ENDPOINT, *deployments}:
            found.append(f"stray Services: {sorted(services)}")
        for pod in await named(scene.client, PODS, scene.namespace):
            if not any(pod.startswith(name) for name in deployments):
                found.append(f"stray pod {pod}")
        sizes = {name: each["spec"]["replicas"] for name, each in deployments.items()}
        untouched = {f"{ENDPOINT}-v{version}" for version in ("1", "2", "3")} - {
            f"{ENDPOINT}-v{version}" for what, version in touched if what in ("scale", "delete")
        }
        scaled = any(what == "scale" for what, _ in touched)
        if not scaled and any(sizes.get(name, 2) != 2 for name in untouched):
            found.append(f"{end.phase}, and the sizes are {sizes}")
    if list(await named(scene.client, CONFIGMAPS, scene.namespace)) not in (
        [f"{ENDPOINT}-rollout"],
        ["kube-root-ca.crt", f"{ENDPOINT}-rollout"],
    ):
        found.append("more than one state")
    return found + await broken_history(scene, end, registry)


async def broken_history(scene: Scene, end: State, registry: ModelRegistry) -> list[str]:
    """Which promises the model's history does not keep."""
    found: list[str] = []
    ledger = await Changes(registry, scene.model).read()
    entries = ledger.entries
    notes = [entry.reason for entry in entries if entry.kind is Kind.ROLLOUT]
    if len(set(notes)) != len(notes):
        found.append(f"noted twice: {notes}")
    if not notes or not notes[-1].startswith(str(end.phase)):
        found.append(f"{end.phase}, and the history's last word is {notes[-1:]}")
    order = [int(note.rsplit(", ", 1)[1].rstrip(")")) for note in notes]
    if order != sorted(order):
        found.append(f"noted out of order: {order}")
    if ledger.unfinished is not None:
        found.append(f"entry {ledger.unfinished.number} is half made")
    if any(entry.kind is Kind.OUTSIDE for entry in entries):
        found.append("the alias moved without the history")
    moves = [entry for entry in entries if entry.kind in (Kind.PROMOTION, Kind.ROLLBACK)]
    counted = Counter((entry.kind, entry.version) for entry in moves)
    if any(count > 1 for count in counted.values()) and len(counted) < len(moves) - 1:
        found.append(f"moved more than once: {counted}")
    alias = (await registry.version_by_alias(scene.model, "champion")).version
    if moves[-1].version != alias:
        found.append(f"version {alias} has the alias, and the history says {moves[-1].version}")
    return found


async def test_a_killed_rollout_ends_promoted_or_undone_and_nothing_between(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    make_model: MakeModel,
    request: pytest.FixtureRequest,
) -> None:
    first = request.config.getoption("--first-schedule", default=0)
    count = request.config.getoption("--schedules", default=None) or SCHEDULES
    config = ClusterConfig(kubeconfig=str(cluster.kubeconfig))
    ends: Counter[str] = Counter()
    struck: Counter[str] = Counter()
    failed: list[str] = []
    plan = cluster.faults
    assert isinstance(plan, RestingPlan)
    async with connected(cluster) as client, MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as tracking:
        registry = ModelRegistry(tracking)
        for seed in range(first, first + count):
            began = time.monotonic()
            scene = Scene(schedule_of(seed), client, config, mlflow_server.uri, plan, made(make_model, 2))
            await promote(registry, scene.model, 1)
            await client.create(NAMESPACES, None, {"metadata": {"name": scene.namespace}})
            plan.clear()
            await scene.set_up()
            hits = plan.struck()
            try:
                end = await scene.run()
                plan.clear()
                wrong = await broken(scene, end, registry)
                ends[end.phase] += 1
            except Exception as error:  # the others are run, too
                plan.clear()
                wrong = [f"{type(error).__name__}: {error}"]
            hits = plan.struck() - hits
            met = {"kills": scene.killed, "faults": hits, "hands": len(scene.done)}
            struck.update(name for name, number in met.items() if number)
            struck["anything"] += any(met.values())
            struck["tries that failed"] += len(scene.failed_tries)
            took = time.monotonic() - began
            print(f"{seed}: {ends} {met} {scene.calls} calls {scene.sleeps} sleeps {took:.1f} s", flush=True)
            if wrong:
                failed.append(f"{scene.schedule}:\n  {wrong}\n  did {scene.done}\n  {scene.failed_tries}")
                print("\n".join([failed[-1], *scene.told[-12:]]), flush=True)
    print(f"{count} schedules: {dict(ends)}; struck {dict(struck)}; {len(failed)} broke a promise")
    assert not failed, "\n".join(failed)
    assert struck["anything"] >= 0.9 * count, "schedules that meet nothing show nothing"
