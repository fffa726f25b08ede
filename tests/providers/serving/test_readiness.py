"""What the API reports about a Deployment and its pods, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from nighttrain.providers.serving.backends.pods import judge

Json = dict[str, Any]


def deployment(**status: Any) -> Json:
    state = {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1} | status
    return {"metadata": {"generation": 2}, "spec": {"replicas": 1}, "status": state}


def pod(state: Json, *, last: Json | None = None, restarts: int = 0) -> Json:
    container = {"name": "main", "state": state, "lastState": last or {}, "restartCount": restarts}
    return {
        "metadata": {"name": "delay-v1-x"},
        "status": {"phase": "Running", "containerStatuses": [container]},
    }


def ended(code: int, message: str = "", reason: str = "Error") -> Json:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def waiting(reason: str, message: str = "") -> Json:
    return {"waiting": {"reason": reason, "message": message}}


def test_ready_when_every_replica_is_of_this_form_and_available() -> None:
    assert judge(deployment(readyReplicas=1, availableReplicas=1), []).ready
    assert not judge(deployment(readyReplicas=1, availableReplicas=1, observedGeneration=1), []).ready
    assert not judge(deployment(readyReplicas=1, availableReplicas=1, updatedReplicas=0), []).ready
    assert not judge(deployment(readyReplicas=2, availableReplicas=2, replicas=2), []).ready
    assert not judge(deployment(), []).ready


def test_somebody_answers_when_one_pod_of_this_form_is_there_and_none_of_another() -> None:
    def answers(wanted: int = 3, **status: Any) -> bool:
        state = {"replicas": 3, "updatedReplicas": 3, "readyReplicas": 1, "availableReplicas": 1} | status
        return judge({**deployment(**state), "spec": {"replicas": wanted}}, [broken]).answers

    broken = pod(waiting("InvalidImageName"))
    assert answers()
    assert answers(replicas=1, updatedReplicas=1, wanted=1)
    assert not answers(readyReplicas=0)
    assert not answers(availableReplicas=0)
    assert not answers(updatedReplicas=2)
    assert not answers(observedGeneration=1)
    assert not answers(wanted=0)
    assert not judge({}, []).answers


@pytest.mark.parametrize(
    "nothing", [{}, {"spec": None, "status": None, "metadata": None}, {"status": {"conditions": 3}}]
)
def test_nothing_known_is_not_ready_and_no_failure(nothing: Json) -> None:
    found = judge(nothing, [{}, {"status": {"containerStatuses": [{}]}}])
    assert not found.ready
    assert found.failure is None


def test_a_digest_that_differs_is_final_at_the_first_start() -> None:
    found = judge(deployment(), [pod(ended(78, "expected sha256 aa, actual bb"))])
    assert "expected sha256 aa, actual bb" in str(found.failure)
    again = judge(
        deployment(), [pod({"running": {"startedAt": "x"}}, last=ended(78, "expected"), restarts=1)]
    )
    assert again.failure is not None


def test_a_crash_is_a_doubt_and_the_third_a_failure() -> None:
    first = judge(deployment(), [pod(ended(1, "boom"))])
    assert first.failure is None
    assert "boom" in str(first.doubt)
    third = judge(deployment(), [pod(waiting("CrashLoopBackOff"), last=ended(1, "boom"), restarts=2)])
    assert "3 starts" in str(third.failure)
    assert "boom" in str(third.failure)


@pytest.mark.parametrize(
    "state",
    [
        waiting("InvalidImageName", "couldn't parse"),
        waiting("ErrImagePull", "rpc error: model-server:9: not found"),
        waiting("ImagePullBackOff", "pull access denied, repository does not exist"),
        ended(137, reason="OOMKilled"),
        ended(128, "exec: python: executable file not found", reason="StartError"),
    ],
)
def test_what_no_waiting_mends_is_a_failure_at_once(state: Json) -> None:
    assert judge(deployment(), [pod(state)]).failure


@pytest.mark.parametrize(
    "state",
    [
        waiting("ErrImagePull", "dial tcp: i/o timeout"),
        waiting("CreateContainerConfigError", 'secret "x" not found'),
    ],
)
def test_what_may_pass_is_a_doubt(state: Json) -> None:
    found = judge(deployment(), [pod(state)])
    assert found.failure is None
    assert found.doubt


def test_the_deployments_own_conditions() -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
    security = refused | {"message": 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'}
    quota = refused | {"message": 'pods "x" is forbidden: exceeded quota: team, requested: cpu=4'}
    late = {
        "type": "Progressing",
        "status": "False",
        "reason": "ProgressDeadlineExceeded",
        "message": "timed out",
    }
    assert judge(deployment(conditions=[security]), []).failure
    assert judge(deployment(conditions=[quota]), []).doubt
    assert judge(deployment(conditions=[quota]), []).failure is None
    assert judge(deployment(conditions=[late]), []).failure
    unseen = deployment(conditions=[late], observedGeneration=1)
    assert judge(unseen, []).failure is None


def test_secrets_in_a_containers_last_words_are_masked() -> None:
    found = judge(deployment(), [pod(ended(78, "MLFLOW_TRACKING_TOKEN=hunter2hunter2"))])
    assert "hunter2" not in str(found.failure)


def test_pods_of_a_form_given_up_and_of_a_deleted_deployment_do_not_count() -> None:
    annotations = {"nighttrain.dev/template-hash": "new"}
    current = deployment()
    current["metadata"]["creationTimestamp"] = "2026-01-01T00:00:10Z"
    current["spec"]["template"] = {"metadata": {"annotations": annotations}}
    broken = pod(ended(78, "expected"))
    assert judge(current, [broken]).failure
    broken["metadata"] |= {"annotations": annotations, "creationTimestamp": "2026-01-01T00:00:10Z"}
    assert judge(current, [broken]).failure
    old_form = broken["metadata"] | {"annotations": {"nighttrain.dev/template-hash": "old"}}
    older = broken["metadata"] | {"creationTimestamp": "2026-01-01T00:00:09Z"}
    assert not judge(current, [broken | {"metadata": old_form}]).failure
    assert not judge(current, [broken | {"metadata": older}]).failure


def test_an_init_container_that_is_done_says_nothing_and_one_that_failed_speaks() -> None:
    def after(state: Json, main: Json) -> Json:
        started = pod(main)
        started["status"]["initContainerStatuses"] = [{"name": "fetch-model", "state": state}]
        return started

    unfit = after(ended(0, reason="Completed"), waiting("ErrImagePull", "dial tcp: i/o timeout"))
    assert "ErrImagePull" in str(judge(deployment(), [unfit]).doubt)
    unverified = after(ended(78, "another artifact"), waiting("PodInitializing"))
    assert "another artifact" in str(judge(deployment(), [unverified]).failure)
