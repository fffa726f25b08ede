"""What real controllers did, replayed to the backends' pure readings from any prefix and in any interleaving.

``--recordings FOLDER`` replays others of the same kinds, also from folders in it: a recording is of the
system whose objects it has. What has none of them is skipped; a folder without any recording is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers import RECORDINGS, argo_ends, argo_replays, deployment_replays, gateway_replays, kserve_replays
from helpers.replays import UNSEEN, End, check, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.replays import Case, Recording

    Cases = Callable[[Recording, int], Iterator[tuple[str, Recording, Case]]]

KEPT = Path(__file__).parent / "recordings"
PLAIN = sorted(RECORDINGS.glob("gateway-*.jsonl")) + sorted(RECORDINGS.glob("deployment-*.jsonl"))

# So often are the streams interleaved, each time with other names; with --thorough, and for other recordings.
SEEDS, MORE_SEEDS = 10, 25

NEVER = ("promoted", "undone", "ready")
AT_FIRST, LATER = 0.0, 1e9


def undone(until: float, since: float) -> dict[str, tuple[tuple[float, float], ...]]:
    """It is so before the candidate is asked for, and again once it is gone."""
    return {"undone": ((AT_FIRST, until), (since, LATER))}


def before(until: float) -> dict[str, tuple[tuple[float, float], ...]]:
    return {"undone": ((AT_FIRST, until),)}


def promoted(until: float, since: float) -> dict[str, tuple[tuple[float, float], ...]]:
    return {**before(until), "promoted": ((since, LATER),)}


BACK = End(undone=True, asked=0, routed=0.0, ready=False, stable_ready=True, never=("promoted",))
STUCK = End(asked=50, routed=UNSEEN, ready=False, stable_ready=True, never=("promoted",))

# Of the second version's rollout. The seconds are those at which requests were made, and at which the last
# thing that was missing came, read off the recordings.
ENDS = {
    "kserve-canary-next": End(
        promoted=True, asked=100, routed=100.0, ready=True, windows=promoted(6.4, 27.18)
    ),
    "kserve-canary-promoted-in-two-next": End(
        promoted=True, asked=100, routed=100.0, ready=True, windows=promoted(6.0, 25.71)
    ),
    "kserve-canary-undone-next": End(**{**vars(BACK), "windows": undone(6.1, 22.80)}),
    "kserve-canary-undone-in-two-next": End(**{**vars(BACK), "windows": undone(6.8, 26.63)}),
    "kserve-canary-never-ready-next": End(
        **{**vars(STUCK), "never": ("promoted", "ready"), "windows": before(6.7)}
    ),
    # It was ready for a while, and got half of the requests.
    "kserve-canary-unready-later-next": End(**{**vars(STUCK), "windows": before(6.5)}),
    # 0.20: what it says of shares is not believed; how it promotes and removes is real.
    "kserve-canary": End(promoted=True, asked=100, routed=100.0, ready=True, windows=promoted(7.0, 70.68)),
    "kserve-canary-undone": End(**{**vars(BACK), "windows": undone(6.5, 23.0)}),
    "kserve-canary-never-ready": End(
        **{**vars(STUCK), "never": ("promoted", "ready"), "windows": before(6.7)}
    ),
    # Changes in place, by another hand: no rollout's doing, and never said to be.
    "kserve-updated": End(asked=0, routed=UNSEEN, ready=False, never=("promoted",), windows=before(7.1)),
    "kserve-traffic-percent": End(
        asked=0, routed=UNSEEN, ready=False, never=("promoted",), windows=before(4.8)
    ),
    "kserve-updated-never-ready": End(
        **{**vars(BACK), "never": ("promoted", "ready"), "windows": undone(4.9, 25.16)}
    ),
    "kserve-created": BACK,
    "kserve-crashes": End(asked=0, routed=UNSEEN, ready=False, stable_ready=False, never=NEVER),
    "kserve-deleted": End(ready=False, stable_ready=False, never=("promoted", "ready"), windows=before(4.3)),
    "kserve-refused": End(ready=False, never=("promoted", "ready"), windows=before(4.1)),
    "kserve-graph": BACK,
    "knative-canary": End(promoted=True, asked=100, routed=100.0, ready=True, windows=promoted(6.0, 23.38)),
    # Everybody was with the rejected version from 19.6 to 21.0, by the status.
    "knative-undone": End(**{**vars(BACK), "windows": undone(5.6, 21.2)}),
    "knative-undone-at-zero": End(**{**vars(BACK), "windows": undone(4.6, 25.88)}),
    "knative-never-ready": End(
        **{**vars(BACK), "never": ("promoted", "ready"), "windows": undone(4.6, 30.89)}
    ),
    # A new version without a percentage: asked for everything, gets nothing.
    "knative-crashes": End(
        asked=100,
        routed=0.0,
        ready=False,
        stable_ready=True,
        never=("promoted", "ready"),
        windows=before(5.5),
    ),
    # A percentage at the first version: no endpoint at rest.
    "knative-first": End(asked=0, routed=0.0, ready=False, never=NEVER),
    "gateway-drained": End(asked=100, routed=100.0, never=NEVER),
    # Its testers' header is another one: a rule for b and one for a are no share.
    "gateway-header": End(asked=0, routed=UNSEEN, never=NEVER),
    # Accepted, resolved, and every request was answered 500: only requests tell.
    "gateway-mirror": End(asked=0, routed=0.0, never=NEVER),
    "gateway-mirror-percent": End(asked=0, routed=0.0, never=NEVER),
    # A quarter was answered 503: whether the candidate is ready is looked at elsewhere.
    "gateway-no-endpoints": End(asked=25, routed=25.0, never=NEVER),
    "gateway-no-service": End(asked=25, routed=UNSEEN, never=NEVER),
    "gateway-refused": End(asked=0, routed=0.0, never=NEVER),
    "gateway-undrained": End(asked=100, routed=100.0, never=NEVER),
    "gateway-weights": End(asked=100, routed=100.0, never=NEVER),
    "gateway-zero-weight": End(asked=0, routed=UNSEEN, never=NEVER),
    # Of three pods, as long as its Deployment has that template and nobody scales it.
    "deployment-rollout": End(
        ready=True, never=("undone",), windows={"promoted": ((12.06, 14.9),), "ready": ((12.14, 20.4),)}
    ),
    "deployment-stuck": End(ready=False, never=NEVER),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = metafunc.config.getoption("recordings", None)
    folder = Path(given) if given else None
    paths = found_in(folder) if folder else [*sorted(KEPT.glob("*.jsonl*")), *PLAIN]
    ids = [str(path.relative_to(folder) if folder else path.name).split(".jsonl")[0] for path in paths]
    metafunc.parametrize("path", paths, ids=ids)


def found_in(folder: Path) -> list[Path]:
    """The recordings in a folder and below it, if there is anything to replay."""
    if not folder.is_dir():
        raise pytest.UsageError(f"--recordings {folder}: there is no such folder")
    paths = sorted(path for path in folder.rglob("*.jsonl*") if path.suffix in (".jsonl", ".gz"))
    try:
        usable = any(readers_of(load(path)) for path in paths)
    except ValueError as error:
        raise pytest.UsageError(f"--recordings {folder}: {error}") from error
    if not usable:
        raise pytest.UsageError(f"--recordings {folder}: {len(paths)} recordings in it, and {NOTHING} in any")
    return paths


# Of each system: whether a recording is of it, and how it is read.
READERS = (
    (kserve_replays.is_kserve, kserve_replays.cases),
    (argo_replays.is_argo, argo_replays.cases),
    (gateway_replays.is_gateway, gateway_replays.cases),
    (deployment_replays.is_deployment, deployment_replays.cases),
)


def is_kept(path: Path) -> bool:
    return path.parent == KEPT or path in PLAIN


def end_of(recording: Recording, path: Path, label: str) -> End | None:
    """The second version's end; that of another is bound by the invariants alone, if nobody wrote it down."""
    if not is_kept(path):
        return End.beside(path) if label == "next" else None
    if label != "next":
        return argo_ends.OTHERS.get((recording.name, label))
    return {**ENDS, **argo_ends.ENDS}.get(recording.name)


NOTHING = "no InferenceService, Rollout, HTTPRoute, or Deployment with its pods"


def readers_of(recording: Recording) -> list[Cases]:
    return [cases for is_of, cases in READERS if is_of(recording)]


def test_nothing_is_said_before_it_is_so(path: Path, pytestconfig: pytest.Config) -> None:
    recording = load(path)
    readers = readers_of(recording)
    if not readers:
        pytest.skip(f"{NOTHING} in it")
    found = [each for cases in readers for seed in range(2) for each in cases(recording, seed)]
    assert found
    for label, known, case in found:
        end = end_of(recording, path, label)
        several = is_kept(path) and recording.name == "kserve-graph" and case.target.stable != "1"
        more = pytestconfig.getoption("--thorough") or not is_kept(path)
        check(known, case, None if several else end, seeds=MORE_SEEDS if more else SEEDS)


def test_every_kept_recording_has_an_end_that_was_written_by_hand(path: Path) -> None:
    if is_kept(path):
        assert load(path).name in {**ENDS, **argo_ends.ENDS}
