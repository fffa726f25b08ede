"""The part of protobuf that kubectl's own commands send."""

from __future__ import annotations

import pytest

from nighttrain.providers.local.cluster.http import protobuf
from nighttrain.providers.local.cluster.store.errors import ApiError


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def body(kind: bytes, message: bytes) -> bytes:
    head = field(1, b"v1") + field(2, kind)
    return b"k8s\0" + field(1, head) + field(2, message)


NAME = field(1, field(1, b"one"))


def test_an_object_is_as_json_would_have_it() -> None:
    data = field(2, field(1, b"key") + field(2, b"value"))
    assert protobuf.read(body(b"ConfigMap", NAME + data)) == {
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": {"name": "one"},
        "data": {"key": "value"},
    }


def test_bytes_are_base64() -> None:
    data = field(2, field(1, b"key") + field(2, b"\xff"))
    assert protobuf.read(body(b"Secret", NAME + data))["data"] == {"key": "/w=="}


def test_what_go_writes_though_it_is_empty_is_left_out() -> None:
    empty = field(1, field(1, b"one") + field(2, b"") + field(7, 0) + field(8, b""))
    assert protobuf.read(body(b"ConfigMap", empty))["metadata"] == {"name": "one"}


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", 400),
        (b"k8s", 400),
        (b"k8s\0\xff", 400),
        (body(b"ConfigMap", b"\x0a\x7f"), 400),
        (body(b"ConfigMap", field(1, field(1, b"\xff\xfe"))), 400),
        (body(b"ConfigMap", NAME + b"\x0d1234"), 400),
        (body(b"ConfigMap", NAME + b"\x80" * 20), 400),
        (body(b"CronJob", NAME), 415),
        (body(b"ConfigMap", NAME + field(9, b"new")), 415),
        (b"k8s\0", 415),
    ],
    ids=["empty", "cut", "garbage", "too-long", "no-text", "wire", "number", "kind", "field", "nothing"],
)
def test_what_cannot_be_read_is_refused(raw: bytes, code: int) -> None:
    with pytest.raises(ApiError) as refused:
        protobuf.read(raw)
    assert refused.value.code == code
