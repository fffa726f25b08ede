"""A container's last words: from its file, wherever it expects one, or from its log."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from helpers.cluster_without_http import Running, pod
from nighttrain.providers.local.cluster.machine.mounts import Namespaces
from nighttrain.providers.local.cluster.store.resources import PODS

if TYPE_CHECKING:
    from pathlib import Path

BOTH = pytest.mark.parametrize("mode", [Namespaces.AUTO, Namespaces.USER])


def shell(name: str, code: str, **options: Any) -> dict[str, Any]:
    return pod(name, "sh", "-c", code, **options)


def message(found: dict[str, Any], state: str = "state") -> str | None:
    said: str | None = found["status"]["containerStatuses"][0][state]["terminated"].get("message")
    return said


def what_is_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def need(cluster: Running) -> None:
    if cluster.kubelet.mount_refusal:
        pytest.skip(f"no mount namespaces here: {cluster.kubelet.mount_refusal}")


@BOTH
@pytest.mark.parametrize(
    "path", ["/dev/termination-log", "/nt-said/here", "/usr/share/nt-said", "/etc/hostname"]
)
async def test_the_file_is_read_wherever_it_is(mode: Namespaces, path: str, tmp_path: Path) -> None:
    before = what_is_at(path)
    code = f"printf last > {path}; echo logged; exit 3"
    options = {} if path == "/dev/termination-log" else {"terminationMessagePath": path}
    async with Running(tmp_path, namespaces=mode) as cluster:
        need(cluster)
        cluster.store.create(PODS, shell("a", code, terminationMessagePolicy="File", **options))
        cluster.store.create(PODS, shell("b", code.replace("printf last", "true"), **options))
        found = [await cluster.pod_phase(name, "Failed") for name in ("a", "b")]
    assert [message(each) for each in found] == ["last", "logged\n"]
    assert what_is_at(path) == before


async def test_every_container_has_its_own_file_and_every_start_a_new_one(tmp_path: Path) -> None:
    file = "/dev/termination-log"
    code = f"wc -c < {file}; echo $$$$ > {file}; sleep 0.3; cat {file}; "
    again = code + "test -e once && exit 0; touch once; exit 1"
    async with Running(tmp_path) as cluster:
        need(cluster)
        spec = {"restartPolicy": "OnFailure"}
        cluster.store.create(PODS, shell("one", again, spec=spec, terminationMessagePolicy="File"))
        cluster.store.create(PODS, shell("two", code, terminationMessagePolicy="File"))
        one, two = [await cluster.pod_phase(name, "Succeeded") for name in ("one", "two")]
        said = [(await cluster.log(each)).split() for each in (one, two)]
    assert message(one, "lastState") not in (None, message(one))
    assert said == [["0", (message(one) or "").strip()], ["0", (message(two) or "").strip()]]


async def test_an_old_message_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """The server removes what an earlier start left; a container's links must not lead it anywhere."""
    kept, directory = tmp_path / "kept", tmp_path / "cluster"
    directory.mkdir()
    kept.mkdir()
    (kept / "file").write_text("kept")
    code = f"test -e once && exit 0; touch once; ln -s {kept} link; echo first > said; exit 1"
    spec = {"restartPolicy": "OnFailure"}
    async with Running(directory) as cluster:
        for name, path in (("said", "said"), ("link", "link/file"), ("up", "../../../../kept/file")):
            cluster.store.create(PODS, shell(name, code, spec=spec, terminationMessagePath=path))
        said, _link, _up = [await cluster.pod_phase(name, "Succeeded") for name in ("said", "link", "up")]
    assert (message(said, "lastState"), message(said)) == ("first\n", None)
    assert (kept / "file").read_text() == "kept"


async def test_a_long_message_is_cut(tmp_path: Path) -> None:
    code = "head -c 10000 /dev/zero | tr '\\0' x > /dev/termination-log"
    async with Running(tmp_path) as cluster:
        need(cluster)
        cluster.store.create(PODS, shell("long", code))
        assert message(await cluster.pod_phase("long", "Succeeded")) == "x" * 4096


async def test_without_mount_namespaces_there_is_no_message_from_a_file(tmp_path: Path) -> None:
    async with Running(tmp_path, namespaces=Namespaces.NONE) as cluster:
        cluster.store.create(PODS, shell("file", "echo logged; exit 1", terminationMessagePolicy="File"))
        cluster.store.create(PODS, shell("log", "echo logged; exit 1"))
        found = [await cluster.pod_phase(name, "Failed") for name in ("file", "log")]
    assert [message(each) for each in found] == [None, "logged\n"]
