"""A single pod's own end is the attempt's, however late the Job's controller is, and ended for all."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from helpers.subresources import status_of
from nighttrain.providers.attempts import lifecycle, reaper
from nighttrain.providers.attempts.reaper import TaskState
from nighttrain.providers.kubernetes.api.client import JOBS, PODS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.kinds import JOB
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.logs import logs
from nighttrain.providers.kubernetes.mirror.mirrored import Mirror
from nighttrain.providers.kubernetes.mirror.trimming import trim_pod
from nighttrain.providers.kubernetes.outcome.decide import (
    decide,
)
from nighttrain.providers.kubernetes.outcome.endings import ended_by_itself, told_to_go
from nighttrain.providers.kubernetes.outcome.outcome import (
    OutcomeKind,
    Phase,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

K = OutcomeKind
Json = dict[str, Any]
NAMESPACE = "default"
_numbers = count()


def terminated(code: int) -> Json:
    return {
        "terminated": {
            "exitCode": code,
            "reason": "Error" if code else "Completed",
            "startedAt": "2026-01-01T00:00:00Z",
            "finishedAt": "2026-01-01T00:00:10Z",
        }
    }


def job() -> Json:
    rule = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    spec = {"completions": 1, "parallelism": 1, "backoffLimit": 0, "podFailurePolicy": {"rules": [rule]}}
    return {"metadata": {"name": "j", "uid": "u"}, "spec": spec, "status": {"active": 1}}


def pod(code: int) -> Json:
    owner = {"kind": "Job", "uid": "u", "controller": True}
    status = {"phase": "Failed" if code else "Succeeded", "conditions": []}
    return {
        "metadata": {"name": "p", "uid": "pu", "ownerReferences": [owner]},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main"}]},
        "status": status | {"containerStatuses": [{"name": "main", "state": terminated(code)}]},
    }


Change = Callable[[Json, Json], object]

TOLD_BEFORE = {"deletionTimestamp": "2026-01-01T00:00:35Z", "deletionGracePeriodSeconds": 30}
# The last step of a deletion overwrites when it was asked for.
TOLD_SOMETIME = {"deletionTimestamp": "2026-01-01T00:00:35Z", "deletionGracePeriodSeconds": 0}
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z"}

NOT_CONCLUSIVE: dict[str, Change] = {
    "more than one pod to do": lambda job, pod: job["spec"].update(completions=2),
    "more than one pod at once": lambda job, pod: job["spec"].update(parallelism=2),
    "still running": lambda job, pod: pod["status"].update(phase="Running"),
    "its main container's end unseen": lambda job, pod: pod["status"].update(containerStatuses=[]),
    "never ran": lambda job, pod: pod["status"]["containerStatuses"][0]["state"]["terminated"].update(
        reason="ContainerStatusUnknown"
    ),
    "another Job's": lambda job, pod: pod["metadata"]["ownerReferences"][0].update(uid="other"),
    "nobody's": lambda job, pod: pod["metadata"].update(ownerReferences=[]),
    "not controlled": lambda job, pod: pod["metadata"]["ownerReferences"][0].pop("controller"),
    "deleted before its end": lambda job, pod: pod["metadata"].update(TOLD_BEFORE),
    "deleted nobody knows when": lambda job, pod: pod["metadata"].update(TOLD_SOMETIME),
    "disrupted before its end": lambda job, pod: pod["status"].update(conditions=[DISRUPTED]),
    "evicted by its kubelet": lambda job, pod: pod["status"].update(reason="Evicted"),
    "past its deadline": lambda job, pod: pod["status"].update(reason="DeadlineExceeded"),
    "the Job is suspended": lambda job, pod: job["spec"].update(suspend=True),
    "the Job is deleted": lambda job, pod: job["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"),
}
MAY_BE_REPLACED: dict[str, Change] = {
    "a failure is forgiven": lambda job, pod: job["spec"].update(backoffLimit=1),
    "six are, which is the default": lambda job, pod: job["spec"].pop("backoffLimit"),
    "some are ignored": lambda job, pod: job["spec"]["podFailurePolicy"]["rules"].append(
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [3]}}
    ),
}


@pytest.mark.parametrize("code", [0, 3])
def test_a_single_pods_end_decides(code: int) -> None:
    observation = decide(job(), [pod(code)])
    assert observation.outcome is not None
    assert observation.outcome.kind is (K.APPLICATION_ERROR if code else K.SUCCEEDED)
    assert observation.outcome.exit_code == code
    assert JOB.ended(job(), [pod(code)])
    later = pod(code)  # what happens to it afterwards changes nothing
    later["metadata"] |= {"deletionTimestamp": "2026-01-01T00:01:00Z", "deletionGracePeriodSeconds": 30}
    assert decide(job(), [later]).outcome == observation.outcome
    # The same as what the Job's controller says later, and as what it says wrongly where it was too late.
    for reason in ("BackoffLimitExceeded", "DeadlineExceeded"):
        told = job()
        told["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": reason}]}
        assert decide(told, [pod(code)]).outcome == observation.outcome


@pytest.mark.parametrize("why", NOT_CONCLUSIVE)
@pytest.mark.parametrize("code", [0, 3])
def test_what_is_not_conclusive_waits_for_the_job(why: str, code: int) -> None:
    given, its = job(), pod(code)
    NOT_CONCLUSIVE[why](given, its)
    assert decide(given, [its]).phase is not Phase.FINISHED
    assert not JOB.ended(given, [its])


@pytest.mark.parametrize("why", MAY_BE_REPLACED)
def test_a_failed_pod_that_the_job_may_replace_decides_nothing(why: str) -> None:
    given = job()
    MAY_BE_REPLACED[why](given, pod(3))
    assert decide(given, [pod(3)]).phase is not Phase.FINISHED
    assert decide(given, [pod(0)]).phase is Phase.FINISHED  # a success is not replaced


def test_a_second_pod_that_lives_decides_nothing() -> None:
    other = copy.deepcopy(pod(0))
    other["metadata"] |= {"name": "o", "uid": "ou"}
    other["status"] = {"phase": "Running"}
    assert decide(job(), [pod(0), other]).phase is not Phase.FINISHED
    assert decide(job(), [other, pod(0)]).phase is not Phase.FINISHED


async def test_when_a_pod_was_told_to_go_outlasts_the_last_step_of_its_deletion(recordings: Any) -> None:
    """It writes another time and a grace period of 0: by it alone the pod may have ended by itself."""
    kept = Mirror(JOB)
    changes = [each for each in recordings.records("job-pod-deleted") if each["from"] == "pods"]
    uid = changes[0]["object"]["metadata"]["uid"]
    seen = [trim_pod(each["object"]) for each in changes if each["object"]["metadata"]["uid"] == uid]
    assert told_to_go(trim_pod(changes[0]["object"])) is None
    for each in seen:
        owner = kept.put_pod(each)
    last = kept.pods[owner][uid]
    assert last["status"]["phase"] == "Succeeded"
    assert last["metadata"]["deletionGracePeriodSeconds"] == 5
    assert ended_by_itself(last) is None


# A cluster whose Job controller never comes: the kubelet's word is all there is.


@pytest.fixture
async def client(idle_cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(idle_cluster.kubeconfig))) as opened:
        yield opened


async def ended_pod(client: ClusterClient, its: Workload, code: int) -> None:
    found = await client.get(JOBS, NAMESPACE, its.name)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": its.name, "uid": its.uid, "controller": True}
    labels = found["spec"]["template"]["metadata"]["labels"] | {"batch.kubernetes.io/job-name": its.name}
    spec = {"restartPolicy": "Never", "nodeName": "node1", "containers": [{"name": "main", "image": "i"}]}
    meta = {"name": f"{its.name}-p", "ownerReferences": [owner], "labels": labels}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    await client.create(PODS, NAMESPACE, body)
    container = {"ready": False, "restartCount": 0, "image": "i", "imageID": ""}
    status = pod(code)["status"]
    status["containerStatuses"][0] |= container
    await client.patch(status_of(PODS), NAMESPACE, f"{its.name}-p", {"status": status})


class Over:
    async def state(self, identity: WorkloadIdentity) -> TaskState:
        return TaskState.OVER


async def test_a_job_whose_pod_has_decided_is_ended_for_all_who_ask(client: ClusterClient) -> None:
    run = f"pod-{next(_numbers)}"
    who = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")
    spec = WorkloadSpec(image="i", cmds=["train"])
    first = await lifecycle.submit(client, check_workload(spec), who, epoch="0", namespace=NAMESPACE)
    reading = asyncio.create_task(logs.follow(client, first, lambda line: None))
    waiting = asyncio.create_task(lifecycle.wait(client, first, timeouts=Timeouts(60)))
    async with asyncio.timeout(30):
        await ended_pod(client, first, 3)
        outcome = await waiting
        await reading  # it waits for no Job controller either
        assert (outcome.kind, outcome.exit_code) == (K.APPLICATION_ERROR, 3)
        # Closing leaves the Job, a crash adopts it as it is, and the reaper leaves it.
        await lifecycle.cancel_if_live(client, first)
        version = (await client.get(JOBS, NAMESPACE, first.name))["metadata"]["resourceVersion"]
        again = await lifecycle.submit(client, check_workload(spec), who, epoch="0", namespace=NAMESPACE)
        assert (again.uid, again.adopted) == (first.uid, True)
        (found,) = await reaper.find(client, NAMESPACE, Over(), minimum_age_seconds=0)
        assert found.verdict is reaper.Verdict.CLOSE  # only its run is to be closed, as it ended
        job = await client.get(JOBS, NAMESPACE, first.name)
        assert job["metadata"]["resourceVersion"] == version  # no fence: what has ended needs none
        # The next attempt waits for nothing and removes nothing.
        await lifecycle.mark_consumed(client, first, "0", outcome=outcome)
        second = await lifecycle.submit(client, check_workload(spec), who, epoch="0", namespace=NAMESPACE)
        assert second.attempt == 2
        assert "deletionTimestamp" not in (await client.get(JOBS, NAMESPACE, first.name))["metadata"]


async def test_a_finding_whose_pod_has_decided_meanwhile_is_not_reaped(client: ClusterClient) -> None:
    run = f"pod-{next(_numbers)}"
    who = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")
    spec = WorkloadSpec(image="i", cmds=["train"])
    first = await lifecycle.submit(client, check_workload(spec), who, epoch="0", namespace=NAMESPACE)
    findings = await reaper.find(client, NAMESPACE, Over(), minimum_age_seconds=0)
    (finding,) = (each for each in findings if each.workload.uid == first.uid)
    assert finding.verdict is reaper.Verdict.REAP
    await ended_pod(client, first, 0)
    assert (await reaper.reap(client, finding, Over())).verdict is reaper.Verdict.CLOSE
    assert (await client.get(JOBS, NAMESPACE, first.name))["metadata"]["uid"] == first.uid
