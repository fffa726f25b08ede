"""The protobuf that kubectl sends: ``create namespace | configmap | job | deployment ...``, ``auth can-i``.

Those commands speak protobuf without asking, and take JSON for an answer. Read is what they set; anything
else is refused, never dropped. Numbers of fields are those of the Kubernetes API's ``generated.proto`` files.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_META = "1:metadata:ObjectMeta"

# Fields as NUMBER:NAME:TYPE; s(tring), i(nteger), b(oolean), y: bytes, -: the server's to set, another
# message's name; ``[T`` a list, ``{T`` a map.
_MESSAGES = {
    "ObjectMeta": "1:name:s 2:generateName:s 3:namespace:s 5:uid:s 6:resourceVersion:s 8:creationTimestamp:- "
    "11:labels:{s 12:annotations:{s 14:finalizers:[s 17:managedFields:-",
    "Namespace": f"{_META} 2:spec:- 3:status:-",
    "ConfigMap": f"{_META} 2:data:{{s 3:binaryData:{{y 4:immutable:b",
    "Secret": f"{_META} 2:data:{{y 3:type:s 4:stringData:{{s 5:immutable:b",
    "ServiceAccount": f"{_META} 4:automountServiceAccountToken:b",
    "Job": f"{_META} 2:spec:JobSpec 3:status:-",
    "JobSpec": "1:parallelism:i 2:completions:i 3:activeDeadlineSeconds:i 4:selector:LabelSelector "
    "5:manualSelector:b 6:template:PodTemplateSpec 7:backoffLimit:i 8:ttlSecondsAfterFinished:i "
    "9:completionMode:s 10:suspend:b",
    "Deployment": f"{_META} 2:spec:DeploymentSpec 3:status:-",
    "DeploymentSpec": "1:replicas:i 2:selector:LabelSelector 3:template:PodTemplateSpec "
    "4:strategy:DeploymentStrategy 5:minReadySeconds:i 6:revisionHistoryLimit:i 7:paused:b "
    "9:progressDeadlineSeconds:i",
    "DeploymentStrategy": "1:type:s",
    "LabelSelector": "1:matchLabels:{s",
    "PodTemplateSpec": "1:metadata:ObjectMeta 2:spec:PodSpec",
    "PodSpec": "2:containers:[Container 3:restartPolicy:s 4:terminationGracePeriodSeconds:i "
    "5:activeDeadlineSeconds:i 6:dnsPolicy:s 7:nodeSelector:{s 8:serviceAccountName:s 10:nodeName:s",
    "Container": "1:name:s 2:image:s 3:command:[s 4:args:[s 5:workingDir:s 6:ports:[ContainerPort "
    "7:env:[EnvVar 8:resources:ResourceRequirements 14:imagePullPolicy:s",
    "ContainerPort": "1:name:s 2:hostPort:i 3:containerPort:i 4:protocol:s 5:hostIP:s",
    "EnvVar": "1:name:s 2:value:s",
    "ResourceRequirements": "1:limits:{Quantity 2:requests:{Quantity",
    "Service": f"{_META} 2:spec:ServiceSpec 3:status:-",
    "ServiceSpec": "1:ports:[ServicePort 2:selector:{s 3:clusterIP:s 4:type:s 7:sessionAffinity:s "
    "10:externalName:s 18:clusterIPs:[s",
    "ServicePort": "1:name:s 2:protocol:s 3:port:i 4:targetPort:IntOrString 5:nodePort:i",
    "ResourceQuota": f"{_META} 2:spec:ResourceQuotaSpec 3:status:-",
    "ResourceQuotaSpec": "1:hard:{Quantity 2:scopes:[s",
    "PriorityClass": f"{_META} 2:value:i 3:globalDefault:b 4:description:s 5:preemptionPolicy:s",
    "SelfSubjectAccessReview": f"{_META} 2:spec:SelfSubjectAccessReviewSpec 3:status:-",
    "SelfSubjectAccessReviewSpec": "1:resourceAttributes:ResourceAttributes "
    "2:nonResourceAttributes:NonResourceAttributes",
    "ResourceAttributes": "1:namespace:s 2:verb:s 3:group:s 4:version:s 5:resource:s 6:subresource:s "
    "7:name:s",
    "NonResourceAttributes": "1:path:s 2:verb:s",
}
_READABLE = frozenset(
    (
        *("Namespace", "ConfigMap", "Secret", "ServiceAccount", "Job", "Deployment", "Service"),
        *("ResourceQuota", "PriorityClass", "SelfSubjectAccessReview"),
    )
)


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
        elif kind != "-" and (kind in "ib" or value != b""):
            found[name] = _value(kind, value, f"{path}.{name}")
    return found


def _value(kind: str, value: bytes | int, path: str) -> Any:
    if kind == "s":
        return _text(value)
    if kind == "y":
        return base64.b64encode(_bytes(value)).decode()
    if kind in ("i", "b"):
        if not isinstance(value, int):
            raise ValueError(f"{path} is not a number")
        # A negative number is the two's complement of 64 bits.
        return bool(value) if kind == "b" else value - (1 << 64) * (value >> 63)
    fields = dict(_fields(_bytes(value))) if kind in ("Quantity", "IntOrString") else {}
    if kind == "Quantity":
        return _text(fields.get(1, b""))
    if kind == "IntOrString":
        return _text(fields.get(3, b"")) if fields.get(1) else _value("i", fields.get(2, 0), path)
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
