"""What a look says of a Gateway API route: pure functions, and recordings of a real gateway."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from helpers import RECORDINGS
from helpers.interleaved import as_recorded, interleaved, recorded
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.backends.plain.gateways import features_of, gateway_address
from nighttrain.providers.serving.backends.plain.objects import Objects
from nighttrain.providers.serving.backends.plain.route_look import look_at_route
from nighttrain.providers.serving.backends.plain.routes import (
    VERSION_HEADER,
    Backend,
    Backends,
    RouteSettings,
    adopted_rules,
    build_route,
    check_adoptable,
    read_split,
    rest_rules,
    rollout_rules,
    shared_refs,
)
from nighttrain.providers.serving.backends.traffic import Address, Target

if TYPE_CHECKING:
    from helpers.interleaved import Present, Seen
    from nighttrain.providers.serving.backends.traffic import Look

P = "nighttrain.dev/"
# The recordings' route is m, its versions' Services are a and b.
TARGET = Target(endpoint="m", namespace="rec", model_name="m", candidate="2", stable="1")
SETTINGS = RouteSettings(gateway="gw")
BACKENDS = Backends(
    endpoint=Backend(name="m", port=80),
    stable=Backend(name="m-v1", port=80),
    candidate=Backend(name="m-v2", port=80),
)
SERVICE = {
    "kind": "Service",
    "metadata": {
        "name": "m",
        "resourceVersion": "1",
        "annotations": {P + "stable-version": "1", P + "candidate-version": "2", P + "rollout-fence": "2/3"},
    },
    "spec": {"selector": version_labels("m", "1"), "ports": [{"port": 80}]},
}


def renamed(events: list[Seen], *candidate: str) -> list[Seen]:
    """The events with the names that the Services of versions 1 and 2 have."""
    text = json.dumps([event.object for event in events])
    for old, new in (("a", "m-v1"), *((name, "m-v2") for name in candidate or ("b",))):
        text = text.replace(f'"kind": "Service", "name": "{old}"', f'"kind": "Service", "name": "{new}"')
    return [replace(event, object=found) for event, found in zip(events, json.loads(text), strict=True)]


def routes_of(name: str, *candidate: str) -> list[Seen]:
    return [event for event in renamed(recorded(name), *candidate) if event.stream == "httproutes"]


def looked(route: dict[str, Any] | None, settings: RouteSettings = SETTINGS) -> Look:
    objects = Objects(service=SERVICE, stable=None, candidate=None, pods=[], slices=[])
    return look_at_route(TARGET, objects, route, settings)


def last_look(present: Present, name: str = "m", settings: RouteSettings = SETTINGS) -> Look:
    route = present.objects[("httproutes", name)]
    return looked(route, settings)


# How each recording ends, written by hand: asked, copied, routed, and what is said where nothing is.
ENDS: dict[str, tuple[int, int, float | None, str]] = {
    "gateway-drained": (100, 0, 100, ""),
    # Its testers' header is another one: a rule for b and one for a are no share.
    "gateway-header": (0, 0, None, ""),
    # Accepted, resolved, and every request was answered 500: only requests tell.
    "gateway-mirror": (0, 100, 0, ""),
    "gateway-mirror-percent": (0, 30, 0, ""),
    # A quarter was answered 503: whether the candidate is ready is looked at elsewhere.
    "gateway-no-endpoints": (25, 0, 25, ""),
    "gateway-no-service": (25, 0, None, "ResolvedRefs False, BackendNotFound: Cannot load HTTPBackendRef"),
    "gateway-undrained": (100, 0, 100, ""),
    "gateway-weights": (100, 0, 100, ""),
    "gateway-zero-weight": (0, 0, None, "ResolvedRefs False, BackendNotFound"),
}


@pytest.mark.parametrize("name", ENDS)
def test_each_recording_ends_as_written_by_hand(name: str) -> None:
    *_, present = as_recorded(routes_of(name, "b", "absent"))
    look = last_look(present)
    asked, mirrored, routed, words = ENDS[name]
    assert (look.asked_percent, look.mirrored_percent, look.routed_percent) == (asked, mirrored, routed)
    assert words in (look.unseen or "")
    assert (look.promoted, look.undone) == (False, False)


def test_every_recording_of_a_gateway_is_looked_at() -> None:
    found = {path.stem for path in RECORDINGS.glob("gateway-*.jsonl")}
    assert found == {*ENDS, "gateway-refused"}


def test_a_route_that_nobody_takes_up_says_so() -> None:
    *_, present = as_recorded(routes_of("gateway-refused"))
    absent = last_look(present, settings=RouteSettings(gateway="absent"))
    assert absent.routed_percent == 0
    assert absent.unseen is not None
    assert absent.unseen.startswith("no gateway has taken HTTPRoute m up: is there a Gateway rec/absent")
    other = last_look(present, "other", RouteSettings(gateway="gw", section="absent"))
    assert (other.routed_percent, other.unseen) == (
        0,
        "Gateway rec/gw says Accepted False, NoMatchingParent",
    )


def test_where_nobody_takes_a_route_only_a_share_of_none_is_seen() -> None:
    """It can be taken back so, and nothing else counts as routed."""
    for percent in (0, 10, 100):
        route = a_route(percent)
        assert looked(route | {"status": {}}).routed_percent == (None if percent else 0)
        conditions = route["status"]["parents"][0]["conditions"]
        conditions[0] |= {"status": "False", "reason": "NoMatchingParent"}
        assert looked(route).routed_percent == (None if percent else 0)
        conditions[0]["observedGeneration"] = 0
        assert looked(route).routed_percent is None, "it says so of the route as it was before"


# When each share was accepted by the gateway, and when the next one was asked for. Without a status nobody
# routes yet, which is a share of none where none was asked for.
ACCEPTED = {
    "gateway-weights": {10: (4.74, 47.5), 50: (47.58, 72.7), 99: (72.77, 97.6), 100: (97.62, 200)},
    "gateway-drained": {0: (4.21, 7.2), 100: (7.24, 200)},
    "gateway-undrained": {50: (5.55, 8.5), 100: (8.58, 200)},
    "gateway-no-endpoints": {25: (2.92, 200)},
    "gateway-no-service": {},
    # Nobody takes it, so that nothing goes to the candidate, of which it knows nothing.
    "gateway-refused": {0: (2.94, 200)},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_at_no_point_a_share_is_reported_that_is_not_accepted(name: str) -> None:
    reported = set()
    for seed in range(20):
        for present in interleaved(renamed(recorded(name)), seed):
            if ("httproutes", "m") not in present.objects:
                continue
            look = last_look(present)
            assert (look.promoted, look.undone, look.strayed) == (False, False, None)
            if look.routed_percent is not None:
                reported.add(round(look.routed_percent))
                first, last = ACCEPTED[name][round(look.routed_percent)]
                assert first <= round(present.at["httproutes"], 2) < last
    assert reported == set(ACCEPTED[name])


def accepted(route: dict[str, Any], generation: int = 1) -> dict[str, Any]:
    """The route as a gateway leaves it that has followed."""
    parents = [
        {
            "parentRef": route["spec"]["parentRefs"][0],
            "controllerName": "test.example/gateway",
            "conditions": [
                {"type": kind, "status": "True", "reason": kind, "observedGeneration": generation}
                for kind in ("Accepted", "ResolvedRefs")
            ],
        }
    ]
    meta = {**route["metadata"], "generation": generation, "resourceVersion": "5"}
    return {**route, "metadata": meta, "status": {"parents": parents}}


def a_route(percent: int, mirror: int = 0, **marks: str) -> dict[str, Any]:
    route = build_route(SETTINGS, BACKENDS.endpoint, "rec")
    testers = {"1": BACKENDS.stable, "2": BACKENDS.candidate}
    route["spec"]["rules"] = rollout_rules(SETTINGS, BACKENDS, testers, percent, mirror)
    route["metadata"]["annotations"] = {
        P + "rollout-fence": "2/7",
        P + "candidate-percent": str(percent),
        **({P + "mirror-percent": str(mirror)} if mirror else {}),
        **{P + name.replace("_", "-"): value for name, value in marks.items()},
    }
    return accepted(route)


@pytest.mark.parametrize(("percent", "mirror"), [(0, 0), (1, 0), (40, 0), (99, 20), (100, 0), (0, 100)])
def test_what_is_written_is_read(percent: int, mirror: int) -> None:
    look = looked(a_route(percent, mirror))
    assert (look.asked_percent, look.mirrored_percent, look.routed_percent) == (percent, mirror, percent)
    assert (look.fence, look.strayed) == (7, None)
    assert look.resource_versions == {"service": "1", "route": "5"}
    assert looked(a_route(percent, mirror) | {"status": {}}).routed_percent == (None if percent else 0)


def test_weights_that_another_hand_wrote_are_seen_and_named() -> None:
    route = a_route(25)
    route["spec"]["rules"][-1]["backendRefs"] = shared_refs(BACKENDS, 0)
    route["metadata"]["managedFields"] = [
        {"manager": "argocd", "time": "2026-11-26T02:00:00Z", "fieldsV1": {"f:spec": {"f:rules": {}}}}
    ]
    assert looked(route).strayed == (
        "somebody changed spec.rules of HTTPRoute m: it is 0 percent to the candidate (m 1), and this "
        "rollout had written 25 percent to the candidate; the field manager argocd wrote it last, at "
        "2026-11-26T02:00:00Z"
    )
    route["spec"]["rules"] = [{"backendRefs": [{"name": "other", "port": 80}]}]
    assert "no rule leads to the endpoint" in (looked(route).strayed or "")
    assert looked(None).strayed == "somebody deleted HTTPRoute m"


@pytest.mark.parametrize(
    ("refs", "percent"),
    [
        ([("m-v1", 1), ("m-v2", 2)], 67),
        ([("m-v1", 999), ("m-v2", 1)], 1),
        ([("m-v1", 1), ("m-v2", 999)], 99),
        ([("m-v1", 0), ("m-v2", 0)], None),
        ([("m-v1", None), ("m-v2", None)], 50),
        ([("m-v1", 50), ("m-v2", 25), ("other", 25)], None),
    ],
)
def test_any_weights_are_read(refs: list[tuple[str, int | None]], percent: int | None) -> None:
    written = [{"name": name} | ({} if weight is None else {"weight": weight}) for name, weight in refs]
    assert read_split({"spec": {"rules": [{"backendRefs": written}]}}, BACKENDS).percent == percent


def test_a_route_is_at_rest_only_without_a_trace_of_the_rollout() -> None:
    rest = build_route(SETTINGS, BACKENDS.endpoint, "rec")
    assert read_split(rest, BACKENDS).at_rest
    assert not read_split(a_route(0), BACKENDS).at_rest, "testers still have a rule"
    assert not read_split(a_route(100), BACKENDS).at_rest


def test_of_an_adopted_route_only_backend_refs_change() -> None:
    elsewhere = {"matches": [{"path": {"value": "/docs"}}], "backendRefs": [{"name": "docs", "port": 80}]}
    ours = {
        "name": "predict",
        "matches": [{"path": {"value": "/invocations"}}],
        "filters": [{"type": "RequestHeaderModifier"}],
        "timeouts": {"request": "5s"},
        "backendRefs": [{"name": "m", "port": 80}],
    }
    route = {
        "metadata": {"name": "m"},
        "spec": {"parentRefs": [{"name": "gw"}], "rules": [elsewhere, ours]},
    }
    check_adoptable(route, SETTINGS, "rec", BACKENDS.names)
    refs = shared_refs(BACKENDS, 10)
    assert adopted_rules(route, BACKENDS.names, refs) == [elsewhere, {**ours, "backendRefs": refs}]
    split = read_split({"spec": {"rules": adopted_rules(route, BACKENDS.names, refs)}}, BACKENDS)
    assert (split.percent, split.at_rest) == (10, False)
    with pytest.raises(ConfigurationError, match="does not belong to it"):
        check_adoptable(route, RouteSettings(gateway="other"), "rec", BACKENDS.names)
    ours["backendRefs"] = [{"name": "m", "port": 80}, {"name": "docs", "port": 80}]
    with pytest.raises(ConfigurationError, match=r"rules\[1\].backendRefs = \['docs'\]"):
        check_adoptable(route, SETTINGS, "rec", BACKENDS.names)
    route["spec"]["rules"] = [elsewhere]
    with pytest.raises(ConfigurationError, match="no rule of HTTPRoute m leads to a Service"):
        check_adoptable(route, SETTINGS, "rec", BACKENDS.names)


CRDS = Path(os.environ.get("NIGHTTRAIN_CRDS") or Path(__file__).parents[5] / "shared" / "crds")
ROUTES = CRDS / "httproutes.gateway.networking.k8s.io.json"


@pytest.mark.skipif(not ROUTES.exists(), reason=f"no {ROUTES}: set NIGHTTRAIN_CRDS to a folder that has it")
def test_every_manifest_and_patch_fits_the_upstream_schema() -> None:
    """Patterns, lengths and sizes too, which the embedded cluster does not check."""
    definition = json.loads(ROUTES.read_text("utf-8"))
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = jsonschema.Draft4Validator(version["schema"]["openAPIV3Schema"])
    settings = [
        SETTINGS,
        RouteSettings(
            gateway="gw",
            gateway_namespace="infra",
            section="http",
            hostnames=("delay.example.org", "*.delay.example.org"),
            path_prefix="/v2/models/delay",
        ),
    ]
    testers = {"1": BACKENDS.stable, "2": BACKENDS.candidate}
    for each in settings:
        made = build_route(each, BACKENDS.endpoint, "rec")
        schema.validate(made)
        for percent, mirror in ((0, 0), (1, 0), (50, 30), (100, 0), (0, 100)):
            made["spec"]["rules"] = rollout_rules(each, BACKENDS, testers, percent, mirror)
            schema.validate(made)
            assert len(made["spec"]["rules"]) == 3
    made["spec"]["rules"][0]["backendRefs"][0]["weight"] = -1
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(made)


def test_testers_have_a_rule_for_each_version() -> None:
    rules = rollout_rules(SETTINGS, BACKENDS, {"1": BACKENDS.stable, "2": BACKENDS.candidate}, 10, 0)
    shown = [
        (rule["matches"][0]["headers"][0]["name"], rule["matches"][0]["headers"][0]["value"])
        for rule in rules[:2]
    ]
    assert shown == [(VERSION_HEADER, "1"), (VERSION_HEADER, "2")]
    assert [rule["backendRefs"][0]["name"] for rule in rules[:2]] == ["m-v1", "m-v2"]
    assert rest_rules(SETTINGS, BACKENDS.endpoint)[0]["backendRefs"][0]["name"] == "m"


def test_the_features_of_the_recorded_class_are_read() -> None:
    lines = map(json.loads, (RECORDINGS / "gateway-mirror.jsonl").read_text("utf-8").splitlines())
    (found,) = (line["response"]["body"] for line in lines if line.get("note") == "what the gateway can do")
    features = features_of(found)
    assert "HTTPRoutePathRewrite" in features
    assert "HTTPRouteRequestMirror" not in features
    assert features_of({"status": {"supportedFeatures": ["HTTPRouteRequestMirror"]}}) == {
        "HTTPRouteRequestMirror"
    }
    assert features_of({}) == frozenset()


@pytest.mark.parametrize(
    ("listener", "addresses", "hosts", "given", "url"),
    [
        (
            {"protocol": "HTTP", "port": 8000},
            ["127.0.0.1"],
            ["m.test"],
            None,
            ("http://127.0.0.1:8000", "m.test"),
        ),
        ({"port": 80}, ["fd00::1"], [], None, ("http://[fd00::1]:80", None)),
        ({"protocol": "HTTPS", "port": 443}, ["10.0.0.1"], ["m.test"], None, ("https://m.test:443", None)),
        ({"port": 80}, [], ["*.test", "m.test"], None, ("http://m.test:80", None)),
        (
            {"protocol": "HTTP", "port": 80},
            ["10.0.0.1"],
            ["m.test"],
            "http://lb:8/",
            ("http://lb:8", "m.test"),
        ),
        ({"port": 80}, [], ["*.test"], None, None),
    ],
)
def test_where_a_route_is_reached(
    listener: dict[str, Any],
    addresses: list[str],
    hosts: list[str],
    given: str | None,
    url: tuple[str, str | None] | None,
) -> None:
    gateway = {
        "spec": {"listeners": [{"name": "http", "protocol": "HTTP", **listener}]},
        "status": {"addresses": [{"value": value} for value in addresses]},
    }
    found = gateway_address(gateway, RouteSettings(gateway="gw", address=given), hosts)
    if url is None:
        assert found is None
        return
    assert found == Address(url=url[0], headers={"Host": url[1]} if url[1] else {})
