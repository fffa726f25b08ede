"""A picture of an evaluation: the errors over the held-out days, and how candidate and champion differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    Losses = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]

# Beyond half an hour a difference is one of a handful of flights, and would flatten all others.
SHOWN_MINUTES = 30


def evaluation_figure(days: pd.Series, losses: Losses) -> Figure:
    """The mean absolute error by day, and the distribution of the differences on the same flights."""
    import pandas as pd
    from matplotlib.figure import Figure  # not pyplot: nothing is shown, and no display is looked for

    figure = Figure(figsize=(9, 6), layout="constrained")
    by_day, differences = figure.subplots(2, 1)
    means = pd.DataFrame({"day": days.to_numpy(), **losses}).groupby("day").mean()
    for group in losses:
        by_day.plot(range(len(means)), means[group], marker="o", markersize=3, label=group)
    by_day.set_xticks(range(len(means)), [str(day)[5:] for day in means.index], rotation=45)
    by_day.set_ylabel("mean absolute error, minutes")
    by_day.set_title("error over the held-out days")
    by_day.legend()
    other = "champion" if "champion" in losses else "baseline"
    difference = losses["candidate"] - losses[other]
    differences.hist(difference.clip(-SHOWN_MINUTES, SHOWN_MINUTES), bins=60)
    differences.axvline(float(difference.mean()), color="black", linewidth=1)
    differences.set_xlabel(f"error of the candidate minus error of the {other}, minutes a flight")
    differences.set_title(f"candidate and {other} on the same {len(difference):,} flights")
    return figure
