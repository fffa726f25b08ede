"""Where hostile texts are put to work: tasks, commands and Dagster's definitions about one world."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from airflow.sdk.exceptions import TaskAwaitingInput

from nighttrain import assets, operators, sensors
from nighttrain.providers.commands import main
from nighttrain.sensors.triggers import ModelChangeTrigger, RegistryTrigger

if TYPE_CHECKING:
    from helpers.hostile_texts import World

PATIENCE = 10.0
"""Seconds after which a trigger that should have fired hangs."""


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
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **_: None)
            with pytest.raises(TaskAwaitingInput):
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
