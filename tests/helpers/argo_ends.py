"""What each recording of Argo Rollouts ends as, written by hand.

The seconds are those at which requests were made, and at which the last thing that was missing came, read off
the recordings. By replicas, the version that is not the stable one any more has no pods left.
"""

from __future__ import annotations

from helpers.replays import UNSEEN, End

AT_FIRST, LATER = 0.0, 1e9


def before(until: float) -> dict[str, tuple[tuple[float, float], ...]]:
    """The stable version is alone until the candidate is asked for."""
    return {"undone": ((AT_FIRST, until),)}


def undone(until: float, since: float) -> End:
    windows = {"undone": ((AT_FIRST, until), (since, LATER))}
    return End(
        undone=True, asked=0, routed=0.0, ready=False, stable_ready=True, never=("promoted",), windows=windows
    )


def promoted(until: float, since: float, *, stable_ready: bool = False) -> End:
    windows = {**before(until), "promoted": ((since, LATER),)}
    return End(promoted=True, asked=100, routed=100.0, ready=True, stable_ready=stable_ready, windows=windows)


def aborted(until: float, never: tuple[str, ...] = ("promoted",)) -> End:
    """Its pods are gone; the template is the candidate's still, and so it is not undone."""
    return End(asked=0, routed=0.0, ready=False, stable_ready=True, never=never, windows=before(until))


NEVER_READY = ("promoted", "ready")

ENDS = {
    "rollouts-aborted": undone(3.55, 11.47),
    "rollouts-back-to-stable": undone(3.05, 7.05),
    # The deadline was over at 16.4, and nothing was undone before the old template came.
    "rollouts-never-ready": End(**{**vars(undone(3.44, 21.78)), "never": NEVER_READY}),
    "rollouts-never-ready-aborts": aborted(3.39, NEVER_READY),
    "rollouts-promoted": promoted(3.45, 11.98),
    "rollouts-promoted-full": promoted(3.6, 9.82),
    "rollouts-paused-by-hand": promoted(3.44, 17.11),
    "rollouts-scaled": promoted(3.33, 18.8),
    "rollouts-analysis-inconclusive": promoted(3.08, 15.29),
    "rollouts-analysis-ok": promoted(3.59, 11.98),
    "rollouts-analysis-failed": aborted(3.41),
    # An outage of the metrics.
    "rollouts-analysis-error": aborted(3.34),
    "rollouts-services": aborted(3.35),
    "rollouts-retried": End(
        asked=25, routed=25.0, ready=True, stable_ready=True, never=("promoted",), windows=before(3.22)
    ),
    # The second version was replaced by the third: by another hand, as the second one's rollout sees it.
    "rollouts-superseded": End(
        asked=0, routed=UNSEEN, ready=False, stable_ready=True, never=("promoted",), windows=before(3.22)
    ),
    "rollouts-deleted": End(
        asked=0, routed=UNSEEN, ready=False, stable_ready=False, never=("promoted",), windows=before(2.95)
    ),
    # A router keeps the version before at full size for half a minute.
    "rollouts-routed": promoted(7.56, 20.22, stable_ready=True),
    "rollouts-routed-aborted": aborted(6.89),
    # The status says 10 percent, and everything goes to the candidate.
    "rollouts-routed-by-hand": End(
        asked=10, routed=UNSEEN, ready=True, stable_ready=True, never=("promoted",), windows=before(24.65)
    ),
    "rollouts-routed-no-route": End(
        asked=0, routed=UNSEEN, ready=False, stable_ready=False, never=("promoted", "undone", "ready")
    ),
    # No second version.
    "rollouts-first": undone(2.0, 2.56),
    "rollouts-no-service": undone(10.0, 22.78),
    "rollouts-invalid": End(ready=False, stable_ready=False, never=("promoted", "undone", "ready")),
    # Not driven (refused at the beginning), and nothing is claimed of it.
    "rollouts-blue-green": End(asked=0, never=("promoted",), windows=before(2.89)),
    "rollouts-blue-green-aborted": End(asked=0, never=("promoted",), windows=before(2.43)),
}

# Of a version that is the endpoint's first one, and of one that replaced another.
OTHERS = {
    ("rollouts-first", "first"): End(
        promoted=True, asked=100, ready=True, windows={"promoted": ((2.56, LATER),)}
    ),
    ("rollouts-no-service", "first"): End(
        promoted=True, asked=100, ready=True, windows={"promoted": ((22.78, LATER),)}
    ),
    ("rollouts-invalid", "first"): End(asked=100, ready=False, never=("promoted", "ready")),
    ("rollouts-superseded", "third"): End(
        asked=25, routed=25.0, ready=True, stable_ready=True, never=("promoted",), windows=before(3.22)
    ),
}
