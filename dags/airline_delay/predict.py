"""Ask an endpoint about real flights: `python -m airline_delay.predict --url http://... --day 2013-07-20`.

Sends what was known when each plane left the gate, and prints what the endpoint answers beside what happened.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from . import command, flights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

# A ready scoring server answers a handful of rows in milliseconds; one that needs longer is not well.
TIMEOUT_SECONDS = 30.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m airline_delay.predict",
        description="Ask a scoring endpoint about real flights of a day, and print what happened beside.",
        epilog="Exit status: 0 done, 2 bad input or an endpoint that does not answer.",
    )
    add = result.add_argument
    add("--url", required=True, help="the endpoint, with or without /invocations")
    add("--day", required=True, help="the day of the flights, 2013-MM-DD")
    add("--flights", type=int, default=8, help="how many, spread evenly over the day (default: %(default)s)")
    return result


def predict(options: argparse.Namespace) -> None:
    """Choose, ask and print."""
    day = flights.parse_day(options.day)
    if options.flights < 1:
        raise command.UsageError(f"--flights {options.flights} asks for nothing: use at least 1")
    frame = flights.arrived_flights(flights.read_sources(), day, day)
    if frame.empty:
        raise flights.DataError(f"no flight of {day} arrived")
    chosen = spread(frame, options.flights)
    answers = ask(options.url, flights.features(chosen))
    print(table(chosen, answers), flush=True)


def spread(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows at even distances, the same ones every time."""
    count = min(count, len(frame))
    positions = [int((i + 0.5) * len(frame) / count) for i in range(count)]
    return frame.iloc[positions].reset_index(drop=True)


def payload(frame: pd.DataFrame) -> dict[str, object]:
    """The rows in MLflow's scoring protocol; JSON has no NaN, a missing value is null."""
    rows = [
        [None if isinstance(value, float) and math.isnan(value) else value for value in row]
        for row in frame.itertuples(index=False, name=None)
    ]
    return {"dataframe_split": {"columns": list(frame.columns), "data": rows}}


def ask(url: str, frame: pd.DataFrame) -> list[float]:
    """The endpoint's predictions. Raises UsageError when it does not answer with one for each row."""
    target = url.rstrip("/").removesuffix("/invocations") + "/invocations"
    if urlsplit(target).scheme not in {"http", "https"}:
        raise command.UsageError(f"{url} is not an address of a web server: use http://host:port")
    request = urllib.request.Request(  # noqa: S310 (the scheme is checked above)
        target, json.dumps(payload(frame)).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 (ditto)
            answers = json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        detail = " ".join(error.read(300).decode(errors="replace").split())
        raise command.UsageError(f"{target} answered {error.code}: {detail}") from error
    except OSError as error:
        raise command.UsageError(f"{target} does not answer: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise command.UsageError(f"{target} is no MLflow scoring server: it sent no predictions") from error
    if len(answers) != len(frame):
        raise command.UsageError(f"{target} sent {len(answers)} predictions for {len(frame)} flights")
    return [float(answer) for answer in answers]


def table(frame: pd.DataFrame, answers: Sequence[float]) -> str:
    """Flight by flight, minutes late: leaving, as predicted, and as it was."""
    lines = [
        f"{'flight':8} {'route':9} {'left the gate (UTC)':20} {'left':>6} {'predicted':>10} {'actual':>7}"
    ]
    for row, answer in zip(frame.itertuples(), answers, strict=True):
        flight, route = f"{row.carrier} {row.flight}", f"{row.origin}-{row.dest}"
        left = f"{row.departed_at:%Y-%m-%d %H:%M}"
        lines.append(
            f"{flight:8} {route:9} {left:20} {row.dep_delay:+6.0f} {answer:+10.1f} {row.arr_delay:+7.0f}"
        )
    error = sum(abs(a - b) for a, b in zip(frame[flights.TARGET], answers, strict=True)) / len(frame)
    lines.append(f"minutes late (early: -); mean absolute error of these {len(frame)}: {error:.1f} minutes")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parser().parse_args(arguments)
    return command.run_command(lambda: predict(options))


if __name__ == "__main__":
    sys.exit(main())
