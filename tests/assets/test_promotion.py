"""Promotion and rollback as Dagster jobs that a person launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.assets import MLflowResource, promotion_job, rollback_job

if TYPE_CHECKING:
    import dagster as dg

    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = pytest.mark.mlflow


class Launchpad:
    """Launches the two jobs of a model as a person would."""

    def __init__(self, server: MLflowServer, model: str) -> None:
        self.server = server
        self.model = model
        self.resources = {"mlflow": MLflowResource(tracking_uri=server.uri)}

    def promote(self, **config: str) -> dg.ExecuteInProcessResult:
        return self._launch(promotion_job(name="promote", model_name=self.model, stage="Production"), config)

    def roll_back(self, **config: str) -> dg.ExecuteInProcessResult:
        return self._launch(rollback_job(name="roll_back", model_name=self.model), config)

    def _launch(self, job: dg.JobDefinition, config: dict[str, str]) -> dg.ExecuteInProcessResult:
        given: dict[str, Any] = {"ops": {f"{job.name}_op": {"config": config}}}
        return job.execute_in_process(run_config=given, resources=self.resources, raise_on_error=False)

    def judged(self, version: str, verdict: str, champion: str | None) -> None:
        experiment = self.server.experiment()
        run = self.server.run(experiment)
        if champion:
            self.server.call("POST", "runs/log-parameter", run_id=run, key="champion_version", value=champion)
        for key, value in (("verdict", verdict), ("evaluation_run", run)):
            tag = {"key": f"nighttrain.gate.{key}", "value": value}
            self.server.call("POST", "model-versions/set-tag", name=self.model, version=version, **tag)

    def champion(self) -> str | None:
        model = self.server.call("GET", "registered-models/get", name=self.model)["registered_model"]
        return {each["alias"]: each["version"] for each in model.get("aliases", ())}.get("champion")

    def told(self) -> list[tuple[str, str | None]]:
        entries = self.server.history(self.model)
        return [
            (each["nighttrain.history.kind"], each.get("nighttrain.history.approver")) for each in entries
        ]


@pytest.fixture
def launchpad(mlflow_server: MLflowServer, make_model: MakeModel) -> Launchpad:
    name = make_model().name
    make_model(name)
    return Launchpad(mlflow_server, name)


def test_a_person_promotes_what_the_gate_accepted_and_rolls_it_back(launchpad: Launchpad) -> None:
    launchpad.judged("1", "accepted", champion=None)
    assert launchpad.promote(version="1", approver="ann", reason="the first").success
    launchpad.judged("2", "accepted", champion="1")
    assert launchpad.promote(version="2", approver="bob").success
    assert launchpad.champion() == "2"
    assert launchpad.roll_back(actor="ann", reason="bad predictions").success
    assert launchpad.champion() == "1"
    promoted = [("approved", "ann"), ("promotion", "ann"), ("done", None)]
    again = [("approved", "bob"), ("promotion", "bob"), ("done", None)]
    assert launchpad.told() == [*promoted, *again, ("rollback", None), ("done", None)]


@pytest.mark.parametrize("verdict", ["rejected", "inconclusive", None])
def test_what_the_gate_did_not_accept_is_not_promoted(launchpad: Launchpad, verdict: str | None) -> None:
    if verdict:
        launchpad.judged("1", verdict, champion=None)
    assert not launchpad.promote(version="1", approver="ann").success
    launchpad.judged("2", "accepted", champion="1")  # and there is none now
    assert not launchpad.promote(version="2", approver="ann").success
    launchpad.judged("2", "accepted", champion=None)
    assert not launchpad.promote(version="2", approver=" ").success
    assert launchpad.champion() is None
