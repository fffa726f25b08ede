"""The KServe backend over HTTP: upstream's definitions check what it sends, a player answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.played_kserve import NAMESPACE, PlayedKServe, shares
from nighttrain.providers.errors import (
    ConfigurationError,
    ObjectConflictError,
    ObjectNotFoundError,
    RolloutFailedError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import (
    HTTPROUTES,
    INFERENCE_SERVICES,
)

from .conftest import Make, deployments, hand_of, needs_definitions, served

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient

pytestmark = needs_definitions


async def test_standard_mode_takes_a_version_up_in_steps_and_promotes_it_in_two(
    client: ClusterClient, kserve: PlayedKServe, spec: Make
) -> None:
    hand = hand_of(kserve)
    await served(hand, spec, replicas=4)
    assert await deployments(client) == {"delay-predictor": 4}
    target = await hand.bring_up(spec("2"))
    assert target.stable == "1"
    assert await deployments(client) == {"delay-predictor": 3, "delay-v2-predictor": 1}
    for percent in (5, 60, 100):
        look = await hand.traffic(target, percent)
        assert (look.routed_percent, look.promoted, look.undone) == (percent, False, False)
        await kserve.reconcile()
        assert (await deployments(client))["delay-v2-predictor"] == shares(4, percent)
    look = await hand.promote(target)
    assert (look.asked_percent, look.routed_percent, look.undone) == (100, 100, False)
    assert await deployments(client) == {"delay-v2-predictor": 4}
    held = await kserve.service()
    assert "canary" not in held["spec"]
    assert held["spec"]["predictor"]["name"] == "v2"
    assert held["spec"]["predictor"]["model"]["storageUri"] == "s3://models/2"
    again = await hand.backend.begin(spec("2"))
    assert again.stable == "2", "it serves already"


async def test_standard_mode_is_undone_in_two(
    client: ClusterClient, kserve: PlayedKServe, spec: Make
) -> None:
    hand = hand_of(kserve)
    await served(hand, spec, replicas=2)
    target = await hand.bring_up(spec("2"))
    await hand.traffic(target, 50)
    look = await hand.backend.look(target)
    with pytest.raises(ObjectConflictError):
        await hand.backend.undo(target, look, hand.fence)
    await hand.traffic(target, 0)
    look = await hand.undo(target)
    assert (look.promoted, look.asked_percent, look.routed_percent, look.stable_ready) == (False, 0, 0, True)
    assert await deployments(client) == {"delay-predictor": 2}
    assert "canary" not in (await kserve.service())["spec"]


async def test_a_kserve_that_only_says_that_it_splits_is_refused_and_the_canary_taken_back(
    client: ClusterClient, kserve: PlayedKServe, spec: Make
) -> None:
    hand = hand_of(kserve)
    await served(hand, spec)
    kserve.splits = False
    target = await hand.backend.begin(spec("2"))
    with pytest.raises(ConfigurationError, match=r"upgrade to 0\.21"):
        await hand.backend.bring_up(spec("2"), target, 7, hand.told.append)
    await kserve.reconcile()
    look = await hand.backend.look(target)
    assert (look.undone, look.asked_percent, look.fence) == (True, 0, 7)
    assert await deployments(client) == {"delay-predictor": 1}


async def test_knative_mode_steps_and_promotes(kserve: PlayedKServe, spec: Make) -> None:
    hand = hand_of(kserve, "Knative")
    await served(hand, spec)
    target = await hand.bring_up(spec("2", replicas=1))
    for percent in (10, 60, 100):
        look = await hand.traffic(target, percent)
        assert (look.routed_percent, look.promoted) == (percent, False)
    look = await hand.promote(target)
    assert "canaryTrafficPercent" not in (await kserve.service())["spec"]["predictor"]
    assert (look.readiness.ready, look.routed_percent) == (True, 100)


@pytest.mark.parametrize("at", [20, 100])
async def test_knative_mode_goes_back_with_nobody_meeting_the_rejected_version(
    kserve: PlayedKServe, spec: Make, at: int
) -> None:
    hand = hand_of(kserve, "Knative")
    await served(hand, spec)
    before = (await kserve.service())["spec"]["predictor"]
    target = await hand.bring_up(spec("2", env_vars={"ONLY": "here"}))
    await hand.traffic(target, at)
    await hand.traffic(target, 0)
    kserve.asleep = True
    hand.fence += 1
    await hand.backend.undo(target, await hand.backend.look(target), hand.fence)
    look = await hand.backend.look(target)
    assert (look.undone, look.asked_percent, look.strayed) == (False, 0, None)
    held = (await kserve.service())["spec"]["predictor"]
    assert held["model"]["storageUri"] == "s3://models/1"
    assert held["canaryTrafficPercent"] == 0, "without a percentage all would go to the rejected revision"
    await hand.backend.undo(target, look, hand.fence)
    assert (await kserve.service())["spec"]["predictor"]["canaryTrafficPercent"] == 0
    kserve.asleep = False
    look = await hand.undo(target)
    assert (look.routed_percent, look.stable_ready) == (0, True)
    after = (await kserve.service())["spec"]["predictor"]
    assert after == before, "as it was, and nothing of the candidate's"


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
async def test_a_version_that_never_becomes_ready_gets_nothing_and_is_undone(
    kserve: PlayedKServe, spec: Make, mode: str
) -> None:
    hand = hand_of(kserve, mode)
    await served(hand, spec)
    kserve.never_ready = {"2"}
    target = await hand.backend.begin(spec("2"))
    hand.fence += 1
    await hand.backend.bring_up(spec("2"), target, hand.fence, hand.told.append)
    for _ in range(3):
        await kserve.reconcile()
        look = await hand.backend.look(target)
        assert (look.readiness.ready, look.promoted, look.undone) == (False, False, False)
        assert look.stable_ready
    await hand.backend.set_traffic(target, look, hand.fence, percent=50)
    await kserve.reconcile()
    look = await hand.backend.look(target)
    assert (look.asked_percent, look.routed_percent) == (50, None)
    assert "not ready" in str(look.unseen)
    await hand.traffic(target, 0)
    await hand.undo(target)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
async def test_the_first_version_is_taken_away_with_everything(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str
) -> None:
    hand = hand_of(kserve, mode)
    kserve.never_ready = {"1"}
    target = await hand.backend.begin(spec("1"))
    await hand.backend.bring_up(spec("1"), target, 1, hand.told.append)
    await kserve.reconcile()
    look = await hand.backend.look(target)
    assert (look.promoted, look.undone, look.readiness.ready) == (False, False, False)
    await hand.backend.set_traffic(target, look, 2, percent=0)
    await kserve.reconcile()
    look = await hand.backend.look(target)
    assert (look.undone, look.routed_percent, look.asked_percent) == (True, 0, 0)
    assert look.fence > 2
    with pytest.raises(ObjectNotFoundError):
        await kserve.service()


async def test_what_was_decided_by_an_older_look_is_refused(kserve: PlayedKServe, spec: Make) -> None:
    hand = hand_of(kserve)
    await served(hand, spec)
    target = await hand.bring_up(spec("2"))
    old = await hand.backend.look(target)
    await hand.traffic(target, 25)
    for change in (hand.backend.promote, hand.backend.undo):
        with pytest.raises(ObjectConflictError):
            await change(target, old, 99)
    with pytest.raises(ObjectConflictError):
        await hand.backend.set_traffic(target, old, 99, percent=80)
    look = await hand.backend.look(target)
    assert (look.asked_percent, look.fence) == (25, hand.fence)


async def test_a_fence_is_stamped_without_touching_what_reaches_the_pods(
    kserve: PlayedKServe, spec: Make
) -> None:
    hand = hand_of(kserve)
    await served(hand, spec)
    target = await hand.bring_up(spec("2"))
    await hand.traffic(target, 25)
    before = await kserve.service()
    look = await hand.backend.look(target)
    await hand.backend.set_traffic(target, look, hand.fence + 1, percent=25)
    after = await kserve.service()
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert (await hand.backend.look(target)).fence == hand.fence + 1


class Stopped(Exception):
    """The process hangs just there."""


async def test_a_process_that_hangs_between_stamp_and_patch_comes_too_late(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = hand_of(kserve)
    await served(hand, spec)
    target = await hand.bring_up(spec("2"))
    look = await hand.backend.look(target)
    patched: list[Any] = []
    real = type(client).patch

    async def hang(self: ClusterClient, resource: Any, namespace: str, name: str, body: Any) -> Any:
        if resource is INFERENCE_SERVICES:
            patched.append(body)
            raise Stopped
        return await real(self, resource, namespace, name, body)

    with monkeypatch.context() as patching:
        patching.setattr(type(client), "patch", hang)
        with pytest.raises(Stopped):
            await hand.backend.set_traffic(target, look, 20, percent=40)
    look = await hand.backend.look(target)
    assert (look.asked_percent, look.fence, look.strayed) == (0, hand.fence, None), "stamped, and not made"
    # Somebody else goes on, and asks for what is there already.
    await hand.backend.set_traffic(target, look, 21, percent=0)
    look = await hand.backend.look(target)
    assert (look.asked_percent, look.fence) == (0, 21)
    with pytest.raises(ObjectConflictError):
        await client.patch(INFERENCE_SERVICES, NAMESPACE, "delay", patched[0])


async def test_another_hand_is_seen_and_named(
    client: ClusterClient, kserve: PlayedKServe, spec: Make
) -> None:
    hand = hand_of(kserve)
    await served(hand, spec)
    target = await hand.bring_up(spec("2"))
    await hand.traffic(target, 25)
    await hand.traffic(target, 50)
    service = await kserve.service()
    entry = service["spec"]["canary"][0]
    body = {"spec": {"canary": [{**entry, "trafficPercent": 77}]}}
    await client.patch(INFERENCE_SERVICES, NAMESPACE, "delay", body)
    look = await hand.backend.look(target)
    assert "somebody changed spec.canary of InferenceService delay" in str(look.strayed)
    assert "77 percent" in str(look.strayed)
    await client.patch(INFERENCE_SERVICES, NAMESPACE, "delay", {"spec": {"canary": None}})
    assert (await hand.backend.look(target)).strayed
    # Back to what this rollout had asked for before: the fence is that of then.
    body = {"spec": {"canary": [{**entry, "trafficPercent": 25}]}}
    await client.patch(INFERENCE_SERVICES, NAMESPACE, "delay", body)
    look = await hand.backend.look(target)
    assert (look.strayed, look.fence) == (None, hand.fence - 1)
    await client.delete(INFERENCE_SERVICES, NAMESPACE, "delay", propagation="Background")
    assert (await hand.backend.look(target)).strayed == "somebody deleted InferenceService delay"


async def test_what_a_rollout_could_not_come_back_to_is_refused_before_anything_changes(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, serving_spec: Make
) -> None:
    hand = hand_of(kserve)
    with pytest.raises(ConfigurationError, match="storage_uri="):
        await hand.backend.begin(serving_spec("1", source="mlflow-artifacts:/1/models/m-1/artifacts"))
    await served(hand, spec)
    with pytest.raises(ConfigurationError, match="has the same"):
        await hand.backend.begin(serving_spec("2", source="s3://models/1"))
    with pytest.raises(ConfigurationError, match="serves the model"):
        await hand.backend.begin(spec("2", model_name="another"))
    await client.delete(HTTPROUTES, NAMESPACE, "delay", propagation="Background")
    with pytest.raises(ConfigurationError, match="enableGatewayApi"):
        await hand.backend.begin(spec("2"))
    mark = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "helm"}}}
    await client.patch(INFERENCE_SERVICES, NAMESPACE, "delay", mark)
    with pytest.raises(WorkloadConflictError, match="not made by nighttrain"):
        await hand.backend.begin(spec("2"))


async def test_a_canary_that_somebody_left_is_replaced_without_requests_and_refused_with_some(
    client: ClusterClient, kserve: PlayedKServe, spec: Make
) -> None:
    hand = hand_of(kserve)
    await served(hand, spec)
    left = await hand.bring_up(spec("2"))
    await hand.traffic(left, 30)
    with pytest.raises(ConfigurationError, match=r"spec\.canary has requests"):
        await hand.backend.begin(spec("3"))
    await hand.traffic(left, 0)
    hand.fence = 0
    target = await hand.bring_up(spec("3"))
    assert target.stable == "1"
    assert set(await deployments(client)) == {"delay-predictor", "delay-v3-predictor"}
    await hand.traffic(target, 0)
    body = {"spec": {"predictor": {"labels": {"nighttrain.dev/version": "9"}}}}
    await client.patch(INFERENCE_SERVICES, NAMESPACE, "delay", body)
    with pytest.raises(RolloutFailedError, match="changed by somebody"):
        await hand.backend.bring_up(spec("3"), target, 9, hand.told.append)
