"""What an evaluation leaves for a gate beside its metrics: three small JSON files, written with plain MLflow.

Copy this into your own scoring code: it knows pandas and MLflow, and nothing of what reads the files.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import pandas as pd

    Losses = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    """The loss of each row, by group: candidate, champion, baseline ..."""

    Metrics = Callable[[pd.Series, Any], dict[str, float]]

FOLDER = "nighttrain"

# The words of a check for what a function of Python returns.
_VERDICTS = {True: "accepted", False: "rejected", None: "inconclusive"}


def slices(
    frame: pd.DataFrame, target: str, predictions: Losses, dimensions: Sequence[str], metrics: Metrics
) -> dict[str, Any]:
    """`slices.json`: each group's metrics on the rows of every value of every dimension."""
    found: dict[str, Any] = {group: {name: {} for name in dimensions} for group in predictions}
    for dimension in dimensions:
        for value, places in frame.groupby(dimension, observed=True).indices.items():
            for group, predicted in predictions.items():
                measured = metrics(frame[target].iloc[places], predicted[places])
                found[group][dimension][str(value)] = measured
    return found


def paired_losses(metric: str, groups: pd.Series, losses: Losses) -> dict[str, Any]:
    """`paired_losses.json`: the sum of each model's losses over every group of rows that belong together."""
    table = groups.to_frame("group").assign(rows=1, **losses).groupby("group", sort=True).sum()
    return {
        metric: {
            "groups": [str(name) for name in table.index],
            "rows": [int(count) for count in table["rows"]],
            "sums": {name: [float(each) for each in table[name]] for name in losses},
        }
    }


def checks(paths: Sequence[str], frame: pd.DataFrame, predictions: Losses) -> dict[str, Any]:
    """`checks.json`: what functions of the user's own say about the rows and each group's predictions.

    A function returns True, False or None (it cannot tell), or one of these and a sentence.
    """
    results = {}
    for path in paths:
        module, _, name = path.rpartition(".")
        said = getattr(import_module(module), name)(frame, predictions)
        passed, sentence = said if isinstance(said, tuple) else (said, "")
        results[path] = {
            "verdict": _VERDICTS[None if passed is None else bool(passed)],
            "sentence": str(sentence),
        }
    return results


def compared_uris() -> dict[str, str]:
    """Further versions to score, by group: `{"version:12": "models:/airline-delay/12"}`."""
    return dict(json.loads(os.environ.get("COMPARED_MODEL_URIS", "{}")))


def asked_checks() -> list[str]:
    """The dotted paths of the functions that a gate wants to hear of."""
    return list(json.loads(os.environ.get("GATE_CHECKS", "[]")))
