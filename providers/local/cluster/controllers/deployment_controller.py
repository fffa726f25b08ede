"""Deployments: ReplicaSets, one for each version of the template, exchanged step by step."""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.controllers.reconcile import (
    Controller,
    ReconcileLoop,
    controller_of,
    owner_reference,
)
from nighttrain.providers.local.cluster.store.events import EventRecorder
from nighttrain.providers.local.cluster.store.resources import DEPLOYMENTS, REPLICASETS, ResourceType
from nighttrain.providers.local.cluster.store.store import EventType, Object, copy_object, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable


HASH = "pod-template-hash"
_PREFIX = "deployment.kubernetes.io"
_REVISION = f"{_PREFIX}/revision"

# What a Deployment does when its spec does not say.
_DEFAULT_DEADLINE, _DEFAULT_HISTORY, _DEFAULT_SHARE = 600, 10, "25%"

# A percentage may have any number of digits; a count of pods may not.
_LARGEST_SHARE = 100.0 * 2**31


class DeploymentController(Controller):
    """Rolls Deployments from one template to the next, and says how far it is."""

    def __init__(self, loop: ReconcileLoop) -> None:
        super().__init__(loop)
        self._recorder = EventRecorder(loop.store, "deployment-controller")

    def changed(self, type_: EventType, resource: ResourceType, obj: Object) -> None:
        metadata = obj["metadata"]
        if resource is DEPLOYMENTS:
            self.enqueue(metadata["namespace"], metadata["name"])
        elif resource is REPLICASETS:
            owner = controller_of(obj)
            if owner is not None and owner["kind"] == "Deployment":
                self.enqueue(metadata["namespace"], owner["name"])

    def reconcile(self, namespace: str, name: str) -> None:
        deployment = self.store.find(DEPLOYMENTS, namespace, name)
        if deployment is None or "deletionTimestamp" in deployment["metadata"]:
            return
        every = self.owned(deployment, REPLICASETS)
        new = _matching(deployment, every)
        if new is None:
            new = self._create_set(deployment, every)
        deployment = self._mark_revision(deployment, new, every)
        every = self.owned(deployment, REPLICASETS)
        new = _matching(deployment, every) or new
        old = [each for each in every if each["metadata"]["uid"] != new["metadata"]["uid"]]
        self._roll(deployment, new, old)
        every = self.owned(deployment, REPLICASETS)
        self._trim_history(deployment, every)
        self._write_status(deployment, _matching(deployment, every), every)

    # ReplicaSets

    def _create_set(self, deployment: Object, every: list[Object]) -> Object:
        metadata, spec = deployment["metadata"], deployment["spec"]
        template = copy_object(spec["template"])
        suffix = template_hash(template)
        labels = {**((template.get("metadata") or {}).get("labels") or {}), HASH: suffix}
        template["metadata"] = {**(template.get("metadata") or {}), "labels": labels}
        selector = copy_object(spec["selector"])
        selector.setdefault("matchLabels", {})[HASH] = suffix
        replicas = self._room(deployment, every)
        body: Object = {
            "metadata": {
                "name": f"{metadata['name']}-{suffix}",
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": {_REVISION: str(_highest(every) + 1)},
                "ownerReferences": [owner_reference(deployment)],
            },
            "spec": {"replicas": replicas, "selector": selector, "template": template},
            "status": {"replicas": 0},
        }
        created = self.store.create(REPLICASETS, body)
        self._say_scaled(deployment, created, 0, replicas)
        why = f'Created new replica set "{created["metadata"]["name"]}"'
        self._progress(deployment, "True", "NewReplicaSetCreated", why)
        return created

    def _room(self, deployment: Object, every: list[Object]) -> int:
        """The number of replicas that a new set may start with."""
        wanted = _wanted(deployment)
        most = wanted + _surge(deployment)
        return max(0, min(wanted, most - sum(_replicas(each) for each in every)))

    def _mark_revision(self, deployment: Object, new: Object, every: list[Object]) -> Object:
        """An old template that comes back gets the next revision number."""
        highest = _highest(each for each in every if each["metadata"]["uid"] != new["metadata"]["uid"])
        revision = _revision(new)
        if revision <= highest:
            revision = highest + 1
            self._annotate(REPLICASETS, new, {_REVISION: str(revision)})
        if (deployment["metadata"].get("annotations") or {}).get(_REVISION) != str(revision):
            deployment = self._annotate(DEPLOYMENTS, deployment, {_REVISION: str(revision)})
        return deployment

    def _annotate(self, resource: ResourceType, obj: Object, annotations: dict[str, str]) -> Object:
        def write(new: Object) -> None:
            new["metadata"]["annotations"] = {**(new["metadata"].get("annotations") or {}), **annotations}

        metadata = obj["metadata"]
        return self.store.mutate(resource, metadata["namespace"], metadata["name"], write) or obj

    def _scale(self, deployment: Object, replica_set: Object, replicas: int) -> None:
        metadata, before = replica_set["metadata"], _replicas(replica_set)

        def write(new: Object) -> None:
            new["spec"]["replicas"] = replicas

        if before != replicas:
            self.store.mutate(REPLICASETS, metadata["namespace"], metadata["name"], write)
            self._say_scaled(deployment, replica_set, before, replicas)

    def _say_scaled(self, deployment: Object, replica_set: Object, before: int, after: int) -> None:
        word = "up" if after > before else "down"
        name = replica_set["metadata"]["name"]
        message = f"Scaled {word} replica set {name} from {before} to {after}"
        self._recorder.normal(deployment, "ScalingReplicaSet", message)

    # Exchange

    def _roll(self, deployment: Object, new: Object, old: list[Object]) -> None:
        """New pods as far as the surge allows, old ones away as far as enough are available."""
        wanted = _wanted(deployment)
        total = sum(_replicas(each) for each in [new, *old])
        current = _replicas(new)
        target = current
        if current > wanted:
            target = wanted
        elif current < wanted:
            target = current + max(0, min(wanted - current, wanted + _surge(deployment) - total))
        self._scale(deployment, new, target)
        new = self.store.find(REPLICASETS, new["metadata"]["namespace"], new["metadata"]["name"]) or new
        total += target - current
        minimum = wanted - _unavailable(deployment)
        # Pods of the new set that are not available yet do not make old ones superfluous.
        spare = total - minimum - (_replicas(new) - _count(new, "availableReplicas"))
        self._drain(deployment, old, spare, minimum, new)

    def _drain(self, deployment: Object, old: list[Object], spare: int, minimum: int, new: Object) -> None:
        available = sum(_count(each, "availableReplicas") for each in [new, *old])
        for each in sorted(old, key=_revision):
            replicas = _replicas(each)
            if spare <= 0 or not replicas:
                continue
            broken = max(0, replicas - _count(each, "availableReplicas"))
            healthy = min(replicas - broken, max(0, available - minimum))
            gone = min(spare, broken + healthy)
            if gone > 0:
                self._scale(deployment, each, replicas - gone)
                spare -= gone
                available -= max(0, gone - broken)

    def _trim_history(self, deployment: Object, every: list[Object]) -> None:
        limit = deployment["spec"].get("revisionHistoryLimit", _DEFAULT_HISTORY)
        new = _matching(deployment, every)
        idle = [
            each for each in every if each is not new and not _replicas(each) and not _count(each, "replicas")
        ]
        for each in sorted(idle, key=_revision)[: max(0, len(idle) - limit)]:
            self.store.delete(REPLICASETS, each["metadata"]["namespace"], each["metadata"]["name"])

    # Status

    def _write_status(self, deployment: Object, new: Object | None, every: list[Object]) -> None:
        metadata = deployment["metadata"]
        current = self.store.find(DEPLOYMENTS, metadata["namespace"], metadata["name"])
        if current is None:
            return
        wanted = _wanted(current)
        totals = {key: sum(_count(each, key) for each in every) for key in ("replicas", *_COUNTS)}
        counts = {
            "replicas": totals["replicas"],
            "updatedReplicas": _count(new, "replicas") if new is not None else 0,
            "readyReplicas": totals["readyReplicas"],
            "availableReplicas": totals["availableReplicas"],
            "unavailableReplicas": max(
                0, sum(_replicas(each) for each in every) - totals["availableReplicas"]
            ),
        }
        enough = totals["availableReplicas"] >= wanted - _unavailable(current)
        available = (
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
            if enough
            else (
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            )
        )
        old = current.get("status") or {}
        progress = self._progress_of(current, old, counts, new, wanted)

        def write(stored: Object) -> None:
            status: Object = {"observedGeneration": metadata_generation(stored)}
            status |= {key: count for key, count in counts.items() if count}
            status["terminatingReplicas"] = totals["terminatingReplicas"]
            conditions = self._with(old.get("conditions") or [], "Available", available)
            if progress is not None:
                conditions = self._with(conditions, "Progressing", progress, moved=_moved(old, counts))
            status["conditions"] = conditions
            stored["status"] = status

        self.store.mutate(DEPLOYMENTS, metadata["namespace"], metadata["name"], write)

    def _progress_of(
        self, deployment: Object, old: Object, counts: dict[str, int], new: Object | None, wanted: int
    ) -> tuple[str, str, str] | None:
        """The Progressing condition: done, moving on, or stuck for longer than the deadline."""
        if new is None or deployment["spec"].get("progressDeadlineSeconds") == _NO_DEADLINE:
            return None
        name = new["metadata"]["name"]
        known = next((each for each in old.get("conditions") or [] if each["type"] == "Progressing"), None)
        complete = (
            counts["updatedReplicas"] == wanted
            and counts["replicas"] == wanted
            and counts["availableReplicas"] >= wanted
        )
        if complete:
            return "True", "NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed.'
        if known is None:
            return "True", "NewReplicaSetCreated", f'Created new replica set "{name}"'
        same = (known["status"], known["reason"], known["message"])
        if known["reason"] == "NewReplicaSetAvailable" and name in known["message"]:
            return same  # scaled, or a pod lost: nothing new is being rolled out
        if _moved(old, counts):
            return "True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.'
        if known["reason"] == "ProgressDeadlineExceeded":
            return same
        left = self._deadline_left(deployment, known)
        if left > 0:
            metadata = deployment["metadata"]
            self.enqueue_after(metadata["namespace"], metadata["name"], left)
            return same
        return "False", "ProgressDeadlineExceeded", f'ReplicaSet "{name}" has timed out progressing.'

    def _deadline_left(self, deployment: Object, known: Object) -> float:
        seconds = deployment["spec"].get("progressDeadlineSeconds", _DEFAULT_DEADLINE)
        since = datetime.fromisoformat(known.get("lastUpdateTime") or known["lastTransitionTime"])
        return (since + timedelta(seconds=seconds) - self.store.clock()).total_seconds()

    def _progress(self, deployment: Object, status: str, reason: str, message: str) -> None:
        metadata = deployment["metadata"]

        def write(new: Object) -> None:
            old = new.get("status") or {}
            conditions = self._with(
                old.get("conditions") or [], "Progressing", (status, reason, message), moved=True
            )
            new["status"] = {**old, "conditions": conditions}

        self.store.mutate(DEPLOYMENTS, metadata["namespace"], metadata["name"], write)

    def _with(
        self,
        conditions: list[Object],
        type_: str,
        verdict: tuple[str, str, str],
        *,
        moved: bool = False,
    ) -> list[Object]:
        now = timestamp(self.store.clock())
        status, reason, message = verdict
        old = next((each for each in conditions if each["type"] == type_), None)
        if old is not None and (old["status"], old["reason"], old["message"]) == verdict and not moved:
            return conditions
        condition = {
            "type": type_,
            "status": status,
            "lastUpdateTime": now,
            "lastTransitionTime": old["lastTransitionTime"]
            if old is not None and old["status"] == status
            else now,
            "reason": reason,
            "message": message,
        }
        return [*(each for each in conditions if each["type"] != type_), condition]


_COUNTS = ("readyReplicas", "availableReplicas", "terminatingReplicas")

# progressDeadlineSeconds of somebody who wants none: the largest 32-bit number.
_NO_DEADLINE = 2**31 - 1


def metadata_generation(obj: Object) -> int:
    return int(obj["metadata"].get("generation", 1))


def template_hash(template: Object) -> str:
    """Ten characters that change with the template."""
    text = json.dumps(template, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _matching(deployment: Object, every: list[Object]) -> Object | None:
    """The ReplicaSet of the template as it is now."""
    wanted = _without_hash(deployment["spec"]["template"])
    return next((each for each in every if _without_hash(each["spec"]["template"]) == wanted), None)


def _without_hash(template: Object) -> Object:
    metadata = dict(template.get("metadata") or {})
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != HASH}
    return {**template, "metadata": {**metadata, "labels": labels}}


def _wanted(deployment: Object) -> int:
    return int(deployment["spec"].get("replicas", 1))


def _replicas(replica_set: Object) -> int:
    return int(replica_set["spec"].get("replicas", 1))


def _count(replica_set: Object, key: str) -> int:
    return int((replica_set.get("status") or {}).get(key, 0))


def _revision(replica_set: Object) -> int:
    text = str((replica_set["metadata"].get("annotations") or {}).get(_REVISION, "0"))
    # Anybody may write another thing there; the next revision writes over it.
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0


def _highest(every: Iterable[Object]) -> int:
    return max(map(_revision, every), default=0)


def _rolling(deployment: Object) -> Object:
    return (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}


def _share(value: int | str, whole: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    exact = whole * min(float(value.rstrip("%")), _LARGEST_SHARE) / 100
    return math.ceil(exact) if up else math.floor(exact)


def _surge(deployment: Object) -> int:
    return _share(_rolling(deployment).get("maxSurge", _DEFAULT_SHARE), _wanted(deployment), up=True)


def _unavailable(deployment: Object) -> int:
    wanted = _wanted(deployment)
    share = _share(_rolling(deployment).get("maxUnavailable", _DEFAULT_SHARE), wanted, up=False)
    # With no surge either, nothing could ever move.
    return 1 if not share and not _surge(deployment) else min(share, wanted)


def _moved(old: Object, counts: dict[str, int]) -> bool:
    """True if more of the new version is there or ready, or less of the old."""

    def was(key: str) -> int:
        return int(old.get(key, 0))

    return (
        counts["updatedReplicas"] > was("updatedReplicas")
        or counts["replicas"] - counts["updatedReplicas"] < was("replicas") - was("updatedReplicas")
        or counts["readyReplicas"] > was("readyReplicas")
        or counts["availableReplicas"] > was("availableReplicas")
    )
