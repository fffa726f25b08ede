"""Train one night: `python -m airline_delay.train --as-of 2013-07-04`.

Learns the arrival delay from the flights of a rolling window whose delay was known when the night ended, and
logs the model, its errors on that window, and what it was made from into an MLflow run.
"""

from __future__ import annotations

import argparse
import sys
from time import perf_counter
from typing import TYPE_CHECKING

from . import command, flights, model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from sklearn.pipeline import Pipeline

# Four weeks hold every weekday four times. Over 95 nights of winter and summer they gave a smaller error on
# the following days than two weeks did (13.7 against 14.2 minutes), and a night still trains in a second.
WINDOW_DAYS = 28

# Rows kept beside the model as an example of what it takes.
EXAMPLE_ROWS = 5


def parser() -> argparse.ArgumentParser:
    """The command line."""
    defaults = model.Hyperparameters()
    result = argparse.ArgumentParser(
        prog="python -m airline_delay.train",
        description="Train on the flights of a rolling window whose delay was known at the end of a night.",
        epilog=command.TRACKING_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--as-of", required=True, metavar="DAY", help="the last day of the window, 2013-MM-DD")
    add("--window-days", type=int, default=WINDOW_DAYS, help="days in the window (default: %(default)s)")
    add("--max-iter", type=int, default=defaults.max_iter, help="trees (default: %(default)s)")
    add(
        "--learning-rate", type=float, default=defaults.learning_rate, help="shrinkage (default: %(default)s)"
    )
    add(
        "--min-samples-leaf",
        type=int,
        default=defaults.min_samples_leaf,
        help="flights in the smallest leaf (default: %(default)s)",
    )
    add(
        "--shuffle-labels",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="give every flight another one's delay: a model that learns nothing, for trying out gates and "
        "rollouts",
    )
    return result


def train(options: argparse.Namespace) -> None:
    """Load, fit and log. Raises DataError or UsageError before MLflow is touched."""
    hyperparameters = model.Hyperparameters(
        max_iter=options.max_iter,
        learning_rate=options.learning_rate,
        min_samples_leaf=options.min_samples_leaf,
    )
    if problem := hyperparameters.problem():
        raise command.UsageError(problem)
    as_of = flights.parse_day(options.as_of)
    frame = flights.training_frame(flights.read_sources(), as_of, options.window_days)
    if options.shuffle_labels:
        frame[flights.TARGET] = model.shuffled(frame[flights.TARGET])
        command.say("the delays are shuffled: there is nothing to learn")
    first, last = frame["known_at"].min(), frame["known_at"].max()
    command.say(
        f"loaded {len(frame)} flights that arrived from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    )

    command.say(f"training {hyperparameters.max_iter} trees")
    pipeline = model.build(hyperparameters)
    began = perf_counter()
    pipeline.fit(flights.features(frame), frame[flights.TARGET])
    seconds = perf_counter() - began
    scores = model.errors(frame[flights.TARGET], pipeline.predict(flights.features(frame)))
    command.say(
        f"trained in {seconds:.1f} s: mae {scores['mae']:.3f}, rmse {scores['rmse']:.3f} on the window"
    )

    facts = {
        "as_of": as_of.isoformat(),
        "known_before": flights.end_of_night(as_of).isoformat(),
        # A gate reads the data's age here.
        "data_until": last.isoformat(),
        "dataset.sha256": flights.fingerprint(frame),
    }
    parameters = (
        facts
        | vars(hyperparameters)
        | {
            "window_days": options.window_days,
            "model.loss": "absolute_error",
            "shuffled_labels": options.shuffle_labels,
        }
    )
    metrics = {f"train.{name}": value for name, value in scores.items()} | {"train.seconds": seconds}
    log(f"train {as_of}", pipeline, frame, parameters, metrics, facts)


def log(
    name: str,
    pipeline: Pipeline,
    frame: pd.DataFrame,
    parameters: dict[str, object],
    metrics: dict[str, float],
    facts: dict[str, str],
) -> None:
    """Everything into one MLflow run. The facts travel with the model: who judges it later can read them."""
    import mlflow.sklearn
    from mlflow.models import infer_signature

    example = flights.features(frame).head(EXAMPLE_ROWS)
    with command.mlflow_run(name):
        mlflow.log_params(parameters)
        mlflow.log_metrics(metrics)
        logged = mlflow.sklearn.log_model(
            pipeline,
            name="model",
            signature=infer_signature(flights.features(frame), pipeline.predict(example)),
            input_example=example,
            pip_requirements=model.requirements(),
            skops_trusted_types=model.TRUSTED_TYPES,
            metadata=facts,
        )
        command.say(f"logged model {logged.model_id}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parser().parse_args(arguments)
    return command.run_command(lambda: train(options))


if __name__ == "__main__":
    sys.exit(main())
