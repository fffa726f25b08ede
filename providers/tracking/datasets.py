"""A training's data as MLflow's inputs of its run, from what the run recorded of them.

Training code that logs its inputs itself (``mlflow.log_input``, autolog) knows them better: then nothing is
added.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingUnauthorizedError,
)
from nighttrain.providers.redaction import redact
from nighttrain.providers.tracking.names import fit, night_of
from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from nighttrain.providers.tracking.client import MLflowClient
    from nighttrain.providers.tracking.runs import Run

_log = logging.getLogger(__name__)

NAME, SOURCE, DIGEST, SHA256 = "dataset.name", "dataset.source", "dataset.digest", "dataset.sha256"
"""Parameters by which training code says what it read; each may be left out."""

MAX_DATASET_NAME = 500
MAX_DATASET_DIGEST = 36
"""MLflow's columns."""

SOURCE_TYPE = "nighttrain"
CONTEXT_TAG = "mlflow.data.context"
_SHOWN_DIGEST = 12
"""Of a sha256: what MLflow's page shows beside the name, and what people compare."""


def dataset_of(run: Run) -> dict[str, Any] | None:
    """The data set that a run's facts name, as MLflow's REST API takes it; ``None`` if they name none.

    Its digest is the one that the training recorded. Without one it is a digest of the facts, and the source
    says so: it tells intervals apart and says nothing about rows.
    """
    params, tags = run.params, run.tags
    start, end = tags.get(f"{PREFIX}data_interval_start"), tags.get(f"{PREFIX}data_interval_end")
    told = {"source": params.get(SOURCE), "data_interval_start": start, "data_interval_end": end}
    facts = {name: redact(value) for name, value in told.items() if value}
    recorded = params.get(DIGEST) or params.get(SHA256, "")[:_SHOWN_DIGEST]
    if not facts and not recorded:
        return None
    night = night_of(start, params)
    if night:
        facts["night"] = night
    if params.get(SHA256):
        facts["sha256"] = params[SHA256]
    facts["digest_is_of"] = "the data" if recorded else "these facts"
    source = json.dumps(facts, ensure_ascii=False, sort_keys=True)
    name = params.get(NAME) or " ".join(filter(None, (tags.get(f"{PREFIX}dag_id") or "data", night)))
    return {
        "name": fit(name, MAX_DATASET_NAME),
        "digest": fit(recorded, MAX_DATASET_DIGEST) or hashlib.sha256(source.encode()).hexdigest()[:8],
        "source_type": SOURCE_TYPE,
        "source": source,
    }


async def record_inputs(client: MLflowClient, run: Run) -> bool:
    """Log the run's data set as its input, unless it has inputs. Repeating it changes nothing.

    What MLflow refuses is told and fails nothing: a run in the trash, a server that knows no inputs.

    :returns: whether it was logged now
    :raises TrackingUnreachableError: MLflow does not answer
    """
    dataset = None if run.datasets else dataset_of(run)
    if dataset is None:
        return False
    given = {"dataset": dataset, "tags": [{"key": CONTEXT_TAG, "value": "training"}]}
    try:
        await client.post("runs/log-inputs", {"run_id": run.run_id, "datasets": [given]})
    except (TrackingNotFoundError, TrackingRequestError, TrackingUnauthorizedError) as error:
        _log.warning("MLflow takes no inputs of run %s; its tags name its data: %s", run.run_id, error)
        return False
    return True
