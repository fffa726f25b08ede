"""The engine against the embedded cluster's API alone: the test plays the controllers, each step is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from helpers.played_controllers import NAMESPACE, Player
from nighttrain.providers.errors import (
    ConfigurationError,
    NothingToRollBackToError,
    RolloutFailedError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS, SERVICES
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.rollout import DRAIN_SECONDS, POLL_SECONDS, Rollout
from nighttrain.providers.serving.spec import ServingSpec

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient

Make = Callable[..., ServingSpec]


@pytest.fixture
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(containers=False) as cluster:
        yield cluster


@pytest.fixture
def player(client: ClusterClient) -> Player:
    return Player(client)


@pytest.fixture
def rollout(client: ClusterClient, player: Player) -> Rollout:
    return Rollout(KubernetesDeployments(client), sleep=player.sleep, clock=lambda: player.now)


async def serve(rollout: Rollout, player: Player, spec: ServingSpec) -> None:
    await rollout.start(spec)
    await player.make_ready(spec.version)
    await rollout.finish(spec, on_progress=player.told.append)


async def test_the_endpoint_appears_once_the_first_version_is_ready(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    spec = serving_spec(annotations={"nighttrain.dev/run-id": "scheduled__2013-01-02"})
    assert await rollout.start(spec)
    assert await rollout.status("delay", NAMESPACE) is None
    with pytest.raises(RolloutFailedError, match="not ready"):
        await rollout.finish(spec)
    player.next = [lambda: player.make_ready("1")]
    await rollout.wait_ready(spec)
    assert player.slept == [POLL_SECONDS]
    status = await rollout.finish(spec)
    assert (status.stable_version, status.previous_version, status.candidate_version) == ("1", None, None)
    assert (status.model_name, status.ready_replicas) == ("airline-delay", 1)
    assert status.url == "http://delay.default.svc:8080"
    assert status.to_dict()["versions"][0]["artifact_digest"] == "0" * 64


async def test_requests_move_only_when_the_candidate_is_ready_and_the_old_version_stays(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    second = serving_spec("2")
    await rollout.start(second)
    status = await rollout.status("delay", NAMESPACE)
    assert status is not None
    assert (status.stable_version, status.candidate_version) == ("1", "2")
    with pytest.raises(RolloutFailedError, match="version 2: it is not ready; version 1 still serves"):
        await rollout.finish(second)
    assert await player.selected() == "1"
    await player.make_ready("2")
    status = await rollout.finish(second)
    assert (status.stable_version, status.previous_version, status.candidate_version) == ("2", "1", None)
    assert await player.selected() == "2"
    assert await player.versions() == {"1", "2"}


async def test_versions_before_the_previous_one_go_after_a_drain(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    for version in ("1", "2", "3"):
        await serve(rollout, player, serving_spec(version))
    assert await player.versions() == {"2", "3"}
    assert player.slept == [DRAIN_SECONDS]
    assert "delay: version 1 is removed" in player.told


async def test_every_stage_may_be_repeated_by_another_process(
    rollout: Rollout, client: ClusterClient, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    spec = serving_spec("2")
    for _ in range(2):
        assert await Rollout(KubernetesDeployments(client)).start(spec)
    await player.make_ready("2")
    first = await rollout.finish(spec)
    assert await Rollout(KubernetesDeployments(client)).finish(spec) == first
    assert first.previous_version == "1"
    failing = serving_spec("3")
    await rollout.start(failing)
    for _ in range(2):
        await Rollout(KubernetesDeployments(client)).abort(failing)
    assert await rollout.status("delay", NAMESPACE) == first


async def test_the_version_that_serves_is_left_alone_and_said_so(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    before = await player.client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
    status = await rollout.run(serving_spec("1"), on_progress=player.told.append)
    assert "delay: version 1 of airline-delay serves already, nothing to do" in player.told
    assert await player.client.get(DEPLOYMENTS, NAMESPACE, "delay-v1") == before
    assert (status.stable_version, status.candidate_version) == ("1", None)


async def test_a_failed_candidate_goes_and_the_stable_version_serves(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    before = (await player.client.get(SERVICES, NAMESPACE, "delay"))["spec"]
    ended = {"terminated": {"exitCode": 78, "reason": "Error", "message": "expected sha256 aa, actual bb"}}
    player.next = [lambda: player.pod("2", ended)]
    with pytest.raises(RolloutFailedError) as caught:
        await rollout.run(serving_spec("2"))
    assert "version 1 still serves" in str(caught.value)
    assert "expected sha256 aa, actual bb" in str(caught.value)
    assert await player.versions() == {"1"}
    assert (await player.client.get(SERVICES, NAMESPACE, "delay"))["spec"] == before


async def test_never_ready_ends_at_the_time_out_with_the_last_doubt(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "mlflow" not found'}}
    player.next = [lambda: player.pod("1", waiting)]
    with pytest.raises(
        RolloutFailedError, match=r'(?s)within 3 seconds; nothing serves yet.*secret "mlflow" not found'
    ):
        await rollout.run(serving_spec("1", startup_timeout_seconds=3), on_progress=player.told.append)
    assert player.now == 3
    assert await player.versions() == set()
    assert any("CreateContainerConfigError" in line for line in player.told)


async def test_rollback_goes_to_the_version_before_and_once_more_returns(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    with pytest.raises(NothingToRollBackToError, match="no endpoint"):
        await rollout.rollback("delay", NAMESPACE)
    await serve(rollout, player, serving_spec("1"))
    with pytest.raises(NothingToRollBackToError, match="no version before it"):
        await rollout.rollback("delay", NAMESPACE)
    await serve(rollout, player, serving_spec("2"))
    status = await rollout.rollback("delay", NAMESPACE)
    assert (status.stable_version, status.previous_version) == ("1", "2")
    assert await player.selected() == "1"
    status = await rollout.rollback("delay", NAMESPACE)
    assert (status.stable_version, status.previous_version) == ("2", "1")
    await player.client.delete(DEPLOYMENTS, NAMESPACE, "delay-v1", propagation="Background")
    with pytest.raises(NothingToRollBackToError, match="no version before it"):
        await rollout.rollback("delay", NAMESPACE)


async def test_a_rollback_to_what_is_not_ready_changes_nothing(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await serve(rollout, player, serving_spec("2"))
    await player.client.patch(DEPLOYMENTS, NAMESPACE, "delay-v1", {"spec": {"replicas": 0}})
    with pytest.raises(RolloutFailedError, match="scaled to zero"):
        await rollout.rollback("delay", NAMESPACE, timeout_seconds=2)
    assert await player.selected() == "2"


async def test_the_later_rollout_wins(rollout: Rollout, player: Player, serving_spec: Make) -> None:
    await serve(rollout, player, serving_spec("1"))
    slow, quick = serving_spec("2"), serving_spec("3")
    await rollout.start(slow)
    await rollout.start(quick)
    await player.make_ready("2")
    await player.make_ready("3")
    with pytest.raises(RolloutFailedError, match="of version 3 came after"):
        await rollout.finish(slow)
    await rollout.abort(slow)
    assert (await rollout.finish(quick)).stable_version == "3"
    assert await player.versions() == {"1", "3"}


async def test_a_rollback_during_a_rollout_ends_the_rollout(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    await serve(rollout, player, serving_spec("2"))
    third = serving_spec("3")
    await rollout.start(third)
    await rollout.rollback("delay", NAMESPACE)
    await player.make_ready("3")
    with pytest.raises(RolloutFailedError, match="rollback came after"):
        await rollout.finish(third)
    assert await player.selected() == "1"


async def test_what_serves_gets_its_form_back_when_its_new_form_fails(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    before = await player.client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
    changed = serving_spec("1", image="model-server:2", startup_timeout_seconds=60)
    assert await rollout.start(changed)
    assert await rollout.start(changed), "a worker that died after the start begins anew"
    await rollout.abort(changed)
    after = await player.client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert await player.versions() == {"1"}


async def test_a_new_form_of_what_serves_is_kept_when_it_is_ready(
    rollout: Rollout, player: Player, serving_spec: Make
) -> None:
    await serve(rollout, player, serving_spec("1"))
    player.next = [lambda: player.make_ready("1")]
    status = await rollout.run(serving_spec("1", image="model-server:2"))
    assert status.versions[0].image == "model-server:2"
    assert (status.stable_version, status.previous_version, status.candidate_version) == ("1", None, None)
    found = await player.client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
    assert "nighttrain.dev/replaced" not in found["metadata"]["annotations"]


async def test_what_is_not_ours_is_not_touched(rollout: Rollout, player: Player, serving_spec: Make) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "delay"},
        "spec": {"selector": {"app": "somebody"}, "ports": [{"port": 80}]},
    }
    await player.client.create(SERVICES, NAMESPACE, body)
    with pytest.raises(WorkloadConflictError, match="not made by nighttrain"):
        await rollout.start(serving_spec())
    assert await player.versions() == set()


async def test_an_endpoint_belongs_to_one_model(rollout: Rollout, player: Player, serving_spec: Make) -> None:
    await serve(rollout, player, serving_spec("1"))
    with pytest.raises(ConfigurationError, match="serves the model 'airline-delay'"):
        await rollout.start(serving_spec("7", model_name="weather"))
    assert await player.versions() == {"1"}
