"""Judge one night: `python -m airline_delay.evaluate --as-of 2013-07-14 --candidate models:/airline-delay/2`.

Scores candidate and champion on the same real flights of the days after the night, none of which either model
was trained on, and logs the errors into an MLflow run, with three small files for a gate and a picture. It
measures; whether the candidate is good enough is for whoever reads the metrics.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from datetime import datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

from . import command, flights, model, plot, records

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd

    Predictions = np.ndarray[Any, np.dtype[np.float64]]

# The flights of a day share its weather: a day is one witness, however many flights it has. Two weeks have
# every weekday twice, and are enough for a statement about chance.
HELD_OUT_DAYS = 14

SLICED_BY = ("carrier", "origin")

# Rows predicted one by one, as an endpoint does it: enough for a 95th percentile, and less than a second.
TIMED_ROWS = 40


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m airline_delay.evaluate",
        description="Score candidate and champion on the same held-out flights of the days after a night.",
        epilog=command.TRACKING_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add(
        "--as-of",
        required=True,
        metavar="DAY",
        help="the night that the candidate was trained on, 2013-MM-DD",
    )
    add("--days", type=int, default=HELD_OUT_DAYS, help="days after it to judge on (default: %(default)s)")
    add(
        "--candidate",
        metavar="URI",
        default=os.environ.get("CANDIDATE_MODEL_URI"),
        help="the candidate, e.g. models:/airline-delay/2 (default: $CANDIDATE_MODEL_URI)",
    )
    add(
        "--champion",
        metavar="URI",
        default=os.environ.get("CHAMPION_MODEL_URI"),
        help="the champion, if there is one (default: $CHAMPION_MODEL_URI)",
    )
    return result


def evaluate(options: argparse.Namespace) -> None:
    """Load, score and log. Raises DataError or UsageError for bad input before anything is logged."""
    if not options.candidate:
        raise command.UsageError("no candidate: pass --candidate URI or set CANDIDATE_MODEL_URI")
    as_of = flights.parse_day(options.as_of)
    frame = flights.held_out_frame(flights.read_sources(), as_of, options.days)
    first, last = frame["departed_at"].min(), frame["departed_at"].max()
    command.say(
        f"holding out {len(frame)} flights that left from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    )

    contestants = {"candidate": options.candidate}
    if options.champion:
        contestants["champion"] = options.champion
    else:
        command.say("no champion: the candidate is scored alone")
    contestants |= records.compared_uris()
    predictions = {"baseline": frame["dep_delay"].to_numpy()}
    metrics: dict[str, float] = {}
    for role, uri in contestants.items():
        predictions[role], costs = score(role, uri, frame)
        metrics |= {f"{role}.{name}": value for name, value in costs.items()}
    for role, predicted in predictions.items():
        metrics |= {f"{role}.{k}": v for k, v in model.errors(frame[flights.TARGET], predicted).items()}
        report(role, metrics, contestants.get(role, "it arrives as late as it left"))

    parameters = {f"{role}.uri": uri for role, uri in contestants.items()} | {
        "as_of": as_of.isoformat(),
        "held_out.days": options.days,
        "held_out.first": first.isoformat(),
        "held_out.last": last.isoformat(),
        "held_out.sha256": flights.fingerprint(frame),
    }
    log(f"evaluate {as_of}", frame, predictions, parameters, metrics)


def log(
    name: str,
    frame: pd.DataFrame,
    predictions: dict[str, Predictions],
    parameters: dict[str, object],
    metrics: dict[str, float],
) -> None:
    """Everything into one MLflow run."""
    import mlflow

    actual, days = frame[flights.TARGET].to_numpy(), flights.scheduled_days(frame)
    losses = {role: abs(actual - predicted) for role, predicted in predictions.items()}
    files = {
        "slices": records.slices(frame, flights.TARGET, predictions, SLICED_BY, model.errors),
        "paired_losses": records.paired_losses("mae", days, losses),
    }
    if paths := records.asked_checks():
        files["checks"] = records.checks(paths, frame, predictions)
    with command.mlflow_run(name):
        mlflow.log_params(parameters)
        mlflow.log_metrics(metrics)
        for file, content in files.items():
            mlflow.log_dict(content, f"{records.FOLDER}/{file}.json")
        mlflow.log_figure(plot.evaluation_figure(days, losses), f"{records.FOLDER}/evaluation.png")


def score(role: str, uri: str, frame: pd.DataFrame) -> tuple[Predictions, dict[str, float]]:
    """A model's predictions, and what one of them costs in seconds and memory.

    Raises UsageError when the model may have seen some of the frame's rows.
    """
    import mlflow.pyfunc
    import numpy as np

    began = perf_counter()
    loaded = mlflow.pyfunc.load_model(uri)
    command.say(f"loaded the {role} in {perf_counter() - began:.1f} s")
    trained_until = (loaded.metadata.metadata or {}).get("known_before")
    if trained_until is None:
        raise command.UsageError(
            f"the {role} {uri} does not say until when it was trained: not made by train.py?"
        )
    if datetime.fromisoformat(trained_until) > frame["departed_at"].min():
        raise command.UsageError(
            f"the {role} {uri} was trained on flights until {trained_until}, some of them held out here: "
            f"judge on later days"
        )
    rows = flights.features(frame)
    predicted = np.asarray(loaded.predict(rows), dtype="float64")
    seconds = []
    for place in range(min(TIMED_ROWS, len(rows))):
        began = perf_counter()
        loaded.predict(rows.iloc[[place]])
        seconds.append(perf_counter() - began)
    # The candidate is scored first: its peak is that of the process so far, with the data and one model.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    costs = {"p95_seconds": float(np.quantile(seconds, 0.95))}
    return predicted, costs | ({"peak_memory_bytes": float(peak)} if role == "candidate" else {})


def report(role: str, metrics: dict[str, float], what: str) -> None:
    """One line for the log."""
    command.say(f"{role:9}  mae {metrics[f'{role}.mae']:7.3f}  rmse {metrics[f'{role}.rmse']:7.3f}  ({what})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parser().parse_args(arguments)
    return command.run_command(lambda: evaluate(options))


if __name__ == "__main__":
    sys.exit(main())
