"""Rollouts by processes that are killed at any call, with faults of the API and hands that interfere.

The API server and MLflow are real, controllers and time are played. Half of the rollouts share by replicas,
half by a route. The short form runs in CI; all of them:

    pytest tests/faults/test_rollouts_killed.py -s -n 0 --schedules 300
    pytest tests/faults/test_rollouts_killed.py -s -n 0 --first-schedule 17 --schedules 1
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import stamina

from helpers.clusters import connected
from helpers.played_endpoint import RestingPlan
from helpers.promotions import made
from helpers.rollout_schedules import ENDPOINT, Scene, schedule_of
from helpers.unsure_mlflow import UnsureMLflow, unsure_mlflow
from nighttrain.providers.kubernetes.api.client import ClusterConfig
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    HTTPROUTES,
    NAMESPACES,
    PODS,
    SERVICES,
    Resource,
)
from nighttrain.providers.local.cluster.kinds.crds import SERVING
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
    from nighttrain.providers.plain_json import Json

pytestmark = [pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(3 * 3600)]

DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)

# A sample for CI, of some seconds each: what found something (29 and 104: marks of a share that a rollout had
# left behind; 86: an entry that was half made), one that a hand stops, and one with three kills.
SAMPLE = (29, 104, 86, 105, 4)

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


@pytest.fixture
def unsure(mlflow_server: MLflowServer) -> Iterator[UnsureMLflow]:
    with unsure_mlflow(mlflow_server.uri) as running:
        yield running


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with (
        stamina.set_testing(True, attempts=10, cap=True),
        EmbeddedCluster(containers=False, faults=RestingPlan()) as running,
    ):
        yield running


async def named(client: ClusterClient, resource: Resource, namespace: str) -> dict[str, Json]:
    return {each["metadata"]["name"]: each for each in (await client.list(resource, namespace))["items"]}


async def broken(scene: Scene, end: State, registry: ModelRegistry) -> list[str]:
    """Which promises the end does not keep."""
    services = await named(scene.client, SERVICES, scene.namespace)
    found = await broken_history(scene, end, registry)
    states = set(await named(scene.client, CONFIGMAPS, scene.namespace)) - {"kube-root-ca.crt"}
    if states != {f"{ENDPOINT}-rollout"}:
        found.append(f"one state was to be left, and there are {sorted(states)}")
    if end.phase is Phase.STOPPED and scene.schedule.routed:
        rules = (await scene.client.get(HTTPROUTES, scene.namespace, ENDPOINT))["spec"]["rules"]
        if rules != [scene.edited]:
            found.append(f"stopped ({end.reason}), and the route's rules are {rules}, not {scene.edited}")
        return found
    if end.phase is Phase.STOPPED:
        selector = services[ENDPOINT]["spec"]["selector"]
        if selector != scene.edited:
            found.append(f"stopped ({end.reason}), and the selector is {selector}, not {scene.edited}")
        return found
    alias = (await registry.version_by_alias(scene.model, "champion")).version
    if alias != serving(end):
        found.append(f"{end.phase}, and version {alias} has the alias")
    deployments = await named(scene.client, DEPLOYMENTS, scene.namespace)
    pods = await named(scene.client, PODS, scene.namespace)
    found += broken_traffic(services[ENDPOINT], deployments, end)
    if scene.schedule.routed:
        found += broken_route(await named(scene.client, HTTPROUTES, scene.namespace), end)
    found += stray(scene, end, services.keys(), deployments.keys(), pods.keys())
    return found + broken_sizes(scene, deployments)


def serving(end: State) -> str:
    """The version that is to have everything."""
    return "2" if end.phase is Phase.PROMOTED else "1"


def broken_traffic(service: Json, deployments: Mapping[str, Json], end: State) -> list[str]:
    """What the endpoint's Service says otherwise than the end, and the marks that are left."""
    found = []
    selector, marks = service["spec"]["selector"], service["metadata"]["annotations"]
    if selector != version_labels(ENDPOINT, serving(end)):
        found.append(f"{end.phase}, and the Service selects {selector}")
    if marks[_PREFIX + "stable-version"] != serving(end):
        found.append(f"{end.phase}, and the stable version is {marks[_PREFIX + 'stable-version']}")
    for each in [service, *deployments.values()]:
        if left := HALF_WAY & each["metadata"].get("annotations", {}).keys():
            found.append(f"{each['metadata']['name']} keeps {sorted(left)}")
    return found


def broken_route(routes: Mapping[str, Json], end: State) -> list[str]:
    """What the route says otherwise than that all requests go to the endpoint's Service."""
    # One that fails before it gets any request may have made no route.
    if not routes and end.phase is Phase.UNDONE:
        return []
    if routes.keys() != {ENDPOINT}:
        return [f"one route was to be there, and there are {sorted(routes)}"]
    rules = routes[ENDPOINT]["spec"]["rules"]
    led = [[each["name"] for each in rule["backendRefs"]] for rule in rules]
    found = [] if led == [[ENDPOINT]] else [f"{end.phase}, and the route leads to {led}"]
    if left := HALF_WAY & routes[ENDPOINT]["metadata"].get("annotations", {}).keys():
        found.append(f"the route keeps {sorted(left)}")
    return found


def stray(scene: Scene, end: State, services: Set[str], deployments: Set[str], pods: Set[str]) -> list[str]:
    """What is up and should not be, and the other way round."""
    found = []
    deleted = any(hand.what == "delete" for hand in scene.done)
    versions = {"1", "2"} if end.phase is Phase.PROMOTED else {"1", scene.schedule.kept} - {""}
    up = {f"{ENDPOINT}-v{version}" for version in versions}
    if too_many := deployments - up:
        found.append(f"stray Deployments: {sorted(too_many)}")
    may_be_gone = {f"{ENDPOINT}-v2"} if deleted else set()
    if missing := up - deployments - may_be_gone:
        found.append(f"gone: {sorted(missing)}")
    if too_many := services - {ENDPOINT} - deployments:
        found.append(f"stray Services: {sorted(too_many)}")
    if lost := [pod for pod in pods if not any(pod.startswith(name) for name in deployments)]:
        found.append(f"stray pods: {lost}")
    return found


def broken_sizes(scene: Scene, deployments: Mapping[str, Json]) -> list[str]:
    """Two pods of each version, unless a hand scaled or deleted one."""
    if any(hand.what in ("scale", "delete") for hand in scene.done):
        return []
    sizes = {name: each["spec"]["replicas"] for name, each in deployments.items()}
    return [f"the sizes are {sizes}"] if set(sizes.values()) != {2} else []


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
    # Version 1 got the alias before, and may get it back by a rollback: each change is made once.
    if any(number > 1 for number in counted.values()):
        found.append(f"moved more than once: {counted}")
    alias = (await registry.version_by_alias(scene.model, "champion")).version
    if moves[-1].version != alias:
        found.append(f"version {alias} has the alias, and the history says {moves[-1].version}")
    return found


@dataclass
class Counted:
    """What several schedules came to."""

    ends: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def add(self, scene: Scene, end: State | None, faults: int, unsure: int, wrong: list[str]) -> None:
        """Count one schedule; what broke is printed at once, with how to repeat it."""
        met = {"a kill": scene.killed, "a fault": faults, "a hand": len(scene.done), "MLflow": unsure}
        self.ends[end.phase if end else "nothing"] += 1
        self.struck.update([name for name, number in met.items() if number])
        self.struck["anything"] += any(met.values())
        self.struck["a route"] += scene.schedule.routed
        self.struck["a failed try"] += bool(scene.failed_tries)
        seed = scene.schedule.seed
        print(f"{seed}: {end.phase if end else None}, {met}, {scene.calls} calls", flush=True)
        if wrong:
            again = f"--first-schedule {seed} --schedules 1"
            self.failed.append(f"{again}: {wrong}\n  {scene.schedule}\n  did {scene.done}")
            print("\n".join([self.failed[-1], *scene.failed_tries, *scene.told[-12:]]), flush=True)


async def install_gateway_api(client: ClusterClient) -> None:
    """Create the definitions of the Gateway API."""
    for definition in json.loads(gzip.decompress(SERVING.read_bytes())):
        if definition["spec"]["group"] == HTTPROUTES.group:
            await client.create(DEFINITIONS, None, definition)


async def test_a_killed_rollout_ends_promoted_or_undone_and_nothing_between(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    unsure: UnsureMLflow,
    make_model: MakeModel,
    request: pytest.FixtureRequest,
) -> None:
    first = request.config.getoption("--first-schedule", default=0)
    count = request.config.getoption("--schedules", default=None)
    seeds = SAMPLE if count is None else range(first, first + count)
    config, plan, counted = ClusterConfig(kubeconfig=str(cluster.kubeconfig)), cluster.faults, Counted()
    assert isinstance(plan, RestingPlan)
    async with (
        connected(cluster) as client,
        MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as tracking,
    ):
        await install_gateway_api(client)
        registry = ModelRegistry(tracking)
        for seed in seeds:
            scene = Scene(schedule_of(seed), client, config, unsure.uri, plan, made(make_model, 2))
            await promote(registry, scene.model, 1)
            await client.create(NAMESPACES, None, {"metadata": {"name": scene.namespace}})
            await scene.set_up()
            before, end, unsure_before = plan.struck(), None, unsure.struck
            unsure.begin(scene.schedule.unsure)
            try:
                end = await scene.run()
                wrong = await broken(scene, end, registry)
            except Exception as error:  # the others are run, too
                wrong = [f"{type(error).__name__}: {error}"]
            finally:
                plan.clear()
            counted.add(scene, end, plan.struck() - before, unsure.struck - unsure_before, wrong)
    ends, struck = dict(counted.ends), dict(counted.struck)
    print(f"{len(seeds)} schedules: {ends}; met {struck}; {len(counted.failed)} broke a promise")
    assert not counted.failed, "\n".join(counted.failed)
    assert struck["anything"] >= 0.9 * len(seeds), "schedules that meet nothing show nothing"
