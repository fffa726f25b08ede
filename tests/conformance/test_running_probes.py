"""Startup probes, and what is done before a container is asked to end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from helpers.conformance_client import FAILS, PASSES, WAIT_SECONDS, conditions

if TYPE_CHECKING:
    from helpers.conformance_client import Object, Space

SLEEP = "import time; time.sleep(600)"
# Listens after some seconds: until then the startup probe fails.
SLOW = (
    "import os, socket, time\n"
    "time.sleep(4)\n"
    "server = socket.create_server((os.environ['IP'], 8080))\n"
    "print('open')\n"
    "time.sleep(600)"
)


def slow(**probes: Object) -> Object:
    started = {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60}
    env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    return {"env": env, "startupProbe": started, **probes}


def main(pod: Object) -> Object:
    found: Object = (pod["status"].get("containerStatuses") or [{}])[0]
    return found


def test_readiness_waits_for_the_startup_probe(space: Space) -> None:
    """Configure Probes, startup probes: readiness is not checked before it has succeeded."""
    ready = {"exec": {"command": PASSES}, "periodSeconds": 1}
    created = space.run("one", SLOW, container=slow(readinessProbe=ready))
    history = space.history("pods", created, lambda pod: conditions(pod).get("Ready") == "True")
    seen = [
        (main(pod)["started"], main(pod)["ready"])
        for pod in history
        if "running" in main(pod).get("state", {})
    ]
    assert seen[0] == (False, False)
    assert (False, True) not in seen
    assert seen[-1] == (True, True)
    assert space.output("one") == "open\n"


def test_liveness_waits_for_the_startup_probe(space: Space) -> None:
    """Configure Probes, startup probes: liveness is not checked before it has succeeded."""
    # It would kill the container at once, long before it opens its port.
    dead = {"exec": {"command": FAILS}, "periodSeconds": 1, "failureThreshold": 1}
    space.run("one", SLOW, container=slow(livenessProbe=dead))
    pod = space.finished("one")
    assert main(pod)["state"]["terminated"]["exitCode"] == 137
    assert space.output("one") == "open\n"
    assert space.event("Killing", "one", saying="failed liveness probe")


def test_a_startup_probe_that_fails_kills_the_container(space: Space) -> None:
    """Configure Probes, startup probes: killed after failureThreshold failures, by the restart policy."""
    never = {"exec": {"command": FAILS}, "periodSeconds": 1, "failureThreshold": 2}
    created = space.run("one", SLEEP, container={"startupProbe": never}, restartPolicy="Always")
    history = space.history("pods", created, lambda pod: main(pod).get("restartCount", 0) >= 1)
    assert main(history[-1])["lastState"]["terminated"]["exitCode"] == 137
    assert not any(main(pod).get("started") or main(pod).get("ready") for pod in history)
    assert space.event("Unhealthy", "one")["message"].startswith("Startup probe failed")
    assert space.event("Killing", "one", saying="failed startup probe")


def test_a_pod_that_never_restarts_fails_by_its_startup_probe(space: Space) -> None:
    """Configure Probes, startup probes: subject to the pod's restartPolicy."""
    never = {"exec": {"command": FAILS}, "periodSeconds": 1, "failureThreshold": 1}
    space.run("one", SLEEP, container={"startupProbe": never})
    pod = space.finished("one")
    assert (pod["status"]["phase"], main(pod)["restartCount"]) == ("Failed", 0)


# Ends well only if the hook has run before it was asked to end.
AFTER_HOOK = (
    "import os, signal, sys, time\n"
    "def end(*_):\n"
    "    sys.exit(0 if os.path.exists('/conformance/hook') else 7)\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "print('ready')\n"
    "time.sleep(600)"
)


def hooked(space: Space, hook: Object) -> None:
    """A pod with this hook, once it runs and listens to signals."""
    container = {
        "lifecycle": {"preStop": hook},
        "volumeMounts": [{"name": "data", "mountPath": "/conformance"}],
    }
    volumes = [{"name": "data", "emptyDir": {}}]
    grace = 2 * WAIT_SECONDS
    space.run("one", AFTER_HOOK, container=container, volumes=volumes, terminationGracePeriodSeconds=grace)
    space.wait("pods", "one", lambda pod: pod["status"].get("phase") == "Running")
    space.wait_output("one", "ready")


@pytest.mark.not_embedded("hooks")
def test_a_command_runs_before_a_container_is_asked_to_end(space: Space) -> None:
    """Container Lifecycle Hooks, PreStop: completes before the TERM signal is sent."""
    hooked(space, {"exec": {"command": ["sh", "-c", "sleep 1; echo done > /conformance/hook"]}})
    try:
        space.delete("pods", "one")
        assert space.ends_of("one")["main"]["exitCode"] == 0
    finally:
        space.try_delete("pods", "one", {"gracePeriodSeconds": 0})


@pytest.mark.not_embedded("hooks")
def test_a_container_sleeps_before_it_is_asked_to_end(space: Space) -> None:
    """Container Lifecycle Hooks, Hook handler implementations: sleep."""
    hooked(space, {"sleep": {"seconds": 4}})
    try:
        began = time.monotonic()
        space.delete("pods", "one")
        # It asks itself whether there was a command, and there was none.
        assert space.ends_of("one")["main"]["exitCode"] == 7
        assert time.monotonic() - began >= 4
    finally:
        space.try_delete("pods", "one", {"gracePeriodSeconds": 0})


@pytest.mark.not_embedded("hooks")
def test_a_hook_that_fails_is_told_and_holds_nothing(space: Space) -> None:
    """Container Lifecycle Hooks, Debugging Hook handlers: FailedPreStopHook."""
    hooked(space, {"exec": {"command": FAILS}})
    try:
        space.delete("pods", "one")
        assert space.event("FailedPreStopHook", "one")["type"] == "Warning"
        assert space.ends_of("one")["main"]["exitCode"] == 7
    finally:
        space.try_delete("pods", "one", {"gracePeriodSeconds": 0})
