"""Pods that end for no fault of their own, or for want of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import condition, refusal

if TYPE_CHECKING:
    import httpx

    from helpers.conformance_client import Object, Space

SLEEP = "import time; time.sleep(600)"
ANOTHER_UID = "11111111-2222-3333-4444-555555555555"


def evict(space: Space, name: str, *, of: str = "", **options: Any) -> httpx.Response:
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": of or name, "namespace": space.name},
        "deleteOptions": options,
    }
    return space.cluster.call("POST", space.path("pods", name, "eviction"), body)


def running(space: Space, name: str = "one") -> Object:
    space.run(name, SLEEP)
    return space.wait("pods", name, lambda pod: pod["status"].get("phase") == "Running")


def test_an_evicted_pod_is_told_and_ends(space: Space) -> None:
    """API-initiated Eviction; Disruptions, Pod disruption conditions: EvictionByEvictionAPI."""
    pod = running(space)
    answer = evict(space, "one")
    assert (answer.status_code, answer.json()["status"]) == (201, "Success")
    history = space.history("pods", pod, lambda each: condition(each, "DisruptionTarget"))
    target = condition(history[-1], "DisruptionTarget")
    assert (target["status"], target["reason"]) == ("True", "EvictionByEvictionAPI")
    # Its grace period has begun, and it still has it.
    space.wait_gone("pods", "one")


def test_a_deleted_pod_is_not_disrupted(space: Space) -> None:
    """Disruptions, Pod disruption conditions: only for disruptions."""
    pod = running(space)
    space.delete("pods", "one")
    version = pod["metadata"]["resourceVersion"]
    with space.watch("pods", resourceVersion=version) as events:
        for event in events:
            assert not condition(event["object"], "DisruptionTarget")
            if event["type"] == "DELETED":
                return
    raise AssertionError("the pod is still there")


def test_a_dry_run_of_an_eviction_ends_nothing(space: Space) -> None:
    """API-initiated Eviction, with deleteOptions: dryRun."""
    running(space)
    assert evict(space, "one", dryRun=["All"]).status_code == 201
    pod = space.get("pods", "one")
    assert "deletionTimestamp" not in pod["metadata"]
    assert not condition(pod, "DisruptionTarget")


def test_an_eviction_that_means_another_pod_is_refused(space: Space) -> None:
    """API-initiated Eviction: of a pod that is there, by its name, if its preconditions hold."""
    running(space)
    refusal(evict(space, "none"), 404, "NotFound")
    refusal(evict(space, "one", of="two"), 400, "BadRequest")
    refusal(evict(space, "one", preconditions={"uid": ANOTHER_UID}), 409, "Conflict")
    assert "deletionTimestamp" not in space.get("pods", "one")["metadata"]


# None where the node has no memory controller.
SAYS_ITS_LIMIT = (
    "from glob import glob; print('limits', ["
    "open(f).read().strip() for f in glob('/sys/fs/cgroup/memory.max')"
    " + glob('/sys/fs/cgroup/memory/memory.limit_in_bytes')], flush=True)"
)


def test_a_container_that_takes_too_much_memory_is_killed(
    space: Space, request: pytest.FixtureRequest
) -> None:
    """Assign Memory Resources, Exceed a container's memory limit: OOMKilled."""
    # It holds what it has for a while: some nodes look at memory from time to time only.
    code = f"{SAYS_ITS_LIMIT}; hog = b'x' * (192 << 20); import time; time.sleep(20)"
    space.run("one", code, container={"resources": {"limits": {"memory": "48Mi"}}})
    pod = space.finished("one")
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    elsewhere = request.config.getoption("--kubeconfig", default=None)
    if terminated["exitCode"] == 0 and elsewhere and space.output("one") == "limits []\n":
        pytest.skip("the nodes of this cluster have no memory controller: they enforce no memory limits")
    assert (terminated["reason"], terminated["exitCode"]) == ("OOMKilled", 137)
    assert pod["status"]["phase"] == "Failed"


def submit(space: Space, code: str, template: Object | None = None, **spec: Any) -> Object:
    """A Job of one pod."""
    pods = {"spec": space.pod_spec(code, **(template or {}))}
    return space.create("jobs", {"metadata": {"name": "one"}, "spec": {"template": pods, **spec}})


def first_pod(space: Space) -> Object:
    """The Job's pod, once it runs."""
    with space.watch("pods", labelSelector="job-name=one") as events:
        for event in events:
            pod: Object = event["object"]
            if pod["status"].get("phase") == "Running":
                return pod
    raise AssertionError("no pod runs")


def states_at_the_second(space: Space, first: Object) -> Object:
    """The first pod as it was known when the Job's second one came."""
    version = first["metadata"]["resourceVersion"]
    with space.watch("pods", labelSelector="job-name=one", resourceVersion=version) as events:
        for event in events:
            if event["object"]["metadata"]["uid"] == first["metadata"]["uid"]:
                first = event["object"]
            elif event["type"] == "ADDED":
                return first
    raise AssertionError("no second pod came")


def test_an_evicted_pod_of_a_job_need_not_count(space: Space) -> None:
    """Jobs, Pod failure policy: Ignore on the condition DisruptionTarget."""
    rules = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    submit(space, SLEEP, podFailurePolicy={"rules": rules}, backoffLimit=0)
    first = first_pod(space)
    assert evict(space, first["metadata"]["name"]).status_code == 201
    states_at_the_second(space, first)
    job = space.wait("jobs", "one", lambda job: job["status"].get("ready") == 1)
    assert not job["status"].get("failed")
    assert not condition(job, "Failed")


# A Job waits for ten seconds after it has lost a pod: who replaces it before its end has done so by then.
BEYOND_THE_PAUSE = 18

# Hears nothing, so that its grace period passes.
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)"


def delete_deaf(space: Space, grace: int, **spec: Any) -> Object:
    """The first pod of a Job, on its way out for some seconds."""
    submit(space, DEAF, {"terminationGracePeriodSeconds": grace}, backoffLimit=6, **spec)
    first = first_pod(space)
    name = first["metadata"]["name"]
    space.wait_output(name, "deaf")
    space.delete("pods", name)
    return first


def test_a_pod_is_replaced_after_it_has_ended(space: Space) -> None:
    """Jobs, Delayed creation of replacement pods: podReplacementPolicy Failed."""
    first = delete_deaf(space, BEYOND_THE_PAUSE, podReplacementPolicy="Failed")
    space.wait("jobs", "one", lambda job: job["status"].get("terminating") == 1)
    last = states_at_the_second(space, first)
    assert last["status"]["phase"] == "Failed"


def test_a_pod_is_replaced_as_soon_as_it_ends(space: Space) -> None:
    """Jobs, Delayed creation of replacement pods: by default as soon as they are terminating."""
    first = delete_deaf(space, 2 * BEYOND_THE_PAUSE)
    try:
        last = states_at_the_second(space, first)
        assert "deletionTimestamp" in last["metadata"]
        assert last["status"]["phase"] == "Running"
    finally:
        space.try_delete("pods", first["metadata"]["name"], {"gracePeriodSeconds": 0})
