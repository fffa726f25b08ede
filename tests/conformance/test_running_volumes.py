"""Volumes: what containers find in them, and what they share."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from helpers.conformance_client import conditions, config_map

if TYPE_CHECKING:
    from helpers.conformance_client import Object, Space

# Prints path, mode and content of every file; what a kubelet keeps beside them begins with two dots.
SHOW = (
    "import os\n"
    "for folder, _, names in os.walk('/conformance', followlinks=True):\n"
    "    for name in names:\n"
    "        path = os.path.join(folder, name)\n"
    "        if '/..' not in path:\n"
    "            print(path[13:], oct(os.stat(path).st_mode)[-3:], ascii(open(path).read()))\n"
)


def mounted(space: Space, name: str, code: str, volume: Object, **mount: object) -> Object:
    """A pod with one volume, at /conformance."""
    place = {"name": "data", "mountPath": "/conformance", **mount}
    return space.run(name, code, container={"volumeMounts": [place]}, volumes=[{"name": "data", **volume}])


def shown(space: Space, volume: Object, **mount: object) -> list[str]:
    mounted(space, "one", SHOW, volume, **mount)
    pod = space.finished("one")
    assert pod["status"]["phase"] == "Succeeded", space.output("one")
    return sorted(space.output("one").splitlines())


def with_mount(space: Space, name: str, code: str) -> Object:
    return space.container(code, name=name, volumeMounts=[{"name": "data", "mountPath": "/conformance"}])


EMPTY = [{"name": "data", "emptyDir": {}}]


def test_the_containers_of_a_pod_share_an_empty_dir(space: Space) -> None:
    """Volumes, emptyDir: all containers of the pod read and write the same files."""
    writes = (
        "import os\n"
        "open('/conformance/draft', 'w').write('hello')\n"
        "os.rename('/conformance/draft', '/conformance/file')"
    )
    reads = (
        "import os, time\n"
        "while not os.path.exists('/conformance/file'):\n"
        "    time.sleep(0.1)\n"
        "print(open('/conformance/file').read())"
    )
    # Who reads was there first.
    two = [with_mount(space, "reads", reads), with_mount(space, "writes", writes)]
    spec = space.pod_spec(containers=two, volumes=EMPTY)
    space.create("pods", {"metadata": {"name": "one"}, "spec": spec})
    assert space.finished("one")["status"]["phase"] == "Succeeded"
    assert space.output("one", container="reads") == "hello\n"


def test_an_empty_dir_is_empty_at_first_and_outlives_its_containers(space: Space) -> None:
    """Volumes, emptyDir: initially empty; a container that crashes does not remove it."""
    # The first container's log may be gone by the end of the second: it writes into the volume what it found.
    code = (
        "import os\n"
        "found = os.listdir('/conformance')\n"
        "with open('/conformance/file', 'a') as file:\n"
        "    print(found, file=file)\n"
        "if not found:\n"
        "    raise SystemExit(1)\n"
        "print(open('/conformance/file').read(), end='')"
    )
    again = {"restartPolicy": "OnFailure", "volumes": EMPTY}
    container = {"volumeMounts": [{"name": "data", "mountPath": "/conformance"}]}
    space.run("one", code, container=container, **again)
    pod = space.finished("one")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 1
    assert space.output("one") == "[]\n['file']\n"


def test_a_config_map_is_files(space: Space) -> None:
    """Configure a Pod to Use a ConfigMap, Add ConfigMap data to a volume: a file for each key."""
    encoded = base64.b64encode(b"\x00\x01").decode()
    space.create(
        "configmaps", {**config_map("settings", {"a": "1\n", "b.txt": "2"}), "binaryData": {"c": encoded}}
    )
    assert shown(space, {"configMap": {"name": "settings"}}) == [
        "a 644 '1\\n'",
        "b.txt 644 '2'",
        "c 644 '\\x00\\x01'",
    ]


def test_keys_have_paths_and_modes(space: Space) -> None:
    """Configure a Pod to Use a ConfigMap, specific paths and file permissions: items, mode, defaultMode."""
    space.create("configmaps", config_map("settings", {"a": "1", "b": "2", "c": "3"}))
    items = [{"key": "a", "path": "deep/er/a", "mode": 0o444}, {"key": "b", "path": "other"}]
    volume = {"configMap": {"name": "settings", "items": items, "defaultMode": 0o640}}
    assert shown(space, volume) == ["deep/er/a 444 '1'", "other 640 '2'"]


def test_a_secret_is_files(space: Space) -> None:
    """Secrets, Using Secrets as files from a Pod: decoded, with the mode asked for."""
    space.create("secrets", {"metadata": {"name": "keys"}, "stringData": {"token": "hidden"}})
    volume = {"secret": {"secretName": "keys", "defaultMode": 0o444}}
    assert shown(space, volume) == ["token 444 'hidden'"]


def test_configuration_is_not_written_to(space: Space) -> None:
    """Volumes, configMap: always mounted read-only."""
    space.create("configmaps", config_map("settings", {"a": "1"}))
    code = (
        "for path in ('/conformance/a', '/conformance/new'):\n"
        "    try:\n"
        "        open(path, 'w')\n"
        "    except OSError as error:\n"
        "        print(error.strerror)"
    )
    mounted(space, "one", code, {"configMap": {"name": "settings"}})
    space.finished("one")
    assert space.output("one") == "Read-only file system\n" * 2


def test_an_empty_dir_is_mounted_read_only(space: Space) -> None:
    """Volumes, Read-only mounts: volumeMounts.readOnly."""
    code = "open('/conformance/new', 'w')"
    mounted(space, "one", code, {"emptyDir": {}}, readOnly=True)
    assert space.finished("one")["status"]["phase"] == "Failed"
    assert "Read-only file system" in space.output("one")


def test_one_file_of_a_config_map(space: Space) -> None:
    """Volumes, Using subPath: a part of a volume at the path of the mount."""
    space.create("configmaps", config_map("settings", {"a": "1", "b": "2"}))
    assert shown(space, {"configMap": {"name": "settings"}}, mountPath="/conformance/only", subPath="a") == [
        "only 644 '1'"
    ]


@pytest.mark.not_embedded("downwardAPI volumes")
def test_the_pod_is_told_about_itself_in_files(space: Space) -> None:
    """Downward API, Expose Pod information to containers through files."""
    fields = {"name": "metadata.name", "labels": "metadata.labels", "notes": "metadata.annotations"}
    items: list[Object] = [{"path": path, "fieldRef": {"fieldPath": field}} for path, field in fields.items()]
    limit = {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}
    items.append({"path": "limit", "resourceFieldRef": limit})
    container = {
        "volumeMounts": [{"name": "data", "mountPath": "/conformance"}],
        "resources": {"limits": {"memory": "128Mi"}},
    }
    code = "for name in ('name', 'limit', 'labels', 'notes'): print(open('/conformance/' + name).read())"
    volumes = [{"name": "data", "downwardAPI": {"items": items}}]
    spec = space.pod_spec(code, container=container, volumes=volumes)
    metadata = {"name": "one", "labels": {"b": "2", "a": "1"}, "annotations": {"example.com/a": 'say "x"'}}
    space.create("pods", {"metadata": metadata, "spec": spec})
    assert space.finished("one")["status"]["phase"] == "Succeeded"
    lines = space.output("one").splitlines()
    assert lines[:4] == ["one", "128", 'a="1"', 'b="2"']
    # A cluster may add annotations of its own.
    assert 'example.com/a="say \\"x\\""' in lines


@pytest.mark.not_embedded("projected volumes")
def test_several_sources_are_one_volume(space: Space) -> None:
    """Projected Volumes: several volume sources in the same directory."""
    space.create("configmaps", config_map("settings", {"a": "1"}))
    space.create("secrets", {"metadata": {"name": "keys"}, "stringData": {"b": "2"}})
    sources = [
        {"configMap": {"name": "settings"}},
        {"secret": {"name": "keys", "items": [{"key": "b", "path": "keys/b"}]}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]
    volume = {"projected": {"sources": sources, "defaultMode": 0o444}}
    assert shown(space, volume) == ["a 444 '1'", "keys/b 444 '2'", "name 444 'one'"]


def test_what_is_optional_may_be_missing(space: Space) -> None:
    """Configure a Pod to Use a ConfigMap, Optional ConfigMaps: the volume is empty then."""
    assert shown(space, {"configMap": {"name": "none", "optional": True}}) == []


def test_a_pod_waits_for_its_config_map(space: Space) -> None:
    """Configure a Pod to Use a ConfigMap, Restrictions: it must exist before the pod starts."""
    mounted(space, "one", SHOW, {"configMap": {"name": "late"}})
    event = space.event("FailedMount", "one")
    assert event["type"] == "Warning"
    assert event["message"].startswith('MountVolume.SetUp failed for volume "data"')
    assert 'configmap "late" not found' in event["message"]
    pod = space.wait("pods", "one", lambda pod: conditions(pod).get("Ready") == "False")
    assert (pod["status"]["phase"], conditions(pod)["PodScheduled"]) == ("Pending", "True")
    space.create("configmaps", config_map("late", {"a": "1"}))
    assert space.finished("one")["status"]["phase"] == "Succeeded"
    assert space.output("one") == "a 644 '1'\n"


def test_a_pod_waits_for_a_key(space: Space) -> None:
    """Secrets, items: a key that is listed must exist unless it is optional."""
    space.create("secrets", {"metadata": {"name": "keys"}, "stringData": {"a": "1"}})
    volume = {"secret": {"secretName": "keys", "items": [{"key": "none", "path": "none"}]}}
    mounted(space, "one", SHOW, volume)
    assert "references non-existent secret key: none" in space.event("FailedMount", "one")["message"]
    assert space.get("pods", "one")["status"]["phase"] == "Pending"
