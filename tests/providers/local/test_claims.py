"""PersistentVolumeClaims: bound, mounted, shared, kept on request."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.cluster_without_http import Running, job, pod
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.errors import ApiError
from nighttrain.providers.local.cluster.store.resources import JOBS, PERSISTENTVOLUMECLAIMS, PODS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Object = dict[str, Any]

DATA = "/nighttrain-test-claim"
SHELL = ["sh", "-ec"]


def claim(name: str = "data", **spec: Any) -> Object:
    asked = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": asked | spec}


def mounting(code: str, name: str = "one", *, claim_name: str = "data", **mount: Any) -> Object:
    source = {"claimName": claim_name}
    if mount.pop("read_only_claim", False):
        source["readOnly"] = True
    spec = {"volumes": [{"name": "v", "persistentVolumeClaim": source}]}
    return pod(name, *SHELL, code, spec=spec, volumeMounts=[{"name": "v", "mountPath": DATA, **mount}])


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Running]:
    async with Running(directory) as cluster:
        if cluster.kubelet.mount_refusal:
            pytest.skip(f"no mount namespaces here: {cluster.kubelet.mount_refusal}")
        yield cluster
    assert os.listdir(directory) == []


async def test_a_claim_is_bound_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        made = cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        assert made["spec"]["storageClassName"] == "standard"
        assert made["spec"]["volumeName"] == f"pvc-{made['metadata']['uid']}"
        assert made["status"] == {
            "phase": "Bound",
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"},
        }
        assert cluster.kubelet.claims.folder(made["metadata"]["uid"]).is_dir()
        tried = cluster.store.create(PERSISTENTVOLUMECLAIMS, claim("tried"), dry_run=True)
        assert not cluster.kubelet.claims.folder(tried["metadata"]["uid"]).exists()


async def test_jobs_one_after_another_find_the_checkpoint(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        for number in (1, 2):
            manifest = job(f"train-{number}", "")
            spec = manifest["spec"]["template"]["spec"]
            spec["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]
            file = f"{DATA}/checkpoint"
            code = f"test ! -e {file} || cat {file}; echo epoch {number} >> {file}"
            mounts = [{"name": "v", "mountPath": DATA}]
            spec["containers"][0] |= {"command": [*SHELL, code], "volumeMounts": mounts}
            cluster.store.create(JOBS, manifest)
            await cluster.until(JOBS, f"train-{number}", lambda each: (each or {})["status"].get("succeeded"))
        (second,) = (
            each for each in cluster.store.list(PODS)[0] if each["metadata"]["name"].startswith("train-2")
        )
        assert await cluster.log(second) == "epoch 1\n"


async def test_mounts_read_only_and_below_a_path(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        cluster.store.create(PODS, mounting(f"echo deep > {DATA}/file", "writer", subPath="a/b"))
        await cluster.pod_phase("writer", "Succeeded")
        reader = mounting(f"cat {DATA}/a/b/file; ! touch {DATA}/x", "reader", read_only_claim=True)
        cluster.store.create(PODS, reader)
        done = await cluster.pod_phase("reader", "Succeeded", "Failed")
        assert "deep" in await cluster.log(done)
        assert done["status"]["phase"] == "Succeeded"


async def test_a_pod_waits_for_its_claim_and_says_why(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        cluster.store.create(PODS, mounting("echo here"))
        why = await cluster.event("one", "FailedScheduling")
        assert why.startswith('0/1 nodes are available: persistentvolumeclaim "data" not found. not found')
        cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        await cluster.pod_phase("one", "Succeeded")


async def test_a_claim_goes_at_once_and_takes_its_data_along(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        made = cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        cluster.store.create(PODS, mounting(f"echo data > {DATA}/file"))
        await cluster.pod_phase("one", "Succeeded")
        folder = cluster.kubelet.claims.folder(made["metadata"]["uid"])
        assert (folder / "file").read_text() == "data\n"
        cluster.store.delete(PERSISTENTVOLUMECLAIMS, "default", "data")
        assert cluster.store.find(PERSISTENTVOLUMECLAIMS, "default", "data") is None
        assert not folder.exists()


async def test_a_claim_does_not_change(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        found = cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        asked = found["spec"]["resources"]["requests"]
        for changes in (
            {"accessModes": ["ReadWriteMany"]},
            {"volumeName": "another"},
            {"resources": {"requests": asked | {"storage": "2Gi"}}},
            {"resources": {"requests": asked | {"storage": "1Mi"}}},
        ):
            with pytest.raises(ApiError) as refused:
                cluster.store.update(PERSISTENTVOLUMECLAIMS, found | {"spec": found["spec"] | changes})
            assert refused.value.code == 422, changes


def test_data_survive_a_server_that_was_killed_where_objects_do(tmp_path: Path) -> None:
    state = tmp_path / "state"
    core = "/api/v1/namespaces/default"

    def run(http: httpx.Client, name: str, code: str) -> str:
        http.post(f"{core}/pods", json=mounting(code, name)).raise_for_status()
        query = f"?watch=true&fieldSelector=metadata.name={name}"
        with http.stream("GET", f"{core}/pods{query}") as stream:
            for line in stream.iter_lines():
                if '"phase":"Succeeded"' in line.replace(" ", ""):
                    break
        return http.get(f"{core}/pods/{name}/log").text

    images = {"localhost/python": sys.executable}
    with EmbeddedCluster(images=images, state=state) as cluster:
        headers = {"Authorization": f"Bearer {cluster.token}"}
        with httpx.Client(base_url=cluster.url, headers=headers, timeout=30) as http:
            http.post(f"{core}/persistentvolumeclaims", json=claim()).raise_for_status()
            run(http, "before", f"echo kept > {DATA}/file")
        cluster.restart()
        with httpx.Client(base_url=cluster.url, headers=headers, timeout=30) as http:
            assert run(http, "after", f"cat {DATA}/file") == "kept\n"
            for name in ("before", "after"):
                http.delete(f"{core}/pods/{name}?gracePeriodSeconds=0").raise_for_status()
            http.delete(f"{core}/persistentvolumeclaims/data").raise_for_status()
    assert list((tmp_path / "state.volumes").iterdir()) == []


async def test_a_pod_that_names_its_node_waits_for_its_claim_too(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        placed = mounting("echo here")
        placed["spec"]["nodeName"] = "node1"
        cluster.store.create(PODS, placed)
        assert 'persistentvolumeclaim "data" not found' in await cluster.event("one", "FailedMount")
        assert cluster.store.get(PODS, "default", "one")["status"]["phase"] == "Pending"


async def test_only_the_user_reaches_the_data(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        found = cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        root = cluster.kubelet.claims.folder(found["metadata"]["uid"]).parent
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
