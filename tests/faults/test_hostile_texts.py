"""Hostile texts in every parameter of what speaks to the registry: refused by name, or carried as they are.

A place takes a text and says what came of it. What MLflow itself takes as a name has to be found under that
name, or refused: to wait for it for ever is neither. What goes out is read by a proxy.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import stamina
from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput

from helpers.airflow_connections import connect_mlflow
from helpers.hostile_texts import FEW, TEXTS, World, changed_requests, is_same
from helpers.kubeconfigs import kubeconfig
from helpers.mlflow_proxy import proxy
from helpers.mlflow_server import MLflowServer, free_port
from nighttrain import assets, operators, sensors
from nighttrain.providers.commands import main
from nighttrain.providers.errors import (
    ConfigurationError,
    ModelNotFoundError,
    ModelVersionNotFoundError,
    NighttrainError,
    NothingToSelectError,
    NothingToUndoError,
    TrackingNotFoundError,
)
from nighttrain.sensors.triggers import ModelChangeTrigger, RegistryTrigger, settling

pytestmark = [pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(120)]

PATIENCE = 10.0
"""Seconds after which a trigger that should have fired hangs."""

NOT_THERE = (
    ModelNotFoundError,
    ModelVersionNotFoundError,
    TrackingNotFoundError,
    NothingToSelectError,
    NothingToUndoError,
)
"""A name that might be somebody's, and that nobody has."""

Place = Callable[["Desk", str], object]


class Refused(Exception):
    """A command said no, in these words."""


class Desk:
    """Where the places do their work: a world, a task's context, and what a command prints."""

    def __init__(self, world: World, context: Any, capsys: pytest.CaptureFixture[str]) -> None:
        self.world, self.context, self.model = world, context, world.model
        self._capsys = capsys

    # Airflow

    def task(self, name: str, **given: Any) -> dict[str, Any]:
        """What the operator or sensor of that name returns; it is about ``model`` if it names none."""
        made = getattr(operators, name, None) or getattr(sensors, name)
        if "model_name" in inspect.signature(made).parameters or name in sensors.__all__[2:6]:
            given.setdefault("model_name", self.model)
        return dict(made(task_id="t", **given).execute(self.context))

    def registered(self, **given: Any) -> dict[str, Any]:
        """A version of a new run, as MLflow has it."""
        result = self.task("RegisterModelOperator", **{"run_id": self.world.fresh()[0], **given})
        return self.world.version(result["model_name"], result["version"])

    def described(self, text: str) -> str:
        found: str = self.registered(description=text)["description"]
        return text if text in found else found

    def tagged(self, **given: Any) -> str:
        """The tag that was set, as MLflow has it."""
        given = {"version": "2", **given}
        result = self.task("SetModelVersionTagsOperator", **given)
        found = self.world.tags(result["model_name"], result["version"])
        return next(f"{key}={value}" for key, value in found.items() if {key: value} == given["tags"])

    def gate(self, *rules: str, **evaluation: Any) -> dict[str, Any]:
        measured = {"model_name": self.model, "version": "1", "measurements": {"candidate": {"mae": 20.0}}}
        given = {"evaluation": {**measured, **evaluation}, "rules": rules or ["mae <= 25"]}
        return self.task("ModelGateOperator", on_rejected="continue", on_inconclusive="continue", **given)

    def rule(self, line: str) -> str:
        """The rule as the evidence has it."""
        return str(self.gate(line)["evidence"][0]["rule"])

    def asked(self, **given: Any) -> dict[str, Any]:
        """What Airflow's page would show."""
        operator = self._asking(**given)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(TaskAwaitingInput):
            patch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)
            operator.execute(self.context)
        assert "<script" not in operator.body
        assert "](javascript" not in operator.body
        return dict(operator.hitl_summary)

    def answered(self, text: str) -> str | None:
        event = {"chosen_options": ["Approve"], "responded_at": datetime.now(UTC)}
        who = {"params_input": {"comment": text}, "responded_by_user": {"id": text, "name": text}}
        self._asking().execute_complete(self.context, {**event, **who})
        return self.told(text)

    def promoted(self, text: str) -> str | None:
        self.task("PromoteModelOperator", version="1")
        self.task("PromoteModelOperator", version="2", reason=text, approver=text)
        return self.told(text)

    def told(self, text: str) -> str | None:
        """The reason of the history's last change, whose approver is the same text."""
        entries = [each for each in self.world.server.history(self.model) if _part(each, "reason")]
        assert _part(entries[-1], "approver") in (None, _part(entries[-1], "reason"))
        return _part(entries[-1], "reason")

    def evaluated(self, **given: Any) -> Any:
        """What the scoring container would be told."""
        values = {"model_name": self.model, "version": "2", "image": "i", **given}
        return operators.EvaluateModelOperator(task_id="t", **values)._prepare(self.context)

    def fired(self, trigger: Any) -> dict[str, Any]:
        """The trigger's first event."""

        async def first() -> dict[str, Any]:
            events = trigger.run()
            try:
                return dict((await anext(events)).payload)
            finally:
                await events.aclose()

        return asyncio.run(asyncio.wait_for(first(), PATIENCE))

    def awaited(self, awaited: str, **condition: Any) -> dict[str, Any]:
        """What a deferred sensor hears."""
        given = {"model_name": self.model, "awaited": awaited, **condition}
        return self.fired(RegistryTrigger(mlflow_conn_id="mlflow_default", condition=given, poll_seconds=1))

    def announced(self, **followed: Any) -> dict[str, Any]:
        """What starts a DAG that is scheduled on the asset."""
        (watcher,) = sensors.registered_model(**{"model_name": self.model, **followed}).watchers
        assert isinstance(watcher.trigger, ModelChangeTrigger)
        return self.fired(watcher.trigger)

    def _asking(self, **given: Any) -> Any:
        verdict = {"kind": "accepted", "model_name": self.model, "version": "1", "evidence": []}
        verdict |= {each: given.pop(each) for each in ("model_name", "version") if each in given}
        return operators.ApproveModelOperator(task_id="t", verdict=verdict, **given)

    # The command line

    def command(self, *arguments: str) -> str:
        """What the command prints."""
        try:
            code = main(arguments)
        except SystemExit:
            code = 2
        out, err = self._capsys.readouterr()
        assert all(line.isprintable() for line in (out + err).split("\n")), (out, err)
        if code:
            raise Refused(err)
        return out

    def told_by_command(self, text: str) -> str | None:
        for version in ("1", "2"):
            self.task("PromoteModelOperator", version=version)
        self.command("rollback", self.model, f"--reason={text}")
        return self.told(text)

    # Dagster

    @property
    def resources(self) -> dict[str, Any]:
        return {"mlflow": assets.MLflowResource(tracking_uri=self.world.proxy.uri)}

    def followed(self, **given: Any) -> dict[str, str]:
        """The tags of the run that a sensor asks for."""
        given = {"model_name": self.model, "target": "*", **given}
        sensor = assets.registered_model_sensor(name="s", **given)
        with dg.DagsterInstance.ephemeral() as instance:
            found = sensor(dg.build_sensor_context(instance=instance, resources=self.resources))
        return dict(found.run_requests[0].tags)

    def launched(self, **config: str) -> str | None:
        job = assets.promotion_job(name="promote", model_name=self.model)
        self.world.judge("2")
        self.task("PromoteModelOperator", version="1")
        return self._launch(job, {"version": "2", "approver": "ann", **config})

    def withdrawn(self, **config: str) -> str | None:
        for version in ("1", "2"):
            self.task("PromoteModelOperator", version=version)
        job = assets.rollback_job(name="undo", model_name=self.model)
        return self._launch(job, {"actor": "ann", **config})

    def _launch(self, job: dg.JobDefinition, config: dict[str, str]) -> str | None:
        given = {"ops": {f"{job.name}_op": {"config": config}}}
        job.execute_in_process(run_config=given, resources=self.resources)
        return self.told("")


def _part(entry: dict[str, str], name: str) -> str | None:
    return entry.get(f"nighttrain.history.{name}")


SPEC = assets.WorkloadSpec(image="i", cmds=["c"])


def training(**given: Any) -> dg.AssetsDefinition:
    return assets.training_asset(**{"name": "a", "model_name": "m", "spec": SPEC, **given})


def check(**given: Any) -> dg.AssetChecksDefinition:
    values = {"asset": training(), "model_name": "m", "spec": SPEC, "rules": ["mae <= 25"], **given}
    return assets.model_gate_check(**values)


def picking(**given: Any) -> dg.AssetsDefinition:
    return assets.best_training_asset(**{"name": "b", "trainings": [training()], "metric": "mae", **given})


# By the name of the parameter: what its message may call it, and what is done with a text there.
PLACES: dict[str, tuple[str, Place]] = {
    "RegisterModelOperator(model_name)": ("model", lambda d, t: d.registered(model_name=t)["name"]),
    "RegisterModelOperator(run_id)": ("run_id", lambda d, t: d.registered(run_id=t)["run_id"]),
    "RegisterModelOperator(logged_model_name)": (
        "logged_model_name",
        lambda d, t: d.registered(logged_model_name=t)["run_id"],
    ),
    "RegisterModelOperator(description)": ("description", lambda d, t: d.described(t)),
    "RegisterModelOperator(tags, key)": (
        "tags",
        lambda d, t: _of(d.registered(tags={t: "v"})["tags"], "value", "v")["key"],
    ),
    "RegisterModelOperator(tags, value)": (
        "tags",
        lambda d, t: _of(d.registered(tags={"k": t})["tags"], "key", "k")["value"],
    ),
    "GetModelVersionOperator(model_name)": (
        "model",
        lambda d, t: d.task("GetModelVersionOperator", model_name=t, alias="champion")["model_name"],
    ),
    "GetModelVersionOperator(version)": (
        "version",
        lambda d, t: d.task("GetModelVersionOperator", version=t)["version"],
    ),
    "GetModelVersionOperator(alias)": (
        "alias",
        lambda d, t: [a for a in d.task("GetModelVersionOperator", alias=t)["aliases"] if a == t][0],
    ),
    "GetModelVersionOperator(stage)": (
        "stage",
        lambda d, t: d.task("GetModelVersionOperator", stage=t)["stage"],
    ),
    "SetModelVersionTagsOperator(model_name)": (
        "model",
        lambda d, t: t if d.tagged(model_name=t, version="1", tags={"set": "v"}) == "set=v" else None,
    ),
    "SetModelVersionTagsOperator(version)": ("version", lambda d, t: d.tagged(version=t, tags={"a": "b"})),
    "SetModelVersionTagsOperator(tags, key)": (
        "tags",
        lambda d, t: d.tagged(tags={t: "v"}).removesuffix("=v"),
    ),
    "SetModelVersionTagsOperator(tags, value)": (
        "tags",
        lambda d, t: d.tagged(tags={"k": t}).removeprefix("k="),
    ),
    "DeleteModelVersionOperator(model_name)": (
        "model",
        lambda d, t: d.task("DeleteModelVersionOperator", model_name=t, version="99")["model_name"],
    ),
    "DeleteModelVersionOperator(version)": (
        "version",
        lambda d, t: d.task("DeleteModelVersionOperator", version=t)["version"],
    ),
    "SelectBestModelOperator(metric)": (
        "metric",
        lambda d, t: d.task(
            "SelectBestModelOperator", metric=t, results=[{"run_id": "r", "metrics": {t: 1.0}}]
        )["metric"],
    ),
    "SelectBestModelOperator(mode)": (
        "mode",
        lambda d, t: d.task("SelectBestModelOperator", metric="mae", mode=t, results=[{"run_id": "r"}]),
    ),
    "SelectBestModelOperator(results, run_id)": (
        "run_id",
        lambda d, t: d.task("SelectBestModelOperator", metric="mae", results=[{"run_id": t}]),
    ),
    "ModelGateOperator(rules)": ("rule|check", lambda d, t: d.rule(t)),
    "ModelGateOperator(rules, metric)": (
        "rule|metric",
        lambda d, t: d.rule(f"{t} <= 25").removesuffix(" <= 25.0"),
    ),
    "ModelGateOperator(rules, group)": ("rule|check", lambda d, t: d.rule(f"mae <= alias:{t}")[13:-4]),
    "ModelGateOperator(rules, slice)": (
        "rule|check",
        lambda d, t: d.rule(f"mae[carrier={t}] <= 25").removeprefix("mae[carrier=").removesuffix("] <= 25.0"),
    ),
    "ModelGateOperator(rules, tag)": ("rule|key", lambda d, t: d.rule(f"tag:{t}").removeprefix("tag:")),
    "ModelGateOperator(rules, value)": (
        "rule|check",
        lambda d, t: d.rule(f"tag:k = {t}").removeprefix("tag:k = "),
    ),
    "ModelGateOperator(rules, path)": ("rule|check", lambda d, t: d.rule(f"custom:{t}")),
    "ModelGateOperator(model_name)": ("model", lambda d, t: d.gate(model_name=t)["model_name"]),
    "ModelGateOperator(version)": ("version", lambda d, t: d.gate(version=t)["version"]),
    "ModelGateOperator(run_id)": (
        "run_id",
        lambda d, t: (
            d.gate("mae[carrier=AA] <= 25", run_id=t),
            d.world.tags(d.model)["nighttrain.gate.evaluation_run"],
        )[1],
    ),
    "ModelGateOperator(measurements)": (
        "measurements",
        lambda d, t: (
            t
            if d.gate(measurements={"candidate": {"mae": 20.0, t: 1.0}, t: {}})["kind"] == "accepted"
            else None
        ),
    ),
    "ApproveModelOperator(model_name)": (
        "model",
        lambda d, t: d.asked(model_name=t)["subject"].removeprefix("Promote ").removesuffix(" version 1?"),
    ),
    "ApproveModelOperator(version)": ("version", lambda d, t: d.asked(version=t)["subject"]),
    "ApproveModelOperator(assigned_users)": (
        "assigned_users",
        lambda d, t: d.asked(assigned_users=[t])["assigned_users"][0]["id"],
    ),
    "ApproveModelOperator(answer)": ("comment", lambda d, t: d.answered(t)),
    "PromoteModelOperator(model_name)": (
        "model",
        lambda d, t: d.task("PromoteModelOperator", model_name=t, version="1")["model_name"],
    ),
    "PromoteModelOperator(version)": (
        "version",
        lambda d, t: d.task("PromoteModelOperator", version=t)["version"],
    ),
    "PromoteModelOperator(alias)": (
        "alias",
        lambda d, t: d.task("PromoteModelOperator", version="1", alias=t)["alias"],
    ),
    "PromoteModelOperator(stage)": (
        "stage",
        lambda d, t: d.task("PromoteModelOperator", version="1", alias=None, stage=t)["stage"],
    ),
    "PromoteModelOperator(reason, approver)": ("reason", lambda d, t: d.promoted(t)),
    "RollbackModelOperator(model_name)": (
        "model",
        lambda d, t: d.task("RollbackModelOperator", model_name=t, to="1")["model_name"],
    ),
    "RollbackModelOperator(alias)": ("alias", lambda d, t: d.task("RollbackModelOperator", alias=t)["alias"]),
    "RollbackModelOperator(stage)": (
        "stage",
        lambda d, t: d.task("RollbackModelOperator", alias=None, stage=t)["stage"],
    ),
    "RollbackModelOperator(to)": ("version", lambda d, t: d.task("RollbackModelOperator", to=t)["version"]),
    "RollbackModelOperator(endpoint)": ("endpoint", lambda d, t: d.task("RollbackModelOperator", endpoint=t)),
    "RollbackModelOperator(namespace)": (
        "namespace",
        lambda d, t: d.task("RollbackModelOperator", endpoint="e", namespace=t),
    ),
    **{
        f"RolloutModelOperator({field})": (
            field,
            lambda d, t, field=field: d.task(  # type: ignore[misc]
                "RolloutModelOperator",
                endpoint="e",
                image="i",
                **({"version": "1"} if field in ("endpoint", "namespace") else {}),
                **{field: t},
            ),
        )
        for field in ("version", "stage", "alias")
    },
    "EvaluateModelOperator(model_name)": (
        "model",
        lambda d, t: (
            d.evaluated(model_name=t, version="1")
            .environment["CANDIDATE_MODEL_URI"]
            .removeprefix("models:/")
            .removesuffix("/1")
        ),
    ),
    "EvaluateModelOperator(version)": ("version", lambda d, t: d.evaluated(version=t)),
    "EvaluateModelOperator(champion_alias)": (
        "alias",
        lambda d, t: t if d.evaluated(champion_alias=t).facts["champion_version"] == "1" else None,
    ),
    "EvaluateModelOperator(compare_with)": (
        "alias",
        lambda d, t: next(iter(d.evaluated(compare_with=[f"alias:{t}"]).facts["compared_versions"]))[6:],
    ),
    "EvaluateModelOperator(checks)": ("check", lambda d, t: d.evaluated(checks=[t])),
    **{
        f"ModelAliasSensor({field})": (
            {"model_name": "model", "newer_than": "newer_than"}.get(field, field),
            lambda d, t, field=field: (  # type: ignore[misc]
                d.task("ModelAliasSensor", **{"alias": "champion", field: t}) and t
            ),
        )
        for field in ("model_name", "alias", "version", "newer_than")
    },
    "ModelStageSensor(stage)": ("stage", lambda d, t: d.task("ModelStageSensor", stage=t)),
    "ModelVersionSensor(model_name)": (
        "model",
        lambda d, t: d.task("ModelVersionSensor", model_name=t)["model_name"],
    ),
    "ModelTagSensor(model_name)": (
        "model",
        lambda d, t: d.task("ModelTagSensor", model_name=t, tag="k", value="v")["model_name"],
    ),
    "ModelTagSensor(tag)": ("tag", lambda d, t: d.task("ModelTagSensor", tag=t, value="v") and t),
    "ModelTagSensor(value)": (
        "value",
        lambda d, t: d.task("ModelTagSensor", tag=d.world.value_key(t), value=t) and t,
    ),
    "EndpointReadySensor(endpoint)": ("endpoint", lambda d, t: d.task("EndpointReadySensor", endpoint=t)),
    "EndpointReadySensor(namespace)": (
        "namespace",
        lambda d, t: d.task("EndpointReadySensor", endpoint="e", namespace=t),
    ),
    "RegistryTrigger(model_name)": (
        "model",
        lambda d, t: d.awaited("alias", model_name=t, key="champion")["model_name"],
    ),
    "RegistryTrigger(alias)": ("alias", lambda d, t: d.awaited("alias", key=t) and t),
    "RegistryTrigger(stage)": ("stage", lambda d, t: d.awaited("stage", key=t)),
    "RegistryTrigger(version)": ("version", lambda d, t: d.awaited("version", version=t)),
    "RegistryTrigger(tag)": ("tag", lambda d, t: d.awaited("tag", key=t, value="v") and t),
    "RegistryTrigger(value)": (
        "value",
        lambda d, t: d.awaited("tag", key=d.world.value_key(t), value=t) and t,
    ),
    "registered_model(model_name)": (
        "model_name",
        lambda d, t: d.announced(model_name=t, alias="champion")["model_name"],
    ),
    "registered_model(versions of model_name)": (
        "model_name",
        lambda d, t: d.announced(model_name=t, versions=True)["model_name"],
    ),
    "registered_model(alias)": ("alias", lambda d, t: d.announced(alias=t)["key"]),
    "registered_model(stage)": ("stage", lambda d, t: d.announced(stage=t)),
    "registered_model(tag)": ("tag", lambda d, t: d.announced(tag=t, value="v")["key"]),
    "registered_model(value)": ("value", lambda d, t: d.announced(tag=d.world.value_key(t), value=t) and t),
    "nighttrain history": (
        "model",
        lambda d, t: json.loads(d.command("history", "--json", "--", t))["model"],
    ),
    "nighttrain history, as a table": ("model", lambda d, t: t if d.command("history", "--", t) else None),
    "nighttrain status": ("model", lambda d, t: json.loads(d.command("status", "--json", "--", t))["model"]),
    "nighttrain status, as a table": ("model", lambda d, t: t if d.command("status", "--", t) else None),
    "nighttrain rollback": ("model", lambda d, t: t if d.command("rollback", "--to=1", "--", t) else None),
    "nighttrain rollback --to": ("version", lambda d, t: d.command("rollback", d.model, f"--to={t}")),
    "nighttrain rollback --alias": ("alias", lambda d, t: d.command("rollback", d.model, f"--alias={t}")),
    "nighttrain rollback --stage": ("stage", lambda d, t: d.command("rollback", d.model, f"--stage={t}")),
    "nighttrain rollback --reason": ("reason", lambda d, t: d.told_by_command(t)),
    "nighttrain webhooks remove --name": (
        "--name",
        lambda d, t: t if d.command("webhooks", "remove", f"--name={t}") else None,
    ),
    "nighttrain webhooks register --airflow-url": (
        "--airflow-url",
        lambda d, t: d.command("webhooks", "register", f"--airflow-url={t}"),
    ),
    "nighttrain webhooks register --events": (
        "--events",
        lambda d, t: d.command("webhooks", "register", "--airflow-url=https://a.example", f"--events={t}"),
    ),
    "training_asset(model_name)": ("model", lambda d, t: training(model_name=t) and t),
    "model_gate_check(model_name)": ("model", lambda d, t: check(model_name=t) and t),
    "model_gate_check(champion_alias)": ("alias", lambda d, t: check(champion_alias=t) and t),
    "model_gate_check(rules)": ("rule", lambda d, t: check(rules=[t]) and t),
    "model_gate_check(compare_with)": ("alias", lambda d, t: check(compare_with=[f"alias:{t}"]) and t),
    "model_gate_check(checks)": ("check", lambda d, t: check(checks=[t]) and t),
    "best_training_asset(metric)": ("metric", lambda d, t: picking(metric=t) and t),
    "best_training_asset(mode)": ("mode", lambda d, t: picking(mode=t) and t),
    "promotion_job(model_name)": ("model", lambda d, t: assets.promotion_job(name="j", model_name=t) and t),
    "promotion_job(alias)": (
        "alias",
        lambda d, t: assets.promotion_job(name="j", model_name="m", alias=t) and t,
    ),
    "promotion_job(stage)": (
        "stage",
        lambda d, t: assets.promotion_job(name="j", model_name="m", stage=t) and t,
    ),
    "promotion_job(version, launched)": ("version", lambda d, t: d.launched(version=t)),
    "promotion_job(reason, launched)": ("reason", lambda d, t: d.launched(reason=t, approver=t)),
    "rollback_job(model_name)": ("model", lambda d, t: assets.rollback_job(name="j", model_name=t) and t),
    "rollback_job(alias)": (
        "alias",
        lambda d, t: assets.rollback_job(name="j", model_name="m", alias=t) and t,
    ),
    "rollback_job(to, launched)": ("version", lambda d, t: d.withdrawn(to=t)),
    "rollback_job(reason, launched)": ("reason", lambda d, t: d.withdrawn(reason=t)),
    "registered_model_sensor(model_name)": (
        "model",
        lambda d, t: d.followed(model_name=t, alias="champion")["nighttrain/model"],
    ),
    "registered_model_sensor(alias)": ("alias", lambda d, t: d.followed(alias=t)["nighttrain/alias"]),
    "registered_model_sensor(stage)": ("stage", lambda d, t: d.followed(stage=t)),
    "registered_model_sensor(tag)": ("tag", lambda d, t: d.followed(tag=t, value="v")["nighttrain/tag"]),
    "registered_model_sensor(value)": (
        "value",
        lambda d, t: d.followed(tag=d.world.value_key(t), value=t) and t,
    ),
}


MANY_REQUESTS = {
    "RegisterModelOperator(description)",
    "RegisterModelOperator(tags, value)",
    "ApproveModelOperator(answer)",
    "PromoteModelOperator(reason, approver)",
    "RollbackModelOperator(reason)",
    "nighttrain rollback --reason",
    "promotion_job(reason, launched)",
    "rollback_job(reason, launched)",
}


def _of(tags: list[dict[str, str]], part: str, value: str) -> dict[str, str]:
    return next(each for each in tags if each[part] == value)


@pytest.fixture(scope="module")
def world(mlflow_server: MLflowServer) -> Iterator[World]:
    with proxy(mlflow_server.uri, lambda asked: None) as passing:
        made = World(mlflow_server, passing)
        yield made
        made.end()


@pytest.fixture
def desk(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Any,
) -> Iterator[Desk]:
    """Nothing listens at the cluster's address: who asks it something is found out."""
    connect_mlflow(monkeypatch, world.proxy.uri)
    config = tmp_path / "kubeconfig"
    config.write_text(json.dumps(kubeconfig(f"http://127.0.0.1:{free_port()}", token="t")))
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(config)}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.proxy.uri)
    monkeypatch.setattr(settling.Settling, "wait", lambda self: asyncio.sleep(0))
    monkeypatch.setenv("NIGHTTRAIN_WEBHOOK_SECRET", "s" * 32)
    ti = SimpleNamespace(id="i", dag_id="nightly", run_id="r", task_id="t", map_index=-1, xcoms={})
    ti.xcom_push = lambda key, value: ti.xcoms.update({key: json.loads(json.dumps(value))})
    ti.xcom_pull = lambda **kwargs: ti.xcoms.get(kwargs.get("key"))
    with stamina.set_testing(True, attempts=1):
        yield Desk(world, {"ti": ti, "task_instance": ti}, capsys)


@pytest.mark.parametrize("name", PLACES)
def test_a_hostile_text_is_refused_by_name_or_carried_as_it_is(desk: Desk, name: str) -> None:
    field, place = PLACES[name]
    wrong = []
    for kind, text in TEXTS.items():
        if name in MANY_REQUESTS and kind not in FEW:
            continue
        desk.world.proxy.asked.clear()
        problem = what_is_wrong(desk, field, place, text)
        sent = changed_requests(desk.world.proxy.asked)
        if problem or sent:
            wrong.append(f"{kind}: {problem} {sent or ''}")
    assert not wrong, "\n".join(["", *wrong])
    assert desk.world.is_untouched()


def what_is_wrong(desk: Desk, field: str, place: Place, text: str) -> str:
    """What came of it, where that is neither a refusal by name nor the text; empty if it is."""
    try:
        carried = place(desk, text)
    except Refused as refused:
        return (
            ""
            if field in str(refused) or "has no" in str(refused) or "was not in place" in str(refused)
            else f"said {refused}"
        )
    except (Exception, AirflowFailException) as error:
        return _what_is_wrong_with(error, field)
    return "" if is_same(text, carried) else f"came back as {carried!r:.200}"


def _what_is_wrong_with(error: BaseException, field: str) -> str:
    cause = error if isinstance(error, NighttrainError) else error.__cause__
    if isinstance(cause, NOT_THERE):
        return ""
    if isinstance(cause, ConfigurationError):
        return (
            ""
            if any(each in cause.field for each in field.split("|"))
            else f"names {cause.field}, not {field}: {cause}"
        )
    return f"raised {type(error).__name__}: {error!s:.300}"
