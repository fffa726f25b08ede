from __future__ import annotations

import time

import pytest

from nighttrain.providers.tracking.tags import clean_key, clean_tags, quoted, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:pw@db:5432/x", "postgresql://***@db:5432/x"),
        ("train --token abcdef --n 3", "train --token *** --n 3"),
        ("MY_PASSWORD=hunter2, x=1", "MY_PASSWORD=***, x=1"),
        ('{"api_key": "abc def"}', '{"api_key": ***}'),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("max_tokens=512 tokenizer: bpe", "max_tokens=512 tokenizer: bpe"),
        ("plain text with a key: 3 and a@b", "plain text with a key: 3 and a@b"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize("piece", ["x", "a-", "://", "token ", "x@", "--", "'"])
def test_redacting_long_text_takes_linear_time(piece: str) -> None:
    started = time.perf_counter()
    redact(piece * (400_000 // len(piece)))
    assert time.perf_counter() - started < 10  # minutes, when it was quadratic


def test_clean_tags() -> None:
    assert clean_tags(
        {"a": 1, "b": None, "db_password": "x", "max_tokens": 9, "k?'": "v", "long": "y" * 9_000}
    ) == {
        "a": "1",
        "db_password": "***",
        "max_tokens": "9",
        "k__": "v",
        "long": "y" * 7_999 + "…",
    }
    assert len(clean_key("k" * 300)) == 250


def test_quoted() -> None:
    assert [quoted(text) for text in ("a", "it's", 'a"b', "both'\"")] == ["'a'", '"it\'s"', "'a\"b'", None]
