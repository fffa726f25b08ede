"""What the tests of MLflow's faults share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import stamina

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """Three tries without pauses, where retries are on."""
    with stamina.set_testing(True, attempts=3, cap=True):
        yield
