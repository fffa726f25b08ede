"""Who moved it, as far as anything says so: MLflow itself keeps no author of a change.

The only source is what nighttrain's promotion writes on the version. It is told apart from an older
promotion of the same version by its time: a move by hand is nobody's.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from nighttrain.providers.registry.versions import ModelVersion

ACTOR_TAG = f"{PREFIX}promoted_by"
TIME_TAG = f"{PREFIX}promoted_at"
"""As promotions write them; not taken from there, since a DAG file that names a watcher comes here."""

NEAR_MS = 600_000
"""A promotion writes its tags, then moves alias and stage: seconds apart, or minutes where MLflow was away.
The clocks of Airflow and MLflow may differ, too."""


def known_author(version: ModelVersion) -> str | None:
    """Who promoted the version last, if anybody did through nighttrain."""
    return version.tags.get(ACTOR_TAG) or None


def authored_at(version: ModelVersion) -> int | None:
    """When that was, in ms since 1970."""
    try:
        return int(datetime.fromisoformat(version.tags[TIME_TAG]).timestamp() * 1000)
    except (KeyError, ValueError, OverflowError):
        return None


def author_of_change(author: str | None, authored: int | None, at: int) -> str | None:
    """The author of a change at ``at`` (ms), if the promotion that is on record is as old as the change."""
    return author if author and authored is not None and abs(at - authored) <= NEAR_MS else None
