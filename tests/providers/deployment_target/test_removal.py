"""An endpoint goes whole, or stays whole."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from helpers.clusters import connected
from helpers.played_kserve import DEFINITIONS, definition
from helpers.polling import until
from nighttrain.providers.deployment_target.removal import take_down, take_down_rest
from nighttrain.providers.deployment_target.standing import look_at
from nighttrain.providers.errors import (
    ConfigurationError,
    ObjectExistsError,
    ObjectNotFoundError,
    RolloutUnderWayError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    HTTPROUTES,
    INFERENCE_SERVICES,
    ROLLOUTS,
    SERVICES,
)
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.manifests import build_deployment, build_service
from nighttrain.providers.serving.backends.plain.routes import Backend, RouteSettings, build_route
from nighttrain.providers.serving.backends.traffic import Target
from nighttrain.providers.serving.rollouts.opening import Setting
from nighttrain.providers.serving.rollouts.state import Names, Phase, State
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.spec import ServingSpec
from nighttrain.providers.serving.strategy import canary

from .conftest import Commands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from helpers.mlflow_server import MadeModel, MLflowServer
    from nighttrain.providers.kubernetes.api.client import ClusterClient

HERE = "default"
GATEWAY = {"type": "gateway", "gateway": "g"}


@pytest.fixture(scope="module")
def routed_cluster() -> Iterator[EmbeddedCluster]:
    """One that has HTTPRoutes; no image here is to be had."""
    with EmbeddedCluster({}, serving=Serving()) as running:
        yield running


class Endpoint:
    """One endpoint of two versions behind a gateway, as a rollout in steps leaves it."""

    def __init__(self, client: ClusterClient, name: str) -> None:
        self.client, self.name = client, name

    def spec(self, version: str) -> ServingSpec:
        return ServingSpec(
            endpoint=self.name,
            namespace=HERE,
            image="scoring",
            model_name="delays",
            version=version,
            artifact_digest="0" * 64,
            tracking_uri="http://mlflow:5000",
        )

    async def make(self, *, phase: Phase = Phase.PROMOTED, route: Any = None, setting: Any = GATEWAY) -> None:
        for version in ("1", "2"):
            made = await self.client.create(DEPLOYMENTS, HERE, build_deployment(self.spec(version)))
        await self.client.create(SERVICES, HERE, build_service(made))
        body = build_route(RouteSettings(gateway="g"), Backend(name=self.name, port=8080), HERE)
        body["metadata"]["labels"] = body["metadata"]["labels"] if route is None else route
        await self.client.create(HTTPROUTES, HERE, body)
        target = Target(endpoint=self.name, namespace=HERE, model_name="delays", candidate="2", stable="1")
        begun = State(
            rollout_id="r", actor="ann", target=target, strategy=canary(), names=Names(), begun_at=0, since=0
        )
        kept = Setting(backend=setting).to_dict()
        await RolloutStore(self.client).begin(replace(begun, phase=phase, setting=kept), None)

    async def objects(self) -> dict[str, Any]:
        names = {
            (DEPLOYMENTS, f"{self.name}-v1"),
            (DEPLOYMENTS, f"{self.name}-v2"),
            (SERVICES, self.name),
            (HTTPROUTES, self.name),
            (CONFIGMAPS, f"{self.name}-rollout"),
        }
        found = {}
        for resource, name in names:
            try:
                body = await self.client.get(resource, HERE, name)
            except ObjectNotFoundError:
                continue
            found[f"{resource.kind} {name}"] = body["metadata"]["uid"]
        return found

    async def take_down(self) -> bool:
        return await take_down(self.client, await look_at(self.client, self.name, HERE), print)


async def test_everything_of_an_endpoint_goes_and_once_more_is_no_error(
    routed_cluster: EmbeddedCluster,
) -> None:
    async with connected(routed_cluster) as client:
        endpoint, beside = Endpoint(client, "goes"), Endpoint(client, "goes-not")
        await endpoint.make()
        await beside.make()
        kept = await beside.objects()
        assert len(kept) == 5
        assert await endpoint.take_down()
        assert await endpoint.objects() == {}
        assert not await endpoint.take_down()
        assert await beside.objects() == kept


async def test_during_a_rollout_and_where_something_is_not_ours_all_of_it_stays(
    routed_cluster: EmbeddedCluster,
) -> None:
    async with connected(routed_cluster) as client:
        busy = Endpoint(client, "busy")
        await busy.make(phase=Phase.HOLDING)
        before = await busy.objects()
        with pytest.raises(RolloutUnderWayError, match=r"begun by ann.*rollout abort busy"):
            await busy.take_down()
        assert await busy.objects() == before

        routed = Endpoint(client, "routed")
        await routed.make(route={"team": "web"})
        before = await routed.objects()
        with pytest.raises(WorkloadConflictError, match="HTTPRoute routed was not made by nighttrain"):
            await routed.take_down()
        assert await routed.objects() == before

        taken = Endpoint(client, "taken")
        await taken.make()
        await client.patch(
            SERVICES, HERE, "taken", {"metadata": {"labels": {"nighttrain.dev/endpoint": "x"}}}
        )
        before = await taken.objects()
        with pytest.raises(
            WorkloadConflictError, match="Service taken exists and was not made by nighttrain"
        ):
            await taken.take_down()
        assert await taken.objects() == before


async def test_a_rollout_that_begins_at_that_moment_keeps_its_endpoint(
    routed_cluster: EmbeddedCluster,
) -> None:
    async with connected(routed_cluster) as client:
        endpoint = Endpoint(client, "begins")
        await endpoint.make()
        looked = await look_at(client, "begins", HERE)
        assert looked.kept is not None
        following = replace(looked.kept.state, rollout_id="later", phase=Phase.STARTING)
        await RolloutStore(client).begin(following, looked.kept)
        before = await endpoint.objects()
        with pytest.raises(RolloutUnderWayError, match="has just begun"):
            await take_down(client, looked, print)
        assert await endpoint.objects() == before


@pytest.mark.slow
@pytest.mark.mlflow
@pytest.mark.timeout(600)
@pytest.mark.thorough
async def test_an_interrupted_command_undoes_its_rollout(
    idle_cluster: EmbeddedCluster, mlflow_server: MLflowServer, three_versions: MadeModel, tmp_path: Path
) -> None:
    commands = Commands(str(idle_cluster.kubeconfig), mlflow_server.uri, tmp_path)
    steps = commands.write("steps.json", {"steps": [50], "watch_seconds": 1})
    command = [sys.executable, "-m", "mlflow", "deployments", "create", "-t", "kubernetes:/default"]
    command += ["--name", "stopped", "-m", f"models:/{three_versions.name}/1", "-C", "image=scoring"]
    log = tmp_path / "log"
    interrupt([*command, "-C", f"strategy={steps}"], commands, log)
    assert "interrupted: the rollout is undone" in log.read_text()
    async with connected(idle_cluster) as client:
        kept = await RolloutStore(client).read("stopped", HERE)
        assert kept is not None
        assert kept.state.phase is Phase.UNDONE
        assert "the command was interrupted" in kept.state.reason
        with pytest.raises(ObjectNotFoundError):
            await client.get(DEPLOYMENTS, HERE, "stopped-v1")


async def test_what_another_serving_system_has_is_left_to_it(routed_cluster: EmbeddedCluster) -> None:
    """Its Service may have the endpoint's name, and is not nighttrain's."""
    async with connected(routed_cluster) as client:
        endpoint = Endpoint(client, "elsewhere")
        await endpoint.make(setting={"type": "seldon", "mesh": "http://mesh"})
        labels = {"metadata": {"labels": {"nighttrain.dev/endpoint": None}}}
        await client.patch(SERVICES, HERE, "elsewhere", labels)
        before = await endpoint.objects()
        shown = (await look_at(client, "elsewhere", HERE)).to_dict()
        assert (shown["backend"], shown["version"]) == ("seldon", "2")
        with pytest.raises(ConfigurationError, match="it is on seldon"):
            await endpoint.take_down()
        assert await endpoint.objects() == before


class Elsewhere:
    """An endpoint on a serving system of its own, as its rollouts leave it.

    :param owner: who made what serves, by its label
    """

    def __init__(self, client: ClusterClient, name: str, system: str, owner: str = "nighttrain") -> None:
        self.client, self.name, self.system = client, name, system
        self.marks = {"nighttrain.dev/endpoint": name, "app.kubernetes.io/managed-by": owner}
        self.kind = INFERENCE_SERVICES if system == "kserve" else ROLLOUTS

    async def make(self) -> None:
        marks = {**self.marks, "app.kubernetes.io/managed-by": "nighttrain"}
        predictor = {"model": {"modelFormat": {"name": "mlflow"}, "storageUri": "s3://models/1"}}
        served: dict[str, Any] = {"metadata": {"name": self.name, "labels": self.marks}}
        served |= {"apiVersion": self.kind.api_version, "kind": self.kind.kind}
        served["spec"] = {"predictor": predictor} if self.system == "kserve" else {"replicas": 1}
        await self.client.create(self.kind, HERE, served)
        if self.system == "kserve":
            body = {"metadata": {"name": f"{self.name}-kserve", "labels": marks}}
            await self.client.create(CONFIGMAPS, HERE, {**body, "apiVersion": "v1", "kind": "ConfigMap"})
        for name in () if self.system == "kserve" else ("", "-stable", "-canary"):
            meta = {"name": f"{self.name}{name}", "labels": marks}
            body = {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": meta,
                "spec": {"ports": [{"port": 80}]},
            }
            await self.client.create(SERVICES, HERE, body)
        target = Target(endpoint=self.name, namespace=HERE, model_name="delays", candidate="2", stable="1")
        begun = State(
            rollout_id="r", actor="ann", target=target, strategy=canary(), names=Names(), begun_at=0, since=0
        )
        kept = Setting(backend={"type": self.system}).to_dict()
        await RolloutStore(self.client).begin(replace(begun, phase=Phase.PROMOTED, setting=kept), None)

    async def left(self) -> list[str]:
        found = []
        for kind in (self.kind, CONFIGMAPS, SERVICES):
            for each in (await self.client.list(kind, HERE))["items"]:
                if (name := each["metadata"]["name"]).startswith(self.name):
                    found.append(f"{kind.kind} {name}")
        return sorted(found)

    async def take_down(self) -> bool:
        if await take_down_rest(self.client, self.name, HERE, print):
            return True
        return await take_down(self.client, await look_at(self.client, self.name, HERE), print)


@pytest.fixture
async def elsewhere(routed_cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    async with connected(routed_cluster) as client:
        with contextlib.suppress(ObjectExistsError):
            await client.create(DEFINITIONS, None, definition(ROLLOUTS))
        yield client


@pytest.mark.parametrize("system", ["kserve", "argo_rollouts"])
async def test_what_rollouts_made_elsewhere_goes_and_once_more_is_no_error(
    elsewhere: ClusterClient, system: str
) -> None:
    name = system[:4]
    endpoint, beside = Elsewhere(elsewhere, f"{name}-goes", system), Elsewhere(elsewhere, f"{name}-b", system)
    await endpoint.make()
    await beside.make()
    kept = await beside.left()
    assert len(kept) == len(await endpoint.left()) == (3 if system == "kserve" else 5)
    assert await endpoint.take_down()
    assert await endpoint.left() == []
    assert not await endpoint.take_down()
    assert await beside.left() == kept


@pytest.mark.parametrize("system", ["kserve", "argo_rollouts"])
async def test_a_deletion_elsewhere_that_was_interrupted_is_finished_by_the_next(
    elsewhere: ClusterClient, system: str
) -> None:
    endpoint = Elsewhere(elsewhere, f"{system[:4]}-half", system)
    await endpoint.make()
    await elsewhere.delete(CONFIGMAPS, HERE, f"{endpoint.name}-rollout", propagation="Background")
    assert await endpoint.take_down()
    assert await endpoint.left() == []


@pytest.mark.parametrize("system", ["kserve", "argo_rollouts"])
async def test_what_serves_elsewhere_and_is_not_ours_stays_with_everything(
    elsewhere: ClusterClient, system: str
) -> None:
    endpoint = Elsewhere(elsewhere, f"{system[:4]}-helm", system, owner="helm")
    await endpoint.make()
    before = await endpoint.left()
    with pytest.raises(WorkloadConflictError, match=r"was not made by nighttrain .*\(made by helm\)"):
        await endpoint.take_down()
    assert await endpoint.left() == before


def interrupt(command: list[str], commands: Commands, log: Path) -> None:
    """Run a command, press Ctrl-C once it waits for a pod, and wait for its end."""
    # What a shell starts in the background ignores SIGINT, and so would the command.
    heeding = ["env", "--default-signal=INT", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            heeding, stdout=output, stderr=output, cwd=commands.folder, env=commands.environment()
        )
        try:
            until(lambda: "0 of 1 pods are ready" in log.read_text() or process.poll() is not None, 120)
            process.send_signal(signal.SIGINT)
            process.wait(60)
        finally:
            process.kill()
            process.wait()
