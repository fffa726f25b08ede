"""Clients that others wrote, on the same cluster: what they need of an API server holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import STRATEGIC_PATCH, config_map

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.conformance_client import Space

client: Any = pytest.importorskip("kubernetes.client")


@pytest.fixture(scope="module")
def official(kubeconfig: Path) -> Iterator[Any]:
    from kubernetes import config

    with config.new_client_from_config(str(kubeconfig)) as api:
        yield api


@pytest.mark.api
def test_the_official_client_creates_reads_and_deletes(official: Any, space: Space) -> None:
    """Client Libraries, the official Python client: typed objects."""
    core = client.CoreV1Api(official)
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="one"), data={"a": "b"})
    created = core.create_namespaced_config_map(space.name, body, field_validation="Strict")
    assert created.metadata.creation_timestamp.tzinfo is not None
    assert core.read_namespaced_config_map("one", space.name).data == {"a": "b"}
    assert core.delete_namespaced_config_map("one", space.name).status == "Success"
    with pytest.raises(client.ApiException) as gone:
        core.read_namespaced_config_map("one", space.name)
    assert (gone.value.status, gone.value.reason) == (404, "Not Found")


@pytest.mark.api
def test_the_official_client_watches(official: Any, space: Space) -> None:
    """Client Libraries, the official Python client: watch.Watch resumes from resourceVersion."""
    from kubernetes import watch

    core = client.CoreV1Api(official)
    since = core.list_namespaced_config_map(space.name).metadata.resource_version
    space.create("configmaps", config_map("one"))
    space.delete("configmaps", "one")
    seen = []
    stream = watch.Watch()
    for event in stream.stream(
        core.list_namespaced_config_map,
        space.name,
        resource_version=since,
        field_selector="metadata.name=one",
        timeout_seconds=60,
    ):
        seen.append(event["type"])
        if event["type"] == "DELETED":
            stream.stop()
    assert seen == ["ADDED", "DELETED"]


@pytest.mark.api
def test_the_dynamic_client_finds_kinds_by_discovery(official: Any, space: Space, tmp_path: Path) -> None:
    """Client Libraries, the dynamic client: discovery, then any verb."""
    from kubernetes import dynamic

    finder = dynamic.DynamicClient(official, cache_file=str(tmp_path / "discovery"))
    maps = finder.resources.get(api_version="v1", kind="ConfigMap")
    maps.create(body=config_map("one", {"a": "b"}), namespace=space.name)
    patched = maps.patch(
        name="one", namespace=space.name, body={"data": {"c": "d"}}, content_type=STRATEGIC_PATCH
    )
    assert dict(patched.data) == {"a": "b", "c": "d"}
    assert [
        each.metadata.name
        for each in maps.get(namespace=space.name, label_selector="!none").items
        if each.metadata.name == "one"
    ]
    maps.delete(name="one", namespace=space.name)


@pytest.mark.api
def test_the_official_client_creates_from_yaml(official: Any, space: Space, tmp_path: Path) -> None:
    """Client Libraries, the official Python client: utils.create_from_yaml."""
    from kubernetes import utils

    text = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\ndata: {a: b}\n---\n"
        "apiVersion: v1\nkind: Secret\nmetadata: {name: two}\nstringData: {a: b}\n"
    )
    (tmp_path / "objects.yaml").write_text(text)
    utils.create_from_yaml(official, str(tmp_path / "objects.yaml"), namespace=space.name)
    assert space.get("configmaps", "one")["data"] == {"a": "b"}
    assert space.get("secrets", "two")["data"] == {"a": "Yg=="}


def test_the_official_client_runs_a_job(official: Any, space: Space) -> None:
    """Client Libraries, the official Python client: create, wait by watching, read the log."""
    batch, core = client.BatchV1Api(official), client.CoreV1Api(official)
    body = {"metadata": {"name": "one"}, "spec": {"template": {"spec": space.pod_spec("print('hello')")}}}
    batch.create_namespaced_job(space.name, body)
    space.wait("jobs", "one", lambda job: job["status"].get("succeeded"))
    [pod] = core.list_namespaced_pod(space.name, label_selector="job-name=one").items
    answer = core.read_namespaced_pod_log(pod.metadata.name, space.name, _preload_content=False)
    assert answer.data == b"hello\n"
