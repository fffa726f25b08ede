"""The protobuf of ``kubectl create namespace``, which speaks it without asking, and takes JSON for an answer.

Read is a Namespace with its name, which is all that the command sets; anything else is refused, never
dropped. Numbers of fields are those of the Kubernetes API's ``generated.proto`` files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.store import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"


def read(raw: bytes) -> dict[str, Any]:
    """The object as JSON would have it.

    :raises ApiError: 400 when it is not protobuf, 415 for other kinds and fields
    """
    try:
        if not raw.startswith(_MAGIC):
            raise ValueError("the body does not begin as Kubernetes' protobuf does")
        envelope = dict(_fields(raw[len(_MAGIC) :]))
        head = {number: _bytes(value).decode() for number, value in _message(envelope, 1).items()}
        kind = head.get(2, "")
        if kind != "Namespace":
            raise _refused(kind or "this kind")
        namespace = _message(envelope, 2)
        metadata = _message(namespace, 1)
        name = _bytes(metadata.pop(1, b"")).decode()
        # Go writes fields that are empty too; a status (3) is the server's to write.
        more = [value for number, value in namespace.items() if number not in (1, 3)]
        if any([*metadata.values(), *more]):
            raise _refused("more of a Namespace than its name")
        return {"kind": kind, "apiVersion": head.get(1, ""), "metadata": {"name": name}}
    except (ValueError, IndexError) as error:
        raise errors.bad_request(f"the body cannot be read as protobuf: {error}") from None


def _refused(what: str) -> errors.ApiError:
    return errors.unsupported_media_type(
        f"the embedded cluster does not read {what} from protobuf: send JSON (with kubectl, write the object "
        "with --dry-run=client -o yaml and send it with kubectl apply -f -)"
    )


def _message(parent: dict[int, bytes | int], number: int) -> dict[int, bytes | int]:
    return dict(_fields(_bytes(parent.get(number, b""))))


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Numbers and values of a message's fields, as they come."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield number, value
        elif wire == 2:
            size, at = _varint(raw, at)
            if at + size > len(raw):
                raise ValueError("it ends too early")
            yield number, raw[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire} is not used by Kubernetes")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    found = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        found |= (byte & 0x7F) << shift
        if byte < 0x80:
            return found & (1 << 64) - 1, at
    raise ValueError("a number is too long")
