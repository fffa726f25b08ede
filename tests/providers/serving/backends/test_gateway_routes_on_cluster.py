"""Exact shares on the embedded cluster: real pods, a real route, real requests; only the model is fake."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.polling import until_async
from helpers.rollout_by_hand import Hand
from helpers.serving_load import Load
from helpers.subresources import status_of
from nighttrain.providers.errors import (
    ConfigurationError,
    ObjectConflictError,
    RolloutFailedError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import (
    DEPLOYMENTS,
    GATEWAY_CLASSES,
    GATEWAYS,
    HTTPROUTES,
    PODS,
    SERVICES,
)
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.plain.by_route import GatewayRoutes
from nighttrain.providers.serving.backends.plain.gateways import MIRROR
from nighttrain.providers.serving.backends.plain.routes import RouteSettings
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.spec import ServingSpec
from nighttrain.providers.serving.strategy import Shadow, Strategy, require_possible

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.traffic import Address, Target

Make = Callable[..., ServingSpec]
NAMESPACE = "default"
SETTINGS = RouteSettings(gateway="nighttrain", hostnames=("delay.test",))

# A real gateway takes two seconds to follow; this is enough to lose requests by, if weight does not go first.
LAG = 1.0


@pytest.fixture
def cluster(image: str) -> Iterator[EmbeddedCluster]:
    serving = Serving(status_lag=0.05, route_lag=LAG)
    with EmbeddedCluster({"model-server": image}, serving=serving) as cluster:
        yield cluster


async def scaled(seconds: float) -> None:
    """The gateway here follows in a quarter of the time."""
    await asyncio.sleep(seconds / 4)


@pytest.fixture
def hand(client: ClusterClient) -> Hand:
    return Hand(GatewayRoutes(client, SETTINGS, sleep=scaled))


async def serving(store: Any, client: ClusterClient, make: Make, *versions: str) -> Rollout:
    """An endpoint as releases before this one made it: without a route."""
    rollout = Rollout(KubernetesDeployments(client))
    for version in versions:
        await rollout.run(make(version, artifact_digest=store.add(version), drain_seconds=0))
    return rollout


async def counted(address: Address | None, requests: int) -> Counter[str]:
    """Who answers, or which status came, each time over a connection of its own."""
    assert address is not None
    headers = {**address.headers, "connection": "close"}
    async with httpx.AsyncClient(trust_env=False) as web:
        answers = [await web.post(f"{address.url}/invocations", headers=headers) for _ in range(requests)]
    return Counter(answer.text if answer.is_success else str(answer.status_code) for answer in answers)


async def until_counted(hand: Hand, target: Target, wanted: set[str]) -> None:
    """As the engine does: a share is routed once the answers say so."""
    for _ in range(200):
        if set(await counted((await hand.backend.addresses(target)).route, 10)) == wanted:
            return
    raise AssertionError(f"never only {wanted}")


async def until_answered(address: Address | None, text: str) -> None:
    async def answered() -> bool:
        return set(await counted(address, 1)) == {text}

    await until_async(answered)


async def route(client: ClusterClient) -> dict[str, Any]:
    return await client.get(HTTPROUTES, NAMESPACE, "delay")


async def weights(client: ClusterClient) -> list[tuple[str, int]]:
    rule = (await route(client))["spec"]["rules"][-1]
    return [(ref["name"], ref["weight"]) for ref in rule["backendRefs"]]


async def test_a_whole_rollout_by_weights_loses_no_request(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    await serving(store, client, serving_spec, "1", "2")
    possible = await hand.backend.capabilities(NAMESPACE)
    assert (possible.weights, possible.shadow, possible.shadow_shares, possible.headers) == (
        "exact",
        True,
        True,
        True,
    )
    target = await hand.bring_up(serving_spec("3", artifact_digest=store.add("3"), drain_seconds=0))
    assert (target.stable, target.candidate) == ("2", "3")
    assert await weights(client) == [("delay", 1)]
    addresses = await hand.backend.addresses(target)
    await until_counted(hand, target, {"version 2"})
    await until_answered(addresses.candidate, "version 3")
    assert await counted(addresses.candidate, 20) == {"version 3": 20}
    assert await counted(addresses.stable, 20) == {"version 2": 20}
    load = Load(addresses.route.url, dict(addresses.route.headers))
    running = asyncio.create_task(load.run(pooled=2, fresh=2))
    try:
        assert (await hand.traffic(target, 10)).routed_percent == 10
        assert await weights(client) == [("delay-v2", 90), ("delay-v3", 10)]
        await load.until(lambda: load.answers["version 3"] >= 1)
        share = (await counted(addresses.route, 300))["version 3"]
        assert 10 <= share <= 55
        for percent in (50, 100):
            assert (await hand.traffic(target, percent)).routed_percent == percent
        await until_counted(hand, target, {"version 3"})
        await hand.promote(target)
        assert await weights(client) == [("delay", 1)]
        assert len((await route(client))["spec"]["rules"]) == 1
        seen = load.answers["version 3"]
        await load.until(lambda: load.answers["version 3"] >= seen + 200)
        # A rollback of the plain kind moves the gateway's requests, too.
        rollout = Rollout(KubernetesDeployments(client))
        assert (await rollout.rollback("delay", NAMESPACE)).stable_version == "2"
        seen = load.answers["version 2"]
        await load.until(lambda: load.answers["version 2"] >= seen + 100)
    finally:
        load.enough.set()
        await running
    print(f"{load.answers.total()} requests: {dict(load.answers)}, {len(load.failures)} failed")
    assert load.failures == []
    found = {item["metadata"]["name"] for item in (await client.list(DEPLOYMENTS, NAMESPACE))["items"]}
    assert found == {"delay-v2", "delay-v3"}


async def test_a_rollout_is_undone_without_losing_a_request(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    """The candidate's pods end at once when they are told to, so that one request too many is seen."""
    await serving(store, client, serving_spec, "1")
    target = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2"), drain_seconds=0))
    addresses = await hand.backend.addresses(target)
    await until_counted(hand, target, {"version 1"})
    load = Load(addresses.route.url, dict(addresses.route.headers))
    running = asyncio.create_task(load.run(pooled=2, fresh=2))
    try:
        await hand.traffic(target, 50)
        await load.until(lambda: load.answers["version 2"] >= 10)
        assert (await hand.traffic(target, 0)).routed_percent == 0
        # The gateway says so, and goes on sending for a moment.
        look = await hand.undo(target)
        seen = load.answers["version 1"]
        await load.until(lambda: load.answers["version 1"] >= seen + 200)
    finally:
        load.enough.set()
        await running
    assert load.failures == []
    assert (look.stable_ready, look.asked_percent) == (True, 0)
    assert await weights(client) == [("delay", 1)]
    assert len((await route(client))["spec"]["rules"]) == 1
    for kind in (DEPLOYMENTS, PODS, SERVICES):
        listed = await client.list(kind, NAMESPACE, label_selector="nighttrain.dev/version=2")
        assert listed["items"] == []


async def test_requests_are_copied_and_nobody_sees_the_answers(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    await serving(store, client, serving_spec, "1")
    # Whoever is asked leaves a trace in its store; the candidate has one of its own.
    own = type(store)(store.path.with_name("candidate"))
    spec = serving_spec("2", artifact_digest=own.add("2"), env_vars={"FAKE_STORE": str(own.path)})
    target = await hand.bring_up(spec)
    await until_counted(hand, target, {"version 1"})
    look = await hand.traffic(target, 0, 100)
    assert (look.asked_percent, look.mirrored_percent, look.routed_percent) == (0, 100, 0)
    address = (await hand.backend.addresses(target)).route
    assert await counted(address, 20) == {"version 1": 20}
    assert not (own.path / "asked").exists()
    async with httpx.AsyncClient(trust_env=False) as web:
        said = await web.post(f"{address.url}/invocations", content=b"0.01", headers=dict(address.headers))
    assert said.text == "version 1"

    async def copied() -> bool:
        return (own.path / "asked").exists()

    await until_async(copied)
    await hand.traffic(target, 0, 30)
    shared = (await route(client))["spec"]["rules"][-1]
    assert shared["filters"][0]["requestMirror"]["percent"] == 30
    assert (await hand.traffic(target, 20)).mirrored_percent == 0
    assert "filters" not in (await route(client))["spec"]["rules"][-1]


async def basic_gateway(client: ClusterClient) -> GatewayRoutes:
    """The backend on a gateway that copies nothing, and says of a route that asks for it that all is well."""
    listener = {"name": "http", "protocol": "HTTP", "port": 8090}
    allowed = {**listener, "allowedRoutes": {"namespaces": {"from": "All"}}}
    body = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "basic"},
        "spec": {"gatewayClassName": "nighttrain-router-basic", "listeners": [allowed]},
    }
    await client.create(GATEWAYS, NAMESPACE, body)
    return GatewayRoutes(client, replace(SETTINGS, gateway="basic"), sleep=scaled)


async def test_where_the_gateway_does_not_list_copies_they_are_refused_before_anything_changes(
    store: Any, client: ClusterClient, serving_spec: Make
) -> None:
    await serving(store, client, serving_spec, "1")
    hand = Hand(await basic_gateway(client))
    target = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2")))
    before = await route(client)
    possible = await hand.backend.capabilities(NAMESPACE)
    with pytest.raises(
        ConfigurationError, match=f"Gateway basic cannot copy requests here .its GatewayClass.*{MIRROR}"
    ):
        require_possible(Strategy(steps=(Shadow(),)), hand.backend.name, possible)
    with pytest.raises(ConfigurationError, match=f"does not list {MIRROR}"):
        await hand.traffic(target, 0, 100)
    assert (await route(client))["spec"] == before["spec"]


async def test_a_gateway_that_lists_copies_and_fails_every_request_is_put_back(
    store: Any, client: ClusterClient, serving_spec: Make
) -> None:
    await serving(store, client, serving_spec, "1")
    hand = Hand(await basic_gateway(client))
    listed = {"status": {"supportedFeatures": [{"name": MIRROR}]}}
    await client.patch(status_of(GATEWAY_CLASSES), None, "nighttrain-router-basic", listed)
    possible = await hand.backend.capabilities(NAMESPACE)
    assert (possible.shadow, possible.shadow_shares) == (True, False)
    target = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2")))
    await hand.traffic(target, 20)
    before = await route(client)
    with pytest.raises(RolloutFailedError, match=r"was answered 500\. The route is as it was before"):
        await hand.traffic(target, 20, 100)
    after = await route(client)
    assert after["spec"] == before["spec"]
    look = await hand.backend.look(target)
    assert (look.asked_percent, look.mirrored_percent, look.strayed) == (20, 0, None)
    await until_counted(hand, target, {"version 1", "version 2"})


async def test_copies_are_refused_where_nobody_may_look_or_the_route_cannot_be_tried(
    store: Any, cluster: EmbeddedCluster, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    await serving(store, client, serving_spec, "1")
    target = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2")))
    before = await route(client)
    forbidden = Fault.answer(403, verb="get", resource="gatewayclasses", count=2)
    cluster.faults.add(forbidden)
    possible = await hand.backend.capabilities(NAMESPACE)
    assert not possible.shadow
    assert "grant get on gatewayclasses" in possible.no_shadow_because
    with pytest.raises(ConfigurationError, match="grant get on gatewayclasses"):
        await hand.traffic(target, 0, 100)
    assert cluster.faults.struck(forbidden) == 2
    elsewhere = GatewayRoutes(client, replace(SETTINGS, address="http://127.0.0.1:9"), sleep=scaled)
    with pytest.raises(RolloutFailedError, match="fails before anything was changed: GET http://127"):
        await elsewhere.set_traffic(target, await elsewhere.look(target), 9, percent=0, mirror_percent=100)
    assert (await route(client))["spec"] == before["spec"]


async def test_who_decided_by_an_older_look_changes_no_route(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    await serving(store, client, serving_spec, "1")
    target = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2")))
    backend, old = hand.backend, await hand.backend.look(target)
    await hand.traffic(target, 0)
    for percent, mirror in ((0, 0), (10, 0), (100, 0), (0, 100)):
        with pytest.raises(ObjectConflictError):
            await backend.set_traffic(target, old, 99, percent=percent, mirror_percent=mirror)
    with pytest.raises(ObjectConflictError):
        await backend.undo(target, old, 99)
    await hand.traffic(target, 100)
    with pytest.raises(ObjectConflictError):
        await backend.promote(target, replace(old, asked_percent=100, routed_percent=100.0), 99)
    assert (await backend.look(target)).fence == hand.fence
    with pytest.raises(RolloutFailedError, match="does not have 100 percent"):
        await backend.promote(target, old, 99)


async def test_weights_of_another_hand_are_said(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    await serving(store, client, serving_spec, "1")
    target = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2")))
    await hand.traffic(target, 20)
    kept = [{"backendRefs": [{"name": "delay", "port": 8080}]}]
    await client.patch(HTTPROUTES, NAMESPACE, "delay", {"spec": {"rules": kept}})
    look = await hand.backend.look(target)
    assert "it is 0 percent to the candidate (delay 1), and this rollout had written 20 percent" in (
        look.strayed or ""
    )
    await client.delete(HTTPROUTES, NAMESPACE, "delay")
    assert (await hand.backend.look(target)).strayed == "somebody deleted HTTPRoute delay"
    # The next rollout makes what is missing.
    again = Hand(hand.backend)
    await again.traffic(await again.bring_up(serving_spec("3", artifact_digest=store.add("3"))), 10)


async def test_a_candidate_that_somebody_deleted_keeps_nothing_from_the_stable_version(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    """Its Service goes with it, and a route that leads to a missing Service is not accepted."""
    await serving(store, client, serving_spec, "1")
    target = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2")))
    await hand.traffic(target, 20)
    await client.delete(DEPLOYMENTS, NAMESPACE, "delay-v2", propagation="Background")
    look = await hand.until(target, lambda look: look.unseen is not None and "BackendNotFound" in look.unseen)
    assert look.routed_percent is None
    assert (await hand.traffic(target, 0)).routed_percent == 0
    await hand.undo(target)
    await until_counted(hand, target, {"version 1"})


async def test_a_first_version_has_everything_or_nothing(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    bad = await hand.bring_up(serving_spec("1", artifact_digest=store.add("1")))
    assert bad.stable is None
    await hand.traffic(bad, 100)
    await until_counted(hand, bad, {"version 1"})
    await hand.traffic(bad, 0)
    await hand.undo(bad)
    assert (await client.list(HTTPROUTES, NAMESPACE))["items"] == []
    for kind in (SERVICES, DEPLOYMENTS):
        assert [each for each in (await client.list(kind, NAMESPACE))["items"] if "delay" in str(each)] == []
    good = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2")))
    await hand.traffic(good, 100)
    await hand.promote(good)
    await until_counted(hand, good, {"version 2"})


async def test_a_route_of_somebody_else_is_refused_or_taken_over_with_all_that_is_in_it(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    await serving(store, client, serving_spec, "1")
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/invocations"}}],
        "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x", "value": "y"}]}}
        ],
        "backendRefs": [{"name": "delay", "port": 8080}],
    }
    body = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "delay", "labels": {"team": "web"}},
        "spec": {"parentRefs": [{"name": "nighttrain"}], "hostnames": ["team.test"], "rules": [rule]},
    }
    await client.create(HTTPROUTES, NAMESPACE, body)
    before = await route(client)
    spec = serving_spec("2", artifact_digest=store.add("2"))
    with pytest.raises(WorkloadConflictError, match="HTTPRoute delay exists and was not made by nighttrain"):
        await hand.backend.begin(spec)
    adopting = Hand(
        GatewayRoutes(client, RouteSettings(gateway="nighttrain", adopt_route=True), sleep=scaled)
    )
    possible = await adopting.backend.capabilities(NAMESPACE)
    assert (possible.headers, possible.shadow) == (False, False)
    target = await adopting.bring_up(spec)
    await adopting.traffic(target, 40)
    assert await weights(client) == [("delay-v1", 60), ("delay-v2", 40)]
    with pytest.raises(
        ConfigurationError, match="of a route that is taken over only the weights are written"
    ):
        await adopting.traffic(target, 40, 100)
    addresses = await adopting.backend.addresses(target)
    assert addresses.route.headers == {"Host": "team.test"}
    assert await counted(addresses.candidate, 5) == {"version 2": 5}
    await adopting.traffic(target, 100)
    await adopting.promote(target)
    after = await route(client)
    assert after["spec"] == before["spec"]
    assert after["metadata"]["labels"] == {"team": "web"}


async def test_a_gateway_that_is_not_there_is_told_before_anything_changes(client: ClusterClient) -> None:
    for settings, words in (
        (
            RouteSettings(gateway="absent"),
            "gateway = 'absent': there is no such Gateway in namespace default",
        ),
        (
            RouteSettings(gateway="nighttrain", section="tls"),
            "section = 'tls': .* has no such listener; it has http",
        ),
    ):
        with pytest.raises(ConfigurationError, match=words):
            await GatewayRoutes(client, settings).capabilities(NAMESPACE)


async def test_a_route_that_no_gateway_takes_says_so_and_is_taken_back(
    store: Any, client: ClusterClient, serving_spec: Make
) -> None:
    await serving(store, client, serving_spec, "1")
    body = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "nobody"},
        "spec": {
            "gatewayClassName": "without-controller",
            "listeners": [{"name": "http", "protocol": "HTTP", "port": 80}],
        },
    }
    await client.create(GATEWAYS, NAMESPACE, body)
    hand = Hand(GatewayRoutes(client, replace(SETTINGS, gateway="nobody"), sleep=scaled))
    possible = await hand.backend.capabilities(NAMESPACE)
    assert possible.no_shadow_because == "there is no GatewayClass without-controller"
    target = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2"), drain_seconds=0))
    await hand.backend.set_traffic(target, await hand.backend.look(target), 5, percent=10)
    look = await hand.backend.look(target)
    assert (look.asked_percent, look.routed_percent, look.strayed) == (10, None, None)
    assert "no gateway has taken HTTPRoute delay up: is there a Gateway default/nobody" in (look.unseen or "")
    hand.fence = 6
    assert (await hand.traffic(target, 0)).routed_percent == 0
    await hand.undo(target)
