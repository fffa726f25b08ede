"""Whether somebody is there to answer, and who has the say about how many."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.played_controllers import NAMESPACE, Player
from helpers.server_proxy import SeenRequest, ServerProxy, api_refusal
from helpers.subresources import status_of
from nighttrain.providers.errors import ClusterForbiddenError, RolloutFailedError
from nighttrain.providers.kubernetes.api.client import ClusterClient
from nighttrain.providers.kubernetes.api.connection import ClusterConfig
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS, SERVICES
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.spec import ServingSpec

if TYPE_CHECKING:
    from aiohttp import web

Make = Callable[..., ServingSpec]
DEPLOYMENT_PATH = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/delay-v"
SERVICE_PATH = f"/api/v1/namespaces/{NAMESPACE}/services/delay"


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(containers=False) as cluster:
        yield cluster


@pytest.fixture
async def player(cluster: EmbeddedCluster) -> AsyncIterator[Player]:
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        yield Player(client)
        for kind in (SERVICES, DEPLOYMENTS):
            for item in (await client.list(kind, NAMESPACE))["items"]:
                await client.delete(kind, NAMESPACE, item["metadata"]["name"], propagation="Background")


@pytest.fixture
def rollout(player: Player) -> Rollout:
    return Rollout(KubernetesDeployments(player.client), sleep=player.sleep, clock=lambda: player.now)


async def serve(rollout: Rollout, player: Player, spec: ServingSpec) -> None:
    await rollout.start(spec)
    await player.make_ready(spec.version)
    await rollout.finish(spec)


# What serves already, with nobody there


@pytest.mark.parametrize(("asked", "reached"), [(None, 1), (2, 2)])
async def test_what_was_scaled_to_zero_is_scaled_up_when_it_is_rolled_out_again(
    rollout: Rollout, player: Player, serving_spec: Make, asked: int | None, reached: int
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await player.scale("1", 0)
    again = serving_spec("1", replicas=asked)
    assert await rollout.start(again, on_progress=player.told.append)
    assert "delay-v1: somebody scaled it to zero replicas; it is scaled up to" in " ".join(player.told)
    assert await rollout.start(again), "a worker that died after the start begins anew"
    with pytest.raises(RolloutFailedError, match="nobody serves: 0/"):
        await rollout.finish(again)
    player.next = [lambda: player.make_ready("1")]
    status = await rollout.run(again)
    assert (status.ready_replicas, status.replicas, status.candidate_version) == (reached, reached, None)
    found = await player.client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
    assert "nighttrain.dev/scaled-up" not in found["metadata"]["annotations"]


async def test_what_a_webhook_puts_first_is_not_the_model(
    cluster: EmbeddedCluster, serving_spec: Make
) -> None:
    def inject(created: dict[str, Any]) -> None:
        if created.get("kind") == "Deployment":
            created["spec"]["template"]["spec"]["containers"].insert(0, {"name": "proxy", "image": "proxy:1"})

    async with ServerProxy(cluster.url, cluster.token, webhook=inject) as proxy:
        config = ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="any"))
        async with await ClusterClient.open(config) as client:
            player = Player(client)
            rollout = Rollout(KubernetesDeployments(client), sleep=player.sleep, clock=lambda: player.now)
            await serve(rollout, player, serving_spec("1"))
            status = await rollout.status("delay", NAMESPACE)
            assert status is not None
            assert [each.image for each in status.versions] == [serving_spec("1").image]
            await client.delete(SERVICES, NAMESPACE, "delay")
            await client.delete(DEPLOYMENTS, NAMESPACE, "delay-v1", propagation="Background")


async def test_what_serves_without_a_ready_pod_is_waited_for(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    spec = serving_spec("1", startup_timeout_seconds=3)
    await serve(rollout, player, spec)
    await player.make_ready("1", ready=0)
    with pytest.raises(RolloutFailedError, match=r"within 3 seconds; nobody serves: 0/1 replicas of version"):
        await rollout.run(spec)
    assert await player.versions() == {"1"}
    player.next = [lambda: player.make_ready("1")]
    assert (await rollout.run(spec)).ready_replicas == 1


async def test_what_serves_and_was_deleted_is_made_again(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await player.client.delete(DEPLOYMENTS, NAMESPACE, "delay-v1", propagation="Background")
    player.next = [lambda: player.make_ready("1")]
    assert (await rollout.run(serving_spec("1"))).ready_replicas == 1
    assert player.slept, "it is waited for"


async def test_what_answers_while_an_autoscaler_waits_for_nodes_is_left_alone(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await player.scale("1", 5)
    await player.make_ready("1", ready=2)
    status = await rollout.run(serving_spec("1"), on_progress=player.told.append)
    assert "delay: version 1 of airline-delay serves already, nothing to do" in player.told
    assert (status.ready_replicas, status.replicas, player.slept) == (2, 5, [])


async def test_a_pod_of_an_older_form_is_no_answer_of_this_one(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    """As when the answer to the update was lost: the new form is there, its pods are not."""
    await serve(rollout, player, serving_spec("1", replicas=2))
    state = {"replicas": 3, "updatedReplicas": 1, "readyReplicas": 2, "availableReplicas": 2}
    await player.client.patch(status_of(DEPLOYMENTS), NAMESPACE, "delay-v1", {"status": state})
    assert await rollout.start(serving_spec("1", replicas=2))


async def test_a_service_that_somebody_changed_is_noticed_and_mended(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    for selector, words in (
        ({"nighttrain.dev/version": "7"}, "which selects version 7"),
        ({"app": "somebody"}, "which selects something else"),
    ):
        await player.client.patch(SERVICES, NAMESPACE, "delay", {"spec": {"selector": selector}})
        status = await rollout.status("delay", NAMESPACE)
        assert status is not None
        assert (status.answers, status.ready_replicas) == (False, 0)
        assert words in status.describe()
        assert (await rollout.run(serving_spec("1"), on_progress=player.told.append)).answers
        assert "the Service, which somebody had changed, selects it again" in player.told[-1]
        assert await player.selected() == "1"


async def test_a_start_that_fails_leaves_the_zero_that_somebody_wanted(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await serve(rollout, player, serving_spec("2"))
    await player.scale("1", 0)
    before = await player.client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
    with pytest.raises(RolloutFailedError, match="version 2 still serves"):
        await rollout.run(serving_spec("1", startup_timeout_seconds=2))
    with pytest.raises(RolloutFailedError):
        await rollout.run(serving_spec("1", startup_timeout_seconds=2, image="model-server:2"))
    after = await player.client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert await player.selected() == "2"


async def test_who_scales_what_is_being_scaled_up_keeps_the_say_when_it_fails(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await player.scale("1", 0)
    await rollout.start(serving_spec("1"))
    await player.scale("1", 4)
    await rollout.abort(serving_spec("1"))
    assert await player.replicas("1") == 4


# Rollbacks


async def test_a_rollback_scales_up_what_was_scaled_to_zero(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await serve(rollout, player, serving_spec("2"))
    await player.scale("1", 0)
    await player.scale("2", 3)
    player.next = [lambda: player.make_ready("1")]
    status = await rollout.rollback("delay", NAMESPACE)
    assert (status.stable_version, status.ready_replicas, status.replicas) == ("1", 3, 3)
    assert await player.selected() == "1"


async def test_a_rollback_that_fails_scales_down_what_it_scaled_up(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await serve(rollout, player, serving_spec("2"))
    await player.scale("1", 0)
    with pytest.raises(RolloutFailedError, match=r"(?s)version 2 still serves.*has taken that back"):
        await rollout.rollback("delay", NAMESPACE, timeout_seconds=2)
    assert await player.replicas("1") == 0
    assert await player.selected() == "2"


async def test_a_rollback_from_what_does_not_answer_says_so_when_it_fails(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await serve(rollout, player, serving_spec("2"))
    for version in ("1", "2"):
        await player.make_ready(version, ready=0)
    with pytest.raises(RolloutFailedError, match="nobody serves: 0/1 replicas of version 2 are ready"):
        await rollout.rollback("delay", NAMESPACE, timeout_seconds=2)


# Who has the say about replicas


@pytest.mark.parametrize(("asked", "scaled", "given"), [(None, 3, 3), (2, 3, 2), (None, 0, 1), (None, 1, 1)])
async def test_without_replicas_a_candidate_gets_as_many_as_what_serves(
    rollout: Rollout, player: Player, serving_spec: Make, asked: int | None, scaled: int, given: int
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await player.scale("1", scaled)
    await rollout.start(serving_spec("2", replicas=asked))
    assert await player.replicas("2") == given


async def test_the_first_version_gets_one(rollout: Rollout, player: Player, serving_spec: Make) -> None:
    await rollout.start(serving_spec("1"))
    assert await player.replicas("1") == 1


@pytest.mark.parametrize("asked", [None, 1, 2])
async def test_replicas_of_what_exists_are_never_written_again(
    rollout: Rollout, player: Player, serving_spec: Make, asked: int | None
) -> None:
    def spec(version: str, **given: Any) -> ServingSpec:
        return serving_spec(version, replicas=asked, **given)

    await serve(rollout, player, serving_spec("1"))
    await player.scale("1", 5)
    await rollout.run(spec("1"), on_progress=player.told.append)
    assert await player.replicas("1") == 5, "rolled out again"
    if asked:
        assert "its 5 replicas are left to autoscalers and people" in " ".join(player.told)
        assert f"kubectl -n default scale deployment delay-v1 --replicas={asked}" in " ".join(player.told)

    changed = spec("1", image="model-server:2")
    await rollout.start(changed)
    assert await player.replicas("1") == 5, "given a new form"
    await player.scale("1", 6)
    await rollout.abort(changed)
    assert await player.replicas("1") == 6, "given its old form back"
    found = await player.client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == "model-server:1"
    await player.make_ready("1")

    await rollout.start(spec("2"))
    await player.scale("2", 7)
    player.next = [lambda: player.make_ready("2")]
    await rollout.run(spec("2"))
    assert await player.replicas("2") == 7, "a candidate rolled out by another try"
    await rollout.rollback("delay", NAMESPACE)
    assert (await player.replicas("1"), await player.replicas("2")) == (6, 7), "rolled back"


# What happens at the same moment


class Meddler:
    """Somebody who writes to the cluster just before one of nighttrain's requests arrives there."""

    def __init__(self, cluster: EmbeddedCluster) -> None:
        token = {"Authorization": f"Bearer {cluster.token}"}
        self.http = httpx.Client(base_url=cluster.url, headers=token, trust_env=False)
        self.plan: tuple[str, str, Callable[[], Any]] | None = None
        self.struck = False

    def __call__(self, seen: SeenRequest) -> web.Response | None:
        if self.plan and (seen.method, seen.path) == self.plan[:2]:
            act, self.plan, self.struck = self.plan[2], None, True
            answer: web.Response | None = act()
            return answer
        return None

    def scale(self, version: str, replicas: int) -> None:
        self._patch(f"{DEPLOYMENT_PATH}{version}", {"spec": {"replicas": replicas}})

    def lose_pods(self, version: str) -> None:
        state = {"readyReplicas": 0, "availableReplicas": 0}
        self._patch(f"{DEPLOYMENT_PATH}{version}/status", {"status": state})

    def delete(self, path: str) -> None:
        self.http.delete(path).raise_for_status()

    def _patch(self, path: str, body: dict[str, Any]) -> None:
        media = {"Content-Type": "application/merge-patch+json"}
        self.http.patch(path, json=body, headers=media).raise_for_status()


@asynccontextmanager
async def meddled(cluster: EmbeddedCluster, player: Player) -> AsyncIterator[tuple[Rollout, Meddler]]:
    meddler = Meddler(cluster)
    async with (
        ServerProxy(cluster.url, cluster.token, judge=meddler) as proxy,
        await ClusterClient.open(ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="t"))) as client,
    ):
        with meddler.http:
            yield (
                Rollout(KubernetesDeployments(client), sleep=player.sleep, clock=lambda: player.now),
                meddler,
            )


async def test_an_autoscaler_that_writes_while_the_form_changes_keeps_the_say(
    cluster: EmbeddedCluster, player: Player, serving_spec: Make
) -> None:
    changed = serving_spec("1", image="model-server:2")
    async with meddled(cluster, player) as (rollout, meddler):
        await serve(rollout, player, serving_spec("1"))
        for attempt, replicas in ((rollout.start, 5), (rollout.abort, 6)):
            meddler.plan = ("PUT", f"{DEPLOYMENT_PATH}1", lambda to=replicas: meddler.scale("1", to))  # type: ignore[misc]
            await attempt(changed)
            assert meddler.plan is None
            assert await player.replicas("1") == replicas


async def test_a_person_who_scales_up_first_keeps_the_say(
    cluster: EmbeddedCluster, player: Player, serving_spec: Make
) -> None:
    async with meddled(cluster, player) as (rollout, meddler):
        await serve(rollout, player, serving_spec("1"))
        await player.scale("1", 0)
        meddler.plan = ("PATCH", f"{DEPLOYMENT_PATH}1", lambda: meddler.scale("1", 5))
        assert await rollout.start(serving_spec("1"))
        assert meddler.struck
        assert await player.replicas("1") == 5


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda meddler: meddler.scale("2", 0), "version 2 is scaled to zero replicas"),
        (lambda meddler: meddler.lose_pods("2"), "0/1 replicas of version 2 are ready"),
        (lambda meddler: meddler.delete(f"{DEPLOYMENT_PATH}2"), "the Deployment of version 2 is gone"),
    ],
    ids=["scaled", "lost", "deleted"],
)
@pytest.mark.parametrize("how", ["rollout", "rollback"])
async def test_a_version_that_is_lost_at_the_switch_is_no_success(
    cluster: EmbeddedCluster, player: Player, serving_spec: Make, act: Any, words: str, how: str
) -> None:
    async with meddled(cluster, player) as (rollout, meddler):
        await serve(rollout, player, serving_spec("1"))
        second = serving_spec("2")
        if how == "rollback":
            await serve(rollout, player, second)
            await rollout.rollback("delay", NAMESPACE)
        else:
            await rollout.start(second)
            await player.make_ready("2")
        meddler.plan = ("PATCH", SERVICE_PATH, lambda: act(meddler))
        with pytest.raises(RolloutFailedError, match=f"nobody serves: {words}"):
            await (rollout.finish(second) if how == "rollout" else rollout.rollback("delay", NAMESPACE))
        assert meddler.struck


async def test_what_was_switched_to_is_not_undone_by_an_end_right_after_the_switch(
    cluster: EmbeddedCluster, player: Player, serving_spec: Make
) -> None:
    async with meddled(cluster, player) as (rollout, meddler):
        await serve(rollout, player, serving_spec("1"))
        await player.scale("1", 0)
        changed = serving_spec("1", image="model-server:2", replicas=2)
        await rollout.start(changed)
        await player.make_ready("1")
        meddler.plan = ("PATCH", f"{DEPLOYMENT_PATH}1", lambda: api_refusal(403, "Forbidden", "no"))
        with pytest.raises(ClusterForbiddenError):
            await rollout.finish(changed)
        assert meddler.struck
        await rollout.abort(changed)
        found = await player.client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
        assert found["spec"]["replicas"] == 2
        assert found["spec"]["template"]["spec"]["containers"][0]["image"] == "model-server:2"
        assert (
            not {"nighttrain.dev/scaled-up", "nighttrain.dev/replaced"}
            & found["metadata"]["annotations"].keys()
        )


async def test_an_endpoint_that_is_removed_at_the_switch_is_no_success(
    cluster: EmbeddedCluster, player: Player, serving_spec: Make
) -> None:
    async with meddled(cluster, player) as (rollout, meddler):
        for version in ("1", "2"):
            await serve(rollout, player, serving_spec(version))

        def after_the_switch() -> None:
            meddler.plan = ("GET", SERVICE_PATH, lambda: meddler.delete(SERVICE_PATH))

        meddler.plan = ("PATCH", SERVICE_PATH, after_the_switch)
        with pytest.raises(RolloutFailedError, match="somebody removed the endpoint"):
            await rollout.rollback("delay", NAMESPACE)
