"""Where a version comes from: a few tags that people filter by, and the rest in one file of its run.

The file lies beside the model's folder, never in it: the artifact's digest stays what it is. Where MLflow
does not take the file (a store that only pods reach), all of it stays in the version's tags, as versions had
it that were registered before; :func:`read_lineage` reads both.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    TrackingError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingUnauthorizedError,
)
from nighttrain.providers.tracking.names import MAX_VERSION_TAG, fit, night_of
from nighttrain.providers.tracking.run_store import RunStore
from nighttrain.providers.tracking.runs import Run, inherited
from nighttrain.providers.tracking.tags import PREFIX, clean_tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.registry.versions import ModelVersion
    from nighttrain.providers.tracking.client import MLflowClient

_log = logging.getLogger(__name__)

NIGHT_TAG = f"{PREFIX}night"
DAG_RUN_TAG = f"{PREFIX}dag_run"
JOB_TAG = f"{PREFIX}job"

LINEAGE_FOLDER = "nighttrain"
LINEAGE_FILE = f"{LINEAGE_FOLDER}/lineage.json"
"""In the files of the run that logged the model."""

DAG_RUN_URL = f"{PREFIX}dag_run_url"
"""The DAG run's page, where the orchestrator knows its own address."""

MAX_LINEAGE_BYTES = 1_000_000
"""Two dozen short texts take some kB; a file that is larger is not ours."""

RUN_FILE = "/get-artifact"
_SCHEMA = 1


def lineage_of(run: Run) -> dict[str, str]:
    """What a version of a run's model says of its origin: the run's tags that it inherits, and the night."""
    night = night_of(run.tags.get(f"{PREFIX}data_interval_start"), run.params)
    return inherited(run.tags) | ({NIGHT_TAG: night} if night else {})


def few_tags(lineage: Mapping[str, str]) -> dict[str, str]:
    """The tags of a version that people filter by, and that lead back: night, DAG run, Job."""
    known = {name.removeprefix(PREFIX): value for name, value in lineage.items()}
    of_dag_run = [known[name] for name in ("dag_id", "run_id") if known.get(name)]
    of_job = [known[name] for name in ("namespace", "job_name") if known.get(name)]
    tags = {
        NIGHT_TAG: known.get("night") or night_of(known.get("data_interval_start")),
        DAG_RUN_TAG: "/".join(of_dag_run) if len(of_dag_run) == 2 else None,
        JOB_TAG: "/".join(of_job) if len(of_job) == 2 else None,
    }
    return {name: fit(value, MAX_VERSION_TAG) for name, value in tags.items() if value}


async def split_lineage(
    client: MLflowClient, run: Run, model_path: str | None, lineage: Mapping[str, str]
) -> dict[str, str]:
    """Write the lineage into its file and return the few tags; all of them where the file cannot be written.

    :param run: the one that logged the model
    :param model_path: the model's folder among the run's files, where it is one
    :raises TrackingUnreachableError: MLflow does not answer
    """
    few = few_tags(lineage)
    if _holds_the_file(model_path):
        _log.warning(
            "The model is the folder %r of run %s, into which nothing may be written: its version keeps its "
            "lineage in its tags",
            model_path,
            run.run_id,
        )
        return {**lineage, **few}
    try:
        await write_lineage(client, run, lineage)
    except (TrackingNotFoundError, TrackingRequestError, TrackingUnauthorizedError) as error:
        _log.warning(
            "MLflow takes no %s among the files of run %s, so the version keeps its lineage in its tags: %s",
            LINEAGE_FILE,
            run.run_id,
            error,
        )
        return {**lineage, **few}
    return few


async def write_lineage(client: MLflowClient, run: Run, lineage: Mapping[str, str]) -> None:
    """Put the lineage into the run's file. :raises TrackingError: MLflow refuses, or does not answer"""
    values = {name.removeprefix(PREFIX): value for name, value in clean_tags(lineage).items()}
    document = {"schema": _SCHEMA, "mlflow_run_id": run.run_id, "lineage": values}
    content = json.dumps(document, ensure_ascii=False, indent=2, sort_keys=True).encode()
    await RunStore(client).put_file(run, LINEAGE_FILE, content)


async def read_lineage(client: MLflowClient, version: ModelVersion) -> dict[str, str]:
    """A version's lineage by the names of the run's tags: from its own tags, or the file, or its run.

    :returns: empty where nobody recorded any, or it is gone with the run
    :raises TrackingUnreachableError: MLflow does not answer
    """
    tags = inherited(version.tags)
    if f"{PREFIX}dag_id" in tags or not version.run_id:  # as earlier releases registered, or no file
        return tags
    written = await _read_file(client, version.run_id)
    if written:
        return {**written, **tags}
    try:
        run = Run.from_api((await client.get("runs/get", {"run_id": version.run_id}))["run"])
    except (TrackingNotFoundError, TrackingRequestError, TrackingUnauthorizedError):
        return tags
    return {**lineage_of(run), **tags}


async def _read_file(client: MLflowClient, run_id: str) -> dict[str, str]:
    content = bytearray()

    async def whole() -> bytes:
        content.clear()
        async for piece in client.stream(RUN_FILE, {"run_id": run_id, "path": LINEAGE_FILE}):
            content.extend(piece)
            if len(content) > MAX_LINEAGE_BYTES:
                break
        return bytes(content)

    try:
        document: Any = json.loads(await client.repeating(whole, attempts=2))
        values = document["lineage"]
        return {f"{PREFIX}{name}": str(value) for name, value in values.items()}
    except TrackingError as error:
        # MLflow answers 500 for a file that is not there.
        _log.debug("no %s in run %s: %s", LINEAGE_FILE, run_id, error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s of run %s is not ours, and is passed over: %s", LINEAGE_FILE, run_id, error)
    return {}


def _holds_the_file(model_path: str | None) -> bool:
    """True if the file would lie in the model's folder."""
    if model_path is None:
        return False
    folder = model_path.strip("/")
    return not folder or f"{LINEAGE_FILE}/".startswith(f"{folder}/")
