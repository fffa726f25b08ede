"""The part of protobuf that ``kubectl create namespace`` sends."""

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


def test_a_namespace_is_as_json_would_have_it() -> None:
    written = NAME + field(2, b"") + field(3, field(1, b""))
    assert protobuf.read(body(b"Namespace", written)) == {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": {"name": "one"},
    }


def test_what_go_writes_though_it_is_empty_is_left_out() -> None:
    empty = field(1, field(1, b"one") + field(2, b"") + field(7, 0) + field(8, b""))
    assert protobuf.read(body(b"Namespace", empty))["metadata"] == {"name": "one"}


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", 400),
        (b"k8s", 400),
        (b"k8s\0\xff", 400),
        (body(b"Namespace", b"\x0a\x7f"), 400),
        (body(b"Namespace", field(1, field(1, b"\xff\xfe"))), 400),
        (body(b"Namespace", NAME + b"\x0d1234"), 400),
        (body(b"Namespace", NAME + b"\x80" * 20), 400),
        (body(b"ConfigMap", NAME), 415),
        (body(b"Namespace", NAME + field(9, b"new")), 415),
        (body(b"Namespace", field(1, field(1, b"one") + field(11, b"label"))), 415),
        (b"k8s\0", 415),
    ],
    ids=[
        "empty",
        "cut",
        "garbage",
        "too-long",
        "no-text",
        "wire",
        "number",
        "kind",
        "field",
        "label",
        "nothing",
    ],
)
def test_what_cannot_be_read_is_refused(raw: bytes, code: int) -> None:
    with pytest.raises(ApiError) as refused:
        protobuf.read(raw)
    assert refused.value.code == code
