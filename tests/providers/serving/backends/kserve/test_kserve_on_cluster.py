"""The KServe backend over HTTP: upstream's definitions check what it sends, a player answers."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from helpers.clusters import connected
from helpers.played_kserve import DEFINITIONS, NAMESPACE, REVISIONS_DEFINITION, PlayedKServe, shares
from helpers.rollout_by_hand import Hand
from helpers.simulated_serving import MemoryRegistrar, World
from nighttrain.providers.errors import (
    ConfigurationError,
    NothingToRollBackToError,
    ObjectConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    RolloutFailedError,
    RolloutUnderWayError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    HTTPROUTES,
    INFERENCE_SERVICES,
    KNATIVE_REVISIONS,
)
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kserve.backend import KServe
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.state import Names, Order, Phase
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.strategy import canary

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.rollouts.state import State
    from nighttrain.providers.serving.spec import ServingSpec

Make = Callable[..., "ServingSpec"]
CRDS = Path(os.environ.get("NIGHTTRAIN_CRDS") or Path(__file__).parents[6] / "shared" / "crds")
NEEDED = ("inferenceservices.serving.kserve.io", "httproutes.gateway.networking.k8s.io")
FILES = [CRDS / f"{name}.json" for name in NEEDED]

pytestmark = pytest.mark.skipif(
    not all(path.exists() for path in FILES),
    reason=f"no definitions in {CRDS}: set NIGHTTRAIN_CRDS to a folder that has them",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(containers=False) as running:
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    async with connected(cluster) as opened:
        for body in [*(json.loads(path.read_text()) for path in FILES), REVISIONS_DEFINITION]:
            try:
                await opened.create(DEFINITIONS, None, body)
            except ObjectExistsError:
                continue
        yield opened
        await emptied(opened)


async def emptied(client: ClusterClient) -> None:
    """Nothing is left of an endpoint."""
    for kind in (INFERENCE_SERVICES, DEPLOYMENTS, HTTPROUTES, KNATIVE_REVISIONS, CONFIGMAPS):
        for item in (await client.list(kind, NAMESPACE))["items"]:
            await client.delete(kind, NAMESPACE, item["metadata"]["name"], propagation="Background")


@pytest.fixture
def kserve(client: ClusterClient) -> PlayedKServe:
    return PlayedKServe(client)


@pytest.fixture
def spec(serving_spec: Make) -> Make:
    def make(version: str = "1", **given: Any) -> ServingSpec:
        return serving_spec(version, source=f"s3://models/{version}", **given)

    return make


def hand_of(kserve: PlayedKServe, mode: str = "Standard") -> Hand:
    backend = KServe(kserve.client, mode=mode, sleep=kserve.sleep)
    return Hand(backend, sleep=kserve.sleep, looks=30)


async def served(hand: Hand, make: Make, version: str = "1", **given: Any) -> None:
    """An endpoint whose first version serves."""
    target = await hand.backend.begin(make(version, **given))
    assert target.stable is None
    await hand.backend.bring_up(make(version, **given), target, 1, hand.told.append)
    hand.fence = 1
    await hand.traffic(target, 100)
    await hand.promote(target)


async def deployments(client: ClusterClient) -> dict[str, int]:
    found = await client.list(DEPLOYMENTS, NAMESPACE)
    return {item["metadata"]["name"]: item["spec"]["replicas"] for item in found["items"]}


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


class Driven:
    """One rollout of version 2, by as many processes as it takes; time passes as fast as it is waited for."""

    def __init__(self, kserve: PlayedKServe, mode: str, make: Make) -> None:
        self.kserve, self.mode, self.candidate = kserve, mode, make("2")
        self.world, self.store = World(), RolloutStore(kserve.client)

    async def sleep(self, seconds: float) -> None:
        self.world.now += max(seconds, 0.05)
        await self.kserve.reconcile()

    def engine(self, client: ClusterClient) -> RolloutEngine:
        backend = KServe(client, mode=self.mode, sleep=self.kserve.sleep)
        return RolloutEngine(
            backend,
            self.store,
            MemoryRegistrar(self.world),
            sources={},
            check_metric=_accept,
            clock=lambda: self.world.now,
            sleep=self.sleep,
        )

    async def run(self, client: ClusterClient, order: Order | None) -> Phase:
        """To the end; the order is given at half of the requests."""
        engine, strategy = self.engine(client), canary(10, 50, hold_seconds=20.0, watch_seconds=30.0)
        names = Names(alias="champion")
        await engine.begin(self.candidate, strategy, rollout_id="r", actor="a", names=names, tell=print)
        if order:
            held = await engine.drive("delay", NAMESPACE, spec=self.candidate, until=_at_half, tell=print)
            if not held.ended:
                await self.store.order("delay", NAMESPACE, order, by="me")
        return (await engine.drive("delay", NAMESPACE, spec=self.candidate, tell=print)).phase

    async def is_as_it_should_be(self, order: Order | None) -> None:
        """Alias and requests with one version, and nothing of the rollout left."""
        serves = "1" if order else "2"
        assert self.world.holders["champion"] == serves
        held = (await self.kserve.service())["spec"]
        assert held["predictor"]["labels"]["nighttrain.dev/version"] == serves
        assert "canary" not in held
        assert "canaryTrafficPercent" not in held["predictor"]


def _accept(field: str, metric: Any, golden: Any) -> None:
    """There is none."""


def _at_half(state: State) -> bool:
    return state.ended or (state.phase is Phase.HOLDING and state.step == 1)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize("order", [None, Order.ABORT])
async def test_the_engine_drives_it_to_either_end(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str, order: Order | None
) -> None:
    await served(hand_of(kserve, mode), spec)
    driven = Driven(kserve, mode, spec)
    assert await driven.run(client, order) is (Phase.UNDONE if order else Phase.PROMOTED)
    await driven.is_as_it_should_be(order)


class Back(Driven):
    """Version 2 is promoted; then the way back, by as many processes as it takes."""

    def __init__(self, kserve: PlayedKServe, mode: str, make: Make) -> None:
        super().__init__(kserve, mode, make)
        self.candidate = make("2", startup_timeout_seconds=30.0)

    async def run(self, client: ClusterClient, order: Order | None) -> Phase:
        phase = await super().run(client, order)
        await self.engine(client).take("delay", NAMESPACE, "r")
        return phase

    async def promoted(self) -> None:
        self.world.holders["champion"] = "1"
        assert await self.run(self.kserve.client, None) is Phase.PROMOTED
        await self.is_as_it_should_be(None)

    async def back(self, client: ClusterClient, rollout_id: str = "back") -> State:
        engine, names = self.engine(client), Names(alias="champion")
        begun = await engine.begin_back(
            "delay", NAMESPACE, rollout_id=rollout_id, actor="a", names=names, reason="wrong since noon"
        )
        state = await engine.drive("delay", NAMESPACE, rollout_id=begun.rollout_id, tell=print)
        await engine.take("delay", NAMESPACE, state.rollout_id)
        return state


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
async def test_a_promoted_rollout_is_taken_back_by_a_rollout_and_once_more_forward(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str
) -> None:
    await served(hand_of(kserve, mode), spec, replicas=3, env_vars={"ONLY": "of the first"})
    first = (await kserve.service())["spec"]["predictor"]
    driven = Back(kserve, mode, spec)
    await driven.promoted()
    state = await driven.back(client)
    assert (state.phase, state.target.candidate, state.target.stable) == (Phase.PROMOTED, "1", "2")
    assert "goes back to version 1 from 2: wrong since noon" in state.events[0].text
    await driven.is_as_it_should_be(Order.ABORT)
    held = (await kserve.service())["spec"]["predictor"]
    assert held == first | ({"name": "v1"} if mode == "Standard" else {}), "in the form in which it served"
    again = await driven.back(client, "again")
    assert (again.phase, again.target.candidate) == (Phase.PROMOTED, "2")
    await driven.is_as_it_should_be(None)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
async def test_on_the_way_back_nobody_loses_the_promoted_version_before_the_old_one_is_ready(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str
) -> None:
    await served(hand_of(kserve, mode), spec)
    driven = Back(kserve, mode, spec)
    await driven.promoted()
    kserve.never_ready = {"1"}
    state = await driven.back(client)
    assert state.phase is Phase.UNDONE
    assert "not ready within" in state.reason
    assert "somebody" not in state.reason
    await driven.is_as_it_should_be(None)
    assert not any(event.text.startswith("all requests") for event in state.events)
    # It failed, and the way back is known still; and so it is after another rollout that was undone.
    kserve.never_ready = set()
    driven.candidate = spec("3")
    assert await driven.run(client, Order.ABORT) is Phase.UNDONE
    state = await driven.back(client, "later")
    assert (state.phase, state.target.candidate) == (Phase.PROMOTED, "1")
    await driven.is_as_it_should_be(Order.ABORT)


async def test_there_is_no_way_back_from_what_is_under_way_or_was_changed_by_hand(
    client: ClusterClient, kserve: PlayedKServe, spec: Make
) -> None:
    driven = Back(kserve, "Standard", spec)
    with pytest.raises(NothingToRollBackToError, match="there is no rollout of delay"):
        await driven.back(client)
    driven.candidate = spec("1")
    assert await driven.run(client, None) is Phase.PROMOTED
    with pytest.raises(NothingToRollBackToError, match="roll that version out"):
        await driven.back(client)
    driven.candidate = spec("2")
    engine = driven.engine(client)
    names, told = Names(), print
    await engine.begin(driven.candidate, canary(10), rollout_id="u", actor="a", names=names, tell=told)
    with pytest.raises(RolloutUnderWayError, match="nighttrain rollout abort delay"):
        await driven.back(client)
    await driven.store.order("delay", NAMESPACE, Order.ABORT, by="me")
    await engine.drive("delay", NAMESPACE, spec=driven.candidate, tell=print)
    assert await driven.run(client, None) is Phase.PROMOTED
    label = {"labels": {"nighttrain.dev/version": "9"}}
    await client.patch(INFERENCE_SERVICES, NAMESPACE, "delay", {"spec": {"predictor": label}})
    before = await kserve.service()
    with pytest.raises(ConfigurationError, match="it serves version 9"):
        await driven.back(client)
    assert await kserve.service() == before


class Killed(BaseException):
    """The process is gone."""


class Dying:
    """A client whose process dies at its n-th write, before or after the cluster acted on it."""

    def __init__(self, client: ClusterClient, dies_at: int, *, after: bool) -> None:
        self._client, self._dies_at, self._after, self.writes = client, dies_at, after, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if name not in ("create", "replace", "patch", "delete"):
            return real

        async def write(*given: Any, **named: Any) -> Any:
            self.writes += 1
            if self.writes == self._dies_at and not self._after:
                raise Killed
            answer = await real(*given, **named)
            if self.writes == self._dies_at:
                raise Killed
            return answer

        return write


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize("order", [None, Order.ABORT])
@pytest.mark.parametrize("after", [False, True])
async def test_killed_at_any_write_another_process_brings_it_to_the_same_end(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str, order: Order | None, after: bool
) -> None:
    died = 0
    for dies_at in count(1):
        await served(hand_of(kserve, mode), spec)
        driven, dying = Driven(kserve, mode, spec), Dying(client, dies_at, after=after)
        try:
            ended = await driven.run(cast("ClusterClient", dying), order)
        except Killed:
            died += 1
            ended = await driven.run(client, order)
        assert ended is (Phase.UNDONE if order else Phase.PROMOTED), f"killed at write {dies_at}"
        await driven.is_as_it_should_be(order)
        await emptied(client)
        if died < dies_at:
            break
    assert died >= 8, "each step writes the stamp and the InferenceService"


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize("after", [False, True])
async def test_killed_at_any_write_of_the_way_back_another_process_brings_it_to_its_end(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str, after: bool
) -> None:
    for dies_at in count(1):
        await served(hand_of(kserve, mode), spec)
        driven, dying = Back(kserve, mode, spec), Dying(client, dies_at, after=after)
        await driven.promoted()
        died = True
        try:
            state = await driven.back(cast("ClusterClient", dying))
            died = False
        except Killed:
            state = await driven.back(client)
        assert (state.phase, state.target.candidate) == (Phase.PROMOTED, "1"), f"killed at write {dies_at}"
        await driven.is_as_it_should_be(Order.ABORT)
        await emptied(client)
        if not died:
            break
    assert dies_at > 6, "each step writes the stamp and the InferenceService"
