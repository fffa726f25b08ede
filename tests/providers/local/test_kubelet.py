"""Pods on the embedded cluster: environment, logs, probes, restarts, endings."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from helpers.cluster_without_http import (
    IMAGE,
    PYTHON,
    Recording,
    Running,
    condition,
    pod,
    pod_steps,
    process_ends,
    reasons,
    script,
)
from nighttrain.providers.local.cluster.machine.mounts import Namespaces
from nighttrain.providers.local.cluster.machine.processes import expand
from nighttrain.providers.local.cluster.store.errors import ApiError
from nighttrain.providers.local.cluster.store.quantities import quantity
from nighttrain.providers.local.cluster.store.resources import (
    CONFIGMAPS,
    EVENTS,
    JOBS,
    NODES,
    PODS,
    SECRETS,
    SERVICES,
)

if TYPE_CHECKING:
    from pathlib import Path

FOREVER = "import time; time.sleep(60)"


def state(found: dict[str, Any], kind: str, container: int = 0) -> dict[str, Any]:
    return dict(found["status"]["containerStatuses"][container]["state"][kind])


def is_waiting(reason: str) -> Any:
    def holds(found: dict[str, Any] | None) -> bool:
        statuses = ((found or {}).get("status") or {}).get("containerStatuses") or []
        return any((each["state"].get("waiting") or {}).get("reason") == reason for each in statuses)

    return holds


async def test_environment_of_every_source(tmp_path: Path) -> None:
    env = [
        {"name": "PLAIN", "value": "a"},
        {"name": "MADE", "value": "$(PLAIN)-$(FROM_MAP)-$$(PLAIN)-$(UNKNOWN)"},
        {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": True}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['nighttrain.dev/x']"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    code = "import os, sys, json; print(json.dumps([dict(os.environ), sys.argv[1:], os.getcwd()]))"
    manifest = script(
        "env", code, env=env, args=["$(PLAIN)", "$(PATH)"], resources={"limits": {"memory": "64Mi"}}
    )
    manifest["spec"]["containers"][0]["envFrom"] = [{"prefix": "FROM_", "configMapRef": {"name": "c"}}]
    manifest["metadata"]["labels"] = {"nighttrain.dev/x": "label"}
    os.environ["NIGHTTRAIN_TEST_LEAK"] = "1"
    async with Running(tmp_path) as cluster:
        cluster.store.create(CONFIGMAPS, {"metadata": {"name": "c"}, "data": {"MAP": "map"}})
        secret = {"k": base64.b64encode(b"hidden").decode()}
        cluster.store.create(SECRETS, {"metadata": {"name": "s"}, "data": secret})
        cluster.store.create(PODS, manifest)
        done = await cluster.pod_phase("env", "Succeeded")
        seen, arguments, folder = json.loads(await cluster.log(done))
    del os.environ["NIGHTTRAIN_TEST_LEAK"]
    assert seen["MADE"] == "a-map-$(PLAIN)-$(UNKNOWN)"
    assert (seen["FROM_SECRET"], seen["NAME"], seen["LABEL"]) == (
        "hidden",
        "env",
        "label",
    )
    assert seen["IP"] == done["status"]["podIP"]
    assert arguments == ["a", "$(PATH)"]
    assert folder == seen["HOME"]
    assert folder.startswith(str(tmp_path))
    assert not {"ABSENT", "NIGHTTRAIN_TEST_LEAK"} & set(seen)


def test_expansion() -> None:
    known = {"A": "1"}
    assert expand("$(A) $$(A) $(B) $A $", known.get) == "1 $(A) $(B) $A $"


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("500m", 0.5), ("1Ki", 1024), ("1e3", 1000), ("2G", 2e9)]
)
def test_quantities(text: str, number: float) -> None:
    assert float(quantity(text)) == number


async def test_missing_secret_waits_and_recovers(tmp_path: Path) -> None:
    env = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "late", "key": "k"}}}]
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("late", "import os; print(os.environ['TOKEN'])", env=env))
        stuck = await cluster.until(PODS, "late", is_waiting("CreateContainerConfigError"))
        assert state(stuck, "waiting")["message"] == 'secret "late" not found'
        cluster.store.create(
            SECRETS, {"metadata": {"name": "late"}, "data": {"k": base64.b64encode(b"x").decode()}}
        )
        done = await cluster.pod_phase("late", "Succeeded")
        assert await cluster.log(done) == "x\n"
        assert ("Failed", 'Error: secret "late" not found') in cluster.events("late")


@pytest.mark.parametrize(
    ("image", "policy", "reason"),
    [
        ("localhost/absent:1", "IfNotPresent", "ErrImagePull"),
        ("localhost/absent:1", "IfNotPresent", "ImagePullBackOff"),
        ("localhost/absent:1", "Never", "ErrImageNeverPull"),
        ("UPPER case/:bad", "IfNotPresent", "InvalidImageName"),
    ],
)
async def test_images_that_cannot_be_had(image: str, policy: str, reason: str, tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, pod("none", "true", image=image, imagePullPolicy=policy))
        stuck = await cluster.until(PODS, "none", is_waiting(reason))
        assert image in state(stuck, "waiting")["message"]
        assert stuck["status"]["phase"] == "Pending"
        cluster.store.delete(PODS, "default", "none")
        await cluster.gone(PODS, "none")
        last = cluster.history(PODS)[-1][1]
        assert last["status"]["phase"] == "Failed"
        assert state(last, "terminated")["reason"] == "ContainerStatusUnknown"
        assert state(last, "terminated")["exitCode"] == 137


async def test_image_never_present_as_recorded(tmp_path: Path) -> None:
    recording = Recording("job-image-never")
    async with Running(tmp_path) as cluster:
        cluster.store.create(JOBS, recording.manifest())
        with cluster.store.watch(PODS) as watcher:
            async for _type, found in watcher:
                if is_waiting("ErrImageNeverPull")(found):
                    break
        assert reasons(cluster.history(EVENTS)) == recording.event_reasons()
        recorded = pod_steps(recording.changes("pods"))[0]
        steps = pod_steps(cluster.history(PODS))[0]
        assert steps == recorded[: len(steps)]


async def test_log_options_as_recorded(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        created = cluster.store.create(PODS, script("log", "for i in range(5): print('line', i, flush=True)"))
        assert await cluster.log(created) == ""
        done = await cluster.pod_phase("log", "Succeeded")
        whole = "".join(f"line {number}\n" for number in range(5))
        assert await cluster.log(done) == whole
        assert await cluster.log(done, follow=True) == whole
        assert await cluster.log(done, tail_lines=2) == "line 3\nline 4\n"
        assert await cluster.log(done, tail_lines=0) == ""
        assert await cluster.log(done, limit_bytes=10) == "line 0\nlin"
        stamped = (await cluster.log(done, timestamps=True)).splitlines()
        assert all(len(line.split(" ")[0]) == len("2026-11-22T08:43:27.656867257Z") for line in stamped)
        since = stamped[2].split(" ")[0]
        assert (await cluster.log(done, since_time=since)).endswith("line 2\nline 3\nline 4\n")
        assert await cluster.log(done, since_time="2999-01-01T00:00:00Z") == ""
        for options, message in (
            ({"previous": True}, 'previous terminated container "main" in pod "log" not found'),
            ({"container": "absent"}, "container absent is not valid for pod log"),
        ):
            with pytest.raises(ApiError, match=message) as caught:
                await cluster.log(done, **options)
            assert caught.value.code == 400


async def test_log_is_followed_while_the_container_runs(tmp_path: Path) -> None:
    code = "import sys, time\nprint('first', flush=True)\ntime.sleep(0.3)\nsys.stderr.write('no line end')"
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("live", code))
        running = await cluster.pod_phase("live", "Running")
        pieces = []
        async for piece in cluster.kubelet.open_log(running, follow=True):
            pieces.append((piece, cluster.store.get(PODS, "default", "live")["status"]["phase"]))
        assert pieces[0] == (b"first\n", "Running")
        assert b"".join(piece for piece, _phase in pieces) == b"first\nno line end\n"


async def test_termination_message_from_file_and_from_log(tmp_path: Path) -> None:
    code = "print('log line')\nopen('said', 'w').write('from file')\nraise SystemExit(4)"
    async with Running(tmp_path) as cluster:
        cluster.store.create(
            PODS, script("file", code, terminationMessagePath="said", terminationMessagePolicy="File")
        )
        cluster.store.create(PODS, script("logs", code))
        cluster.store.create(PODS, script("none", code, terminationMessagePolicy="File"))
        found = [await cluster.pod_phase(name, "Failed") for name in ("file", "logs", "none")]
    messages = [state(each, "terminated").get("message") for each in found]
    assert messages == ["from file", "log line\n", None]
    assert [state(each, "terminated")["exitCode"] for each in found] == [4, 4, 4]


def container_folder(directory: Path) -> Path:
    """The working directory of the only container named main."""
    [folder] = [path.parent for path in directory.glob("*/*/main/tmp")]
    return folder


async def test_readiness_follows_the_probe(tmp_path: Path) -> None:
    server = (
        "import http.server, os, time\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "  def do_GET(s): s.send_response(200 if os.path.exists('ready') else 503); s.end_headers()\n"
        "  def log_message(s, *a): pass\n"
        "http.server.ThreadingHTTPServer((os.environ['IP'], 8080), H).serve_forever()"
    )
    env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    probe = {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 1, "failureThreshold": 1}
    ports = [{"name": "web", "containerPort": 8080}]
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("web", server, env=env, readinessProbe=probe, ports=ports))
        running = await cluster.pod_phase("web", "Running")
        assert condition(running, "Ready", "False")
        folder = container_folder(tmp_path)
        (folder / "ready").touch()
        await cluster.until(PODS, "web", lambda found: condition(found, "Ready"))
        (folder / "ready").unlink()
        await cluster.until(PODS, "web", lambda found: condition(found, "Ready", "False"))
        messages = [message for reason, message in cluster.events("web") if reason == "Unhealthy"]
        assert "Readiness probe failed: HTTP probe failed with statuscode: 503" in messages


async def test_liveness_restarts_the_container(tmp_path: Path) -> None:
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    manifest = script("sick", FOREVER, livenessProbe=probe, spec={"restartPolicy": "Always"})
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, manifest)

        def restarted(found: dict[str, Any] | None) -> bool:
            statuses = ((found or {}).get("status") or {}).get("containerStatuses") or []
            return any(each["restartCount"] >= 1 for each in statuses)

        found = await cluster.until(PODS, "sick", restarted)
        last = found["status"]["containerStatuses"][0]["lastState"]["terminated"]
        assert last["exitCode"] == 137
        assert ("Killing", "Container main failed liveness probe, will be restarted") in cluster.events(
            "sick"
        )


async def test_restarts_and_crash_loop(tmp_path: Path) -> None:
    """The first restart comes at once; then the pauses begin."""
    code = "import os,sys\nn=len(os.listdir('tmp'))\nopen(f'tmp/{n}','w').close()\nsys.exit(0 if n>=2 else 1)"
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("loop", code, spec={"restartPolicy": "OnFailure"}))
        looping = await cluster.until(PODS, "loop", is_waiting("CrashLoopBackOff"))
        assert looping["status"]["containerStatuses"][0]["restartCount"] == 1
        assert looping["status"]["phase"] == "Running"
        done = await cluster.pod_phase("loop", "Succeeded")
        assert done["status"]["containerStatuses"][0]["restartCount"] == 2
        assert await cluster.log(done, previous=True) == ""
        assert "BackOff" in dict(cluster.events("loop"))


async def test_sigterm_is_handled_within_the_grace_period(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def stop(*a): print('stopping', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint('up', flush=True)\ntime.sleep(60)"
    )
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("polite", code, grace=30))
        running = await cluster.pod_phase("polite", "Running")
        async for piece in cluster.kubelet.open_log(running, follow=True):
            if b"up" in piece:
                break
        began = asyncio.get_running_loop().time()
        cluster.store.delete(PODS, "default", "polite")
        await cluster.gone(PODS, "polite")
        assert asyncio.get_running_loop().time() - began < 5
        last = cluster.history(PODS)[-1][1]
        assert last["status"]["phase"] == "Succeeded"


async def test_force_deletion_leaves_no_process(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("stubborn", "import os; print(os.getpid()); " + FOREVER, grace=60))
        running = await cluster.pod_phase("stubborn", "Running")
        async for piece in cluster.kubelet.open_log(running, follow=True):
            number = int(piece)
            break
        cluster.store.delete(PODS, "default", "stubborn", grace_period_seconds=0)
        await process_ends(number)


async def test_children_end_with_their_container(tmp_path: Path) -> None:
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-S', '-c', {FOREVER!r}]).pid)"
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("parent", code))
        done = await cluster.pod_phase("parent", "Succeeded")
        number = int(await cluster.log(done))
        await process_ends(number)


async def test_init_containers_run_in_order_before_the_main_one(tmp_path: Path) -> None:
    manifest = script("ordered", "print('main')")
    inits = [
        {"name": name, "image": IMAGE, "command": [*PYTHON, f"print({name!r})"]}
        for name in ("first", "second")
    ]
    manifest["spec"]["initContainers"] = inits
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, manifest)
        done = await cluster.pod_phase("ordered", "Succeeded")
        assert [
            each["state"]["terminated"]["exitCode"] for each in done["status"]["initContainerStatuses"]
        ] == [0, 0]
        assert await cluster.log(done, container="second") == "second\n"
        started = [
            event["involvedObject"]["fieldPath"]
            for _type, event in cluster.history(EVENTS)
            if event["reason"] == "Started"
        ]
        assert started == [
            "spec.initContainers{first}",
            "spec.initContainers{second}",
            "spec.containers{main}",
        ]


async def test_sidecar_runs_beside_and_ends_after_the_main_container(tmp_path: Path) -> None:
    manifest = script("beside", "print('main')")
    sidecar = {"name": "proxy", "image": IMAGE, "command": [*PYTHON, FOREVER], "restartPolicy": "Always"}
    manifest["spec"]["initContainers"] = [sidecar]
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, manifest)
        done = await cluster.pod_phase("beside", "Succeeded")
        assert done["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


async def test_pod_with_several_containers_fails_if_one_does(tmp_path: Path) -> None:
    manifest = script("two", "raise SystemExit(1)")
    manifest["spec"]["containers"].append({"name": "other", "image": IMAGE, "command": [*PYTHON, "1"]})
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, manifest)
        done = await cluster.pod_phase("two", "Succeeded", "Failed")
        assert done["status"]["phase"] == "Failed"
        with pytest.raises(ApiError, match="a container name must be specified for pod two"):
            await cluster.log(done)


async def test_deadline_of_a_pod(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("late", FOREVER, spec={"activeDeadlineSeconds": 1}))
        done = await cluster.pod_phase("late", "Failed")
        assert done["status"]["reason"] == "DeadlineExceeded"
        assert state(done, "terminated")["exitCode"] == 137


async def test_pod_that_does_not_fit_waits_for_room(tmp_path: Path) -> None:
    cpus = str(os.cpu_count() or 1)
    whole = {"requests": {"cpu": cpus}}
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("huge", "1", resources={"requests": {"cpu": "100000"}}))
        huge = await cluster.until(PODS, "huge", lambda found: condition(found, "PodScheduled", "False"))
        why = condition(huge, "PodScheduled", "False")
        assert why is not None
        assert why["reason"] == "Unschedulable"
        assert why["message"].startswith("0/1 nodes are available: 1 Insufficient cpu.")
        cluster.store.create(PODS, script("first", "import time; time.sleep(0.3)", resources=whole))
        await cluster.pod_phase("first", "Running")
        cluster.store.create(PODS, script("second", "1", resources=whole))
        await cluster.until(PODS, "second", lambda found: condition(found, "PodScheduled", "False"))
        await cluster.pod_phase("second", "Succeeded")
        cluster.store.delete(PODS, "default", "huge")
        await cluster.gone(PODS, "huge")


async def test_volume_that_cannot_be_mounted_says_so(tmp_path: Path) -> None:
    manifest = script("mounts", "1", volumeMounts=[{"name": "d", "mountPath": "/d"}])
    manifest["spec"]["volumes"] = [{"name": "d", "emptyDir": {}}]
    async with Running(tmp_path, namespaces=Namespaces.NONE) as cluster:
        cluster.store.create(PODS, manifest)
        await cluster.until(PODS, "mounts", is_waiting("ContainerCreating"))
        message = await cluster.event("mounts", "FailedMount")
        assert 'volume "d"' in message
        assert "emptyDir" in message
        cluster.store.delete(PODS, "default", "mounts")
        await cluster.gone(PODS, "mounts")


async def test_node_describes_this_machine(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        [node] = cluster.store.list(NODES)[0]
        assert node["status"]["capacity"]["cpu"] == str(os.cpu_count())
        assert condition(node, "Ready")
        assert not cluster.store.list(SERVICES)[0]
