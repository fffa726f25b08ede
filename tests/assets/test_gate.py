"""The blocking check on models whose only file is their error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from helpers.mlflow_server import unique
from nighttrain.assets.gates import Candidate, model_gate_check
from nighttrain.assets.training import training_asset

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

Small = Callable[..., "WorkloadSpec"]

ERRORS = {"good": "3.0", "bad": "4.0", "better": "2.0", "endless": "inf"}
PARTITIONS = dg.StaticPartitionsDefinition(list(ERRORS))


def _arguments(candidate: Candidate) -> list[str]:
    assert candidate.partition_key in ERRORS
    return ["evaluate"]


class Nights:
    """A model whose partitions have the errors above, its gate, and an asset behind the gate."""

    def __init__(self, small: Small, resources: dict[str, Any], instance: dg.DagsterInstance) -> None:
        self.model = unique("model")
        self.resources, self.instance = resources, instance
        self.training = training_asset(
            name="model",
            key_prefix=["night"],
            model_name=self.model,
            spec=small(),
            arguments=lambda context: ["train", ERRORS[context.partition_key]],
            partitions_def=PARTITIONS,
        )
        self.small = small

        @dg.asset(deps=[self.training], partitions_def=PARTITIONS)
        def behind() -> None: ...

        self.behind = behind

    def gate(self, *rules: str, **options: Any) -> dg.AssetChecksDefinition:
        return model_gate_check(
            asset=self.training,
            model_name=self.model,
            spec=self.small(),
            arguments=_arguments,
            rules=rules,
            **options,
        )

    def run(self, partition: str, gate: dg.AssetChecksDefinition) -> tuple[bool, dict[str, Any], bool]:
        """Whether the check passed, what it says, and whether what is behind it was materialized."""
        result = dg.materialize(
            [self.training, gate, self.behind],
            instance=self.instance,
            resources=self.resources,
            partition_key=partition,
            raise_on_error=False,
        )
        return self.read(result)

    def check(self, gate: dg.AssetChecksDefinition) -> dg.ExecuteInProcessResult:
        """The check alone, as from its page: such a run has no partition."""
        return dg.materialize(
            [self.training, gate],
            selection=dg.AssetSelection.checks(gate),
            instance=self.instance,
            resources=self.resources,
            raise_on_error=False,
        )

    def read(self, result: dg.ExecuteInProcessResult) -> tuple[bool, dict[str, Any], bool]:
        (evaluation,) = result.get_asset_check_evaluations()
        made = {event.asset_key for event in result.get_asset_materialization_events()}
        said = {name: entry.value for name, entry in evaluation.metadata.items()}
        return evaluation.passed, said, self.behind.key in made


@pytest.fixture
def nights(small: Small, resources: dict[str, Any], instance: dg.DagsterInstance) -> Nights:
    return Nights(small, resources, instance)


def test_only_what_is_no_worse_than_the_champion_passes(nights: Nights, mlflow_server: MLflowServer) -> None:
    gate = nights.gate("mae <= champion.mae", "rows >= 500")

    passed, said, behind = nights.run("good", gate)
    assert (passed, behind, said["champion_version"]) == (True, True, "none")
    mlflow_server.call("POST", "registered-models/alias", name=nights.model, alias="champion", version="1")

    passed, said, behind = nights.run("bad", gate)
    assert (passed, behind, said["verdict"]) == (False, False, "rejected")
    assert (said["candidate_version"], said["champion_version"]) == ("2", "1")

    passed, said, behind = nights.run("better", gate)
    assert (passed, behind, said["candidate_version"]) == (True, True, "3")

    result = nights.check(gate)
    passed, said, _ = nights.read(result)
    assert (passed, said["candidate_version"]) == (True, "3")

    tags = [
        {tag["key"]: tag["value"] for tag in version["tags"]}
        for version in mlflow_server.versions(nights.model)
    ]
    assert [each["nighttrain.gate.verdict"] for each in tags] == ["accepted", "rejected", "accepted"]
    assert "night-model" in tags[1]["nighttrain.job"].replace("--", "-")


def test_inconclusive_does_not_pass_and_says_so(nights: Nights) -> None:
    passed, said, behind = nights.run("good", nights.gate("precision >= 0.9"))
    assert (passed, behind, said["verdict"]) == (False, False, "inconclusive")
    (evidence,) = said["measurements"]
    assert evidence["sentence"] == "the candidate has no precision (measured: mae, rows)"


def test_an_infinite_error_is_inconclusive_and_recorded(nights: Nights, mlflow_server: MLflowServer) -> None:
    passed, said, behind = nights.run("endless", nights.gate("mae <= 4"))
    assert (passed, behind, said["verdict"]) == (False, False, "inconclusive")
    (evidence,) = json.loads(json.dumps(said["measurements"], allow_nan=False))
    assert (evidence["sentence"], evidence["candidate"]) == (
        "the candidate has no usable mae: it is infinite",
        "Infinity",
    )
    (version,) = mlflow_server.versions(nights.model)
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert tags["nighttrain.gate.verdict"] == "inconclusive"


def test_no_champion_may_be_reason_to_reject(nights: Nights) -> None:
    gate = nights.gate("mae <= champion.mae", no_champion="reject")
    passed, said, behind = nights.run("good", gate)
    assert (passed, behind, said["verdict"]) == (False, False, "rejected")


def test_a_check_before_any_materialization(nights: Nights) -> None:
    result = nights.check(nights.gate("mae <= 4"))
    (event,) = result.get_step_failure_events()
    error = event.step_failure_data.error
    assert error is not None
    assert error.cause is not None
    assert error.cause.cls_name == "ConfigurationError"
    assert "night/model" in error.cause.message
    assert "materialize it first" in error.cause.message
