"""A cluster on a file comes back with what it had, however its server ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from nighttrain.providers.local.cluster.node.state import StateFile
from nighttrain.providers.local.cluster.server import ClusterStartError, EmbeddedCluster
from nighttrain.providers.local.cluster.store.resources import CONFIGMAPS
from nighttrain.providers.local.cluster.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CORE = "/api/v1/namespaces/default"
JOBS = "/apis/batch/v1/namespaces/default/jobs"


def client(cluster: EmbeddedCluster) -> httpx.Client:
    headers = {"Authorization": f"Bearer {cluster.token}"}
    return httpx.Client(base_url=cluster.url, headers=headers, timeout=20)


def config_map(name: str, value: str = "value") -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": {"key": value}}


def test_a_killed_server_comes_back_with_every_object(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with EmbeddedCluster(containers=False, state=state) as cluster:
        assert stat.S_IMODE(state.stat().st_mode) == 0o600
        url, token, kubeconfig = cluster.url, cluster.token, cluster.kubeconfig
        with client(cluster) as http:
            for name in ("kept", "changed", "deleted"):
                http.post(f"{CORE}/configmaps", json=config_map(name)).raise_for_status()
            http.put(f"{CORE}/configmaps/changed", json=config_map("changed", "new")).raise_for_status()
            http.delete(f"{CORE}/configmaps/deleted").raise_for_status()
            before = http.get(f"{CORE}/configmaps").json()
        cluster.restart()
        assert (cluster.url, cluster.token, cluster.kubeconfig) == (url, token, kubeconfig)
        assert token in kubeconfig.read_text()
        with client(cluster) as http:
            after = http.get(f"{CORE}/configmaps").json()
            assert after["items"] == before["items"]
            assert after["metadata"]["resourceVersion"] >= before["metadata"]["resourceVersion"]
            assert http.get(f"{CORE}/serviceaccounts/default").status_code == 200
    with EmbeddedCluster(containers=False, state=state) as another:
        assert (another.url, another.token) == (url, token)
        with client(another) as http:
            assert http.get(f"{CORE}/configmaps").json()["items"] == before["items"]


def test_without_a_file_a_killed_server_comes_back_empty() -> None:
    with EmbeddedCluster(containers=False) as cluster:
        with client(cluster) as http:
            http.post(f"{CORE}/configmaps", json=config_map("lost")).raise_for_status()
        cluster.restart()
        with client(cluster) as http:
            assert http.get(f"{CORE}/configmaps/lost").status_code == 404


def watch(http: httpx.Client, revision: str) -> list[dict[str, Any]]:
    query = {"watch": "true", "resourceVersion": revision, "timeoutSeconds": "1"}
    return [json.loads(line) for line in http.get(f"{CORE}/configmaps", params=query).text.splitlines()]


def test_watches_from_before_are_told_or_go_on(tmp_path: Path) -> None:
    with EmbeddedCluster(containers=False, state=tmp_path / "state") as cluster:
        with client(cluster) as http:
            old = http.get(f"{CORE}/configmaps").json()["metadata"]["resourceVersion"]
            made = http.post(f"{CORE}/configmaps", json=config_map("before")).json()
            last = made["metadata"]["resourceVersion"]
        cluster.restart()
        with client(cluster) as http:
            http.post(f"{CORE}/configmaps", json=config_map("after")).raise_for_status()
            [error] = watch(http, old)
            assert (error["type"], error["object"]["code"]) == ("ERROR", 410)
            # Nothing was written between the last answer and the kill: from there on nothing is missing.
            assert [event["object"]["metadata"]["name"] for event in watch(http, last)] == ["after"]
            future = http.get(f"{CORE}/configmaps", params={"resourceVersion": "99999999"})
            assert future.status_code == 504


def test_one_server_at_a_time(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with (
        EmbeddedCluster(containers=False, state=state),
        pytest.raises(ClusterStartError, match="is in use by another cluster"),
    ):
        EmbeddedCluster(containers=False, state=state).start()
    EmbeddedCluster(containers=False, state=state).__enter__().stop()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    text, database, newer = tmp_path / "text", tmp_path / "database", tmp_path / "newer"
    text.write_text("dear diary\n" * 100)
    with contextlib.closing(sqlite3.connect(database)) as other:
        other.execute("CREATE TABLE diary (entry TEXT)")
    StateFile(newer).close()
    with contextlib.closing(sqlite3.connect(newer)) as file:
        file.execute("PRAGMA user_version=7")
    for path, said in ((text, "name another file"), (database, "name another file"), (newer, "version 7")):
        before = path.read_bytes()
        with pytest.raises(ClusterStartError, match=said):
            EmbeddedCluster(containers=False, state=path).start()
        if path is text:
            assert path.read_bytes() == before


def test_a_taken_port_is_not_waited_for(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with EmbeddedCluster(containers=False, state=state) as first:
        port, token = first.port, first.token
    with (
        EmbeddedCluster(containers=False, port=port) as taker,
        EmbeddedCluster(containers=False, state=state) as second,
    ):
        assert taker.port == port != second.port
        assert second.token == token


async def test_a_burst_is_one_transaction_and_a_crash_loses_only_what_nobody_saw(tmp_path: Path) -> None:
    statements: list[str] = []
    file = StateFile(tmp_path / "state")
    file._db.set_trace_callback(statements.append)
    store = Store()
    file.load(store)
    store.restore([], 5)
    for number in range(100):
        _create(store, f"burst-{number}")
    assert "COMMIT" not in statements
    file.flush()
    assert statements.count("COMMIT") == 1
    _create(store, "unanswered")
    file.abandon()
    file = StateFile(tmp_path / "state")
    again = Store()
    assert file.load(again) == 100
    assert again.revision == 105
    assert not again.find(CONFIGMAPS, "default", "unanswered")
    file.close()


def _create(store: Store, name: str) -> None:
    from nighttrain.providers.local.cluster.store.resources import NAMESPACES

    if store.find(NAMESPACES, None, "default") is None:
        store.restore([(NAMESPACES, "", _record("default"))], store.revision)
    store.create(CONFIGMAPS, config_map(name))


def _record(name: str) -> Any:
    from nighttrain.providers.local.cluster.store.watching import Record

    return Record({"metadata": {"name": name}}, 1)


# A server in a process of its own, killed for good


@contextlib.contextmanager
def server(directory: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    command = [
        sys.executable,
        "-m",
        "nighttrain.providers.local",
        "cluster",
        "--image",
        f"py={sys.executable}",
    ]
    options = ["--directory", str(directory), "--state", str(directory / "state")]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("cluster ready")
            config = json.loads((directory / "kubeconfig").read_text())
            url = config["clusters"][0]["cluster"]["server"]
            headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
            with httpx.Client(base_url=url, headers=headers, timeout=20) as http:
                yield process, http
        finally:
            process.kill()
            process.wait(20)


def pod(name: str, restart: str, command: str) -> dict[str, Any]:
    container = {"name": "main", "image": "py", "command": ["sh", "-c", command]}
    spec = {"restartPolicy": restart, "terminationGracePeriodSeconds": 1, "containers": [container]}
    return {"metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def until(http: httpx.Client, path: str, holds: Any, **query: str) -> list[dict[str, Any]]:
    """Watch until the objects, by name, are as wanted."""
    seen: dict[str, dict[str, Any]] = {}
    with http.stream("GET", path, params={"watch": "true", "timeoutSeconds": "20", **query}) as stream:
        for line in stream.iter_lines():
            event = json.loads(line)
            name = event["object"]["metadata"]["name"]
            if event["type"] == "DELETED":
                seen.pop(name, None)
            else:
                seen[name] = event["object"]
            if holds(list(seen.values())):
                return list(seen.values())
    raise AssertionError(f"not so within 20 s: {json.dumps(list(seen.values()))}")


def phases(pods: list[dict[str, Any]]) -> list[str]:
    return sorted(pod["status"].get("phase", "") for pod in pods)


def test_what_a_killed_server_had_started_is_lost_then_ended(tmp_path: Path) -> None:
    job = {"metadata": {"name": "trains"}, "spec": {"template": pod("trains", "Never", "sleep 600")}}
    service = {
        "metadata": {"name": "serves"},
        "spec": {"selector": {"app": "serves"}, "ports": [{"port": 80}]},
    }
    with server(tmp_path) as (process, http):
        http.post(JOBS, json=job).raise_for_status()
        http.post(f"{CORE}/pods", json=pod("alone", "Never", "sleep 600")).raise_for_status()
        http.post(f"{CORE}/pods", json=pod("serves", "Always", "sleep 600")).raise_for_status()
        http.post(f"{CORE}/pods", json=pod("done", "Never", "true")).raise_for_status()
        address = http.post(f"{CORE}/services", json=service).json()["spec"]["clusterIP"]
        until(http, f"{CORE}/pods", lambda pods: phases(pods) == ["Running"] * 3 + ["Succeeded"])
        http.post(f"{CORE}/pods", json=pod("leaves", "Never", "trap '' TERM; sleep 600")).raise_for_status()
        until(http, f"{CORE}/pods", lambda pods: phases(pods) == ["Running"] * 4 + ["Succeeded"])
        http.delete(f"{CORE}/pods/leaves", params={"gracePeriodSeconds": "300"}).raise_for_status()
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    with contextlib.closing(sqlite3.connect(tmp_path / "state")) as file:
        [revision] = file.execute("SELECT value FROM facts WHERE name = 'revision'").fetchone()
    with server(tmp_path) as (_, http):
        # The Job's controller waits ten seconds after a failed pod; that it counts the failure is enough.
        [ended] = until(http, JOBS, lambda jobs: jobs and jobs[0].get("status", {}).get("failed") == 1)
        assert "succeeded" not in ended["status"]
        pods = until(
            http,
            f"{CORE}/pods",
            lambda pods: phases(pods)[:4] == ["Failed", "Failed", "Running", "Succeeded"],
        )
        by_name = {each["metadata"]["name"]: each for each in pods}
        assert "leaves" not in by_name
        alone = by_name["alone"]["status"]
        assert alone["reason"] == "NodeLost"
        terminated = alone["containerStatuses"][0]["state"]["terminated"]
        assert (terminated["exitCode"], terminated["reason"]) == (255, "Unknown")
        again = until(http, f"{CORE}/pods", restarted, fieldSelector="metadata.name=serves")[0]["status"]
        assert again["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 255
        assert by_name["done"]["status"]["phase"] == "Succeeded"
        assert http.get(f"{CORE}/services/serves").json()["spec"]["clusterIP"] == address
        # Somebody who had watched up to the kill sees both steps.
        query = {"watch": "true", "resourceVersion": revision, "timeoutSeconds": "1"}
        lines = http.get(f"{CORE}/pods", params=query).text.splitlines()
        assert '"type":"ERROR"' not in lines[0], (revision, lines)
        steps = [
            (event["object"]["status"].get("reason"), event["object"]["status"]["phase"])
            for event in map(json.loads, lines)
            if event["object"]["metadata"]["name"] == "alone"
        ]
        assert steps == [("NodeLost", "Running"), ("NodeLost", "Failed")]
    assert not leftovers(tmp_path)


def test_custom_objects_survive_the_kill_of_their_server(tmp_path: Path) -> None:
    spec = {"type": "object", "properties": {"size": {"type": "integer", "default": 3}}}
    schema = {"type": "object", "properties": {"spec": spec, "status": {"type": "object"}}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    names = {"plural": "toys", "singular": "toy", "kind": "Toy", "listKind": "ToyList"}
    definition = {
        "metadata": {"name": "toys.example.com"},
        "spec": {
            "group": "example.com",
            "names": names,
            "scope": "Namespaced",
            "versions": [version, {**version, "name": "v2", "storage": False}],
        },
    }
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    toys = "/apis/example.com/v1/namespaces/default/toys"
    head = {"apiVersion": "example.com/v1", "kind": "Toy"}
    with server(tmp_path) as (process, http):
        http.post(definitions, json=definition).raise_for_status()
        toy = {**head, "metadata": {"name": "car"}, "spec": {}}
        http.post(toys, json=toy).raise_for_status()
        kept = http.get(f"{toys}/car").json()
        defined = http.get(f"{definitions}/toys.example.com").json()
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    with server(tmp_path) as (process, http):
        assert http.get(f"{toys}/car").json() == kept
        assert http.get(f"{definitions}/toys.example.com").json() == defined
        # Still a definition, not only objects: versions, defaults, validation, status, discovery, deletion.
        other = http.get(f"{toys.replace('/v1/', '/v2/')}/car").json()
        assert (other["apiVersion"], other["spec"]) == ("example.com/v2", {"size": 3})
        made = http.post(toys, json={**head, "metadata": {"name": "ball"}, "spec": {}})
        assert made.json()["spec"] == {"size": 3}
        wrong = {**head, "metadata": {"name": "w"}, "spec": {"size": "big"}}
        assert http.post(toys, json=wrong).status_code == 422
        status = http.put(f"{toys}/car/status", json={**kept, "status": {}})
        assert status.status_code == 200
        served = {each["name"] for each in http.get("/apis/example.com/v1").json()["resources"]}
        assert served == {"toys", "toys/status"}
        http.delete(f"{definitions}/toys.example.com").raise_for_status()
        end = time.monotonic() + 10
        while http.get(f"{definitions}/toys.example.com").status_code != 404:
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    with server(tmp_path) as (_, http):
        assert http.get(toys).status_code == 404


def restarted(pods: list[dict[str, Any]]) -> bool:
    return any(
        each["state"].get("running") and each["restartCount"] == 1
        for pod in pods
        for each in pod["status"].get("containerStatuses", [])
    )


def leftovers(directory: Path) -> list[str]:
    end = time.monotonic() + 10
    while (found := [each for each in os.listdir(directory) if each.startswith("containers-")]) and (
        time.monotonic() < end
    ):
        time.sleep(0.02)
    return found
