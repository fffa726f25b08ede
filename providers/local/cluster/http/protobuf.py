"""The protobuf that kubectl sends: ``create namespace | configmap | secret ...``, ``auth can-i``.

Those commands speak protobuf without asking, and take JSON for an answer. Read is what they set; anything
else is refused, never dropped. Numbers of fields are those of the Kubernetes API's ``generated.proto`` files.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.store import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_META = "1:metadata:ObjectMeta"

# Fields as NUMBER:NAME:TYPE; s(tring), b(oolean), y: bytes, -: the server's to set, another message's name;
# ``[T`` a list, ``{T`` a map.
_MESSAGES = {
    "ObjectMeta": "1:name:s 2:generateName:s 3:namespace:s 5:uid:s 6:resourceVersion:s 8:creationTimestamp:- "
    "11:labels:{s 12:annotations:{s 14:finalizers:[s 17:managedFields:-",
    "Namespace": f"{_META} 2:spec:- 3:status:-",
    "ConfigMap": f"{_META} 2:data:{{s 3:binaryData:{{y 4:immutable:b",
    "Secret": f"{_META} 2:data:{{y 3:type:s 4:stringData:{{s 5:immutable:b",
    "ServiceAccount": f"{_META} 4:automountServiceAccountToken:b",
    "SelfSubjectAccessReview": f"{_META} 2:spec:SelfSubjectAccessReviewSpec 3:status:-",
    "SelfSubjectAccessReviewSpec": "1:resourceAttributes:ResourceAttributes "
    "2:nonResourceAttributes:NonResourceAttributes",
    "ResourceAttributes": "1:namespace:s 2:verb:s 3:group:s 4:version:s 5:resource:s 6:subresource:s "
    "7:name:s",
    "NonResourceAttributes": "1:path:s 2:verb:s",
}
_READABLE = frozenset(("Namespace", "ConfigMap", "Secret", "ServiceAccount", "SelfSubjectAccessReview"))


def read(raw: bytes) -> dict[str, Any]:
    """The object as JSON would have it.

    :raises ApiError: 400 when it is not protobuf, 415 for kinds and fields that are not read here
    """
    try:
        if not raw.startswith(_MAGIC):
            raise ValueError("the body does not begin as Kubernetes' protobuf does")
        envelope = dict(_fields(raw[len(_MAGIC) :]))
        head = {number: _text(value) for number, value in _fields(_bytes(envelope.get(1, b"")))}
        kind = head.get(2, "")
        if kind not in _READABLE:
            raise _refused(kind or "this kind")
        return {
            "kind": kind,
            "apiVersion": head.get(1, ""),
            **_message(kind, _bytes(envelope.get(2, b"")), kind),
        }
    except (ValueError, IndexError) as error:
        raise errors.bad_request(f"the body cannot be read as protobuf: {error}") from None


def _refused(what: str) -> errors.ApiError:
    return errors.unsupported_media_type(
        f"the embedded cluster does not read {what} from protobuf: send JSON or YAML (with kubectl, write "
        "the object with --dry-run=client -o yaml and send it with kubectl apply -f -)"
    )


def _message(type_: str, raw: bytes, path: str) -> dict[str, Any]:
    declared = {}
    for each in _MESSAGES[type_].split():
        key, name, kind = each.split(":")
        declared[int(key)] = (name, kind)
    found: dict[str, Any] = {}
    for number, value in _fields(raw):
        # Go writes every field that is not a pointer, empty or not; empty is as good as absent.
        name, kind = declared.get(number, ("", ""))
        if not name:
            if value not in (b"", 0):
                raise _refused(f"field {number} of {path}")
        elif kind[0] == "[":
            found.setdefault(name, []).append(_value(kind[1:], value, f"{path}.{name}"))
        elif kind[0] == "{":
            entry = dict(_fields(_bytes(value)))
            item = _value(kind[1:], entry.get(2, b""), f"{path}.{name}")
            found.setdefault(name, {})[_text(entry.get(1, b""))] = item
        elif kind != "-" and (kind == "b" or value != b""):
            found[name] = _value(kind, value, f"{path}.{name}")
    return found


def _value(kind: str, value: bytes | int, path: str) -> Any:
    if kind == "s":
        return _text(value)
    if kind == "y":
        return base64.b64encode(_bytes(value)).decode()
    if kind == "b":
        if not isinstance(value, int):
            raise ValueError(f"{path} is not a number")
        return bool(value)
    return _message(kind, _bytes(value), path)


def _text(value: bytes | int) -> str:
    return _bytes(value).decode()


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
