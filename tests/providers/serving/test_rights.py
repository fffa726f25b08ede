"""Every request of a training and of a rollout, judged by the Roles of docs/rbac.yaml as a cluster judges."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from helpers.polling import until_async
from helpers.server_proxy import SeenRequest, ServerProxy, api_refusal
from helpers.subresources import status_of
from nighttrain.providers import errors
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.deployment_target.removal import take_down
from nighttrain.providers.deployment_target.standing import look_at
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.api.resources import (
    DEPLOYMENTS,
    GATEWAYS,
    JOBS,
    KUEUE_WORKLOADS,
    NAMESPACES,
)
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.logs import logs
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.plain.by_replicas import ReplicaShares
from nighttrain.providers.serving.backends.plain.by_route import GatewayRoutes
from nighttrain.providers.serving.backends.plain.routes import RouteSettings
from nighttrain.providers.serving.backends.traffic import ReturningBackend, Target
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.rollouts.opening import Setting
from nighttrain.providers.serving.rollouts.state import Names, Phase, State
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.spec import ServingSpec
from nighttrain.providers.serving.strategy import Strategy, canary

if TYPE_CHECKING:
    from aiohttp import web

    from nighttrain.providers.serving.backends.traffic import Look, TrafficBackend

Make = Callable[..., ServingSpec]
Right = tuple[str, str, str]
NAMESPACE = "ml"
DELETE_PODS: Right = ("", "pods", "delete")
_numbers = count()

DOCUMENTS = list(
    yaml.safe_load_all((Path(__file__).resolve().parents[3] / "docs" / "rbac.yaml").read_text("utf-8"))
)


def rights(role: str) -> list[Right]:
    """(API group, resource, verb) of each right that a Role grants."""
    (found,) = (each for each in DOCUMENTS if each["kind"] == "Role" and each["metadata"]["name"] == role)
    assert found["metadata"]["namespace"] == NAMESPACE
    return [
        (group, resource, verb)
        for rule in found["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


TRAINING, SERVING = rights("nighttrain-training"), rights("nighttrain-serving")
GATEWAY = rights("nighttrain-gateway")
CLASSES: Right = ("gateway.networking.k8s.io", "gatewayclasses", "get")
# Without these the rest works: what is not seen is not said.
LOOKS: set[Right] = {
    ("discovery.k8s.io", "endpointslices", "list"),
    ("gateway.networking.k8s.io", "gateways", "get"),
    CLASSES,
}
BEST_EFFORT = {("", "pods/log", "get"), DELETE_PODS, *LOOKS} | {
    (group, resource, verb)
    for group, resource in (("", "events"), ("kueue.x-k8s.io", "workloads"))
    for verb in ("list", "watch")
}
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/[^/]+"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?(?:/.*)?"
)


class Authorizer:
    """Answers 403 to whatever is not granted in the one namespace."""

    def __init__(self, granted: list[Right]) -> None:
        self.granted = set(granted)
        self.used: set[Right] = set()
        self.refused: list[Right] = []

    def __call__(self, seen: SeenRequest) -> web.Response | None:
        match = PATH.fullmatch(seen.path)
        assert match is not None, seen.path
        verb = VERBS.get(seen.method)
        if seen.method == "GET":
            verb = "get" if match["name"] else "watch" if seen.query.get("watch") == "true" else "list"
        elif seen.method == "DELETE":
            verb = "delete" if match["name"] else "deletecollection"
        resource = f"{match['resource']}/{match['sub']}" if match["sub"] else match["resource"]
        right = (match["group"] or "", resource, verb or seen.method)
        # What belongs to no namespace is granted by the one ClusterRole.
        if match["namespace"] in (NAMESPACE, None) and right in self.granted:
            self.used.add(right)
            return None
        self.refused.append(right)
        qualified = f"{resource}.{right[0]}" if right[0] else resource
        name = f' "{match["name"]}"' if match["name"] else ""
        return api_refusal(
            403,
            "Forbidden",
            f'{qualified}{name} is forbidden: User "airflow" cannot {right[2]} resource "{resource}" in API '
            f'group "{right[0]}" in the namespace "{match["namespace"]}"',
        )


@contextlib.asynccontextmanager
async def judged(
    cluster: EmbeddedCluster, granted: list[Right]
) -> AsyncIterator[tuple[ClusterClient, Authorizer, ClusterClient]]:
    """A client with these rights, the judge, and a client that may do everything."""
    authorizer = Authorizer(granted)
    config = ClusterConfig(kubeconfig=str(cluster.kubeconfig))
    async with (
        ServerProxy(cluster.url, cluster.token, judge=authorizer) as proxy,
        await ClusterClient.open(config) as admin,
        await ClusterClient.open(ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="t"))) as client,
    ):
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        with contextlib.suppress(errors.ObjectExistsError):
            await admin.create(NAMESPACES, None, body)
        yield client, authorizer, admin


async def a_training(client: ClusterClient, judge: Authorizer) -> list[str]:
    """What the operators do, from the dry run to the next attempt's cancellation."""
    run = f"run-{next(_numbers)}"
    who = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")
    what = WorkloadSpec(image="py", cmds=["python", "-u", "-c", "print('x')"], termination_grace_period=1)
    await client.create(JOBS, NAMESPACE, build_job(check_workload(what), who, 1), dry_run=True)
    job = await lifecycle.submit(client, check_workload(what), who, epoch="0", namespace=NAMESPACE)
    lines: list[str] = []
    async with asyncio.timeout(60):
        following = asyncio.create_task(logs.follow(client, job, lines.append))
        try:
            outcome = await lifecycle.wait(client, job, timeouts=Timeouts(30))
        except BaseException:
            following.cancel()
            raise
        finally:
            await asyncio.gather(following, return_exceptions=True)
    assert outcome.succeeded
    assert (await lifecycle.submit(client, check_workload(what), who, epoch="0", namespace=NAMESPACE)).adopted
    await lifecycle.mark_consumed(client, job, "0")
    # The task is cleared, and its next attempt waits in a queue until it is cancelled.
    queued = WorkloadSpec(image="py", cmds=["python"], queue_name="night", files={"train.py": "print('x')"})
    second = await lifecycle.submit(client, check_workload(queued), who, epoch="1", namespace=NAMESPACE)
    assert second.attempt == 2
    # A worker that died here: the next one finds the Job, and looks whether its files are there.
    assert await lifecycle.submit(
        client, check_workload(queued), who, epoch="1", namespace=NAMESPACE
    ) == replace(second, adopted=True)
    await lifecycle.observe(client, second)
    waiting = asyncio.create_task(lifecycle.wait(client, second, timeouts=Timeouts(30)))
    # Why it waits is told by feeds; Kueue does not run here, so that its Workloads are listed and no more.
    feed = {("", "events", "list"), ("", "events", "watch")}
    await until_async(lambda: waiting.done() or feed <= judge.used or feed & set(judge.refused), 60)
    if {("", "pods", "watch"), ("batch", "jobs", "watch")} & set(judge.refused):
        await waiting  # refused again and again, it says so
    with contextlib.suppress(errors.ObjectNotFoundError, errors.ClusterForbiddenError):
        await anext(client.watch(KUEUE_WORKLOADS[0], NAMESPACE, resource_version="1"), None)
    await lifecycle.cancel(client, second)
    await waiting
    await a_training_with_a_sidecar(client, judge)
    return lines


async def a_training_with_a_sidecar(client: ClusterClient, judge: Authorizer) -> None:
    """What the sidecar holds up is deleted; where that is forbidden, the training succeeds all the same."""
    run = f"run-{next(_numbers)}"
    who = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="sidecar")
    beside = {
        "name": "proxy",
        "image": "py",
        "command": ["python", "-S", "-c", "import time; time.sleep(60)"],
    }
    what = WorkloadSpec(
        pod_template_dict={"kind": "Pod", "spec": {"containers": [{"name": "main", "image": "py"}, beside]}},
        cmds=["python", "-S", "-c", "pass"],
        termination_grace_period=1,
    )
    job = await lifecycle.submit(client, check_workload(what), who, epoch="0", namespace=NAMESPACE)
    async with asyncio.timeout(60):
        outcome = await lifecycle.wait(client, job, timeouts=Timeouts(30, sidecar_grace=0.1))
    assert outcome.succeeded
    refused = DELETE_PODS in judge.refused
    assert ("Grant delete on pods in namespace ml" in outcome.explain()) == refused
    assert ("kubectl delete pod -n ml" in outcome.explain()) == refused
    await lifecycle.cancel(client, job)


class Player:
    """The controllers and the clock: whatever is waited for becomes ready, as far as it is told to."""

    def __init__(self, admin: ClusterClient) -> None:
        self.admin = admin
        self.now = 0.0
        self.broken: set[str] = set()

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        for found in (await self.admin.list(DEPLOYMENTS, NAMESPACE))["items"]:
            name, count = found["metadata"]["name"], found["spec"]["replicas"]
            if name in self.broken:
                continue
            fields = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
            state = {"observedGeneration": found["metadata"]["generation"], **dict.fromkeys(fields, count)}
            await self.admin.patch(status_of(DEPLOYMENTS), NAMESPACE, name, {"status": state})


async def rollouts(client: ClusterClient, admin: ClusterClient, make: Make) -> None:
    """Three versions, a new form, a failure, scaled to zero, a rollback: all that a rollout can come to."""
    player = Player(admin)
    rollout = Rollout(KubernetesDeployments(client), sleep=player.sleep, clock=lambda: player.now)
    endpoint = f"delay-{next(_numbers)}"

    def spec(version: str, **fields: Any) -> ServingSpec:
        return make(version, endpoint=endpoint, namespace=NAMESPACE, **fields)

    for version in ("1", "2", "3"):
        await rollout.run(spec(version))
    reached = await rollout.run(spec("3", image="model-server:2"))
    assert [version.version for version in reached.versions] == ["2", "3"]
    player.broken.add(f"{endpoint}-v4")
    with pytest.raises(errors.RolloutFailedError):
        await rollout.run(spec("4"))
    for scaled in ("2", "3"):
        nobody = {"spec": {"replicas": 0}}
        await admin.patch(DEPLOYMENTS, NAMESPACE, f"{endpoint}-v{scaled}", nobody)
    assert (await rollout.run(spec("3", image="model-server:2"))).ready_replicas == 1
    assert (await rollout.rollback(endpoint, NAMESPACE)).stable_version == "2"
    status = await rollout.status(endpoint, NAMESPACE)
    assert status is not None
    assert status.candidate_version is None


Pods = Callable[[], Awaitable[None]]


async def in_steps(
    backend: TrafficBackend, client: ClusterClient, make: Callable[[str], ServingSpec], pods: Pods
) -> None:
    """A first version undone, one promoted, then a share of another: undone, and promoted.

    :param pods: lets them come
    """
    store, fences = RolloutStore(client), count(1)
    await backend.capabilities(NAMESPACE)

    async def until(target: Target, condition: Callable[[Look], bool], then: Any = None) -> None:
        async with asyncio.timeout(30):
            while not condition(look := await backend.look(target)):
                with contextlib.suppress(errors.ObjectConflictError):
                    await (then(look) if then else asyncio.sleep(0.05))
                await pods()

    async def traffic(target: Target, percent: int) -> None:
        def asked(look: Look) -> bool:
            return (look.asked_percent, look.unseen) == (percent, None)

        fence = next(fences)
        await until(
            target,
            lambda look: asked(look) and look.fence >= fence,
            lambda look: backend.set_traffic(target, look, fence, percent=percent),
        )

    async def undone(target: Target) -> None:
        await traffic(target, 0)
        fence = next(fences)
        await until(target, lambda look: look.undone, lambda look: backend.undo(target, look, fence))

    async def became_stable(target: Target) -> None:
        fence = next(fences)
        if not isinstance(backend, ReturningBackend):  # no pod is ready here, by which it would be seen
            await backend.promote(target, await backend.look(target), fence)
            return
        await until(target, lambda look: look.promoted, lambda look: backend.promote(target, look, fence))

    for version, promoted in (("1", False), ("2", True), ("3", False), ("4", True)):
        spec = make(version)
        target = replace(await backend.begin(spec), shares=(40,))
        await backend.bring_up(spec, target, next(fences), lambda _: None)
        await until(target, lambda look: look.readiness.ready)
        await backend.addresses(target)
        for percent in (40, 100) if target.stable else (100,):
            await traffic(target, percent)
        await (became_stable if promoted else undone)(target)
    if isinstance(backend, ReturningBackend):
        target = await backend.way_back(target)
        await backend.bring_back(target, next(fences), lambda _: None)
        await until(target, lambda look: look.readiness.ready)
        await traffic(target, 100)
        await became_stable(target)
    state = State(
        rollout_id="r", actor="a", target=target, strategy=Strategy(), names=Names(), begun_at=0.0, since=0.0
    )
    kept = await store.begin(state, await store.read(target.endpoint, NAMESPACE))
    await store.write(state, kept)


async def by_replicas(client: ClusterClient, admin: ClusterClient, make: Make) -> None:
    player, endpoint = Player(admin), f"steps-{next(_numbers)}"

    def spec(version: str) -> ServingSpec:
        return make(version, endpoint=endpoint, namespace=NAMESPACE)

    await in_steps(ReplicaShares(client, sleep=at_once), client, spec, lambda: player.sleep(1))


async def at_once(_: float) -> None:
    """Nobody sends requests here."""


async def test_a_training_needs_exactly_its_role(cluster: EmbeddedCluster) -> None:
    async with judged(cluster, TRAINING) as (client, authorizer, _):
        assert await a_training(client, authorizer) == ["x"]
    assert authorizer.refused == []
    assert authorizer.used == set(TRAINING)


async def test_rollouts_need_exactly_their_role(idle_cluster: EmbeddedCluster, serving_spec: Make) -> None:
    async with judged(idle_cluster, SERVING) as (client, authorizer, admin):
        await rollouts(client, admin, serving_spec)
        await by_replicas(client, admin, serving_spec)
        # A pod that does not come up is asked for its last lines: no pod runs here, so ask for one.
        with contextlib.suppress(errors.ObjectNotFoundError):
            await anext(client.logs(NAMESPACE, "absent", tail_lines=1), None)
    assert authorizer.refused == []
    assert authorizer.used == set(SERVING)


@pytest.fixture
def routed_cluster(image: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": image}, serving=Serving()) as running:
        yield running


async def by_route(client: ClusterClient, admin: ClusterClient, store: Any, make: Make) -> None:
    listener = {"name": "http", "protocol": "HTTP", "port": 8091}
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "gw"},
        "spec": {"gatewayClassName": "nighttrain-router", "listeners": [listener]},
    }
    await admin.create(GATEWAYS, NAMESPACE, gateway)

    def spec(version: str) -> ServingSpec:
        return make(version, namespace=NAMESPACE, artifact_digest=store.add(version), drain_seconds=0)

    settings = RouteSettings(gateway="gw", hostnames=("delay.test",))
    await in_steps(GatewayRoutes(client, settings, sleep=at_once), client, spec, lambda: asyncio.sleep(0.05))


async def test_routes_need_exactly_their_role_beside(
    routed_cluster: EmbeddedCluster, store: Any, serving_spec: Make
) -> None:
    async with judged(routed_cluster, [*SERVING, *GATEWAY, CLASSES]) as (client, authorizer, admin):
        await by_route(client, admin, store, serving_spec)
    assert authorizer.refused == []
    assert authorizer.used >= {*GATEWAY, CLASSES}
    assert authorizer.used <= {*SERVING, *GATEWAY, CLASSES}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("right", [*GATEWAY, CLASSES], ids="-".join)
async def test_a_right_that_a_route_lacks_is_named(
    right: Right, routed_cluster: EmbeddedCluster, store: Any, serving_spec: Make
) -> None:
    rest = [each for each in [*SERVING, *GATEWAY, CLASSES] if each != right]
    async with judged(routed_cluster, rest) as (client, authorizer, admin):
        await named(right, by_route(client, admin, store, serving_spec))
    assert set(authorizer.refused) == {right}


async def test_taking_an_endpoint_down_needs_the_optional_role_too(
    idle_cluster: EmbeddedCluster, serving_spec: Make
) -> None:
    more = rights("nighttrain-mlflow-deployments")
    async with judged(idle_cluster, [*SERVING, *more]) as (client, authorizer, admin):
        player = Player(admin)
        rollout = Rollout(KubernetesDeployments(client), sleep=player.sleep, clock=lambda: player.now)
        await rollout.run(serving_spec("1", endpoint="gone", namespace=NAMESPACE))
        target = Target(endpoint="gone", namespace=NAMESPACE, model_name="delay", candidate="1")
        state = State(
            rollout_id="r", actor="ann", target=target, strategy=canary(), names=Names(), begun_at=0, since=0
        )
        setting = Setting().to_dict()
        await RolloutStore(admin).begin(replace(state, phase=Phase.PROMOTED, setting=setting), None)
        assert await take_down(client, await look_at(client, "gone", NAMESPACE), print)
        assert await rollout.status("gone", NAMESPACE) is None
        with contextlib.suppress(errors.ObjectNotFoundError):
            await client.ask_service(NAMESPACE, "gone", "http", "invocations", {})
    assert set(more) <= authorizer.used
    # Who may not read routes has made none.
    assert set(authorizer.refused) == {("gateway.networking.k8s.io", "httproutes", "get")}


async def everything(client: ClusterClient, admin: ClusterClient, make: Make) -> None:
    """At once, and in steps."""
    await rollouts(client, admin, make)
    await by_replicas(client, admin, make)


async def named(right: Right, scenario: Awaitable[Any]) -> None:
    """The scenario ends with an error that names the right, or without any if it does not matter."""
    if right in BEST_EFFORT:
        await scenario
        return
    _, resource, verb = right
    remedy = f"Grant {verb} on {resource} in namespace {NAMESPACE}: docs/use-a-real-cluster.md"
    with pytest.raises(errors.ClusterForbiddenError, match=re.escape(remedy)):
        await scenario


@pytest.mark.sampled(4)
@pytest.mark.parametrize("right", TRAINING, ids="-".join)
async def test_a_right_that_a_training_lacks_is_named(right: Right, cluster: EmbeddedCluster) -> None:
    async with judged(cluster, [each for each in TRAINING if each != right]) as (client, authorizer, _):
        await named(right, a_training(client, authorizer))
    assert set(authorizer.refused) == {right}
    if right[1] == "pods/log":  # a refusal is not asked about again: a short training would wait for it
        assert len(authorizer.refused) == 1


@pytest.mark.sampled(4)
@pytest.mark.parametrize("right", [right for right in SERVING if right not in BEST_EFFORT], ids="-".join)
async def test_a_right_that_a_rollout_lacks_is_named(
    right: Right, idle_cluster: EmbeddedCluster, serving_spec: Make
) -> None:
    async with judged(idle_cluster, [each for each in SERVING if each != right]) as (
        client,
        authorizer,
        admin,
    ):
        await named(right, everything(client, admin, serving_spec))
    assert set(authorizer.refused) == {right}
