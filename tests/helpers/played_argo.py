"""Who plays Argo Rollouts on an embedded cluster that runs nothing: waiting lets it look once.

It does what the recordings show: the status stays at the version before for a look after each new template;
an open pause waits until its pauseConditions are taken away; an abort sets the index to 0 and leaves the
template; the stable version's template skips the steps. What no recording shows is as its source says:
setCanaryScale, and a pause at 100 percent. It is as fast as one look, and pods are ready at once or never.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from helpers.subresources import status_of
from nighttrain.providers.errors import ObjectExistsError, ObjectNotFoundError
from nighttrain.providers.kubernetes.api.resources import (
    HTTPROUTES,
    REPLICASETS,
    ROLLOUTS,
    SERVICES,
    Resource,
)

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient

Object = dict[str, Any]
NAMESPACE, NAME = "default", "delay"
HASH = "rollouts-pod-template-hash"


class PlayedArgo:
    """The controller.

    :ivar never_ready: versions whose pods never are
    :ivar out_of_time: it says that the progress deadline is over for what is not ready
    :ivar asleep: it looks at nothing
    """

    def __init__(self, client: ClusterClient, namespace: str = NAMESPACE) -> None:
        self.client, self.namespace = client, namespace
        self.never_ready: set[str] = set()
        self.out_of_time = False
        self.asleep = False

    async def sleep(self, _: float) -> None:
        if not self.asleep:
            await self.reconcile()

    async def rollout(self) -> Object:
        return await self.client.get(ROLLOUTS, self.namespace, NAME)

    async def sizes(self) -> dict[str, int]:
        """Pods by version."""
        found: dict[str, int] = {}
        for each in (await self.client.list(REPLICASETS, self.namespace))["items"]:
            version = each["metadata"]["labels"]["nighttrain.dev/version"]
            found[version] = found.get(version, 0) + each["spec"]["replicas"]
        return {version: number for version, number in found.items() if number}

    async def abort(self) -> None:
        """By itself, e.g. for an analysis of the team's."""
        await self.client.patch(status_of(ROLLOUTS), self.namespace, NAME, {"status": {"abort": True}})
        await self.reconcile()

    async def reconcile(self) -> None:
        try:
            rollout = await self.rollout()
        except ObjectNotFoundError:
            for each in (await self.client.list(REPLICASETS, self.namespace))["items"]:
                await self.client.delete(REPLICASETS, self.namespace, each["metadata"]["name"])
            return
        template_hash = _hash(rollout["spec"]["template"])
        if await self._set(template_hash) is None:
            await self._make_set(rollout, template_hash)
            return
        told = dict(rollout.get("status") or {})
        before = set(told)
        if told.get("currentPodHash") != template_hash:
            self._begin(rollout, told, template_hash)
        else:
            await self._go_on(rollout, told)
        told["observedGeneration"] = str(rollout["metadata"]["generation"])
        gone = dict.fromkeys(before - set(told))
        await self.client.patch(status_of(ROLLOUTS), self.namespace, NAME, {"status": {**gone, **told}})

    @staticmethod
    def _begin(rollout: Object, told: Object, template_hash: str) -> None:
        for key in ("pauseConditions", "controllerPause", "abort", "promoteFull", "message", "conditions"):
            told.pop(key, None)
        told |= {"currentPodHash": template_hash, "currentStepIndex": 0, "phase": "Progressing"}
        if told.get("stableRS") == template_hash:
            told["currentStepIndex"] = len(_steps(rollout))

    async def _go_on(self, rollout: Object, told: Object) -> None:
        steps, new, index = _steps(rollout), told["currentPodHash"], told["currentStepIndex"]
        if told.get("stableRS") in (None, new):
            told |= {"stableRS": new, "currentStepIndex": len(steps)}
            await self._complete(rollout, told)
            return
        if told.get("promoteFull"):
            told |= {"currentStepIndex": len(steps)}
            told.pop("pauseConditions", None)
            await self._complete(rollout, told)
            return
        if told.get("abort"):
            told |= {"currentStepIndex": 0, "phase": "Degraded", "message": "RolloutAborted: aborted update"}
            told.pop("pauseConditions", None)
            told.pop("controllerPause", None)
            await self._share(rollout, told, 0, 0)
            return
        if index >= len(steps):
            await self._complete(rollout, told)
            return
        step = steps[index]
        weight, pods = _weight(steps, index), _pods(rollout, steps, index)
        ready = await self._share(rollout, told, weight, pods)
        told |= {"phase": "Progressing", "message": "more replicas need to be updated"}
        if "pause" not in step:
            if ready:
                told["currentStepIndex"] = index + 1
            elif self.out_of_time:
                told |= {"phase": "Degraded", "message": "ProgressDeadlineExceeded: timed out"}
                told["conditions"] = [_condition("Progressing", "False", "ProgressDeadlineExceeded")]
        elif told.get("pauseConditions"):
            told |= {"phase": "Paused", "message": "CanaryPauseStep"}
        elif told.pop("controllerPause", None):
            told["currentStepIndex"] = index + 1
        else:
            since = "2026-11-26T00:00:00Z"
            told["pauseConditions"] = [{"reason": "CanaryPauseStep", "startTime": since}]
            told |= {"controllerPause": True, "phase": "Paused", "message": "CanaryPauseStep"}

    async def _complete(self, rollout: Object, told: Object) -> None:
        new, size = told["currentPodHash"], rollout["spec"]["replicas"]
        told |= {"phase": "Progressing", "message": "updated replicas are still becoming available"}
        if not await self._scale(new, size):
            return
        if told.get("stableRS") == new:
            for each in (await self.client.list(REPLICASETS, self.namespace))["items"]:
                if each["metadata"]["labels"][HASH] != new:
                    await self._scale(each["metadata"]["labels"][HASH], 0)
            told["phase"] = "Healthy"
            for key in ("message", "promoteFull"):
                told.pop(key, None)
        elif _routed(rollout):
            await self._route(rollout, told, 100)
        else:
            await self._scale(told["stableRS"], 0)
        told["stableRS"] = new
        await self._services(rollout, new, new)
        if _routed(rollout):
            await self._route(rollout, told, 0)

    async def _share(self, rollout: Object, told: Object, weight: int, pods: int) -> bool:
        new, old, size = told["currentPodHash"], told["stableRS"], rollout["spec"]["replicas"]
        whole = await self._scale(old, size if _routed(rollout) else size - pods)
        ready = await self._scale(new, pods)
        await self._services(rollout, old, new if ready and pods else old)
        if _routed(rollout) and (ready or not pods):
            await self._route(rollout, told, weight)
        return ready and whole

    async def _scale(self, pod_hash: str, size: int) -> bool:
        held = await self._set(pod_hash)
        assert held is not None
        name, version = held["metadata"]["name"], held["metadata"]["labels"]["nighttrain.dev/version"]
        if held["spec"]["replicas"] != size:
            held = await self.client.patch(REPLICASETS, self.namespace, name, {"spec": {"replicas": size}})
        there = 0 if version in self.never_ready else size
        counts = {"replicas": size, "readyReplicas": there, "availableReplicas": there}
        state = {"observedGeneration": held["metadata"]["generation"], **counts}
        await self.client.patch(status_of(REPLICASETS), self.namespace, name, {"status": state})
        return there == size

    async def _services(self, rollout: Object, stable: str, canary: str) -> None:
        for key, pod_hash in (("stableService", stable), ("canaryService", canary)):
            name = rollout["spec"]["strategy"]["canary"].get(key)
            if name:
                await self.client.patch(
                    SERVICES, self.namespace, name, {"spec": {"selector": {HASH: pod_hash}}}
                )

    async def _route(self, rollout: Object, told: Object, weight: int) -> None:
        canary = rollout["spec"]["strategy"]["canary"]
        (plugin,) = canary["trafficRouting"]["plugins"].values()
        refs = [
            {"name": canary["stableService"], "port": 80, "weight": 100 - weight},
            {"name": canary["canaryService"], "port": 80, "weight": weight},
        ]
        body = {"spec": {"rules": [{"backendRefs": refs}]}}
        # As recorded: who wrote the route since it was written last is not put right.
        if ((told.get("canary") or {}).get("weights") or {}).get("canary", {}).get("weight") != weight:
            held = await self.client.patch(HTTPROUTES, self.namespace, plugin["httpRoute"], body)
            await accept(self.client, held, self.namespace)
        told["canary"] = {"weights": {"canary": {"weight": weight}, "stable": {"weight": 100 - weight}}}

    async def _set(self, pod_hash: str) -> Object | None:
        found = (await self.client.list(REPLICASETS, self.namespace, label_selector=f"{HASH}={pod_hash}"))[
            "items"
        ]
        return found[0] if found else None

    async def _make_set(self, rollout: Object, pod_hash: str) -> None:
        template = json.loads(json.dumps(rollout["spec"]["template"]))
        template["metadata"]["labels"][HASH] = pod_hash
        labels = template["metadata"]["labels"]
        owner = {"apiVersion": ROLLOUTS.api_version, "kind": "Rollout", "name": NAME, "controller": True}
        owner["uid"] = rollout["metadata"]["uid"]
        meta = {"name": f"{NAME}-{pod_hash}", "labels": labels, "ownerReferences": [owner]}
        spec = {"replicas": 0, "selector": {"matchLabels": {HASH: pod_hash}}, "template": template}
        body = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta, "spec": spec}
        await self.client.create(REPLICASETS, self.namespace, body)


async def make_route(client: ClusterClient, namespace: str = NAMESPACE) -> None:
    """The team's HTTPRoute to the two Services of the endpoint."""
    refs = [{"name": f"{NAME}-stable", "port": 80, "weight": 100}]
    refs.append({"name": f"{NAME}-canary", "port": 80, "weight": 0})
    body = {
        "apiVersion": HTTPROUTES.api_version,
        "kind": "HTTPRoute",
        "metadata": {"name": "delay-route"},
        "spec": {
            "hostnames": ["delay.test"],
            "parentRefs": [{"name": "gw"}],
            "rules": [{"backendRefs": refs}],
        },
    }
    try:
        held = await client.create(HTTPROUTES, namespace, body)
    except ObjectExistsError:
        return
    await accept(client, held, namespace)


async def accept(client: ClusterClient, route: Object, namespace: str = NAMESPACE) -> None:
    """As a gateway does."""
    conditions = [
        {
            **_condition(kind, "True", kind),
            "observedGeneration": route["metadata"]["generation"],
        }
        for kind in ("Accepted", "ResolvedRefs")
    ]
    for each in conditions:
        each.pop("lastUpdateTime")
    parent = {"parentRef": {"name": "gw"}, "controllerName": "a.b/c", "conditions": conditions}
    name = route["metadata"]["name"]
    kind: Resource = status_of(HTTPROUTES)
    await client.patch(kind, namespace, name, {"status": {"parents": [parent]}})


def _condition(kind: str, value: str, reason: str) -> Object:
    since = "2026-11-26T00:00:00Z"
    times = {"lastTransitionTime": since, "lastUpdateTime": since}
    return {"type": kind, "status": value, "reason": reason, "message": "", **times}


def _hash(template: Object) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def _steps(rollout: Object) -> list[Object]:
    return list(rollout["spec"]["strategy"]["canary"].get("steps") or [])


def _routed(rollout: Object) -> bool:
    return "trafficRouting" in rollout["spec"]["strategy"]["canary"]


def _weight(steps: list[Object], index: int) -> int:
    return int(next((s["setWeight"] for s in reversed(steps[: index + 1]) if "setWeight" in s), 0))


def _pods(rollout: Object, steps: list[Object], index: int) -> int:
    size = rollout["spec"]["replicas"]
    scales = [step["setCanaryScale"] for step in steps[: index + 1] if "setCanaryScale" in step]
    if scales and "weight" in scales[-1]:
        return math.ceil(size * scales[-1]["weight"] / 100)
    wanted = size * _weight(steps, index) / 100
    return math.ceil(wanted) if _routed(rollout) else min(size - 1, max(1, round(wanted)))
