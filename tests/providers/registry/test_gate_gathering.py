"""What rules need beside measurements, read from a real MLflow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from helpers.mlflow_server import SMALL_MODEL, unique
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import (
    ConfigurationError,
    ModelVersionNotFoundError,
    TrackingUnreachableError,
)
from nighttrain.providers.registry.gates import judge_recorded, parse_rules
from nighttrain.providers.registry.gates.evaluation import check_compared, find_contestants
from nighttrain.providers.registry.gates.gathering import gather
from nighttrain.providers.registry.gates.recorded_files import MAX_BYTES
from nighttrain.providers.registry.gates.verdicts import Verdict, VerdictKind
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.tracking.client import MLflowClient
from nighttrain.providers.tracking.config import TrackingConfig

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

ACCEPTED, REJECTED, INCONCLUSIVE = VerdictKind.ACCEPTED, VerdictKind.REJECTED, VerdictKind.INCONCLUSIVE
NOW = datetime(2013, 7, 16, 12, tzinfo=UTC)


def mlmodel(inputs: list[dict[str, Any]] | None, output: str = "double") -> bytes:
    """An MLmodel file as MLflow writes it."""
    text = "flavors:\n  python_function:\n    loader_module: nothing\n"
    if inputs is not None:
        outputs = json.dumps([{"type": output, "required": True}])
        text += f"signature:\n  inputs: '{json.dumps(inputs)}'\n  outputs: '{outputs}'\n  params: null\n"
    return text.encode()


def column(name: str, kind: str = "double", required: bool = True) -> dict[str, Any]:
    return {"type": kind, "name": name, "required": required}


@dataclass
class Night:
    """A registered model's versions, and the run of an evaluation."""

    server: MLflowServer
    name: str
    experiment: str
    run: str

    def version(self, signature: bytes | None = None, **params: str) -> str:
        run = self.server.run(self.experiment)
        for key, value in params.items():
            self.server.call("POST", "runs/log-parameter", run_id=run, key=key, value=value)
        files = {**SMALL_MODEL, **({"MLmodel": signature} if signature else {})}
        return self.server.version(
            self.name, run, self.server.logged_model(self.experiment, run, files=files)
        )

    def write(self, file: str, content: object) -> None:
        uri = self.server.call("GET", "runs/get", run_id=self.run)["run"]["info"]["artifact_uri"]
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.server.upload(uri, f"nighttrain/{file}", data)

    def alias(self, alias: str, version: str) -> None:
        self.server.call("POST", "registered-models/alias", name=self.name, alias=alias, version=version)

    def judge(self, *rules: str, uri: str | None = None, **evaluation: Any) -> Verdict:
        about = {
            "model_name": self.name,
            "version": "1",
            "champion_version": None,
            "run_id": self.run,
            "measurements": {"candidate": {"mae": 3.0, "artifact_bytes": 7.0}},
            **evaluation,
        }

        async def work() -> Verdict:
            async with MLflowClient(TrackingConfig(uri or self.server.uri, retry_seconds=0)) as client:
                parsed = parse_rules(rules)
                recorded = await gather(ModelRegistry(client), parsed, about, now=NOW)
                return judge_recorded(parsed, recorded)

        return run_sync(work())


@pytest.fixture
def night(mlflow_server: MLflowServer) -> Night:
    experiment = mlflow_server.experiment()
    return Night(mlflow_server, unique("model"), experiment, mlflow_server.run(experiment))


def test_slices_losses_and_checks_are_read_from_the_evaluations_run(night: Night) -> None:
    night.version()
    night.write("slices.json", {"candidate": {"carrier": {"AA": {"mae": 9.0, "rows": 300}}}})
    night.write(
        "paired_losses.json",
        {
            "mae": {
                "groups": [str(day) for day in range(12)],
                "rows": [100] * 12,
                "sums": {
                    "candidate": [500.0 + day for day in range(12)],
                    "baseline": [900.0 - day for day in range(12)],
                },
            }
        },
    )
    night.write("checks.json", {"my_pkg.checks.no_drift": {"verdict": True, "sentence": "index 0.04"}})
    measured = {"candidate": {"mae": 5.0}, "baseline": {"mae": 9.0}}
    verdict = night.judge(
        "mae[carrier=*] <= 8 (rows >= 200)",
        "mae <= baseline (paired)",
        "custom:my_pkg.checks.no_drift",
        measurements=measured,
    )
    assert [item.verdict for item in verdict.evidence] == [REJECTED, ACCEPTED, ACCEPTED]
    assert verdict.evidence[1].details["groups"] == 12


@pytest.mark.parametrize(
    ("rule", "file"),
    [
        ("mae[carrier=AA] <= 5", "slices.json"),
        ("mae[carrier=*] <= 5", "slices.json"),
        ("mae <= baseline (paired)", "paired_losses.json"),
        ("custom:my.check", "checks.json"),
    ],
)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "the evaluation's run has no file nighttrain/{}"),
        (b"no json", "nighttrain/{} is no JSON"),
        (b"[]", "nighttrain/{} is not of the form"),
        (b" " * (MAX_BYTES + 1), "the file nighttrain/{} is longer than 2,000,000 bytes"),
    ],
    ids=["missing", "no JSON", "another form", "too long"],
)
def test_a_file_that_cannot_be_read_makes_the_rule_inconclusive_and_says_why(
    night: Night, rule: str, file: str, content: bytes | None, said: str
) -> None:
    night.version()
    if content is not None:
        night.write(file, content)
    measured = {"candidate": {"mae": 5.0}, "baseline": {"mae": 9.0}}
    verdict = night.judge(rule, measurements=measured)
    assert verdict.kind is INCONCLUSIVE
    assert said.format(file) in verdict.summary()


def test_without_a_run_there_are_no_files(night: Night) -> None:
    night.version()
    verdict = night.judge("custom:my.check", run_id=None)
    assert verdict.summary().endswith(": the evaluation names no run")


def test_the_bytes_of_the_artifact_are_those_that_mlflow_lists(night: Night) -> None:
    night.version()
    night.version(mlmodel([column("x")] * 40))
    size = sum(len(content) for content in SMALL_MODEL.values())
    verdict = night.judge(f"artifact_bytes <= {size}", "artifact_bytes <= 20kB", "artifact_bytes <= 16 KiB")
    # Not the number that the scoring code logged.
    assert [item.candidate for item in verdict.evidence] == [float(size)] * 3
    assert [item.verdict for item in verdict.evidence] == [ACCEPTED, ACCEPTED, REJECTED]
    larger = night.judge("artifact_bytes <= version:1 * 1.01", version="2")
    assert larger.kind is REJECTED
    assert night.judge("artifact_bytes <= version:1 * 1.9", version="2").kind is ACCEPTED
    gone = night.judge("artifact_bytes <= version:9")
    assert gone.kind is INCONCLUSIVE


@pytest.mark.parametrize(
    ("params", "kind", "said"),
    [
        ({"data_until": "2013-07-15T12:00:00+00:00"}, ACCEPTED, "the data are 1 day old"),
        ({"data_until": "2013-07-14T04:00:00-04:00"}, REJECTED, "the data are 2.167 days old"),
        ({"data_until": "2013-07-15"}, INCONCLUSIVE, "'2013-07-15' is no moment with a time zone"),
        ({"data_until": "yesterday"}, INCONCLUSIVE, "'yesterday' is no moment"),
        ({}, INCONCLUSIVE, "its run has no parameter data_until and no data interval"),
    ],
)
def test_the_age_of_the_data_counts_from_what_the_training_recorded(
    night: Night, params: dict[str, str], kind: VerdictKind, said: str
) -> None:
    night.version(**params)
    verdict = night.judge("data_age <= 2d")
    assert verdict.kind is kind
    assert said in verdict.summary()


def test_without_a_parameter_the_data_interval_counts(night: Night) -> None:
    night.version()
    run = night.server.versions(night.name)[0]["run_id"]
    tag = {"key": "nighttrain.data_interval_end", "value": "2013-07-16T00:00:00+00:00"}
    night.server.call("POST", "runs/set-tag", run_id=run, **tag)
    verdict = night.judge("data_age <= 13h", "data_age <= 11h")
    assert [item.verdict for item in verdict.evidence] == [ACCEPTED, REJECTED]


SERVED = [column("distance"), column("seats", "integer"), column("weather", required=False)]


@pytest.mark.parametrize(
    ("inputs", "output", "kind", "said"),
    [
        (SERVED, "double", ACCEPTED, "3 inputs, the same outputs"),
        (SERVED[:1], "double", ACCEPTED, "1 inputs"),
        ([column("distance"), column("seats", "long")], "double", ACCEPTED, "2 inputs"),
        ([*SERVED, column("gate", "string", required=False)], "double", ACCEPTED, "4 inputs"),
        ([column("distance", "float")], "double", REJECTED, "input distance was double and is float"),
        ([*SERVED, column("gate", "string")], "double", REJECTED, "input gate is new and required"),
        ([column("weather")], "double", REJECTED, "input weather was optional and is required"),
        (SERVED, "long", REJECTED, "output (without a name) was double and is long"),
        (None, "double", INCONCLUSIVE, "no signature of the candidate was found"),
    ],
)
def test_signatures_are_compared_as_data(
    night: Night, inputs: list[dict[str, Any]] | None, output: str, kind: VerdictKind, said: str
) -> None:
    night.version(mlmodel(inputs, output))
    night.version(mlmodel(SERVED))
    verdict = night.judge("signature compatible", champion_version="2")
    assert verdict.kind is kind
    assert said in verdict.evidence[0].sentence
    named = night.judge("signature compatible with alias:old", compared_versions={"alias:old": "2"})
    assert named.kind is kind


def test_required_tags_are_the_versions(night: Night) -> None:
    version = night.version()
    tag = {"key": "reviewed", "value": "yes"}
    night.server.call("POST", "model-versions/set-tag", name=night.name, version=version, **tag)
    verdict = night.judge("tag:reviewed", "tag:reviewed = yes", "tag:reviewed = no", "tag:owner")
    assert [item.verdict for item in verdict.evidence] == [ACCEPTED, ACCEPTED, REJECTED, REJECTED]


def test_an_outage_is_no_verdict(night: Night) -> None:
    with pytest.raises(TrackingUnreachableError):
        night.judge("tag:owner", uri="http://127.0.0.1:9")
    # What needs nothing from MLflow is judged without it.
    assert night.judge("mae <= 3", uri="http://127.0.0.1:9").kind is ACCEPTED


def contestants(night: Night, version: str, *others: str) -> Any:
    async def work() -> Any:
        async with MLflowClient(TrackingConfig(night.server.uri)) as client:
            return await find_contestants(
                ModelRegistry(client), night.name, version, champion_alias="champion", compare_with=others
            )

    return run_sync(work())


def test_further_versions_are_pinned_and_told_to_the_container(night: Night) -> None:
    first, second, third = night.version(), night.version(), night.version()
    night.alias("champion", second)
    night.alias("last-good", first)
    night.alias("mine", third)
    found = contestants(night, third, "version:1", "alias:last-good", "alias:mine", "alias:nobody")
    environment = found.environment(["my_pkg.checks.no_drift"])
    assert environment["CANDIDATE_MODEL_URI"] == f"models:/{night.name}/3"
    assert environment["CHAMPION_MODEL_URI"] == f"models:/{night.name}/2"
    assert json.loads(environment["COMPARED_MODEL_URIS"]) == {
        "version:1": f"models:/{night.name}/1",
        "alias:last-good": f"models:/{night.name}/1",
    }
    assert json.loads(environment["GATE_CHECKS"]) == ["my_pkg.checks.no_drift"]
    assert found.facts()["compared_versions"] == {"version:1": "1", "alias:last-good": "1"}
    assert "COMPARED_MODEL_URIS" not in contestants(night, third).environment()
    with pytest.raises(ModelVersionNotFoundError):
        contestants(night, third, "version:99")


@pytest.mark.parametrize(
    "groups", ["version:1", ["12"], ["version:x"], ["alias:a/b"], ["stage:Production"], 7]
)
def test_what_is_neither_a_version_nor_an_alias_is_refused(groups: Any) -> None:
    with pytest.raises(ConfigurationError):
        check_compared(groups)
