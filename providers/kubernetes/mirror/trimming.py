"""Reduce objects to what a mirror keeps of them: a thousand of them must fit into little memory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from nighttrain.providers.kubernetes.values.identity import (
    GIVEN_UP_ANNOTATION,
    MAIN_CONTAINER_ANNOTATION,
    OUTCOME_ANNOTATION,
)
from nighttrain.providers.kubernetes.values.objects import (
    DEFAULT_CONTAINER_ANNOTATION,
    items,
    mapping,
    metadata,
)

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json

_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "ownerReferences",
)
_ANNOTATIONS = (
    *(MAIN_CONTAINER_ANNOTATION, DEFAULT_CONTAINER_ANNOTATION),
    *(OUTCOME_ANNOTATION, GIVEN_UP_ANNOTATION),
)
_POD_SPEC = (
    *("nodeName", "schedulingGates", "priority", "restartPolicy"),
    *("terminationGracePeriodSeconds", "activeDeadlineSeconds"),
)
# Which container is the first, and whether one that ended comes again.
_CONTAINER = ("name", "restartPolicy", "restartPolicyRules")
_EVENT = (
    "type",
    "reason",
    "message",
    "note",
    "count",
    "firstTimestamp",
    "lastTimestamp",
    "eventTime",
    "series",
    "involvedObject",
    "regarding",
)
# Kueue's status tells why a workload waits; its podSets repeat the Job's template.
_QUEUE_SPEC = ("active", "queueName", "priority", "priorityClassName")
# Strings that come again in every object; longer ones are mostly messages, which do not.
_INTERNED = 40


def trim_workload(obj: Json, spec: tuple[str, ...]) -> Json:
    """A workload without its template: of its spec, the fields named."""
    return _compact(_trimmed(obj, spec))


def trim_pod(pod: Json) -> Json:
    """A pod without what its containers are told."""
    trimmed = _trimmed(pod, _POD_SPEC)
    for field in ("initContainers", "containers"):
        listed = items(mapping(pod.get("spec")).get(field))
        if listed:
            trimmed["spec"][field] = [_some(container, _CONTAINER) for container in listed]
    return _compact(trimmed)


def trim_queue(workload: Json) -> Json:
    """Kueue's Workload without the templates of its pods."""
    return _compact(_trimmed(workload, _QUEUE_SPEC))


def trim_event(event: Json) -> Json:
    """An event without its source."""
    kept = {name: event[name] for name in _EVENT if event.get(name) is not None}
    for about in ("involvedObject", "regarding"):
        if about in kept:
            kept[about] = {
                key: value for key, value in mapping(kept[about]).items() if key in ("uid", "kind", "name")
            }
    return _compact(kept | {"metadata": _some(metadata(event), ("name", "uid", "resourceVersion"))})


def _trimmed(obj: Json, spec: tuple[str, ...]) -> Json:
    meta = _some(metadata(obj), _METADATA)
    annotations = _some(mapping(metadata(obj).get("annotations")), _ANNOTATIONS)
    if annotations:
        meta["annotations"] = annotations
    return {"metadata": meta, "spec": _some(mapping(obj.get("spec")), spec), "status": obj.get("status")}


def _some(given: Json, names: tuple[str, ...]) -> Json:
    return {name: given[name] for name in names if given.get(name) is not None}


def _compact(obj: Json) -> Json:
    """The same object, with the strings that many objects have in common held once."""
    return {sys.intern(key): _shared(held) for key, held in obj.items()}


def _shared(value: Any) -> Any:
    if isinstance(value, dict):
        return _compact(value)
    if isinstance(value, list):
        return [_shared(held) for held in value]
    return sys.intern(value) if type(value) is str and len(value) <= _INTERNED else value
