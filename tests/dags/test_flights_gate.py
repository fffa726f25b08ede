"""The shipped rules on real flights, by the shipped code: what is better passes, and nothing else does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.mlflow_server import MLflowServer, unique
from nighttrain.dags.nightly_retraining import dag
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.registry.gates import judge_recorded, parse_rules
from nighttrain.providers.registry.gates.evaluation import PLOT_FILE, group_measurements
from nighttrain.providers.registry.gates.gathering import gather
from nighttrain.providers.registry.gates.verdicts import Verdict, VerdictKind
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.tracking.client import MLflowClient
from nighttrain.providers.tracking.config import TrackingConfig
from nighttrain.providers.tracking.run_tree import RunTree

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.mlflow, pytest.mark.timeout(900)]

DAGS = Path(__file__).parents[2] / "dags"
RULES: Any = dag.get_task("gate").rules  # type: ignore[attr-defined]

# Several commands in one process: importing MLflow is most of what one of them costs.
COMMANDS = """
import json, os, sys
from airline_delay import evaluate, train

for command, environment, arguments in json.loads(sys.argv[1]):
    os.environ.update(environment)
    assert (evaluate if command == "evaluate" else train).main(arguments) == 0, command
"""


CHECK = """
def drift(frame, predictions):
    return len(frame) == len(predictions["candidate"]), f"{len(frame)} rows"
"""


@dataclass
class Flights:
    """One registered model, its versions, and evaluations of them."""

    server: MLflowServer
    folder: Path
    model: str = field(default_factory=lambda: unique("airline-delay"))
    versions: dict[str, str] = field(default_factory=dict)

    def run(self, commands: list[tuple[str, dict[str, str], list[str]]]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        paths = os.pathsep.join([str(DAGS), str(self.folder)])
        environment = kept | {"PYTHONPATH": paths, "MLFLOW_TRACKING_URI": self.server.uri}
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def train(self, **models: tuple[str, list[str]]) -> None:
        """Train and register: a name, the command, its arguments."""
        experiment = self.server.experiment()
        runs = {name: self.server.run(experiment) for name in models}
        self.run(
            [
                (command, {"MLFLOW_RUN_ID": runs[name]}, arguments)
                for name, (command, arguments) in models.items()
            ]
        )

        async def register() -> None:
            async with MLflowClient(TrackingConfig(self.server.uri)) as client:
                for name, run in runs.items():
                    made = await ModelRegistry(client).register(self.model, run_id=run)
                    self.versions[name] = made.version

        run_sync(register())

    def evaluate(self, *, night: str, **asked: tuple[str, str, int]) -> dict[str, dict[str, Any]]:
        """Score candidate and champion on so many days."""
        experiment = self.server.experiment()
        found = {}
        commands = []
        for name, (candidate, champion, days) in asked.items():
            uris = [f"models:/{self.model}/{self.versions[each]}" for each in (candidate, champion)]
            run = self.server.run(experiment)
            environment = {
                "MLFLOW_RUN_ID": run,
                "CANDIDATE_MODEL_URI": uris[0],
                "CHAMPION_MODEL_URI": uris[1],
                "COMPARED_MODEL_URIS": json.dumps({"version:1": f"models:/{self.model}/1"}),
                "GATE_CHECKS": json.dumps(["own_checks.drift"]),
            }
            commands.append(("evaluate", environment, ["--as-of", night, "--days", str(days)]))
            found[name] = {
                "model_name": self.model,
                "version": self.versions[candidate],
                "champion_version": self.versions[champion],
                "run_id": run,
            }
        self.run(commands)
        return found

    def judge(self, evaluation: Mapping[str, Any], rules: Any = RULES) -> Verdict:
        async def work() -> Verdict:
            async with MLflowClient(TrackingConfig(self.server.uri)) as client:
                metrics = (await RunTree(client).get(evaluation["run_id"])).metrics
                about = {**evaluation, "measurements": group_measurements(metrics)}
                parsed = parse_rules(rules)
                now = datetime(2013, 9, 6, tzinfo=UTC)
                recorded = await gather(ModelRegistry(client), parsed, about, now=now)
                return judge_recorded(parsed, recorded)

        verdict = run_sync(work())
        print(verdict.table())
        return verdict


NIGHT = ["--as-of", "2013-09-04"]


@pytest.fixture(scope="module")
def flights(mlflow_server: MLflowServer, tmp_path_factory: pytest.TempPathFactory) -> Flights:
    made = Flights(mlflow_server, tmp_path_factory.mktemp("checks"))
    (made.folder / "own_checks.py").write_text(CHECK)
    made.train(
        coarse=("train", [*NIGHT, "--max-iter", "1"]),
        middling=("train", [*NIGHT, "--max-iter", "4"]),
        good=("train", NIGHT),
        shuffled=("train", [*NIGHT, "--shuffle-labels"]),
    )
    return made


@pytest.fixture(scope="module")
def evaluations(flights: Flights) -> dict[str, dict[str, Any]]:
    return flights.evaluate(
        night="2013-09-04",
        better=("good", "middling", 28),
        shuffled=("shuffled", "good", 28),
        tenth=("good", "middling", 3),
        below_baseline=("middling", "coarse", 28),
    )


@pytest.mark.parametrize(
    ("name", "kind", "deciding"),
    [
        ("better", VerdictKind.ACCEPTED, None),
        ("shuffled", VerdictKind.REJECTED, None),
        ("tenth", VerdictKind.INCONCLUSIVE, "(paired"),
        ("below_baseline", VerdictKind.REJECTED, "baseline.mae"),
    ],
)
def test_the_shipped_rules_tell_them_apart(
    flights: Flights, evaluations: Any, name: str, kind: VerdictKind, deciding: str | None
) -> None:
    verdict = flights.judge(evaluations[name])
    assert verdict.kind is kind
    if deciding is not None:
        assert [item.rule for item in verdict.evidence if item.verdict is kind and deciding in item.rule]
        assert all(deciding in item.rule for item in verdict.evidence if item.verdict is kind)


def test_one_trained_on_shuffled_labels_is_told_by_the_statistical_rule_too(
    flights: Flights, evaluations: Any
) -> None:
    verdict = flights.judge(evaluations["shuffled"], ["mae <= champion (paired)", "mae <= baseline (paired)"])
    assert [item.verdict for item in verdict.evidence] == [VerdictKind.REJECTED] * 2


def test_every_sort_of_rule_finds_what_the_shipped_code_leaves(flights: Flights, evaluations: Any) -> None:
    rules = [
        "mae[carrier=UA] <= champion",
        "mae[carrier=*] <= champion * 1.05 (rows >= 500)",
        "mae[origin=*] <= baseline (rows >= 500)",
        "mae <= version:1",
        "p95_seconds <= 5s",
        "peak_memory_bytes <= 8GB",
        "artifact_bytes <= 50MB",
        "signature compatible",
        "signature compatible with version:1",
        "data_age <= 2d",
        "custom:own_checks.drift",
    ]
    verdict = flights.judge(evaluations["better"], rules)
    assert verdict.kind is VerdictKind.ACCEPTED, verdict.summary()


def test_the_picture_is_where_the_tasks_link_points_to(flights: Flights, evaluations: Any) -> None:
    run = evaluations["better"]["run_id"]
    http = flights.server.http
    listed = http.get("/api/2.0/mlflow/artifacts/list", params={"run_id": run, "path": "nighttrain"}).json()
    names = {entry["path"] for entry in listed["files"]}
    assert names == {
        f"nighttrain/{name}"
        for name in ("slices.json", "paired_losses.json", "checks.json", "evaluation.png")
    }
    answer = http.get("/get-artifact", params={"run_id": run, "path": PLOT_FILE})
    assert answer.content.startswith(b"\x89PNG")
