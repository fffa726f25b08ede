"""EndpointReadySensor: what is not an answer from all replicas is waited for, and its end is told."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException, TaskDeferred

from helpers.airflow_connections import connect_kubernetes
from helpers.played_controllers import NAMESPACE, Player
from nighttrain.providers.errors import ClusterError, RolloutFailedError
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS, SERVICES
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.spec import ServingSpec
from nighttrain.sensors import triggers
from nighttrain.sensors.endpoint_readiness import wait_endpoint_serves
from nighttrain.sensors.serving import EndpointReadySensor
from nighttrain.sensors.triggers import settling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SPEC = ServingSpec(
    endpoint="delay",
    namespace=NAMESPACE,
    image="scoring:1",
    model_name="airline-delay",
    version="1",
    artifact_digest="0" * 64,
    tracking_uri="http://mlflow:5000",
    replicas=2,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(containers=False) as running:
        yield running


@pytest.fixture
async def player(cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Player]:
    connect_kubernetes(monkeypatch, cluster)
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0")
    monkeypatch.setattr(settling, "REPORT_SECONDS", 0.0)
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        yield Player(client)
        for kind in (SERVICES, DEPLOYMENTS):
            for item in (await client.list(kind, NAMESPACE))["items"]:
                await client.delete(kind, NAMESPACE, item["metadata"]["name"], propagation="Background")


async def served(player: Player) -> None:
    rollout = Rollout(KubernetesDeployments(player.client), sleep=player.sleep, clock=lambda: player.now)
    player.next = [lambda: player.make_ready("1")]
    await rollout.run(SPEC)


def sensor(**given: Any) -> EndpointReadySensor:
    fields: dict[str, Any] = {"version": "1", "timeout": 0.2, "poke_interval": 0.05}
    return EndpointReadySensor(task_id="ready", endpoint="delay", **(fields | given))


async def nothing_rolled_out(player: Player) -> None:
    await player.client.delete(SERVICES, NAMESPACE, "delay", propagation="Background")


async def scaled_to_zero(player: Player) -> None:
    # The pods go a moment later, and until then the status says that they are ready.
    await player.client.patch(DEPLOYMENTS, NAMESPACE, "delay-v1", {"spec": {"replicas": 0}})


async def one_not_ready(player: Player) -> None:
    await player.make_ready("1", ready=1)


async def none_ready(player: Player) -> None:
    await player.make_ready("1", ready=0)


async def deleted(player: Player) -> None:
    await player.client.delete(DEPLOYMENTS, NAMESPACE, "delay-v1", propagation="Background")


async def service_changed(player: Player) -> None:
    change = {"spec": {"selector": {"nighttrain.dev/version": "2"}}}
    await player.client.patch(SERVICES, NAMESPACE, "delay", change)


NOT_SERVING = {
    nothing_rolled_out: "nothing was rolled out yet",
    scaled_to_zero: "nobody serves: version 1 is scaled to zero replicas",
    one_not_ready: "version 1 serves from 1/2 replicas",
    none_ready: "nobody serves: 0/2 replicas of version 1 are ready",
    deleted: "nobody serves: the Deployment of version 1 is gone",
    service_changed: "version 1 gets no requests: somebody changed the Service, which selects version 2",
}


@pytest.mark.parametrize("happened", NOT_SERVING, ids=lambda happened: happened.__name__)
async def test_what_does_not_answer_is_waited_for_and_the_reason_told(player: Player, happened: Any) -> None:
    await served(player)
    await happened(player)
    assert not sensor().poke({}).is_done
    with pytest.raises(RolloutFailedError, match=f"did not serve version 1 .*: {NOT_SERVING[happened]}"):
        await wait_endpoint_serves(
            player.client,
            NAMESPACE,
            "delay",
            "1",
            timeout_seconds=3,
            on_progress=player.told.append,
            sleep=player.sleep,
            clock=lambda: player.now,
        )
    assert player.told[-1] == f"delay: {NOT_SERVING[happened]}"


@pytest.mark.parametrize("version", ["1", 1, None])
async def test_what_serves_is_there_at_once(player: Player, version: Any) -> None:
    await served(player)
    status = sensor(version=version).execute({})
    assert (status["stable_version"], status["ready_replicas"], status["replicas"]) == ("1", 2, 2)


async def test_another_version_is_not_the_one(player: Player) -> None:
    await served(player)
    assert not sensor(version="2").poke({}).is_done


async def test_in_the_worker_it_times_out(player: Player) -> None:
    with pytest.raises(AirflowSensorTimeout):
        sensor(deferrable=False).execute({})
    with pytest.raises(AirflowSkipException):
        sensor(deferrable=False, soft_fail=True).execute({})


async def the_event(deferred: TaskDeferred) -> dict[str, Any]:
    """What the trigger says, made anew from what Airflow stores of it."""
    path, arguments = deferred.trigger.serialize()
    trigger = getattr(triggers, path.rpartition(".")[2])(**json.loads(json.dumps(arguments)))
    async with asyncio.timeout(60):
        return dict((await anext(trigger.run())).payload)


async def test_deferred_it_ends_when_the_endpoint_serves(player: Player) -> None:
    await served(player)
    await none_ready(player)
    with pytest.raises(TaskDeferred) as deferred:
        sensor(timeout=60).execute({})
    waiting = asyncio.create_task(the_event(deferred.value))
    await player.make_ready("1")
    event = await waiting
    assert sensor().execute_complete({}, event)["ready_replicas"] == 2


async def test_deferred_it_fails_with_what_was_seen_last(player: Player) -> None:
    await served(player)
    await none_ready(player)
    with pytest.raises(TaskDeferred) as deferred:
        sensor().execute({})
    event = await the_event(deferred.value)
    resumed = ("execute_complete", {"event": event}, {})
    with pytest.raises(RolloutFailedError, match="nobody serves: 0/2 replicas of version 1 are ready"):
        sensor().resume_execution(*resumed)
    for given in ({"soft_fail": True}, {"never_fail": True}):
        with pytest.raises(AirflowSkipException):
            sensor(**given).resume_execution(*resumed)


async def test_a_cluster_that_refuses_ends_the_wait_with_its_words(
    player: Player, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        sensor(timeout=60).execute({})
    refused = cluster.kubeconfig.read_text().replace(cluster.token, "wrong")
    connection = {"conn_type": "kubernetes", "extra": {"kube_config": refused}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    with pytest.raises(ClusterError, match="401"):
        sensor(deferrable=False).execute({})
    event = await the_event(deferred.value)
    with pytest.raises(RolloutFailedError, match="401"):
        sensor().execute_complete({}, event)
