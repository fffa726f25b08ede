"""Windows of a rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.providers.serving.analysis.metrics import INTERVAL_SECONDS
from nighttrain.providers.serving.analysis.sources.base import Window
from nighttrain.providers.serving.backends.traffic import Address, Addresses

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.golden import Golden


@pytest.fixture
def window() -> Callable[..., Window]:
    """A window with these fields; ``candidate_url`` and ``stable_url`` are addresses."""

    def make(
        *,
        candidate_url: str | None = None,
        stable_url: str | None = None,
        golden: Golden | None = None,
        **given: Any,
    ) -> Window:
        urls = (stable_url, candidate_url)
        stable, candidate = (Address(url=url) if url else None for url in urls)
        fields: dict[str, Any] = {
            "endpoint": "delay",
            "namespace": "default",
            "model_name": "airline-delay",
            "candidate": "2",
            "stable": "1",
            "at": 1_000_000.0,
            "seconds": INTERVAL_SECONDS,
            "interval_seconds": INTERVAL_SECONDS,
            "addresses": Addresses(route=Address(url="http://nobody"), stable=stable, candidate=candidate),
            "golden": golden,
        }
        return Window(**(fields | given))

    return make
