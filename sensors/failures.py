"""How nighttrain's errors become Airflow's: what can never succeed is not tried again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nighttrain.providers.errors import (
    ArtifactDigestMismatchError,
    ConfigurationError,
    GateError,
    ObjectInvalidError,
    RunWithoutModelError,
    WorkloadConflictError,
)

# Trying these again would give the same answer: the input, the registered artifact or the recorded
# measurements have to change first.
PERMANENT = (
    ArtifactDigestMismatchError,
    ConfigurationError,
    GateError,
    ObjectInvalidError,
    RunWithoutModelError,
    WorkloadConflictError,
)


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turn permanent errors into ``AirflowFailException``: no retry follows. Let the others through."""
    from airflow.sdk.exceptions import AirflowFailException

    try:
        yield
    except PERMANENT as error:
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error
