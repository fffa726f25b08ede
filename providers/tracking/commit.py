"""The commit of an orchestrator's code, for the lineage of what it starts."""

from __future__ import annotations

import os

# The first that is set names the commit.
COMMIT_VARIABLES = ("NIGHTTRAIN_COMMIT", "GIT_COMMIT", "GIT_SHA")


def commit_of_environment() -> str | None:
    """The commit that this process's environment names, if it does."""
    return next((os.environ[name] for name in COMMIT_VARIABLES if os.environ.get(name)), None)
