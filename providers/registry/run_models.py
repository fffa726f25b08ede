"""Find the model of a run, in whichever way the training code logged it.

Plain training code logs a model into its run; or into a nested run; or as files only, as MLflow 2's client
and ``log_artifacts`` do. The nearest place counts: the run's own logged models, then its files, then the runs
below it.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import RunInTrashError, RunWithoutModelError
from nighttrain.providers.tracking.config import PAGE
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.runs import PARENT_TAG, LoggedModel, Run
from nighttrain.providers.tracking.tags import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nighttrain.providers.tracking.client import MLflowClient

MODEL_FILE = "MLmodel"
HISTORY_TAG = "mlflow.log-model.history"
"""The tag in which MLflow 2's client notes what it logged."""

MAX_FOLDERS = 10_000
"""A data set logged beside a model may have thousands; beyond this many a search takes minutes."""

FOLDERS_AT_ONCE = 8
"""Each is a request: one after the other, a slow server would make minutes of a thousand."""

CLOCKS_MS = 3_600_000
"""A run's start is by its opener's clock, a model's by the server's: an hour is more than they differ by."""

MAX_LISTED = 10
"""In a message: more models than a person reads."""

_LOG_ONE = "log one in the training code, e.g. mlflow.sklearn.log_model(model, name='model')"


async def find_model(
    client: MLflowClient, run_id: str, *, model_id: str | None = None, model_name: str | None = None
) -> LoggedModel:
    """The one READY model that is meant.

    :raises RunWithoutModelError: there is none, or several and it is not said which
    """
    tree = RunTree(client)
    run = await tree.get(run_id)
    if run.deleted:
        raise RunInTrashError(
            f"run {run_id} is in MLflow's trash, and its model with it. To have it back: "
            f"mlflow runs restore --run-id {run_id}, or, if its experiment was deleted, "
            f"mlflow experiments restore --experiment-id {run.experiment_id}"
        )
    own = await tree.logged_models(run)

    def wanted(models: Iterable[LoggedModel]) -> list[LoggedModel]:
        return [model for model in models if _is_asked_for(model, model_id, model_name)]

    if wanted(own):
        return _newest_of_one_name(run, wanted(own))
    if files := wanted(await files_of(client, run)):
        return _newest_of_one_name(run, files)
    below = await _models_below(client, tree, run)
    if len(ready := [model for model in wanted(below) if model.ready]) == 1:
        return ready[0]
    raise RunWithoutModelError(_why_none(run, [*own, *below], ready, model_id, model_name))


async def files_of(client: MLflowClient, run: Run) -> list[LoggedModel]:
    """The folders of a run's files that hold a model: those with a file named MLmodel.

    :raises RunWithoutModelError: there are too many folders to look into
    """
    found: list[LoggedModel] = []
    pending, seen = [""], 0
    while pending:
        folders, pending = pending[:FOLDERS_AT_ONCE], pending[FOLDERS_AT_ONCE:]
        seen += len(folders)
        if seen > MAX_FOLDERS:
            raise RunWithoutModelError(
                f"the files of run {run.run_id} have more than {MAX_FOLDERS:,} folders, too many to look for "
                f"a model in all of them; {_LOG_ONE}"
            )
        listings = await asyncio.gather(*(_listing(client, run, folder) for folder in folders))
        for folder, entries in zip(folders, listings, strict=True):
            if any(str(entry["path"]).rsplit("/", 1)[-1] == MODEL_FILE for entry in entries):
                found.append(_as_model(run, folder))
            else:
                pending += [str(entry["path"]) for entry in entries if entry.get("is_dir")]
    return found


async def _listing(client: MLflowClient, run: Run, folder: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    token: str | None = None
    while True:
        query = {"run_id": run.run_id, "path": folder or None, "page_token": token}
        page = await client.get("artifacts/list", query)
        entries += page.get("files", ())
        token = page.get("next_page_token")
        if not token:
            return entries


def _as_model(run: Run, folder: str) -> LoggedModel:
    return LoggedModel(
        model_id="",
        name=folder.rsplit("/", 1)[-1] or "model",
        status="READY",
        source="/".join(part for part in (run.artifact_uri.rstrip("/"), folder) if part),
        created=run.end_time or run.start_time or 0,
        run_id=run.run_id,
        path=folder,
    )


async def _models_below(client: MLflowClient, tree: RunTree, run: Run) -> list[LoggedModel]:
    """Models of nested runs: the logged ones, and the files that MLflow 2's client noted."""
    runs = await descendants(client, run)
    if not runs:
        return []
    by_id = {each.run_id: each for each in runs}
    found = [model for model in await _logged_since(client, run) if model.run_id in by_id]
    with_logged = {model.run_id for model in found}
    for each in runs:
        if each.run_id not in with_logged:
            found += [_as_model(each, path) for path in _noted_paths(each)]
    return found


async def descendants(client: MLflowClient, run: Run) -> list[Run]:
    """The runs nested below a run, in its experiment."""
    found: dict[str, Run] = {}
    parents = [run.run_id]
    while parents:
        parent = parents.pop()
        asked = {
            "experiment_ids": [run.experiment_id],
            "filter": f"tags.`{PARENT_TAG}` = {quoted(parent)}",
            "max_results": PAGE,
        }
        for child in map(Run.from_api, await client.search("runs", asked)):
            if child.run_id not in found and child.run_id != run.run_id:
                found[child.run_id] = child
                parents.append(child.run_id)
    return list(found.values())


async def _logged_since(client: MLflowClient, run: Run) -> list[LoggedModel]:
    """One listing for however many nested runs."""
    asked = {
        "experiment_ids": [run.experiment_id],
        "filter": f"creation_timestamp >= {max(0, (run.start_time or 0) - CLOCKS_MS)}",
    }
    return [
        LoggedModel.from_api(each) for each in await client.search("logged-models", asked, found_as="models")
    ]


def _noted_paths(run: Run) -> list[str]:
    try:
        noted = json.loads(run.tags.get(HISTORY_TAG, "[]"))
    except ValueError:  # MLflow cuts long tags off
        return []
    paths = [str(each.get("artifact_path", "")) for each in noted if isinstance(each, dict)]
    return list(dict.fromkeys(paths))


def _is_asked_for(model: LoggedModel, model_id: str | None, model_name: str | None) -> bool:
    named = model_name in (None, model.name) or (model.path is not None and model.path == model_name)
    return named and model_id in (None, model.model_id)


def _newest_of_one_name(run: Run, models: list[LoggedModel]) -> LoggedModel:
    """Of several of one name the newest counts: a retry of the training logs its model again."""
    ready = [model for model in models if model.ready]
    names = sorted({model.name for model in ready})
    places = {model.path for model in ready}
    if len(names) == 1 and len(places) == 1:
        return ready[-1]
    if ready:
        called = ", ".join(names) if len(names) == len(ready) or places == {None} else _listed(ready)
        raise RunWithoutModelError(
            f"{_about(run)} logged several models, {called}: say which with model_name (logged_model_name)"
        )
    raise RunWithoutModelError(
        f"{_about(run)} logged no READY model; it logged {_listed(models)}. The upload did not end: "
        f"{_LOG_ONE}"
    )


def _why_none(
    run: Run, seen: list[LoggedModel], ready: list[LoggedModel], model_id: str | None, model_name: str | None
) -> str:
    if ready:
        return (
            f"{_about(run)} logged no model itself, and the runs below it logged several: {_listed(ready)}. "
            "Say which with model_name (logged_model_name), or with run_id name the run that logged it"
        )
    given = (("model_id", model_id), ("model_name", model_name))
    asked = " and ".join(f"{key}={value!r}" for key, value in given if value)
    if asked and seen:
        return f"{_about(run)} logged no model with {asked}; it logged {_listed(seen)}"
    if seen:
        return f"{_about(run)} logged no READY model; the runs below it logged {_listed(seen)}: {_LOG_ONE}"
    return (
        f"{_about(run)} logged no model: no logged model, no folder of its files has a file {MODEL_FILE}, "
        f"and nothing in runs below it: {_LOG_ONE}"
    )


def _about(run: Run) -> str:
    return f"run {run.run_id} ({run.name or 'unnamed'}, {run.status})"


def _listed(models: list[LoggedModel]) -> str:
    shown = ", ".join(
        f"{model.name} ({model.model_id or model.path or 'files'}, {model.status}, run {model.run_id})"
        for model in models[:MAX_LISTED]
    )
    more = len(models) - MAX_LISTED
    return f"{shown} and {more} more" if more > 0 else shown
