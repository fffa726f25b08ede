"""Judge one night: `python -m airline_delay.evaluate --as-of 2013-07-14 --candidate models:/airline-delay/2`.

Scores candidate and champion on the same real flights of the days after the night, none of which either model
was trained on, and logs the errors into an MLflow run. It measures; whether the candidate is good enough is
for whoever reads the metrics.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime
from time import perf_counter
from typing import TYPE_CHECKING

from . import command, flights, model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

# Three days are about 2,700 flights: enough that one bad afternoon does not decide alone, and few enough that
# a night could have been judged before the week is over.
HELD_OUT_DAYS = 3


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
    metrics = {f"baseline.{k}": v for k, v in model.errors(frame[flights.TARGET], frame["dep_delay"]).items()}
    report("baseline", metrics, "it arrives as late as it left")
    for role, uri in contestants.items():
        metrics |= {f"{role}.{k}": v for k, v in score(role, uri, frame).items()}
        report(role, metrics, uri)

    parameters = {f"{role}.uri": uri for role, uri in contestants.items()} | {
        "as_of": as_of.isoformat(),
        "held_out.days": options.days,
        "held_out.first": first.isoformat(),
        "held_out.last": last.isoformat(),
        "held_out.sha256": flights.fingerprint(frame),
    }
    import mlflow

    with command.mlflow_run(f"evaluate {as_of}"):
        mlflow.log_params(parameters)
        mlflow.log_metrics(metrics)


def score(role: str, uri: str, frame: pd.DataFrame) -> dict[str, float]:
    """A model's errors on the frame. Raises UsageError when the model may have seen some of its rows."""
    import mlflow.pyfunc

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
    return model.errors(frame[flights.TARGET], loaded.predict(flights.features(frame)))


def report(role: str, metrics: dict[str, float], what: str) -> None:
    """One line for the log."""
    command.say(f"{role:9}  mae {metrics[f'{role}.mae']:7.3f}  rmse {metrics[f'{role}.rmse']:7.3f}  ({what})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parser().parse_args(arguments)
    return command.run_command(lambda: evaluate(options))


if __name__ == "__main__":
    sys.exit(main())
