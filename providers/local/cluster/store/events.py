"""Events: what happened to an object, written for people, counted when it happens again."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from nighttrain.providers.local.cluster.store.resources import EVENTS
from nighttrain.providers.local.cluster.store.store import Object, Store, timestamp

# How many events the recorder can still count up; older ones are written anew. Generous for a thousand pods.
_REMEMBERED = 8192


class EventRecorder:
    """Writes the events of one component.

    :param component: as in ``reportingComponent``, for example ``kubelet``
    :param host: the node it runs on; empty for controllers
    """

    def __init__(self, store: Store, component: str, host: str = "") -> None:
        self._store = store
        self._component = component
        self._host = host
        self._known: OrderedDict[tuple[str, ...], tuple[str, str]] = OrderedDict()

    def normal(self, obj: Object, reason: str, message: str, *, field: str = "") -> None:
        self._record(obj, "Normal", reason, message, field)

    def warning(self, obj: Object, reason: str, message: str, *, field: str = "") -> None:
        self._record(obj, "Warning", reason, message, field)

    def _record(self, obj: Object, type_: str, reason: str, message: str, field: str) -> None:
        key = (obj["metadata"]["uid"], type_, reason, message, field)
        known = self._known.get(key)
        if known is not None and self._store.mutate(EVENTS, *known, self._count_up) is not None:
            return
        event = self._event(obj, type_, reason, message, field)
        namespace = event["metadata"]["namespace"]
        try:
            self._store.create(EVENTS, event)
        except Exception as error:
            # The namespace is going away: nobody will read it.
            if getattr(error, "code", None) not in (403, 404):
                raise
            return
        self._known[key] = (namespace, event["metadata"]["name"])
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _count_up(self, event: Object) -> None:
        event["count"] = event.get("count", 1) + 1
        event["lastTimestamp"] = timestamp(self._store.clock())

    def _event(self, obj: Object, type_: str, reason: str, message: str, field: str) -> Object:
        metadata = obj["metadata"]
        now = timestamp(self._store.clock())
        namespace = metadata.get("namespace", "default")
        involved: dict[str, Any] = {
            "kind": obj["kind"],
            "namespace": metadata.get("namespace"),
            "name": metadata["name"],
            "uid": metadata["uid"],
            "apiVersion": obj["apiVersion"],
            "resourceVersion": metadata.get("resourceVersion"),
            "fieldPath": field or None,
        }
        event: Object = {
            "metadata": {"name": f"{metadata['name']}.{time.time_ns():x}", "namespace": namespace},
            "involvedObject": {key: value for key, value in involved.items() if value is not None},
            "reason": reason,
            "message": message,
            "source": {"component": self._component},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "type": type_,
            "eventTime": None,
            "reportingComponent": self._component,
            "reportingInstance": self._host,
        }
        if self._host:
            event["source"]["host"] = self._host
        return event
