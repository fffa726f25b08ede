"""Choose golden requests: `python -m airline_delay.golden --day 2013-07-10 > golden_flights.json`.

Real flights of a day, one a request, as the scoring server takes them. Half of them left an hour and a half
late or more: whoever learned anything says that these arrive late.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from . import command, flights, predict

if TYPE_CHECKING:
    from collections.abc import Sequence

# Ten of each sort are several carriers, airports and hours of the day, and a file that a person can read.
EACH_SORT = 10

# A delay that no flight makes up for: an hour and a half, up to four hours, beyond which models guess.
LATE_MINUTES = (90, 240)
ON_TIME_MINUTES = 15


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m airline_delay.golden",
        description="Print golden requests: flights of a day that left late, and as many that did not.",
    )
    result.add_argument("--day", required=True, help="the day of the flights, 2013-MM-DD")
    return result


def golden(options: argparse.Namespace) -> None:
    """Choose, and print as JSON. Raises DataError for a day without enough of both sorts."""
    day = flights.parse_day(options.day)
    frame = flights.arrived_flights(flights.read_sources(), day, day)
    left = frame["dep_delay"]
    sorts = (frame[left.between(*LATE_MINUTES)], frame[left <= ON_TIME_MINUTES])
    if min(map(len, sorts)) < EACH_SORT:
        raise flights.DataError(f"{day} has too few flights of one sort: choose a day with more delays")
    requests = []
    for sort in sorts:
        chosen = flights.features(predict.spread(sort, EACH_SORT))
        requests += [predict.payload(chosen.iloc[[number]]) for number in range(EACH_SORT)]
    print("[\n" + ",\n".join(map(json.dumps, requests)) + "\n]", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parser().parse_args(arguments)
    return command.run_command(lambda: golden(options))


if __name__ == "__main__":
    sys.exit(main())
