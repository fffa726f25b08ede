"""The Argo Rollouts backend over HTTP: upstream's definitions check what it sends, a player answers."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from helpers.clusters import connected
from helpers.played_argo import NAMESPACE, PlayedArgo, make_route
from helpers.played_kserve import DEFINITIONS
from helpers.rollout_by_hand import Hand
from helpers.simulated_serving import MemoryRegistrar, World
from nighttrain.providers.errors import (
    ConfigurationError,
    ObjectConflictError,
    ObjectExistsError,
    RolloutFailedError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    HTTPROUTES,
    REPLICASETS,
    ROLLOUTS,
    SERVICES,
)
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.argo.backend import ArgoRollouts
from nighttrain.providers.serving.backends.choice import make_backend
from nighttrain.providers.serving.backends.traffic import Weights
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.state import Names, Order, Phase
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.strategy import blue_green, canary

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.traffic import Target
    from nighttrain.providers.serving.rollouts.state import State
    from nighttrain.providers.serving.spec import ServingSpec
    from nighttrain.providers.serving.strategy import Strategy

Make = Callable[..., "ServingSpec"]
CRDS = Path(os.environ.get("NIGHTTRAIN_CRDS") or Path(__file__).parents[6] / "shared" / "crds")
NEEDED = ("rollouts.argoproj.io", "httproutes.gateway.networking.k8s.io")
FILES = [CRDS / f"{name}.json" for name in NEEDED]
SHARES = (25, 50)

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
        for body in (json.loads(path.read_text()) for path in FILES):
            try:
                await opened.create(DEFINITIONS, None, body)
            except ObjectExistsError:
                continue
        yield opened
        await emptied(opened)


async def emptied(client: ClusterClient) -> None:
    """Nothing is left of an endpoint."""
    for kind in (ROLLOUTS, REPLICASETS, SERVICES, HTTPROUTES, CONFIGMAPS):
        for item in (await client.list(kind, NAMESPACE))["items"]:
            await client.delete(kind, NAMESPACE, item["metadata"]["name"], propagation="Background")


@pytest.fixture
def argo(client: ClusterClient) -> PlayedArgo:
    return PlayedArgo(client)


def settings(mode: str) -> dict[str, Any]:
    return {"http_route": "delay-route"} if mode == "route" else {}


class HandWithShares(Hand):
    """Says what the strategy will ask for, as the engine does."""

    async def bring_up(self, spec: ServingSpec) -> Target:
        begun = self.backend.begin

        async def begin(spec: ServingSpec) -> Target:
            return replace(await begun(spec), shares=SHARES)

        self.backend.begin = begin  # type: ignore[method-assign]
        try:
            return await super().bring_up(spec)
        finally:
            self.backend.begin = begun  # type: ignore[method-assign]


def hand_of(argo: PlayedArgo, mode: str = "replicas", **given: Any) -> HandWithShares:
    backend = make_backend(argo.client, {"type": "argo_rollouts", **settings(mode), **given})
    return HandWithShares(backend, sleep=argo.sleep, looks=40)


async def served(hand: Hand, argo: PlayedArgo, make: Make, mode: str, version: str = "1") -> None:
    """An endpoint whose first version serves from four pods."""
    if mode == "route":
        await make_route(argo.client)
    spec = make(version, replicas=4)
    target = await hand.backend.begin(spec)
    assert target.stable is None
    await hand.backend.bring_up(spec, target, 1, hand.told.append)
    hand.fence = 1
    await hand.traffic(target, 100)
    await hand.promote(target)
    assert await argo.sizes() == {version: 4}


async def selector(client: ClusterClient) -> dict[str, str]:
    held = await client.get(SERVICES, NAMESPACE, "delay")
    return {key.rpartition("/")[2]: value for key, value in held["spec"]["selector"].items()}


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


class Driven:
    """One rollout of version 2, by as many processes as it takes; time passes as fast as it is waited for."""

    def __init__(self, argo: PlayedArgo, mode: str, make: Make, strategy: Strategy) -> None:
        self.argo, self.mode, self.candidate, self.strategy = argo, mode, make("2"), strategy
        self.world, self.store, self.told = World(), RolloutStore(argo.client), list[str]()

    async def sleep(self, seconds: float) -> None:
        self.world.now += max(seconds, 0.05)
        await self.argo.reconcile()

    def engine(self, client: ClusterClient) -> RolloutEngine:
        return RolloutEngine(
            ArgoRollouts(client, **settings(self.mode)),
            self.store,
            MemoryRegistrar(self.world),
            sources={},
            check_metric=lambda field, metric, golden: None,
            clock=lambda: self.world.now,
            sleep=self.sleep,
        )

    async def run(self, client: ClusterClient, until: Callable[[State], bool] | None, order: Order) -> State:
        """To the end; an order may be given on the way."""
        engine, tell = self.engine(client), self.told.append
        names = Names(alias="champion")
        await engine.begin(self.candidate, self.strategy, rollout_id="r", actor="a", names=names, tell=tell)
        if until:
            held = await engine.drive("delay", NAMESPACE, spec=self.candidate, until=until, tell=tell)
            if not held.ended:
                await self.store.order("delay", NAMESPACE, order, by="me")
        return await engine.drive("delay", NAMESPACE, spec=self.candidate, tell=tell)

    async def is_as_it_should_be(self, serves: str) -> None:
        """Alias and requests with one version, and nothing of the rollout left."""
        assert self.world.holders["champion"] == serves
        for _ in range(3):
            await self.argo.reconcile()
        assert await self.argo.sizes() == {serves: 4}
        rollout = await self.argo.rollout()
        assert rollout["status"]["phase"] == "Healthy"
        assert rollout["spec"]["template"]["metadata"]["labels"]["nighttrain.dev/version"] == serves


SHORT = canary(10, 50, hold_seconds=2.0, watch_seconds=2.0)
STEPPED = canary(10, 50, hold_seconds=20.0, watch_seconds=30.0)
ENDS = {
    "promoted": (None, "2"),
    "aborted at a half": (
        lambda state: state.ended or (state.phase is Phase.HOLDING and state.step == 1),
        "1",
    ),
    "aborted with everything": (lambda state: state.ended or state.phase is Phase.WATCHING, "1"),
}


@pytest.mark.parametrize("mode", ["replicas", "route"])
@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("strategy", [STEPPED, blue_green(watch_seconds=30.0)], ids=["stepped", "blue-green"])
async def test_the_engine_drives_it_to_either_end(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str, end: str, strategy: Strategy
) -> None:
    until, serves = ENDS[end]
    await served(hand_of(argo, mode), argo, serving_spec, mode)
    driven = Driven(argo, mode, serving_spec, strategy)
    if end == "aborted at a half" and not strategy.steps:
        pytest.skip("there is no half of it")
    state = await driven.run(client, until, Order.ABORT)
    assert state.phase is (Phase.PROMOTED if serves == "2" else Phase.UNDONE), driven.told
    await driven.is_as_it_should_be(serves)


async def test_a_version_that_argo_gives_up_is_undone_with_its_alias(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make
) -> None:
    await served(hand_of(argo), argo, serving_spec, "replicas")
    driven = Driven(argo, "replicas", serving_spec, STEPPED)

    def held(state: State) -> bool:
        return state.ended or (state.phase is Phase.HOLDING and state.step == 0)

    engine = driven.engine(client)
    await engine.begin(
        driven.candidate, STEPPED, rollout_id="r", actor="a", names=Names(alias="champion"), tell=print
    )
    await engine.drive("delay", NAMESPACE, spec=driven.candidate, until=held, tell=print)
    await argo.abort()
    state = await engine.drive("delay", NAMESPACE, spec=driven.candidate, tell=print)
    assert state.phase is Phase.UNDONE
    assert "Argo Rollouts has aborted it" in state.reason
    await driven.is_as_it_should_be("1")


class Back(Driven):
    """Version 2 is promoted; then the way back, by as many processes as it takes."""

    async def promoted(self) -> None:
        self.world.holders["champion"] = "1"
        state = await self.run(self.argo.client, None, Order.ABORT)
        assert state.phase is Phase.PROMOTED, self.told
        await self.is_as_it_should_be("2")

    async def back(self, client: ClusterClient, rollout_id: str = "back") -> State:
        engine, names = self.engine(client), Names(alias="champion")
        begun = await engine.begin_back(
            "delay", NAMESPACE, rollout_id=rollout_id, actor="a", names=names, reason="wrong since noon"
        )
        state = await engine.drive("delay", NAMESPACE, rollout_id=begun.rollout_id, tell=self.told.append)
        await engine.take("delay", NAMESPACE, state.rollout_id)
        return state


@pytest.mark.parametrize("mode", ["replicas", "route"])
async def test_a_promoted_rollout_is_taken_back_by_a_rollout_and_once_more_forward(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str
) -> None:
    await served(hand_of(argo, mode), argo, serving_spec, mode)
    first = (await argo.rollout())["spec"]["template"]
    driven = Back(argo, mode, serving_spec, SHORT)
    driven.candidate = serving_spec("2", env_vars={"ONLY": "here"})
    await driven.promoted()
    state = await driven.back(client)
    assert (state.phase, state.target.candidate, state.target.stable) == (Phase.PROMOTED, "1", "2")
    await driven.is_as_it_should_be("1")
    assert (await argo.rollout())["spec"]["template"] == first, "in the form in which it served"
    again = await driven.back(client, "again")
    assert (again.phase, again.target.candidate) == (Phase.PROMOTED, "2")
    await driven.is_as_it_should_be("2")


@pytest.mark.parametrize("mode", ["replicas", "route"])
async def test_what_does_not_come_up_on_the_way_back_leaves_all_as_it_was(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str
) -> None:
    await served(hand_of(argo, mode), argo, serving_spec, mode)
    driven = Back(argo, mode, serving_spec, SHORT)
    driven.candidate = serving_spec("2", startup_timeout_seconds=20.0)
    await driven.promoted()
    argo.never_ready.add("1")
    state = await driven.back(client)
    assert state.phase is Phase.UNDONE
    await driven.is_as_it_should_be("2")


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["replicas", "route"])
@pytest.mark.parametrize("after", [False, True])
async def test_killed_at_any_write_of_the_way_back_another_process_brings_it_to_its_end(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str, after: bool
) -> None:
    # Before each second write, and after it: that is every boundary once.
    for dies_at in count(1, 2):
        await served(hand_of(argo, mode), argo, serving_spec, mode)
        driven, dying = Back(argo, mode, serving_spec, SHORT), Dying(client, dies_at, after=after)
        await driven.promoted()
        died = True
        try:
            state = await driven.back(cast("ClusterClient", dying))
            died = False
        except Killed:
            state = await driven.back(client)
        assert (state.phase, state.target.candidate) == (Phase.PROMOTED, "1"), f"killed at {dies_at}"
        await driven.is_as_it_should_be("1")
        await emptied(client)
        await argo.reconcile()
        if not died:
            break
    assert dies_at > 5, "each step stamps the Rollout, and changes it"


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
@pytest.mark.parametrize("mode", ["replicas", "route"])
@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("after", [False, True])
async def test_killed_at_any_write_another_process_brings_it_to_the_same_end(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str, end: str, after: bool
) -> None:
    until, serves = ENDS[end]
    died = 0
    # Before each second write, and after it: that is every boundary once.
    for dies_at in count(1, 2):
        await served(hand_of(argo, mode), argo, serving_spec, mode)
        driven, dying = Driven(argo, mode, serving_spec, SHORT), Dying(client, dies_at, after=after)
        try:
            state = await driven.run(cast("ClusterClient", dying), until, Order.ABORT)
        except Killed:
            died += 1
            state = await driven.run(client, until, Order.ABORT)
        assert state.phase is (Phase.PROMOTED if serves == "2" else Phase.UNDONE), f"killed at {dies_at}"
        await driven.is_as_it_should_be(serves)
        await emptied(client)
        await argo.reconcile()
        if died * 2 < dies_at:
            break
    assert died >= 5, "each step stamps the Rollout, and changes it"
