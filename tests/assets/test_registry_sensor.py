"""The sensor against a real registry, changed by hand over REST."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from helpers.mlflow_server import free_port, unique
from nighttrain.assets.flights import airline_delay_definitions
from nighttrain.assets.registry import registered_model_sensor
from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.providers.errors import ConfigurationError, TrackingUnreachableError

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]


@dg.op
def deploy_op() -> None: ...


@dg.job
def deploy() -> None:
    deploy_op()


class Ticks:
    """A sensor that ticks by hand and keeps its cursor, as the daemon does."""

    def __init__(self, sensor: dg.SensorDefinition, mlflow: MLflowResource) -> None:
        self.sensor, self.mlflow = sensor, mlflow
        self.cursor: str | None = None

    def tick(self, *, keep_cursor: bool = True) -> Any:
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(
                instance=instance,
                cursor=self.cursor,
                sensor_name=self.sensor.name,
                resources={"mlflow": self.mlflow},
            )
            data = self.sensor.evaluate_tick(context)
        if keep_cursor:
            self.cursor = data.cursor
        return data


def versions(make_model: MakeModel, server: MLflowServer, count: int) -> str:
    made = make_model()
    for _ in range(count - 1):
        server.version(made.name, made.run_id, made.model_id)
    return made.name


def test_a_stage_transition_by_hand(
    make_model: MakeModel, mlflow_server: MLflowServer, mlflow: MLflowResource
) -> None:
    name = versions(make_model, mlflow_server, 2)
    sensor = registered_model_sensor(
        name="follow", model_name=name, stage="production", target=deploy, asset_key="in_production"
    )
    ticks = Ticks(sensor, mlflow)

    nobody = ticks.tick()
    assert nobody.run_requests == []
    assert nobody.skip_message == f"no version holds stage Production of {name}"

    mlflow_server.stage(name, "1", "Production")
    first = ticks.tick(keep_cursor=False)
    (request,) = first.run_requests
    assert request.run_key == f"{name}:stage:Production:1:1"
    assert request.tags["nighttrain/model"] == name
    assert request.tags["nighttrain/version"] == "1"
    assert request.tags["nighttrain/stage"] == "Production"
    (observation,) = first.asset_events
    assert observation.asset_key == dg.AssetKey("in_production")
    assert observation.tags["dagster/data_version"] == "1"
    assert observation.metadata["previous"].value == "none"

    # The daemon died before it kept the cursor: the same request again, which Dagster knows by its key.
    assert [each.run_key for each in ticks.tick().run_requests] == [request.run_key]

    same = ticks.tick()
    assert (same.run_requests, same.asset_events) == ([], [])
    assert same.skip_message == f"version 1 still holds stage Production of {name}"

    keys = {request.run_key}
    for version in ("2", "1", "2"):
        mlflow_server.stage(name, version, "Production", archive=True)
        data = ticks.tick()
        (request,) = data.run_requests
        assert request.tags["nighttrain/version"] == version
        assert [event.tags["dagster/data_version"] for event in data.asset_events] == [version]
        keys.add(request.run_key)
    assert len(keys) == 4, "going back and forth must not reuse a run key: Dagster would drop the request"


def test_an_alias_that_moves(
    make_model: MakeModel, mlflow_server: MLflowServer, mlflow: MLflowResource
) -> None:
    name = versions(make_model, mlflow_server, 2)
    ticks = Ticks(
        registered_model_sensor(name="follow", model_name=name, alias="champion", asset_key="champion"),
        mlflow,
    )
    for version in ("1", "2"):
        mlflow_server.call("POST", "registered-models/alias", name=name, alias="champion", version=version)
        mlflow_server.call("POST", "registered-models/alias", name=name, alias="other", version=version)
        mlflow_server.stage(name, version, "Production")
        data = ticks.tick()
        assert data.run_requests == []
        (observation,) = data.asset_events
        assert observation.tags["dagster/data_version"] == version
        assert observation.metadata["alias"].value == "champion"
        assert ticks.tick().asset_events == []

    mlflow_server.call("DELETE", "registered-models/alias", name=name, alias="champion")
    assert ticks.tick().skip_message == f"no version holds alias champion of {name}"


def test_the_flights_follow_production(
    make_model: MakeModel, mlflow_server: MLflowServer, mlflow: MLflowResource
) -> None:
    name = versions(make_model, mlflow_server, 1)
    defs = airline_delay_definitions(kubernetes=KubernetesResource(), mlflow=mlflow, model_name=name)
    (sensor,) = defs.sensors or []
    assert isinstance(sensor, dg.SensorDefinition)
    ticks = Ticks(sensor, mlflow)
    assert ticks.tick().asset_events == []
    mlflow_server.stage(name, "1", "Production")
    (observation,) = ticks.tick().asset_events
    assert observation.asset_key == dg.AssetKey("airline_delay_production")


def test_a_model_that_comes_later(
    make_model: MakeModel, mlflow_server: MLflowServer, mlflow: MLflowResource
) -> None:
    name = unique("later")
    ticks = Ticks(
        registered_model_sensor(name="follow", model_name=name, stage="Staging", target=deploy), mlflow
    )
    assert ticks.tick().run_requests == []
    make_model(name)
    assert ticks.tick().run_requests == []
    mlflow_server.stage(name, "1", "Staging")
    assert len(ticks.tick().run_requests) == 1


def test_a_tick_that_cannot_look_keeps_its_cursor() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    sensor = registered_model_sensor(name="follow", model_name="m", stage="Production", target=deploy)
    ticks = Ticks(sensor, MLflowResource(tracking_uri=address, retry_seconds=0))
    ticks.cursor = before = json.dumps({"seen": {}, "changes": 3})
    with pytest.raises(TrackingUnreachableError, match=address):
        ticks.tick()
    assert ticks.cursor == before


@pytest.mark.parametrize("cursor", ["7", "not json", "{}", '{"seen": null, "changes": 0}'])
def test_a_cursor_of_somebody_else(mlflow: MLflowResource, cursor: str) -> None:
    ticks = Ticks(
        registered_model_sensor(name="follow", model_name="m", stage="Production", target=deploy), mlflow
    )
    ticks.cursor = cursor
    with pytest.raises(ConfigurationError, match="reset the sensor's cursor"):
        ticks.tick()


def test_new_versions_and_tags(
    make_model: MakeModel, mlflow_server: MLflowServer, mlflow: MLflowResource
) -> None:
    name = versions(make_model, mlflow_server, 1)
    each = Ticks(registered_model_sensor(name="all", model_name=name, versions=True, target=deploy), mlflow)
    tagged = Ticks(
        registered_model_sensor(name="ok", model_name=name, tag="verdict", value="ok", target=deploy), mlflow
    )
    assert [request.tags["nighttrain/version"] for request in each.tick().run_requests] == ["1"]
    assert tagged.tick().skip_message == f"nothing new of tag verdict = ok of {name}"
    (first,) = mlflow_server.versions(name)
    for _ in range(2):
        mlflow_server.version(name, first["run_id"], first["source"].removeprefix("models:/"))
    mlflow_server.call("POST", "model-versions/set-tag", name=name, version="2", key="verdict", value="ok")
    requests = each.tick(keep_cursor=False).run_requests
    assert [request.run_key for request in requests] == [f"{name}:version:latest:{n}:{n}" for n in (2, 3)]
    assert [request.run_key for request in each.tick().run_requests] == [r.run_key for r in requests]
    assert each.tick().skip_message == f"nothing new of the versions of {name}"
    (request,) = tagged.tick().run_requests
    assert (request.tags["nighttrain/version"], request.tags["nighttrain/tag"]) == ("2", "verdict")
    with pytest.raises(ConfigurationError, match="exactly one"):
        registered_model_sensor(name="x", model_name=name, versions=True, alias="champion", target=deploy)


def test_a_cursor_of_the_form_before_is_followed_on(
    make_model: MakeModel, mlflow_server: MLflowServer, mlflow: MLflowResource
) -> None:
    name = versions(make_model, mlflow_server, 2)
    mlflow_server.stage(name, "1", "Production")
    ticks = Ticks(
        registered_model_sensor(name="follow", model_name=name, stage="Production", target=deploy), mlflow
    )
    seen = {"name": name, "stages": {"Production": "1"}, "holders": {"Production": ["1"]}, "updated": 1}
    ticks.cursor = json.dumps({"seen": seen, "changes": 4})
    assert ticks.tick().run_requests == []
    mlflow_server.stage(name, "2", "Production")
    (request,) = ticks.tick().run_requests
    assert request.run_key == f"{name}:stage:Production:2:5"
