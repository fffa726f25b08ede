"""More than one container: the main one's end decides, and nothing holds it up."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from helpers.polling import until_async
from helpers.server_proxy import ServerProxy
from nighttrain.providers.attempts import end_workload, lifecycle
from nighttrain.providers.attempts.follow_to_end import follow_to_end
from nighttrain.providers.kubernetes.api.client import JOBS, PODS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.kinds import JOB
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.mirror.trimming import trim_pod, trim_workload
from nighttrain.providers.kubernetes.outcome.decide import (
    decide,
)
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
    Phase,
)
from nighttrain.providers.kubernetes.values.identity import (
    MAIN_CONTAINER_ANNOTATION,
    OUTCOME_ANNOTATION,
    WorkloadIdentity,
)
from nighttrain.providers.kubernetes.values.objects import main_container
from nighttrain.providers.kubernetes.values.timeouts import Timeouts

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

K = OutcomeKind
Json = dict[str, Any]
NAMESPACE = "default"
_numbers = count()

# What is read of objects, without a cluster.


def state(kind: str, **detail: Any) -> Json:
    return {kind: detail}


def ended(code: int, at: str = "2026-01-01T00:00:10Z", **detail: Any) -> Json:
    reason = "Completed" if code == 0 else "Error"
    return state(
        "terminated", **{"exitCode": code, "reason": reason, "startedAt": at, "finishedAt": at} | detail
    )


def job(*conditions: str, **annotations: str) -> Json:
    listed = [{"type": kind, "status": "True", "reason": "BackoffLimitExceeded"} for kind in conditions]
    rules = [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    return {
        "metadata": {"name": "j", "uid": "u", "annotations": annotations},
        "spec": {"completions": 1, "parallelism": 1, "backoffLimit": 0, "podFailurePolicy": {"rules": rules}},
        "status": {"conditions": listed},
    }


def pod(phase: str, states: dict[str, Json], *, inits: dict[str, Json] | None = None, **fields: Any) -> Json:
    """A pod as a cluster has it: its status lists the containers by name, its spec as they were written.

    :param fields: ``rules`` for containers of the spec, ``told`` in ``metadata``, ``conditions``
    """
    rules: dict[str, Json] = fields.get("rules", {})
    written = {"initContainers": inits or {}, "containers": states}
    spec = {
        place: [{"name": name, "image": "i", **rules.get(name, {})} for name in listed]
        for place, listed in written.items()
    }
    meta = {
        "name": "p",
        "uid": "pu",
        "annotations": {MAIN_CONTAINER_ANNOTATION: "train"},
        "ownerReferences": [{"kind": "Job", "uid": "u", "controller": True}],
    }
    seen: Json = {"phase": phase, "conditions": fields.get("conditions", [])}
    seen["containerStatuses"] = [{"name": name, "state": states[name]} for name in sorted(states)]
    seen["initContainerStatuses"] = [{"name": name, "state": held} for name, held in (inits or {}).items()]
    # As the hub keeps it.
    whole = {
        "metadata": meta | fields.get("told", {}),
        "spec": spec | {"restartPolicy": "Never"},
        "status": seen,
    }
    return trim_pod(whole)


RUNS = state("running", startedAt="2026-01-01T00:00:00Z")
WAITS = state("waiting", reason="ImagePullBackOff")


def read(given: Json, *pods: Json) -> Observation:
    return decide(trim_workload(given, JOB.spec_kept), pods)


def outcome_of(observation: Observation) -> Outcome:
    assert observation.outcome is not None
    return observation.outcome


@pytest.mark.parametrize(
    ("others", "phase"),
    [
        ({"proxy": RUNS}, "Running"),
        ({"a-proxy": RUNS, "z-proxy": RUNS}, "Running"),
        # A container that cannot start keeps a pod's phase Pending.
        ({"proxy": WAITS}, "Pending"),
        ({"proxy": ended(1)}, "Running"),
    ],
)
@pytest.mark.parametrize(("code", "kind"), [(0, K.SUCCEEDED), (3, K.APPLICATION_ERROR)])
def test_what_outlives_the_main_container_is_named_and_told_to_go(
    others: dict[str, Json], phase: str, code: int, kind: K
) -> None:
    rules = {name: {"restartPolicy": "Always"} for name, held in others.items() if "terminated" in held}
    seen = read(job(), pod(phase, {**others, "train": ended(code)}, rules=rules))
    assert seen.phase is Phase.RUNNING
    assert f"'train' has ended with exit code {code}" in seen.detail
    assert all(repr(name) in seen.detail for name in others)
    assert seen.lingering is not None
    assert not seen.lingering.going
    assert seen.lingering.outcome is not None
    assert (seen.lingering.outcome.kind, seen.lingering.outcome.exit_code) == (kind, code)


def test_a_running_training_waits_for_no_image_of_a_sidecar() -> None:
    for phase, held in (("Pending", WAITS), ("Running", state("waiting", reason="InvalidImageName"))):
        seen = read(job(), pod(phase, {"proxy": held, "train": RUNS}))
        assert (seen.phase, seen.permanent_wait, seen.outcome) == (Phase.RUNNING, None, None)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"proxy": ended(2)}, "Container 'proxy' ended with exit code 2."),
        ({"a": ended(137), "b": ended(0)}, "Container 'a' ended with exit code 137."),
        ({"proxy": ended(0)}, ""),
    ],
)
def test_a_sidecars_exit_code_after_a_good_end_is_told_and_decides_nothing(
    others: dict[str, Json], words: str
) -> None:
    phase = "Failed" if any(held["terminated"]["exitCode"] for held in others.values()) else "Succeeded"
    given = job("Failed") if phase == "Failed" else job("Complete")
    outcome = outcome_of(read(given, pod(phase, {**others, "train": ended(0)})))
    assert (outcome.kind, outcome.exit_code) == (K.SUCCEEDED, 0)
    assert not words or outcome.message == words


def test_main_decides_although_another_failed_first() -> None:
    outcome = outcome_of(
        read(job("Failed"), pod("Failed", {"a": ended(2), "train": ended(5), "z": ended(7)}))
    )
    assert (outcome.kind, outcome.exit_code) == (K.APPLICATION_ERROR, 5)


def test_what_is_injected_first_or_renames_kubectls_default_is_not_the_main_container() -> None:
    seen = pod("Running", {"a-injected": RUNS, "train": ended(0)})
    seen["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] = "a-injected"
    main = main_container(seen)
    assert main is not None
    assert main.name == "train"
    # Before the kubelet has told of it nothing decides in its place.
    del seen["status"]["containerStatuses"][1]
    assert main_container(seen) is None
    # A pod of somebody else's: the first of the spec, not of the status, which is sorted by name.
    plain = pod("Running", {"work": RUNS, "a-sidecar": ended(0)})
    plain["metadata"]["annotations"] = {}
    assert main_container(plain).name == "work"  # type: ignore[union-attr]


def test_a_native_sidecar_never_explains_a_failure_and_a_real_init_container_does() -> None:
    always = {"proxy": {"restartPolicy": "Always"}}
    not_started = state("waiting", reason="PodInitializing")
    failed = pod("Failed", {"train": ended(0)}, inits={"proxy": ended(137)}, rules=always)
    assert outcome_of(read(job("Failed"), failed)).kind is K.SUCCEEDED
    inits = {"proxy": ended(143), "fetch": ended(2)}
    broken = pod("Failed", {"train": not_started}, inits=inits, rules=always)
    outcome = outcome_of(read(job("Failed"), broken))
    assert (outcome.kind, outcome.exit_code) == (K.APPLICATION_ERROR, 2)
    assert "init container 'fetch'" in outcome.message
    runs_on = read(job(), pod("Running", {"train": ended(0)}, inits={"proxy": RUNS}, rules=always))
    assert (runs_on.phase, runs_on.lingering) == (Phase.RUNNING, None)  # the kubelet ends it


def rule(operator: str, code: int) -> Json:
    exits = {"operator": operator, "values": [code]}
    return {"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": exits}]}


@pytest.mark.parametrize(
    ("rules", "code", "over"),
    [
        ({"restartPolicy": "Always"}, 0, False),
        ({"restartPolicy": "OnFailure"}, 3, False),
        (rule("In", 3), 3, False),
        (rule("NotIn", 0), 3, False),
        ({"restartPolicy": "OnFailure"}, 0, True),
        (rule("In", 42), 3, True),
        (rule("NotIn", 3), 3, True),
    ],
)
def test_a_main_container_that_is_started_again_has_not_ended(rules: Json, code: int, over: bool) -> None:
    seen = read(job(), pod("Running", {"proxy": RUNS, "train": ended(code)}, rules={"train": rules}))
    assert (seen.lingering is not None) == over
    assert seen.phase is Phase.RUNNING


DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}


@pytest.mark.parametrize(
    ("told_at", "kind"), [("00:00:20", K.SUCCEEDED), ("00:00:10", K.EVICTED), ("00:00:05", K.EVICTED)]
)
def test_a_disrupted_pod_is_a_success_if_main_had_ended_before(told_at: str, kind: K) -> None:
    conditions = [DISRUPTED | {"lastTransitionTime": f"2026-01-01T{told_at}Z"}]
    told = {"deletionTimestamp": "2026-01-01T00:00:50Z", "deletionGracePeriodSeconds": 30}
    states = {"proxy": ended(137), "train": ended(0)}
    outcome = outcome_of(read(job("Failed"), pod("Failed", states, conditions=conditions, told=told)))
    assert outcome.kind is kind
    # While it goes, its end is to be written down at once: soon nothing may be left to read it from.
    going = read(
        job("FailureTarget"), pod("Running", states | {"proxy": RUNS}, conditions=conditions, told=told)
    )
    assert (going.lingering is not None and going.lingering.going) == (kind is K.SUCCEEDED)


@pytest.mark.parametrize(
    ("seconds", "kind"), [(11, K.SUCCEEDED), (10, K.DEADLINE_EXCEEDED), (5, K.DEADLINE_EXCEEDED)]
)
def test_a_pods_own_deadline_ends_only_what_had_not_ended_before(seconds: int, kind: K) -> None:
    over = pod("Failed", {"proxy": ended(137), "train": ended(0)})
    over["spec"]["activeDeadlineSeconds"] = seconds
    over["status"] |= {"reason": "DeadlineExceeded", "startTime": "2026-01-01T00:00:00Z"}
    assert outcome_of(read(job("Failed"), trim_pod(over))).kind is kind


def test_what_is_written_on_the_job_holds_whatever_comes_after() -> None:
    written = end_workload.outcome_note(Outcome(K.SUCCEEDED, exit_code=0, pod_name="p", pod_uid="pu"))
    noted = job("Failed")
    noted["metadata"]["annotations"] = {OUTCOME_ANNOTATION: written}
    killed = pod("Failed", {"proxy": ended(137), "train": ended(0)})
    for pods in ([], [killed], [pod("Failed", {"train": ended(137)})]):
        outcome = outcome_of(read(noted, *pods))
        assert (outcome.kind, outcome.exit_code) == (K.SUCCEEDED, 0)
        assert JOB.ended(trim_workload(noted, JOB.spec_kept), pods)
    # A crash before the rest was told to go: whoever comes next does it.
    still = read(noted, pod("Running", {"proxy": RUNS, "train": ended(0)}))
    assert still.lingering is not None
    for garbage in (
        "",
        "{}",
        "[]",
        "7",
        '{"kind": 7, "last_lines": 5}',
        '{"kind":"succeeded","message":5}',
        "{",
    ):
        noted["metadata"]["annotations"] = {OUTCOME_ANNOTATION: garbage}
        found = read(noted).outcome
        assert found is not None
        assert not found.succeeded


# On the embedded cluster.


def spec(code: str, sidecar: str = "import time; time.sleep(60)") -> WorkloadSpec:
    beside = {"name": "a-proxy", "image": "py", "command": ["python", "-S", "-c", sidecar]}
    main = {"name": "train", "image": "py"}
    return WorkloadSpec(
        pod_template_dict={"kind": "Pod", "spec": {"containers": [main, beside]}},
        base_container_name="train",
        cmds=["python", "-S", "-u", "-c", code],
        termination_grace_period=1,
    )


async def start(client: ClusterClient, given: WorkloadSpec) -> tuple[Workload, WorkloadIdentity]:
    run = f"sidecars-{next(_numbers)}"
    who = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")
    return await lifecycle.submit(client, check_workload(given), who, epoch="0", namespace=NAMESPACE), who


QUICK = Timeouts(30, sidecar_grace=0.5)


async def job_ended(client: ClusterClient, started: Workload) -> Json:
    async def ended_job() -> Json | None:
        found = await client.get(JOBS, NAMESPACE, started.name)
        return found if JOB.has_ended(found) else None

    job: Json = await until_async(ended_job)
    return job


@pytest.mark.parametrize(("code", "kind"), [(0, K.SUCCEEDED), (3, K.APPLICATION_ERROR)])
async def test_a_sidecar_that_runs_on_ends_with_the_training(
    client: ClusterClient, code: int, kind: K
) -> None:
    given = spec(f"print('trained'); raise SystemExit({code})")
    started, who = await start(client, given)
    lines: list[str] = []
    seen: list[Observation] = []
    async with asyncio.timeout(30):
        outcome = await follow_to_end(
            client, started, timeouts=QUICK, on_line=lines.append, on_observation=seen.append
        )
    assert (outcome.kind, outcome.exit_code) == (kind, code)
    assert lines == ["trained"]
    assert outcome.message == "Container 'a-proxy' still ran, and is told to go."
    assert any("waiting for 'a-proxy' for 0.5 s at most" in each.detail for each in seen)
    # Closing leaves the Job, whatever the cluster makes of its pod; so does the next look.
    await lifecycle.cancel_if_live(client, started)
    await job_ended(client, started)
    again = (await lifecycle.observe(client, started)).outcome
    assert again is not None
    assert (again.kind, again.exit_code) == (kind, code)
    adopted = await lifecycle.submit(client, check_workload(given), who, epoch="0", namespace=NAMESPACE)
    assert (adopted.uid, adopted.adopted) == (started.uid, True)


async def test_a_crash_between_the_two_steps_and_a_second_process_keep_the_first_outcome(
    client: ClusterClient,
) -> None:
    started, _ = await start(client, spec("pass"))
    first = Outcome(K.SUCCEEDED, "Completed", "as the first one saw it", exit_code=0)
    assert await end_workload.note_outcome(client, started, first) == first  # and here it died
    async with asyncio.timeout(30):
        ends = await asyncio.gather(*(lifecycle.wait(client, started, timeouts=QUICK) for _ in range(3)))
    assert set(ends) == {first}
    await job_ended(client, started)
    assert (await lifecycle.observe(client, started)).outcome == first


async def test_the_end_is_written_before_the_others_get_their_time(client: ClusterClient) -> None:
    started, _ = await start(client, spec("print('trained')"))
    waiting = asyncio.create_task(lifecycle.wait(client, started, timeouts=Timeouts(30, sidecar_grace=3600)))

    async def outcome_is_written() -> bool:
        found = await client.get(JOBS, NAMESPACE, started.name)
        return OUTCOME_ANNOTATION in found["metadata"]["annotations"]

    await until_async(outcome_is_written)
    # The process that waits dies, and a drain takes the pod.
    waiting.cancel()
    [of_job] = (await client.list(PODS, NAMESPACE, label_selector=f"job-name={started.name}"))["items"]
    await client.delete(PODS, NAMESPACE, of_job["metadata"]["name"])
    await job_ended(client, started)
    async with asyncio.timeout(30):
        outcome = await lifecycle.wait(client, started, timeouts=Timeouts(30))
    assert (outcome.kind, outcome.exit_code) == (K.SUCCEEDED, 0)


async def test_no_pod_is_told_to_go_before_its_end_is_written(cluster: EmbeddedCluster) -> None:
    async with ServerProxy(cluster.url, cluster.token) as proxy:
        config = ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="any"))
        async with await ClusterClient.open(config) as watched:
            started, _ = await start(watched, spec("pass"))
            async with asyncio.timeout(30):
                assert (await lifecycle.wait(watched, started, timeouts=QUICK)).succeeded
    calls = [(seen.method, seen.path.split("/")[-2]) for seen in proxy.seen]
    assert calls.index(("PATCH", "jobs")) < calls.index(("DELETE", "pods"))


async def test_processes_that_decide_at_once_agree(client: ClusterClient) -> None:
    started, _ = await start(client, spec("pass"))
    seen = [Outcome(K.SUCCEEDED, "Completed", str(number), exit_code=0) for number in range(4)]
    ends = await asyncio.gather(*(end_workload.note_outcome(client, started, each) for each in seen))
    found = await client.get(JOBS, NAMESPACE, started.name)
    assert len(set(ends)) == 1
    assert ends[0] is not None
    assert json.loads(found["metadata"]["annotations"][OUTCOME_ANNOTATION])["message"] == ends[0].message
    await lifecycle.cancel(client, started)


async def test_a_sidecar_that_fails_after_a_good_end_fails_nothing(client: ClusterClient) -> None:
    started, _ = await start(client, spec("pass", "import time; time.sleep(1); raise SystemExit(2)"))
    async with asyncio.timeout(30):
        outcome = await lifecycle.wait(client, started, timeouts=Timeouts(30))
    assert (outcome.kind, outcome.exit_code) == (K.SUCCEEDED, 0)
    assert outcome.message == "Container 'a-proxy' ended with exit code 2."
    assert (await job_ended(client, started))["status"]["failed"] == 1


async def test_a_pod_that_a_job_may_replace_is_not_trained_again_after_its_success(
    client: ClusterClient,
) -> None:
    started, _ = await start(client, replace(spec("pass"), backoff_limit=2))
    async with asyncio.timeout(30):
        assert (await lifecycle.wait(client, started, timeouts=QUICK)).succeeded
    await job_ended(client, started)
    listed = await client.list(PODS, NAMESPACE, label_selector=f"batch.kubernetes.io/job-name={started.name}")
    assert len(listed["items"]) <= 1


def test_the_annotation_of_the_main_container_changes_no_hash() -> None:
    who = WorkloadIdentity(orchestrator="airflow", dag_id="d", run_id="r", task_id="t")
    built = build_job(check_workload(WorkloadSpec(image="i")), who, 1)
    assert built["spec"]["template"]["metadata"]["annotations"][MAIN_CONTAINER_ANNOTATION] == "main"
