"""A folder of fake model versions, an image that serves them, and specs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from helpers.fake_serving import IMAGE, FakeStore, fake_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nighttrain.providers.serving.spec import ServingSpec


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    return FakeStore(tmp_path / "store")


@pytest.fixture
def serving_spec(store: FakeStore) -> Callable[..., ServingSpec]:
    """A valid spec; any field may be given."""
    return partial(fake_spec, store)


@pytest.fixture
def image() -> str:
    """For the embedded cluster's image table."""
    return IMAGE
