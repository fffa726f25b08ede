"""Volumes: what containers find at their mount paths, and that this machine sees nothing of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers import importable_helpers
from helpers.cluster_without_http import IMAGE, PYTHON, Recording, Running, condition, pod, pod_steps, reasons
from nighttrain.providers.local.cluster.machine.mounts import Namespaces
from nighttrain.providers.local.cluster.store.resources import CONFIGMAPS, EVENTS, JOBS, PODS, SECRETS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BOTH = pytest.mark.parametrize("mode", [Namespaces.AUTO, Namespaces.USER])
SHELL = ["sh", "-ec"]

# A path that no machine has, at the top and below folders that every machine has.
TOP, DEEP = "/nighttrain-test-volume", "/usr/share/nighttrain-test/deep/volume"


def mount_table() -> str:
    return Path("/proc/self/mountinfo").read_text()


@contextlib.asynccontextmanager
async def mounting(directory: Path, mode: Namespaces = Namespaces.AUTO) -> AsyncIterator[Running]:
    """A cluster whose containers have mount namespaces; afterwards the machine is as it was."""
    before = mount_table()
    async with Running(directory, namespaces=mode) as cluster:
        if cluster.kubelet.mount_refusal:
            pytest.skip(f"no mount namespaces here: {cluster.kubelet.mount_refusal}")
        yield cluster
        assert mount_table() == before
        await asyncio.to_thread(nothing_at, TOP, DEEP, "/usr/share/nighttrain-test")
    assert os.listdir(directory) == []
    assert mount_table() == before


def nothing_at(*paths: str) -> None:
    assert [path for path in paths if os.path.lexists(path)] == []


def shell(name: str, code: str, volumes: dict[str, dict[str, Any]], **options: Any) -> dict[str, Any]:
    """A pod whose shell mounts each volume at its key; the mount's own fields are under "at"."""
    mounts, sources = [], []
    for number, (path, given) in enumerate(volumes.items()):
        source = dict(given)
        mounts.append({"name": f"v{number}", "mountPath": path, **source.pop("at", {})})
        sources.append({"name": f"v{number}", **source})
    spec = {"volumes": sources, **options.pop("spec", {})}
    return pod(name, *SHELL, code, spec=spec, volumeMounts=mounts, **options)


async def output(cluster: Running, manifest: dict[str, Any]) -> str:
    cluster.store.create(PODS, manifest)
    name = manifest["metadata"]["name"]
    done = await cluster.pod_phase(name, "Succeeded", "Failed")
    log = await cluster.log(done)
    assert done["status"]["phase"] == "Succeeded", (log, done["status"])
    return log


@BOTH
async def test_an_empty_folder_wherever_it_is_wanted(mode: Namespaces, tmp_path: Path) -> None:
    code = (
        f"ls -A {TOP} {DEEP}; echo kept > {TOP}/a; cp {TOP}/a {DEEP}/b; cat {DEEP}/b; ls /usr/share | wc -l"
    )
    async with mounting(tmp_path, mode) as cluster:
        lines = (
            await output(cluster, shell("e", code, {TOP: {"emptyDir": {}}, DEEP: {"emptyDir": {}}}))
        ).split()
        assert lines[:3] == [f"{TOP}:", f"{DEEP}:", "kept"]
        # The rest of the folder that had to be opened up is still there, and one more.
        assert int(lines[3]) == len(os.listdir("/usr/share")) + 1


@BOTH
async def test_init_and_main_containers_share_a_volume(mode: Namespaces, tmp_path: Path) -> None:
    """Also a program that an init container leaves there can be run."""
    for medium in ("", "Memory"):
        manifest = shell("shared", f"{TOP}/hello", {TOP: {"emptyDir": {"medium": medium}}})
        write = f"printf '#!/bin/sh\\necho hello' > {TOP}/hello; chmod +x {TOP}/hello"
        mounts = manifest["spec"]["containers"][0]["volumeMounts"]
        first = {"name": "first", "image": IMAGE, "command": [*SHELL, write], "volumeMounts": mounts}
        manifest["spec"]["initContainers"] = [first]
        async with mounting(tmp_path, mode) as cluster:
            assert await output(cluster, manifest) == "hello\n"


@BOTH
async def test_configuration_as_files(mode: Namespaces, tmp_path: Path) -> None:
    items = [{"key": "a", "path": "deep/er", "mode": 0o400}]
    volumes = {
        "/nt-map": {"configMap": {"name": "c"}},
        "/nt-items": {"configMap": {"name": "c", "items": items}},
        "/nt-secret": {"secret": {"secretName": "s", "defaultMode": 0o440}},
        "/nt-none": {"secret": {"secretName": "absent", "optional": True}},
    }
    code = (
        "import json, os\n"
        "found = {}\n"
        "for top in ('/nt-map', '/nt-items', '/nt-secret', '/nt-none'):\n"
        "  for folder, _, names in os.walk(top):\n"
        "    for name in names:\n"
        "      path = folder + '/' + name\n"
        "      found[path] = [open(path, 'rb').read().hex(), oct(os.stat(path).st_mode & 0o777)]\n"
        "try: open('/nt-map/a', 'w')\n"
        "except OSError as error: found['write'] = error.errno\n"
        "print(json.dumps([found, os.path.isdir('/nt-none')]))"
    )
    manifest = shell("files", "", volumes)
    manifest["spec"]["containers"][0]["command"] = [*PYTHON, code]
    async with mounting(tmp_path, mode) as cluster:
        binary = base64.b64encode(b"\0\xff").decode()
        config = {"metadata": {"name": "c"}, "data": {"a": "ä"}, "binaryData": {"b": binary}}
        cluster.store.create(CONFIGMAPS, config)
        cluster.store.create(SECRETS, {"metadata": {"name": "s"}, "data": {"k": binary}})
        found, empty = json.loads(await output(cluster, manifest))
    assert empty
    assert found == {
        "/nt-map/a": ["ä".encode().hex(), "0o644"],
        "/nt-map/b": ["00ff", "0o644"],
        "/nt-items/deep/er": ["ä".encode().hex(), "0o400"],
        "/nt-secret/k": ["00ff", "0o440"],
        "write": 30,  # a read-only file system
    }


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"configMap": {"name": "absent"}}, 'configmap "absent" not found'),
        ({"secret": {"secretName": "absent"}}, 'secret "absent" not found'),
        (
            {"configMap": {"name": "c", "items": [{"key": "no", "path": "p"}]}},
            "configmap references non-existent config key: no",
        ),
        (
            {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
            "the embedded cluster has no volumes of type projected",
        ),
        ({"hostPath": {"path": "/etc/passwd", "type": "Directory"}}, "/etc/passwd is not a directory"),
        ({"hostPath": {"path": "/absent/file", "type": "File"}}, "/absent/file is not a file"),
        ({"nfs": {"server": "s", "path": "/"}}, "the embedded cluster has no volumes of type nfs"),
        ({"emptyDir": {"medium": "HugePages"}}, "no storage medium 'HugePages'"),
    ],
)
async def test_what_cannot_be_mounted_says_why(volume: dict[str, Any], message: str, tmp_path: Path) -> None:
    async with mounting(tmp_path) as cluster:
        cluster.store.create(CONFIGMAPS, {"metadata": {"name": "c"}, "data": {"a": "+"}})
        cluster.store.create(PODS, shell("stuck", "true", {TOP: volume}))
        said = await cluster.event("stuck", "FailedMount")
        assert said.startswith('MountVolume.SetUp failed for volume "v0" : ')
        assert message in said
        waiting = cluster.store.get(PODS, "default", "stuck")["status"]["containerStatuses"][0]["state"]
        assert waiting == {"waiting": {"reason": "ContainerCreating"}}


@BOTH
async def test_folders_and_files_of_the_machine(mode: Namespaces, tmp_path: Path) -> None:
    machine, directory = tmp_path / "machine", tmp_path / "cluster"
    machine.mkdir()
    directory.mkdir()
    (machine / "file").write_text("from the machine")
    volumes = {
        "/nt-folder": {"hostPath": {"path": str(machine), "type": "Directory"}},
        "/nt-made": {"hostPath": {"path": str(machine / "made"), "type": "DirectoryOrCreate"}},
        "/nt-file": {"hostPath": {"path": str(machine / "file"), "type": "File"}, "at": {"readOnly": True}},
        str(machine): {"hostPath": {"path": str(machine)}},
    }
    code = f"cat /nt-file /nt-folder/file; touch /nt-made/a {machine}/b; echo no > /nt-file || echo refused"
    async with mounting(directory, mode) as cluster:
        assert "machinefrom the machine" in (text := await output(cluster, shell("host", code, volumes)))
        assert "Read-only file system" in text
        assert text.endswith("refused\n")
    assert (machine / "made" / "a").exists()
    assert (machine / "b").exists()
    assert (machine / "file").read_text() == "from the machine"


@BOTH
async def test_parts_of_volumes(mode: Namespaces, tmp_path: Path) -> None:
    """Folders that are missing are made, one file of a ConfigMap takes a file's place, volumes nest."""
    manifest = shell(
        "parts",
        "cat /etc/hostname; touch /nt-a/x /nt-b/in/y; find /nt-b | sort",
        {
            "/etc/hostname": {"configMap": {"name": "c"}, "at": {"subPath": "a"}},
            "/nt-b": {"emptyDir": {}},
        },
    )
    mounts = manifest["spec"]["containers"][0]["volumeMounts"]
    mounts += [
        {"name": "v1", "mountPath": "/nt-a", "subPath": "new/me"},
        {"name": "v1", "mountPath": "/nt-b/in", "subPath": "other"},
    ]
    async with mounting(tmp_path, mode) as cluster:
        cluster.store.create(CONFIGMAPS, {"metadata": {"name": "c"}, "data": {"a": "named\n"}})
        text = await output(cluster, manifest)
    assert text.split() == [
        "named",
        "/nt-b",
        "/nt-b/in",
        "/nt-b/in/y",
        "/nt-b/new",
        "/nt-b/new/me",
        "/nt-b/new/me/x",
        "/nt-b/other",
        "/nt-b/other/y",
    ]


@BOTH
@pytest.mark.parametrize("sub_path", ["link", "link/new"])
async def test_no_part_of_a_volume_leads_out_of_it(mode: Namespaces, sub_path: str, tmp_path: Path) -> None:
    outside, directory = tmp_path / "outside", tmp_path / "cluster"
    outside.mkdir()
    directory.mkdir()
    manifest = shell("escape", "ls /nt-out", {"/nt-out": {"emptyDir": {}, "at": {"subPath": sub_path}}})
    link = [*SHELL, f"ln -s {outside} {TOP}/link"]
    mounts = [{"name": "v0", "mountPath": TOP}]
    first = {"name": "first", "image": IMAGE, "command": link, "volumeMounts": mounts}
    manifest["spec"]["initContainers"] = [first]
    async with mounting(directory, mode) as cluster:
        cluster.store.create(PODS, manifest)

        def refused(found: dict[str, Any] | None) -> bool:
            states = [
                each["state"] for each in (found or {}).get("status", {}).get("containerStatuses") or []
            ]
            return any(
                each.get("waiting", {}).get("reason") == "CreateContainerConfigError" for each in states
            )

        found = await cluster.until(PODS, "escape", refused)
        message = found["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
        assert message.startswith("failed to prepare subPath")
    assert list(outside.iterdir()) == []


@BOTH
async def test_probes_run_where_their_container_does(mode: Namespaces, tmp_path: Path) -> None:
    probe = {"exec": {"command": ["test", "-e", f"{TOP}/ready"]}, "periodSeconds": 1}
    code = f"touch {TOP}/ready; sleep 60"
    async with mounting(tmp_path, mode) as cluster:
        cluster.store.create(PODS, shell("probed", code, {TOP: {"emptyDir": {}}}, readinessProbe=probe))
        await cluster.until(PODS, "probed", lambda found: condition(found, "Ready"))


async def test_working_directory_in_a_volume_and_one_that_is_missing(tmp_path: Path) -> None:
    async with mounting(tmp_path) as cluster:
        volume = {TOP: {"emptyDir": {}}}
        assert await output(cluster, shell("in", "pwd", volume, workingDir=TOP)) == f"{TOP}\n"
        assert await output(cluster, shell("new", "pwd", {}, workingDir="/nt-new/er")) == "/nt-new/er\n"
        await asyncio.to_thread(nothing_at, "/nt-new")


async def test_restart_on_failure_as_recorded(tmp_path: Path) -> None:
    """The volume keeps its files over restarts of the container."""
    recording = Recording("restart-on-failure")
    async with mounting(tmp_path) as cluster:
        cluster.store.create(JOBS, recording.manifest())
        await cluster.until(JOBS, "onfail", lambda found: condition(found, "Complete"))
        assert reasons(cluster.history(EVENTS)) == recording.event_reasons()
        last = pod_steps(cluster.history(PODS))[0][-1]
        assert last == pod_steps(recording.changes("pods"))[0][-1]


async def test_missing_configuration_as_recorded_and_its_recovery(tmp_path: Path) -> None:
    recording = Recording("configmap-missing")
    async with mounting(tmp_path) as cluster:
        cluster.store.create(JOBS, recording.manifest())
        message = await first_event(cluster, "FailedMount")
        recorded = [each for _type, each in recording.changes("events") if each["reason"] == "FailedMount"]
        assert message == recorded[0]["message"]
        assert reasons(cluster.history(EVENTS)) == recording.event_reasons()
        steps = pod_steps(cluster.history(PODS))[0]
        assert steps == pod_steps(recording.changes("pods"))[0][: len(steps)]
        cluster.store.create(CONFIGMAPS, {"metadata": {"name": "absent"}, "data": {}})
        await cluster.until(JOBS, "nocm", lambda found: condition(found, "Complete"))


async def first_event(cluster: Running, reason: str) -> str:
    async with asyncio.timeout(10):
        with cluster.store.watch(EVENTS) as watcher:
            async for _type, event in watcher:
                if event["reason"] == reason:
                    return str(event["message"])
    raise AssertionError("the watch ended")


async def test_without_mount_namespaces_the_pod_waits_and_says_so(tmp_path: Path) -> None:
    own = {str(tmp_path): {"hostPath": {"path": str(tmp_path)}}}
    async with Running(tmp_path, namespaces=Namespaces.NONE) as cluster:
        cluster.store.create(PODS, shell("stuck", "true", {TOP: {"emptyDir": {}}}))
        message = await cluster.event("stuck", "FailedMount")
        assert message.startswith('MountVolume.SetUp failed for volume "v0" : a volume of type emptyDir at ')
        assert "needs a private mount namespace, and this machine does not allow one" in message
        found = cluster.store.get(PODS, "default", "stuck")
        assert found["status"]["phase"] == "Pending"
        # What is where it belongs anyway, and what is optional for another reason, still works.
        assert await output(cluster, shell("own", "echo fine", own)) == "fine\n"


async def test_files_of_a_pod_go_with_it(tmp_path: Path) -> None:
    async with mounting(tmp_path) as cluster:
        await output(cluster, shell("short", f"echo x > {TOP}/x", {TOP: {"emptyDir": {}}}))
        uid = cluster.store.get(PODS, "default", "short")["metadata"]["uid"]
        [folder] = await asyncio.to_thread(lambda: list(tmp_path.glob(f"*/{uid}")))
        assert os.listdir(folder / ".volumes" / "v0") == ["x"]
        cluster.store.delete(PODS, "default", "short")
        await cluster.gone(PODS, "short")
        await asyncio.to_thread(eventually_gone, folder)


async def test_a_lost_spawner_is_replaced(tmp_path: Path) -> None:
    volume = {TOP: {"emptyDir": {}}}
    async with mounting(tmp_path) as cluster:
        cluster.store.create(PODS, shell("long", f"sleep 1; touch {TOP}/a", volume))
        await cluster.pod_phase("long", "Running")
        [spawner] = await asyncio.to_thread(spawners, tmp_path)
        os.kill(spawner, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, spawner, os.WEXITED | os.WNOWAIT)
        assert await output(cluster, shell("next", f"ls -d {TOP}", volume)) == f"{TOP}\n"
        await cluster.pod_phase("long", "Succeeded")
        assert spawner not in await asyncio.to_thread(spawners, tmp_path)
    assert await asyncio.to_thread(spawners, tmp_path) == []


def spawners(directory: Path) -> list[int]:
    found = []
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (each / "cmdline").read_text() if each.name.isdigit() else ""
            if "spawner.py" in command and str(directory) in command:
                found.append(int(each.name))
    return found


def eventually_gone(path: Path) -> None:
    end = time.monotonic() + 5
    while path.exists():
        assert time.monotonic() < end, f"{path} is still there"
        time.sleep(0.01)


# A server that is killed

SERVER = """
import asyncio, sys
from pathlib import Path
from helpers.cluster_without_http import Running, pod
from nighttrain.providers.local.cluster.store.resources import PODS

async def main():
    async with Running(Path(sys.argv[1])) as cluster:
        spec = {"volumes": [{"name": "d", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]}
        mounts = [{"name": "d", "mountPath": "/nt-disk"}, {"name": "m", "mountPath": "/nt-memory"}]
        code = "echo $$ > /nt-disk/pid; cp /nt-disk/pid /nt-memory; echo up; sleep 600"
        cluster.store.create(PODS, pod("p", "sh", "-c", code, grace=600, spec=spec, volumeMounts=mounts))
        found = await cluster.pod_phase("p", "Running")
        async for piece in cluster.kubelet.open_log(found, follow=True):
            if b"up" in piece:
                break
        print(cluster.kubelet.mount_refusal or "mounted", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def holders(path: Path) -> list[str]:
    """The processes that have something below the path in their mount table."""
    found = []
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if each.name.isdigit() and str(path) in (each / "mountinfo").read_text():
                found.append(each.name)
    return found


def test_a_killed_server_leaves_no_mount_and_no_file(tmp_path: Path) -> None:
    before = mount_table()
    command = [sys.executable, "-c", SERVER, str(tmp_path)]
    with subprocess.Popen(command, env=importable_helpers(), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = server.stdout.readline().strip()
        held = holders(tmp_path)
        server.send_signal(signal.SIGKILL)
    if said != "mounted":
        pytest.skip(f"no mount namespaces here: {said}")
    # The container and the spawner (and the container's child, if it is there already).
    assert len(held) >= 2
    assert str(server.pid) not in held
    end = time.monotonic() + 10
    while (holders(tmp_path) or list(tmp_path.iterdir())) and time.monotonic() < end:
        time.sleep(0.02)
    assert holders(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert mount_table() == before
