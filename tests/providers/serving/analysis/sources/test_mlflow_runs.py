"""Metrics and late labels of runs on a real MLflow server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from itertools import count as count_up
from typing import Any

import pytest

from helpers.measured_metric import Measured, a_metric, numbers
from helpers.mlflow_server import MLflowServer, free_port, unique
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources import choice, mlflow_runs
from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell
from nighttrain.providers.serving.analysis.sources.base import Window
from nighttrain.providers.serving.analysis.sources.mlflow_runs import MLflowRuns, count, read_rows
from nighttrain.providers.tracking.client import MLflowClient
from nighttrain.providers.tracking.config import TrackingConfig

Make = Callable[..., Window]
_times = count_up(1)


@dataclass
class Monitoring:
    """A run that somebody writes."""

    server: MLflowServer
    experiment: str
    experiment_id: str
    run_id: str

    def write(self, path: str, *rows: dict[str, Any]) -> None:
        if path.endswith(".csv"):
            lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        else:
            lines = [json.dumps(row) for row in rows]
        uri = self.server.call("GET", "runs/get", run_id=self.run_id)["run"]["info"]["artifact_uri"]
        self.server.upload(uri, path, "\n".join([*lines, ""]).encode())

    def log(self, name: str, value: float | str) -> None:
        given = {"key": name, "value": value, "timestamp": next(_times)}
        self.server.call("POST", "runs/log-metric", run_id=self.run_id, **given)


@pytest.fixture
def monitoring(mlflow_server: MLflowServer) -> Monitoring:
    name = unique("monitoring")
    experiment_id = mlflow_server.experiment(name)
    return Monitoring(mlflow_server, name, experiment_id, mlflow_server.run(experiment_id))


@pytest.fixture
async def runs(mlflow_server: MLflowServer) -> AsyncIterator[MLflowRuns]:
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
        yield MLflowRuns(client)


@pytest.fixture
def measured(runs: MLflowRuns, window: Make) -> Callable[..., Measured]:
    def make(kind: Kind, **given: Any) -> Measured:
        metric = a_metric(kind, "mlflow", **given)
        choice.check_source("m", metric, None)
        return Measured(runs, metric, window())

    return make


async def test_a_metric_of_a_run(measured: Any, monitoring: Monitoring) -> None:
    number = measured(Kind.NUMBER, run_id=monitoring.run_id, metric="drift_v{version}")
    assert (await number.after()).value is None
    for given, value in ((0.25, 0.25), ("NaN", None), ("Infinity", None), (0.5, 0.5)):
        monitoring.log("drift_v2", given)
        sample = await number.after()
        assert (sample.value, sample.error) == (value, None)


async def test_a_run_is_found_by_name_and_tags_the_newest_of_several(
    measured: Any, monitoring: Monitoring, mlflow_server: MLflowServer
) -> None:
    named = {"experiment": monitoring.experiment, "metric": "drift"}
    by_tag = measured(Kind.NUMBER, tags={"version": "{version}", "endpoint": "{endpoint}"}, **named)
    by_name = measured(Kind.NUMBER, run_name="of version {version}", **named)
    nowhere = measured(Kind.NUMBER, run_name="x", **(named | {"experiment": unique("none")}))
    for number in (by_tag, by_name, nowhere):
        sample = await number.after()
        assert (sample.value, sample.error) == (None, None)  # not written yet
    for value in (1.0, 2.0):
        run_id = mlflow_server.run(monitoring.experiment_id, drift=value)
        for key, text in (("version", "2"), ("endpoint", "delay"), ("mlflow.runName", "of version 2")):
            mlflow_server.call("POST", "runs/set-tag", run_id=run_id, key=key, value=text)
        assert (await by_tag.after()).value == value
        assert (await by_name.after()).value == value
    by_tag.window = replace(by_tag.window, candidate="3")
    assert (await by_tag.after()).value is None


async def test_mlflows_outage_is_an_error_of_measuring(window: Make) -> None:
    async with MLflowClient(TrackingConfig(f"http://127.0.0.1:{free_port()}", retry_seconds=0)) as client:
        number = Measured(
            MLflowRuns(client), a_metric(Kind.NUMBER, "mlflow", run_id="0" * 32, metric="m"), window()
        )
        sample = await number.after()
    assert sample.error
    assert sample.value is None


async def test_a_run_that_does_not_exist(measured: Any) -> None:
    sample = await measured(Kind.NUMBER, run_id="0" * 32, metric="m").after()
    assert "0" * 32 in (sample.error or "")


def predicted(version: str, **predictions: Any) -> list[dict[str, Any]]:
    return [{"key": key, "version": version, "prediction": value} for key, value in predictions.items()]


def labelled(**labels: Any) -> list[dict[str, Any]]:
    return [{"key": key, "label": value} for key, value in labels.items()]


async def test_late_labels_are_joined_by_key_each_once_and_from_the_same_moment(
    measured: Any, monitoring: Monitoring
) -> None:
    wrong = measured(
        Kind.WRONG,
        run_id=monitoring.run_id,
        predictions="predictions",
        labels="labels/all.csv",
        tolerance=0.5,
    )
    # From before the rollout: the stable version alone, and its labels come now.
    old = predicted("1", a=1.0, b=2.0)
    monitoring.write("predictions/1.jsonl", *old)
    monitoring.write("labels/all.csv", *labelled(z=1))
    sample = await wrong.baseline()
    assert (sample.candidate, sample.error) == (None, None)
    new = [*predicted("2", c=3.0, d=4.0, e=5.0), *predicted("1", f=6.0, g=7.0)]
    monitoring.write("predictions/1.jsonl", *old, *new)
    sample = await wrong.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((0, 0), (0, 0))
    labels = labelled(a=9, b=9, c=3.4, d=9, f=6, nobody=1)
    monitoring.write("labels/all.csv", *labels)
    sample = await wrong.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((2, 1), (1, 0))
    sample = await wrong.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((0, 0), (0, 0))
    # A second file, and one more label; a label that is corrected changes nothing any more.
    monitoring.write("predictions/2.jsonl", *predicted("1", h=8.0), *predicted("2", c=100.0))
    monitoring.write("labels/all.csv", *labels, *labelled(c=100, g=0, h=8))
    sample = await wrong.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((0, 0), (2, 1))
    assert len(json.dumps(wrong.memory)) < 200


async def test_a_change_of_the_share_begins_anew(measured: Any, monitoring: Monitoring) -> None:
    wrong = measured(Kind.WRONG, run_id=monitoring.run_id, predictions="p.jsonl", labels="l.jsonl")
    monitoring.write("p.jsonl", *predicted("1", x=1))
    monitoring.write("l.jsonl", *labelled(x=1))
    await wrong.baseline()
    monitoring.write("p.jsonl", *predicted("1", x=1), *predicted("2", y=1, z=1))
    monitoring.write("l.jsonl", *labelled(x=1, y=2))
    await wrong.baseline()
    monitoring.write("l.jsonl", *labelled(x=1, y=2, z=1))
    assert numbers((await wrong.after()).candidate) == (1, 0)


async def test_files_that_shrink_or_are_nonsense_are_told(measured: Any, monitoring: Monitoring) -> None:
    wrong = measured(Kind.WRONG, run_id=monitoring.run_id, predictions="p.jsonl", labels="l.jsonl")
    monitoring.write("p.jsonl", *predicted("1", x=1, y=2))
    monitoring.write("l.jsonl", *labelled(x=1))
    await wrong.baseline()
    monitoring.write("p.jsonl", *predicted("1", x=1))
    assert "files that are read may only grow" in ((await wrong.after()).error or "")
    for bad, why in (
        ({"version": "1", "prediction": 1}, "has no key"),
        ({"key": "k", "version": "1"}, "or no prediction"),
    ):
        monitoring.write("p.jsonl", *predicted("1", x=1, y=2), bad)
        assert why in ((await wrong.after()).error or "")


async def test_a_file_that_is_not_there_yet_has_no_rows(measured: Any, monitoring: Monitoring) -> None:
    wrong = measured(Kind.WRONG, run_id=monitoring.run_id, predictions="p.jsonl", labels="l.jsonl")
    await wrong.baseline()
    monitoring.write("p.jsonl", *predicted("2", x=1))
    monitoring.write("l.jsonl", *labelled(x=2))
    assert numbers((await wrong.after()).candidate) == (1, 1)


async def test_versions_that_predicted_the_same_keys_are_compared(
    measured: Any, monitoring: Monitoring
) -> None:
    differ = measured(Kind.DISAGREEMENT, run_id=monitoring.run_id, predictions="p.csv")
    monitoring.write("p.csv", *predicted("1", old=1))
    await differ.baseline()
    rows = [*predicted("1", old=1, a=1, b="late", c=3), *predicted("2", a="1.0", b="on time", d=4)]
    monitoring.write("p.csv", *rows)
    sample = await differ.after()
    assert (numbers(sample.candidate), sample.stable) == ((2, 1), None)


async def test_files_are_read_up_to_a_bound(
    measured: Any, monitoring: Monitoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_runs, "MAX_BYTES", 100)
    monkeypatch.setattr(mlflow_runs, "MAX_FILES", 2)
    monitoring.write("p/1.jsonl", *predicted("1", **{f"k{n}": n for n in range(10)}))
    wrong = measured(Kind.WRONG, run_id=monitoring.run_id, predictions="p", labels="l.jsonl")
    assert "longer than 100 bytes" in ((await wrong.after()).error or "")
    for number in (2, 3):
        monitoring.write(f"p/{number}.jsonl", *predicted("1", x=1))
    assert "p has more than 2 files" in ((await wrong.after()).error or "")


@pytest.mark.parametrize("text", [b"{", b"5", b"[1]", b"[" * 100_000, b'{"key": 1}\nnothing'])
def test_lines_that_are_no_rows(text: bytes) -> None:
    with pytest.raises(CannotTell, match=r"line \d of f\.jsonl is no JSON"):
        list(read_rows("f.jsonl", text))


def test_odd_values_are_compared_and_never_raise() -> None:
    values = ("NaN", "1" + "0" * 400, '[1, {"a": null}]', '"NaN"', "true", '"1e999"')
    text = "\n".join(
        f'{{"key": {key}, "version": "2", "prediction": {value}}}' for key, value in enumerate(values)
    )
    rows = list(read_rows("p.jsonl", text.encode()))
    labels: list[Any] = [{"key": str(row["key"]), "label": row["prediction"]} for row in rows]
    assert count({"p": rows}, {"l": labels}, "2", None, 0.1) == [6, 0, 0, 0]


MISTAKES: list[tuple[Kind, dict[str, Any], str]] = [
    (Kind.NUMBER, {"metric": "m"}, r"m\.source\.run_id: name the run by run_id, or by experiment"),
    (
        Kind.NUMBER,
        {"metric": "m", "run_id": "a", "experiment": "e", "run_name": "n"},
        r"m\.source\.run_id = 'a'",
    ),
    (Kind.NUMBER, {"metric": "m", "run_name": "n"}, r"m\.source\.experiment: give experiment"),
    (Kind.NUMBER, {"metric": "m", "experiment": "e"}, r"m\.source\.experiment = 'e': give experiment, and"),
    (Kind.NUMBER, {"metric": "m", "experiment": "e", "tags": {"a": 1}}, r"m\.source\.tags = .*as texts"),
    (Kind.NUMBER, {"metric": "m", "experiment": "e", "tags": {"a`": "1"}}, r"m\.source\.tags"),
    (Kind.NUMBER, {"metric": 5, "run_id": "a"}, r"m\.source\.metric = 5: write a text"),
    (Kind.NUMBER, {"run_id": "a", "predictions": "p"}, r"number needs metric"),
    (Kind.WRONG, {"run_id": "a", "predictions": "p"}, r"wrong needs labels and predictions"),
    (
        Kind.DISAGREEMENT,
        {"run_id": "a", "predictions": "p", "labels": "l"},
        r"disagreement needs",
    ),
    (Kind.WRONG, {"run_id": "a", "predictions": "p", "labels": "l", "tolerance": -1}, r"tolerance = -1"),
]


@pytest.mark.parametrize(("kind", "given", "said"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_named(kind: Kind, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        choice.check_source("m", a_metric(kind, "mlflow", **given), None)
