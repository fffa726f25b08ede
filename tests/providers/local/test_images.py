"""The table of images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nighttrain.providers.local.cluster.machine.images import (
    ImageEnvironment,
    ImageError,
    ImageTable,
    InvalidImageNameError,
    parse_reference,
)

PYTHON = Path(sys.executable)


def test_a_name_without_tag_matches_every_tag() -> None:
    table = ImageTable({"localhost/python": PYTHON})
    assert table.find("localhost/python") == table.find("localhost/python:3.11") is not None
    assert table.find("localhost/other:3.11") is None


def test_a_name_with_tag_comes_first(tmp_path: Path) -> None:
    special = ImageEnvironment(PYTHON, (tmp_path,), {"A": "1"})
    table = ImageTable({"train": PYTHON, "train:2": special})
    assert table.find("train:2") == special
    assert table.find("train:1") == ImageEnvironment(PYTHON)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("Train=/usr/bin/env", "not an image reference"),
        ("train=/no/such/python", "/no/such/python is not an interpreter"),
        (f"train={PYTHON}:/no/such/folder", "the PYTHONPATH entry /no/such/folder does not exist"),
    ],
)
def test_entries_that_cannot_be_used(argument: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        ImageTable(dict([argument.split("=")]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nginx", ("nginx", "latest")),
        ("127.0.0.1:1/absent:1", ("127.0.0.1:1/absent", "1")),
        ("ghcr.io/a/b_c-d:v1.2", ("ghcr.io/a/b_c-d", "v1.2")),
        (f"localhost:5000/x@sha256:{'a' * 64}", ("localhost:5000/x", "latest")),
    ],
)
def test_references(text: str, expected: tuple[str, str]) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize("text", ["", "UPPER case/:bad", "Upper", "a:", "a//b", "a:b:c"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidImageNameError):
        parse_reference(text)


def test_the_digest_tells_environments_apart(tmp_path: Path) -> None:
    plain, other = ImageEnvironment(PYTHON), ImageEnvironment(PYTHON, (tmp_path,))
    assert plain.digest == ImageEnvironment(PYTHON).digest
    assert plain.digest != other.digest
    assert len(plain.digest) == len("sha256:") + 64
