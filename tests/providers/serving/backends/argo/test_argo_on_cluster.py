"""The Argo Rollouts backend over HTTP: upstream's definitions check what it sends, a player answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.played_argo import NAMESPACE, PlayedArgo, make_route
from nighttrain.providers.errors import (
    ConfigurationError,
    ObjectConflictError,
    RolloutFailedError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import (
    HTTPROUTES,
    ROLLOUTS,
    SERVICES,
)
from nighttrain.providers.serving.backends.traffic import Weights

from .conftest import Make, emptied, hand_of, needs_definitions, selector, served

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient

pytestmark = needs_definitions


async def test_by_replicas_it_goes_up_in_steps_and_is_promoted(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make
) -> None:
    hand = hand_of(argo)
    await served(hand, argo, serving_spec, "replicas")
    assert (await hand.backend.capabilities(NAMESPACE)).weights is Weights.BY_REPLICAS
    target = await hand.bring_up(serving_spec("2"))
    assert target.stable == "1"
    assert await selector(client) == {"endpoint": "delay", "version": "1"}
    assert await argo.sizes() == {"1": 3, "2": 1}, "a pod of it is up, and gets nothing"
    for percent, sizes in ((25, {"1": 3, "2": 1}), (50, {"1": 2, "2": 2})):
        look = await hand.traffic(target, percent)
        assert (look.routed_percent, look.promoted, look.undone) == (percent, False, False)
        assert await argo.sizes() == sizes
        assert await selector(client) == {"endpoint": "delay"}
    await hand.traffic(target, 100)
    look = await hand.promote(target)
    assert (look.asked_percent, look.routed_percent) == (100, 100)
    assert await argo.sizes() == {"2": 4}
    assert (await hand.backend.begin(serving_spec("2"))).stable == "2"


async def test_with_a_route_the_shares_are_exact_and_the_stable_version_stays_warm(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make
) -> None:
    hand = hand_of(argo, "route")
    await served(hand, argo, serving_spec, "route")
    assert (await hand.backend.capabilities(NAMESPACE)).weights is Weights.EXACT
    target = await hand.bring_up(serving_spec("2"))
    look = await hand.backend.look(target)
    assert (look.asked_percent, look.routed_percent) == (0, 0), "up, and without a request"
    for percent, pods in ((25, 1), (50, 2), (100, 4)):
        look = await hand.traffic(target, percent)
        assert (look.routed_percent, look.promoted, look.undone) == (percent, False, False)
        assert await argo.sizes() == {"1": 4, "2": pods}
        assert look.stable_ready
        addresses = await hand.backend.addresses(target)
        assert addresses.candidate is not None
    look = await hand.promote(target)
    assert (look.asked_percent, look.routed_percent) == (100, 100)
    assert (await argo.rollout())["status"]["phase"] == "Healthy"


@pytest.mark.parametrize("mode", ["replicas", "route"])
@pytest.mark.parametrize("at", [0, 25, 50, 100])
async def test_it_is_undone_from_any_share(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str, at: int
) -> None:
    hand = hand_of(argo, mode)
    await served(hand, argo, serving_spec, mode)
    before = (await argo.rollout())["spec"]["template"]
    target = await hand.bring_up(serving_spec("2", env_vars={"ONLY": "here"}))
    for percent in (share for share in (25, 50, 100) if share <= at):
        await hand.traffic(target, percent)
    look = await hand.traffic(target, 0)
    assert look.routed_percent == 0
    assert not look.undone, "nothing of the candidate may be left for that"
    look = await hand.undo(target)
    assert await argo.sizes() == {"1": 4}
    rollout = await argo.rollout()
    assert rollout["status"]["phase"] == "Healthy"
    assert rollout["spec"]["template"] == before
    assert not rollout["status"].get("abort")
    # The next one begins as if that one had never been.
    hand.fence = 0
    target = await hand.bring_up(serving_spec("3"))
    assert (target.stable, target.candidate) == ("1", "3")


@pytest.mark.parametrize("mode", ["replicas", "route"])
async def test_a_first_version_that_does_not_come_up_goes_with_what_was_made_for_it(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str
) -> None:
    hand = hand_of(argo, mode)
    if mode == "route":
        await make_route(client)
    argo.never_ready.add("1")
    spec = serving_spec("1")
    target = await hand.backend.begin(spec)
    await hand.backend.bring_up(spec, target, 1, hand.told.append)
    await argo.reconcile()
    assert not (await hand.backend.look(target)).readiness.ready
    hand.fence = 1
    await hand.traffic(target, 0)
    await hand.undo(target)
    assert (await client.list(ROLLOUTS, NAMESPACE))["items"] == []


async def test_one_pause_is_passed_once_whoever_else_asks(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make
) -> None:
    hand = hand_of(argo, "route")
    await served(hand, argo, serving_spec, "route")
    target = await hand.bring_up(serving_spec("2"))
    late = await hand.backend.look(target)
    await hand.traffic(target, 25)
    with pytest.raises(ObjectConflictError):
        await hand.backend.set_traffic(target, late, 2, percent=25)
    argo.asleep = True
    seen = await hand.backend.look(target)
    await hand.backend.set_traffic(target, seen, 9, percent=50)
    again = await hand.backend.look(target)
    assert again.asked_percent == 25, "Argo has not followed yet"
    await hand.backend.set_traffic(target, again, 9, percent=50)
    argo.asleep = False
    hand.fence = 8
    look = await hand.traffic(target, 50)
    for _ in range(5):
        await argo.reconcile()
    assert (await hand.backend.look(target)).asked_percent == look.asked_percent == 50


async def test_who_comes_too_late_does_not_revive_what_is_being_undone(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make
) -> None:
    for mode in ("replicas", "route"):
        hand = hand_of(argo, mode)
        await served(hand, argo, serving_spec, mode)
        target = await hand.bring_up(serving_spec("2"))
        late = await hand.backend.look(target)
        hand.fence = 6
        await hand.traffic(target, 0)
        with pytest.raises(ObjectConflictError):
            await hand.backend.set_traffic(target, late, 5, percent=25)
        await hand.undo(target)
        await emptied(client)
        await argo.reconcile()


async def test_argo_that_aborts_by_itself_or_is_out_of_time_is_a_failure_of_the_candidate(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make
) -> None:
    hand = hand_of(argo)
    await served(hand, argo, serving_spec, "replicas")
    target = await hand.bring_up(serving_spec("2"))
    await hand.traffic(target, 25)
    await argo.abort()
    look = await hand.backend.look(target)
    assert "Argo Rollouts has aborted it" in str(look.readiness.failure)
    assert (look.asked_percent, look.strayed) == (25, None), "nobody changed what was asked for"
    assert look.routed_percent == 0
    await hand.traffic(target, 0)
    await hand.undo(target)
    hand.fence = 0
    argo.never_ready.add("3")
    spec = serving_spec("3")
    target = await hand.backend.begin(spec)
    await hand.backend.bring_up(spec, target, 1, hand.told.append)
    for _ in range(4):
        await argo.reconcile()
    look = await hand.backend.look(target)
    assert (look.readiness.ready, look.readiness.failure) == (False, None)
    argo.out_of_time = True
    await argo.reconcile()
    assert "ProgressDeadlineExceeded" in str((await hand.backend.look(target)).readiness.failure)


async def test_another_hand_is_seen_and_named(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make
) -> None:
    hand = hand_of(argo, "route")
    await served(hand, argo, serving_spec, "route")
    target = await hand.bring_up(serving_spec("2"))
    await hand.traffic(target, 25)
    # As recorded: the status goes on saying 25, and nobody puts it back.
    refs = [{"name": "delay-stable", "port": 80, "weight": 0}]
    refs.append({"name": "delay-canary", "port": 80, "weight": 100})
    body = {"spec": {"rules": [{"backendRefs": refs}]}}
    await client.patch(HTTPROUTES, NAMESPACE, "delay-route", body)
    look = await hand.backend.look(target)
    assert "somebody changed spec.rules of HTTPRoute delay-route" in str(look.strayed)
    assert look.routed_percent != 25
    template = {"metadata": {"labels": {"nighttrain.dev/version": "9"}}}
    await client.patch(ROLLOUTS, NAMESPACE, "delay", {"spec": {"template": template}})
    look = await hand.backend.look(target)
    assert "somebody changed spec.template of Rollout delay: it is version 9" in str(look.strayed)
    await client.delete(ROLLOUTS, NAMESPACE, "delay", propagation="Background")
    assert (await hand.backend.look(target)).strayed == "somebody deleted Rollout delay"
    await emptied(client)
    await argo.reconcile()
    hand = hand_of(argo)
    await served(hand, argo, serving_spec, "replicas")
    target = await hand.bring_up(serving_spec("2"))
    await hand.traffic(target, 25)
    await client.patch(SERVICES, NAMESPACE, "delay", {"spec": {"selector": {"app": "other"}}})
    assert "somebody changed spec.selector" in str((await hand.backend.look(target)).strayed)


async def test_what_cannot_be_driven_is_refused_before_anything_changes(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make
) -> None:
    with pytest.raises(ConfigurationError, match="there is no such HTTPRoute"):
        await hand_of(argo, "route").backend.begin(serving_spec("1"))
    hand = hand_of(argo)
    await served(hand, argo, serving_spec, "replicas")
    with pytest.raises(ConfigurationError, match="its Rollout has none"):
        await hand_of(argo, "route").backend.begin(serving_spec("2"))
    with pytest.raises(ConfigurationError, match="it serves the model"):
        await hand.backend.begin(serving_spec("2", model_name="another"))

    async def change(spec: dict[str, Any]) -> None:
        held = await client.patch(ROLLOUTS, NAMESPACE, "delay", {"spec": spec})
        state = {"observedGeneration": str(held["metadata"]["generation"])}
        await client.patch(ROLLOUTS, NAMESPACE, "delay", {"status": state}, subresource="status")

    async def refused(spec: dict[str, Any], match: str) -> None:
        await change(spec)
        with pytest.raises(ConfigurationError, match=match):
            await hand.backend.begin(serving_spec("2"))
        await change(_nulls(spec))

    istio = {"istio": {"virtualService": {"name": "v"}}}
    await refused({"strategy": {"canary": {"trafficRouting": istio}}}, "can be read back")
    await refused({"strategy": {"canary": {"dynamicStableScale": True}}}, "dynamicStableScale")
    await refused({"rollbackWindow": {"revisions": 3}}, "rollbackWindow")
    await refused({"paused": True}, "paused by hand")
    target = await hand.bring_up(serving_spec("2"))
    with pytest.raises(ConfigurationError, match="not at rest, it says P"):
        await hand.backend.begin(serving_spec("3"))
    with pytest.raises(ConfigurationError, match="cannot copy"):
        await hand.backend.set_traffic(
            target, await hand.backend.look(target), 9, percent=25, mirror_percent=5
        )
    await hand.traffic(target, 50)
    with pytest.raises(RolloutFailedError, match="only rise"):
        await hand.backend.set_traffic(target, await hand.backend.look(target), 99, percent=25)


def _nulls(value: dict[str, Any]) -> dict[str, Any]:
    deeper = ("strategy", "canary")
    return {key: _nulls(held) if key in deeper else None for key, held in value.items()}


async def test_somebody_elses_rollout_is_adopted_only_when_that_is_said(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make
) -> None:
    hand = hand_of(argo)
    await served(hand, argo, serving_spec, "replicas")
    mark = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "helm"}}}
    await client.patch(ROLLOUTS, NAMESPACE, "delay", mark)
    steps = [{"setWeight": 10}, {"pause": {"duration": "1h"}}]
    await client.patch(ROLLOUTS, NAMESPACE, "delay", {"spec": {"strategy": {"canary": {"steps": steps}}}})
    await argo.reconcile()
    with pytest.raises(WorkloadConflictError, match=r"backend\['adopt'\] = True"):
        await hand.backend.begin(serving_spec("2"))
    adopting = hand_of(argo, adopt=True)
    target = await adopting.bring_up(serving_spec("2"))
    assert any("steps become those of the strategy" in line for line in adopting.told)
    await adopting.traffic(target, 25)
    await adopting.traffic(target, 0)
    await adopting.undo(target)
    labels = {"metadata": {"labels": {"nighttrain.dev/version": None}}}
    await client.patch(ROLLOUTS, NAMESPACE, "delay", {"spec": {"template": labels}})
    state = {"observedGeneration": str((await argo.rollout())["metadata"]["generation"])}
    await client.patch(ROLLOUTS, NAMESPACE, "delay", {"status": state}, subresource="status")
    with pytest.raises(ConfigurationError, match="does not say which version"):
        await adopting.backend.begin(serving_spec("2"))
