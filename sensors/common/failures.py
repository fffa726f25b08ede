"""Translation of nighttrain's errors into Airflow's: what can never succeed is not tried again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowFailException

from nighttrain.providers.errors import PERMANENT

if TYPE_CHECKING:
    from collections.abc import Iterator

# A day: whoever restores a tracking server does so within one, and a finished Job keeps its result for three.
MLFLOW_OUTAGE_SECONDS = 24 * 3600.0


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turn permanent errors into ``AirflowFailException``: no retry follows. Let the others through."""
    try:
        yield
    except PERMANENT as error:
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error
