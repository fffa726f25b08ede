"""Addresses, patches and schemas: what passes before an object is stored."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from helpers import schema_generator
from nighttrain.providers.local.cluster.http.patches import STRATEGIC_PATCH, apply_patch, merge
from nighttrain.providers.local.cluster.kinds import builtin_schemas
from nighttrain.providers.local.cluster.kinds.decoding import decode
from nighttrain.providers.local.cluster.machine.network import AddressPool
from nighttrain.providers.local.cluster.rules.admission import Admission
from nighttrain.providers.local.cluster.store.errors import ApiError
from nighttrain.providers.local.cluster.store.resources import JOBS, NAMESPACES, PODS, SECRETS, SERVICES
from nighttrain.providers.local.cluster.store.store import Store


@pytest.fixture
def store() -> Store:
    admission = Admission(AddressPool(99, 200, 254))
    store = Store(admit=admission.admit, release=admission.release)
    store.create(NAMESPACES, {"metadata": {"name": "default"}})
    return store


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


def test_services_get_addresses_and_give_them_back(store: Store) -> None:
    first = store.create(SERVICES, service("a"))["spec"]["clusterIP"]
    assert first == "127.99.200.1"
    with pytest.raises(ApiError) as taken:
        store.create(SERVICES, service("b", clusterIP=first))
    assert "already allocated" in taken.value.message
    store.delete(SERVICES, "default", "a")
    assert store.create(SERVICES, service("b", clusterIP=first))["spec"]["clusterIPs"] == [first]


@pytest.mark.parametrize("address", ["10.0.0.1", "127.99.1.1"])
def test_an_address_outside_the_range_is_refused(store: Store, address: str) -> None:
    with pytest.raises(ApiError) as refused:
        store.create(SERVICES, service("a", clusterIP=address))
    assert refused.value.code == 422
    assert "valid range" in refused.value.message


def test_a_headless_service_has_no_address_and_a_dry_run_keeps_none(store: Store) -> None:
    assert store.create(SERVICES, service("a", clusterIP="None"))["spec"]["clusterIPs"] == ["None"]
    dry = store.create(SERVICES, service("b"), dry_run=True)["spec"]["clusterIP"]
    store.create(SERVICES, service("c", clusterIP=dry))


def test_an_address_stays_when_a_replacement_leaves_it_out(store: Store) -> None:
    had = store.create(SERVICES, service("a"))["spec"]["clusterIP"]
    replaced = service("a", ports=[{"port": 81}])
    assert store.update(SERVICES, replaced)["spec"]["clusterIP"] == had


def test_the_schemas_are_the_installed_clients() -> None:
    stored = json.loads(gzip.decompress(builtin_schemas.PATH.read_bytes()))
    assert schema_generator.definitions() == stored


def test_decoding_names_every_unknown_field() -> None:
    body = {"metadata": {"nam": "x"}, "spec": {"containers": [{"name": "a"}, {"imag": "x"}], "volumes": None}}
    decoded, unknown = decode(PODS, body)
    assert unknown == ["metadata.nam", "spec.containers[1].imag"]
    assert decoded == {"metadata": {}, "spec": {"containers": [{"name": "a"}, {}]}}


@pytest.mark.parametrize(
    ("resource", "body", "said"),
    [
        (PODS, {"spec": {"containers": {}}}, "spec.containers: must be of type array"),
        (JOBS, {"spec": {"suspend": "yes"}}, "spec.suspend: must be of type boolean"),
        (
            PODS,
            {"spec": {"activeDeadlineSeconds": 1.5}},
            "spec.activeDeadlineSeconds: must be of type integer",
        ),
        (SECRETS, {"data": {"a": "?"}}, "data.a: illegal base64 data"),
        (PODS, {"spec": {"overhead": {"cpu": "1x"}}}, "spec.overhead.cpu: quantities must match"),
        (PODS, {"spec": {"overhead": {"cpu": "1mm"}}}, "spec.overhead.cpu: quantities must match"),
        (
            PODS,
            {"metadata": {"creationTimestamp": "yesterday"}},
            "metadata.creationTimestamp: must be a time",
        ),
        (PODS, [], "it is no object"),
    ],
)
def test_decoding_refuses_wrong_types(resource: Any, body: Any, said: str) -> None:
    with pytest.raises(ApiError) as refused:
        decode(resource, body)
    assert refused.value.code == 400
    assert said in refused.value.message


def test_merge_patch_leaves_its_target_alone() -> None:
    target = {"a": {"b": 1, "c": 2}, "l": [1]}
    assert merge(target, {"a": {"b": None}, "l": [2]}) == {"a": {"c": 2}, "l": [2]}
    assert target == {"a": {"b": 1, "c": 2}, "l": [1]}


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"env": [{"name": "a", "value": "1"}]}, {"env": [{"name": "b"}]}, ["a", "b"]),
        ({"env": [{"name": "a"}, {"name": "b"}]}, {"env": [{"name": "a", "$patch": "delete"}]}, ["b"]),
        ({"env": [{"name": "a"}]}, {"env": [{"name": "b"}, {"$patch": "replace"}]}, ["b"]),
        (
            {"env": [{"name": "a"}, {"name": "b"}]},
            {"$setElementOrder/env": [{"name": "b"}, {"name": "a"}]},
            ["b", "a"],
        ),
    ],
)
def test_strategic_merge_of_named_lists(
    target: dict[str, Any], patch: dict[str, Any], expected: list[str]
) -> None:
    patched = apply_patch(STRATEGIC_PATCH, target, patch)
    assert [each["name"] for each in patched["env"]] == expected


def test_strategic_merge_directives_for_objects_and_plain_lists() -> None:
    target = {"s": {"type": "x", "r": 1}, "finalizers": ["a", "b"], "args": ["x"], "gone": {"k": 1}}
    patch = {
        "s": {"$retainKeys": ["type"], "type": "y"},
        "$deleteFromPrimitiveList/finalizers": ["a"],
        "args": ["y"],
        "gone": {"$patch": "delete"},
    }
    assert apply_patch(STRATEGIC_PATCH, target, patch) == {
        "s": {"type": "y"},
        "finalizers": ["b"],
        "args": ["y"],
    }
