"""What MLflow runs hold: a metric, and late labels joined with predictions by their keys."""

from __future__ import annotations

import asyncio
import csv
import io
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ConfigurationError,
    RegistryError,
    TrackingError,
    TrackingNotFoundError,
)
from nighttrain.providers.registry.artifacts import read_run_file
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources.asking.predictions import alike, loads
from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell
from nighttrain.providers.serving.analysis.sources.samples import sample, unmeasured
from nighttrain.providers.serving.analysis.values import Counts
from nighttrain.providers.tracking.runs import Run
from nighttrain.providers.tracking.tags import quoted

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.sources.base import Memory, Window
    from nighttrain.providers.serving.analysis.values import Sample
    from nighttrain.providers.tracking.client import MLflowClient

KINDS = frozenset({Kind.NUMBER, Kind.WRONG, Kind.DISAGREEMENT})
PARAMETERS = frozenset(
    {"run_id", "experiment", "run_name", "tags", "metric", "predictions", "labels", "tolerance"}
)

# As golden requests have.
TOLERANCE = 1e-6

# Read anew in each interval: a day's predictions of a busy endpoint, thinned where there are more.
MAX_BYTES = 32 << 20

# The memory of a rollout names each; a file for every hour of a week.
MAX_FILES = 200

_TEXTS = ("run_id", "experiment", "run_name", "metric", "predictions", "labels")
Rows = dict[str, list[Mapping[str, Any]]]


class MLflowRuns:
    """Reads a run that somebody else writes: monitoring, an evaluation, the system that has the labels.

    Predictions are rows of ``key``, ``version`` and ``prediction``, labels rows of ``key`` and ``label``, as
    JSON lines or CSV. Only rows that are added after the first look count, for both versions from the same
    moment, each key once.
    """

    def __init__(self, client: MLflowClient) -> None:
        self._client = client

    async def measure(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
        """Read the run as it is now."""
        try:
            run = await self._run(metric, window)
            if run is None:
                return sample(metric, window), memory
            if metric.kind is Kind.NUMBER:
                value = run.metrics.get(_filled(metric.source["metric"], window), math.nan)
                return sample(metric, window, value=value if math.isfinite(value) else None), memory
            return await self._joined(metric, window, memory, run)
        except (CannotTell, TrackingError, RegistryError) as error:
            return unmeasured(metric, window, error), memory

    async def _run(self, metric: Metric, window: Window) -> Run | None:
        """The run that the source names, the newest of several; ``None`` if there is none yet."""
        source = metric.source
        if "run_id" in source:
            answer = await self._client.get("runs/get", {"run_id": _filled(source["run_id"], window)})
            return Run.from_api(answer["run"])
        try:
            found = await self._client.get(
                "experiments/get-by-name", {"experiment_name": _filled(source["experiment"], window)}
            )
        except TrackingNotFoundError:
            return None
        wanted = {f"tags.`{name}`": value for name, value in source.get("tags", {}).items()}
        if "run_name" in source:
            wanted["attributes.run_name"] = source["run_name"]
        filled = [f"{name} = {_in_quotes(_filled(value, window))}" for name, value in wanted.items()]
        asked = {
            "experiment_ids": [str(found["experiment"]["experiment_id"])],
            "filter": " and ".join(filled),
            "order_by": ["attributes.start_time DESC"],
            "max_results": 1,
        }
        runs = (await self._client.post("runs/search", asked)).get("runs", ())
        return Run.from_api(runs[0]) if runs else None

    async def _joined(
        self, metric: Metric, window: Window, memory: Memory, run: Run
    ) -> tuple[Sample, Memory]:
        source = metric.source
        predictions = await self._rows(run, _filled(source["predictions"], window))
        labels = await self._rows(run, _filled(source["labels"], window)) if "labels" in source else None
        begun: Mapping[str, int] | None = memory.get("begun")
        if begun is None:
            begun = {name: len(rows) for name, rows in predictions.items()}
        if any(len(predictions.get(name, ())) < number for name, number in begun.items()):
            raise CannotTell("there are fewer predictions than before: files that are read may only grow")
        fresh = {name: rows[begun.get(name, 0) :] for name, rows in predictions.items()}
        tolerance = float(source.get("tolerance", TOLERANCE))
        now = await asyncio.to_thread(count, fresh, labels, window.candidate, window.stable, tolerance)
        last = memory.get("counted", [0, 0, 0, 0])
        after = {"begun": dict(begun), "counted": now}
        if not window.seconds:
            return sample(metric, window), after
        new = [max(0, one - other) for one, other in zip(now, last, strict=True)]
        candidate, stable = (Counts(requests=n, bad=min(n, bad)) for n, bad in (new[:2], new[2:]))
        if labels is None or window.stable is None:
            return sample(metric, window, candidate=candidate), after
        return sample(metric, window, candidate=candidate, stable=stable), after

    async def _rows(self, run: Run, path: str) -> Rows:
        """The rows of a file, or of every file of a folder."""
        rows: Rows = {}
        left = MAX_BYTES
        for name in await self._files(run, path):
            content = await read_run_file(self._client, run, name, limit=left)
            left -= len(content or b"")
            rows[name] = await asyncio.to_thread(lambda: list(read_rows(name, content or b"")))  # noqa: B023
        return rows

    async def _files(self, run: Run, path: str) -> list[str]:
        files: list[str] = []
        token: str | None = None
        while True:
            asked = {"run_id": run.run_id, "path": path, "page_token": token}
            page = await self._client.get("artifacts/list", asked)
            files += [str(each["path"]) for each in page.get("files", ()) if not each.get("is_dir")]
            token = page.get("next_page_token")
            if len(files) > MAX_FILES:
                raise CannotTell(f"{path} has more than {MAX_FILES} files")
            if not token:
                # A file is no folder: stores list nothing below it, or itself.
                return sorted(files) or [path]


def read_rows(name: str, content: bytes) -> Iterator[Mapping[str, Any]]:
    """The rows of a CSV file, or of one of JSON lines.

    :raises CannotTell: a row is none
    """
    text = content.decode("utf-8", "replace")
    if name.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(text))
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = loads(line)
            except (ValueError, RecursionError) as error:
                raise CannotTell(f"line {number} of {name} is no JSON") from error
            if not isinstance(row, dict):
                raise CannotTell(f"line {number} of {name} is no JSON object")
            yield row


def count(
    predictions: Rows, labels: Rows | None, candidate: str, stable: str | None, tolerance: float
) -> list[int]:
    """The candidate's joined predictions and the wrong ones, then the stable version's.

    Without labels, the keys that both versions predicted, and those that they disagree on. A key's first
    prediction counts, and its first label.
    """
    of: dict[str, dict[str, Any]] = {candidate: {}, stable or "": {}}
    for row in _all(predictions, "prediction"):
        found = of.get(str(row.get("version")))
        if found is not None:
            found.setdefault(str(row["key"]), row["prediction"])
    if labels is None:
        keys = of[candidate].keys() & of[stable or ""].keys()
        differ = sum(not _same(of[candidate][key], of[stable or ""][key], tolerance) for key in keys)
        return [len(keys), differ, 0, 0]
    right: dict[str, Any] = {}
    for row in _all(labels, "label"):
        right.setdefault(str(row["key"]), row["label"])
    counted = []
    for version in (candidate, stable or ""):
        joined = [(value, right[key]) for key, value in of[version].items() if key in right]
        counted += [len(joined), sum(not _same(value, label, tolerance) for value, label in joined)]
    return counted


def _all(rows: Rows, value: str) -> Iterator[Mapping[str, Any]]:
    for name in sorted(rows):
        for row in rows[name]:
            if row.get("key") in (None, "") or row.get(value) is None:
                raise CannotTell(f"a row of {name} has no key, or no {value}: {row!s:.100}")
            yield row


def _same(one: Any, other: Any, tolerance: float) -> bool:
    return alike(_plain(one), _plain(other), tolerance)


def _plain(value: Any) -> Any:
    """Numbers that are written as text, as in CSV, are numbers."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _filled(text: str, window: Window) -> str:
    values = {"version": window.candidate, "endpoint": window.endpoint, "model": window.model_name}
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _in_quotes(value: str) -> str:
    held = quoted(value)
    if held is None:
        raise CannotTell(f"MLflow cannot search for {value!r}: it has both sorts of quotes")
    return held


def check(where: str, metric: Metric, golden: Golden | None) -> None:
    """Refuse what this source cannot measure.

    :raises ConfigurationError: names the field, the value and the fix
    """
    source = metric.source
    for name in _TEXTS:
        if name in source and (not isinstance(source[name], str) or not source[name]):
            raise ConfigurationError(f"{where}.{name}", source[name], "write a text")
    by_search = {"experiment", "run_name", "tags"} & source.keys()
    if ("run_id" in source) == bool(by_search):
        raise ConfigurationError(
            f"{where}.run_id",
            source.get("run_id"),
            "name the run by run_id, or by experiment and run_name or tags",
        )
    if by_search and ("experiment" not in source or len(by_search) == 1):
        raise ConfigurationError(
            f"{where}.experiment", source.get("experiment"), "give experiment, and run_name or tags"
        )
    tags = source.get("tags", {})
    texts = isinstance(tags, Mapping) and all(isinstance(part, str) for pair in tags.items() for part in pair)
    if not texts or any("`" in name for name in tags):
        raise ConfigurationError(f"{where}.tags", tags, "give tags and their values as texts")
    needed = {"metric"} if metric.kind is Kind.NUMBER else {"predictions"}
    needed |= {"labels"} if metric.kind is Kind.WRONG else set()
    allowed = needed | ({"tolerance"} if metric.kind is not Kind.NUMBER else set())
    given = source.keys() & {"metric", "predictions", "labels", "tolerance"}
    if not needed <= given <= allowed:
        raise ConfigurationError(where, sorted(given), f"{metric.kind} needs {' and '.join(sorted(needed))}")
    tolerance = source.get("tolerance", TOLERANCE)
    number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not number or not 0 <= tolerance < math.inf:
        raise ConfigurationError(f"{where}.tolerance", tolerance, "give a number, 0 or more")
