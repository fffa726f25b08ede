"""What the commands of this package share: one way to speak, to fail, and to find their MLflow run."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .flights import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow import ActiveRun

EXPERIMENT = "airline-delay"

TRACKING_HELP = """\
MLflow is found as everywhere: MLFLOW_TRACKING_URI names a server (http://127.0.0.1:5000) or a file
(sqlite:////tmp/flights.db); with MLFLOW_RUN_ID set, that run is resumed and no other is made, otherwise a new
run is made in the experiment "airline-delay" (or the one of MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID).
Exit status: 0 done, 1 MLflow could not be used, 2 bad input."""


class UsageError(Exception):
    """Bad input other than the data itself; the message is one line that says how to put it right."""


def say(text: str) -> None:
    """One line of progress, at once: whoever follows the log of a container sees it as it happens."""
    print(text, flush=True)


def run_command(body: Callable[[], None]) -> int:
    """Run a command's body; bad input and MLflow's refusals become one line on stderr and an exit status."""
    # Training talks to the tracking server and to nothing else.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A progress bar is hundreds of lines in the log of a container.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A window is too few rows for threads to help, and on busy cores or under a container's CPU limit, which
    # OpenMP does not see, they hinder. Read when scikit-learn is imported, which comes later.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        body()
    except (DataError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception as error:
        # Imported by now if MLflow is what failed; importing it only to name a class would cost seconds.
        exceptions = sys.modules.get("mlflow.exceptions")
        if exceptions is None or not isinstance(error, exceptions.MlflowException):
            raise
        print(f"error: MLflow: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    return 0


@contextmanager
def mlflow_run(name: str) -> Iterator[ActiveRun]:
    """The run of MLFLOW_RUN_ID resumed, or a new one of this name."""
    import mlflow

    # MLflow forgets MLFLOW_RUN_ID at the first start_run(): everything is logged inside this one block.
    resumed = "MLFLOW_RUN_ID" in os.environ
    chosen = {"MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"} & os.environ.keys()
    if not resumed and not chosen:
        mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_name=None if resumed else name) as run:
        say(f"run {run.info.run_id}{' (resumed)' if resumed else ''}")
        yield run
