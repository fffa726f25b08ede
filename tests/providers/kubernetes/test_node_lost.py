"""A node that stops answering: what is said, how long is waited, and that nothing trains twice."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest

from helpers.polling import until
from nighttrain.providers import errors
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.outcome.decide import (
    decide,
    timed_out,
)
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    OutcomeKind,
    Phase,
    WaitFor,
)
from nighttrain.providers.kubernetes.outcome.silent_nodes import is_lost, silent_since
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.resources import PODS
from nighttrain.sensors.common.failures import failing_clearly

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.local.cluster.store.store import Store

NAMESPACE = "default"
# Of which the embedded cluster knows nothing.
NODE = "node2"
SILENT = "node node1 has been silent since 2026-11-26T02:57:04Z"
REMEDY = "kubectl delete node node1"


def test_what_a_real_cluster_shows_of_a_lost_node_is_told(recordings: Any) -> None:
    told: list[Observation] = []
    for seen in recordings.replay("node-lost"):
        if seen.job is None:
            break
        told.append(decide(seen.job, list(seen.pods.values()), seen.events))
    waits = [each for each in told if each.waiting_for is WaitFor.NODE_BACK]
    assert waits
    assert told[-1] == waits[-1]  # also after the deletion by force
    for each in waits:
        assert each.phase is Phase.RUNNING
        assert SILENT in each.detail
        assert REMEDY in each.detail
        assert "no other one comes before the node is back or its Node object is gone" in each.detail
        assert (each.permanent_wait, each.since) == (OutcomeKind.NODE_LOST, "2026-11-26T02:57:04Z")
    assert not [each for each in told if "replacement" in each.detail or each.outcome is not None]
    outcome = timed_out(waits[-1], [], 900)
    assert (outcome.kind, outcome.infrastructure) == (OutcomeKind.NODE_LOST, True)
    assert "lost-node time-out of 900 s" in outcome.explain()


def test_a_taint_on_a_node_that_answers_is_no_lost_node(recordings: Any) -> None:
    for seen in recordings.replay("node-taint"):
        if seen.job is not None:
            detail = decide(seen.job, list(seen.pods.values()), seen.events).detail
            assert "silent" not in detail
            assert "kubectl delete node" not in detail


def test_a_pod_that_is_not_ready_for_a_reason_of_its_own_is_not_lost() -> None:
    for reason, lost in (("ContainersNotReady", False), ("", True)):
        ready = {
            "type": "Ready",
            "status": "False",
            "reason": reason,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        status = {"phase": "Running", "conditions": [ready]}
        pod = {"metadata": {"name": "p", "uid": "pu"}, "spec": {"nodeName": "n"}, "status": status}
        job = {"metadata": {"name": "j", "uid": "u"}, "spec": {}, "status": {}}
        assert (decide(job, [pod]).waiting_for is WaitFor.NODE_BACK) == lost


def test_a_pod_whose_process_cannot_be_killed_is_on_no_lost_node() -> None:
    """Its kubelet tells of it, long after the grace period."""
    ready = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
    told = {"deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30}
    status = {"phase": "Running", "conditions": [ready | {"lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    pod = {"metadata": {"name": "p", "uid": "pu"} | told, "spec": {"nodeName": "n"}, "status": status}
    assert not is_lost(pod)
    seen = decide({"metadata": {"name": "j", "uid": "u"}, "spec": {}, "status": {}}, [pod])
    assert (seen.phase, seen.waiting_for) == (Phase.RUNNING, None)
    assert "silent" not in seen.detail
    assert "delete node" not in seen.detail


def lost_pod(recordings: Any) -> Any:
    """The last that the real cluster knew of a pod whose node stopped answering."""
    pods = [each["object"] for each in recordings.records("node-lost") if each.get("from") == "pods"]
    return next(each for each in reversed(pods) if silent_since(each) is not None)


def lose(cluster: EmbeddedCluster, job: Workload, recorded: Any) -> str:
    """The Job's pod came to a node that stopped answering, and is to be removed; its name."""

    def write(store: Store) -> str | None:
        pods = store.list(PODS, NAMESPACE)[0]
        name = next((each["metadata"]["name"] for each in pods if owned_by(each, job)), None)
        if name is not None:
            status = recorded["status"]
            store.mutate(PODS, NAMESPACE, name, lambda pod: pod["spec"].update(nodeName=NODE))
            store.mutate(PODS, NAMESPACE, name, lambda pod: pod.update(status=status))
            store.delete(PODS, NAMESPACE, name)
        return name

    return str(until(lambda: cluster.call(write), what="the Job's pod"))


def owned_by(pod: Any, job: Workload) -> bool:
    return bool(pod["metadata"]["ownerReferences"][0]["uid"] == job.uid)


async def test_no_second_training_starts_beside_one_that_may_still_run(
    recordings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # No node here takes it: where it is, and how it is, is what was recorded of a node that is lost.
    spec = WorkloadSpec(
        image="py", cmds=["python", "-c", "pass"], node_selector={"silent": "yes"}, termination_grace_period=1
    )
    who = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id="lost", task_id="train")
    with EmbeddedCluster(images={"py": sys.executable}) as cluster:
        async with (
            asyncio.timeout(90),
            await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client,
        ):

            async def submit(**options: Any) -> Workload:
                return await lifecycle.submit(
                    client, check_workload(spec), who, epoch="0", namespace=NAMESPACE, **options
                )

            first = await submit()
            pod = await asyncio.to_thread(lose, cluster, first, lost_pod(recordings))
            outcome = await lifecycle.wait(client, first, timeouts=Timeouts(60, node_lost=3))
            assert (outcome.kind, outcome.infrastructure) == (OutcomeKind.NODE_LOST, True)
            assert "kubectl delete node node2" in outcome.explain()
            # Closing neither waits nor removes: the Job says what became of it.
            await lifecycle.cancel_if_live(client, first)
            await lifecycle.mark_consumed(client, first, "0", outcome=outcome)
            refused = pytest.raises(errors.LostNodeError, match=r"node2 has been silent .* delete node node2")
            with refused, failing_clearly():  # as Airflow's task has it: its retries follow
                await submit()
            assert (await lifecycle.observe(client, first)).outcome == outcome
            # Whoever says that it may run twice gets the next attempt.
            second = await submit(replace_on_lost_node=True)
            assert second.attempt == 2
            await lifecycle.cancel(client, second)
            # Cancelling does not wait for a node that may never come back.
            await lifecycle.cancel(client, first)
            assert "cannot be seen to end" in caplog.text
            with pytest.raises(errors.LostNodeError):
                await submit()
            # The node is back, and has ended what it was to end.
            await asyncio.to_thread(cluster.call, lambda store: store.remove(PODS, NAMESPACE, pod))
            third = await submit()
            assert third.uid not in (first.uid, second.uid)
            await lifecycle.cancel(client, third)
