"""``pytest tests/providers/serving/backends --recordings FOLDER``: the same with other recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--recordings",
        default=None,
        help="a folder of recordings (NAME.jsonl or .jsonl.gz) to replay besides those that are kept here; "
        "NAME.end.json beside one says what it ends as",
    )
