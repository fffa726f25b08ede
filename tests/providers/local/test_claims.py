"""PersistentVolumeClaims: bound, mounted, shared, protected while in use, kept on request."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from embedded import Running, job, pod

from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.errors import ApiError
from nighttrain.providers.local.cluster.store.resources import (
    JOBS,
    PERSISTENTVOLUMECLAIMS,
    PODS,
    RESOURCEQUOTAS,
)

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


def bound(found: Object | None) -> bool:
    return bool(found) and (found or {})["status"]["phase"] == "Bound"


async def test_a_claim_is_bound_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        made = cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        assert made["spec"]["storageClassName"] == "standard"
        found = await cluster.until(PERSISTENTVOLUMECLAIMS, "data", bound)
        assert found["spec"]["volumeName"] == f"pvc-{made['metadata']['uid']}"
        assert found["status"] == {
            "phase": "Bound",
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"},
        }
        assert "Successfully provisioned" in await cluster.event("data", "ProvisioningSucceeded")


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


@pytest.mark.parametrize(
    ("chosen", "reason", "message"),
    [
        (
            "",
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        ),
        ("fast", "ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found'),
    ],
)
async def test_a_claim_that_nobody_provides_for_stays_pending(
    tmp_path: Path, chosen: str, reason: str, message: str
) -> None:
    async with running(tmp_path) as cluster:
        cluster.store.create(PERSISTENTVOLUMECLAIMS, claim(storageClassName=chosen))
        assert await cluster.event("data", reason) == message
        cluster.store.create(PODS, mounting("echo here"))
        why = await cluster.event("one", "FailedScheduling")
        assert why.startswith("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. ")


async def test_a_claim_in_use_goes_after_its_pod_and_takes_its_data_along(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        made = cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        cluster.store.create(PODS, mounting(f"echo data > {DATA}/file; sleep 60"))
        await cluster.pod_phase("one", "Running")
        folder = cluster.kubelet.claims.folder(made["metadata"]["uid"])
        cluster.store.delete(PERSISTENTVOLUMECLAIMS, "default", "data")
        marked = await cluster.until(
            PERSISTENTVOLUMECLAIMS, "data", lambda each: "deletionTimestamp" in (each or {})["metadata"]
        )
        assert marked["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
        cluster.store.create(PODS, mounting("echo late", "late"))
        why = await cluster.event("late", "FailedScheduling")
        assert 'persistentvolumeclaim "data" is being deleted' in why
        assert folder.is_dir()
        cluster.store.delete(PODS, "default", "late")
        cluster.store.delete(PODS, "default", "one")
        await cluster.gone(PERSISTENTVOLUMECLAIMS, "data")
        # Another claim's end is the sign that the controller has looked at this one's.
        cluster.store.create(PERSISTENTVOLUMECLAIMS, claim("other"))
        await cluster.until(PERSISTENTVOLUMECLAIMS, "other", bound)
        assert not folder.exists()


async def test_a_bound_claim_does_not_change(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        found = await cluster.until(PERSISTENTVOLUMECLAIMS, "data", bound)
        asked = found["spec"]["resources"]["requests"]
        for changes, code in (
            ({"accessModes": ["ReadWriteMany"]}, 422),
            ({"volumeName": "another"}, 422),
            ({"resources": {"requests": asked | {"storage": "2Gi"}}}, 403),
            ({"resources": {"requests": asked | {"storage": "1Mi"}}}, 422),
        ):
            with pytest.raises(ApiError) as refused:
                cluster.store.update(PERSISTENTVOLUMECLAIMS, found | {"spec": found["spec"] | changes})
            assert refused.value.code == code, changes


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
            marked = http.delete(f"{core}/persistentvolumeclaims/data").json()
            since = marked["metadata"]["resourceVersion"]
            query = f"?watch=true&resourceVersion={since}"
            with http.stream("GET", f"{core}/persistentvolumeclaims{query}") as stream:
                assert any('"DELETED"' in line for line in stream.iter_lines())
    assert list((tmp_path / "state.volumes").iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"volumeMode": "Block"}, "block volumes are not supported"),
        ({"selector": {"matchLabels": {"a": "b"}}}, "claim.Spec.Selector is not supported"),
        (
            {"dataSource": {"kind": "PersistentVolumeClaim", "name": "other"}},
            "claim.Spec.DataSource is not supported",
        ),
    ],
)
async def test_a_claim_that_no_folder_can_be_stays_pending(tmp_path: Path, asked: Object, why: str) -> None:
    async with running(tmp_path) as cluster:
        cluster.store.create(PERSISTENTVOLUMECLAIMS, claim(**asked))
        told = await cluster.event("data", "ProvisioningFailed")
        assert told == f'failed to provision volume with StorageClass "standard": {why}'


async def test_a_pod_that_names_its_node_waits_for_its_claim_too(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        cluster.store.create(PERSISTENTVOLUMECLAIMS, claim(storageClassName=""))
        placed = mounting("echo here")
        placed["spec"]["nodeName"] = "node1"
        cluster.store.create(PODS, placed)
        assert "PVC is not bound" in await cluster.event("one", "FailedMount")
        assert cluster.store.get(PODS, "default", "one")["status"]["phase"] == "Pending"


async def test_a_quota_counts_claims_and_their_storage(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        hard = {"requests.storage": "3Gi", "persistentvolumeclaims": "5"}
        quota = {"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": hard}}
        cluster.store.create(RESOURCEQUOTAS, quota)
        for name in ("one", "two", "three"):
            cluster.store.create(PERSISTENTVOLUMECLAIMS, claim(name))
        with pytest.raises(ApiError, match=r"exceeded quota: q, requested: requests\.storage="):
            cluster.store.create(PERSISTENTVOLUMECLAIMS, claim("four"))


async def test_only_the_user_reaches_the_data(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        cluster.store.create(PERSISTENTVOLUMECLAIMS, claim())
        found = await cluster.until(PERSISTENTVOLUMECLAIMS, "data", bound)
        root = cluster.kubelet.claims.folder(found["metadata"]["uid"]).parent
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
