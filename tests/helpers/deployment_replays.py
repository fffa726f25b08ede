"""How a recording of a Deployment is read as a rollout of ours by replicas: its newest template is new.

The recorded Deployment has both templates, one after the other; with us each version has a Deployment of its
own. So the Deployment counts as the candidate's while it has the newest template, pods belong to the version
of their template, and the endpoint's Service is as it is once it was switched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from helpers.replays import Case, Recording, shuffled
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.backends.plain.objects import Objects
from nighttrain.providers.serving.backends.plain.replica_look import look_at_replicas
from nighttrain.providers.serving.backends.traffic import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.interleaved import Present

Object = dict[str, Any]
DEPLOYMENTS = "deployments"
_HASH = "pod-template-hash"
_OTHERS = {"rollouts", "inferenceservices", "httproutes", "knativeservices"}
_ANNOTATIONS = {"nighttrain.dev/stable-version": "2", "nighttrain.dev/previous-version": "1"}


def is_deployment(recording: Recording) -> bool:
    return {DEPLOYMENTS, "pods"} <= recording.streams and not _OTHERS & recording.streams


def cases(recording: Recording, seed: int) -> Iterator[tuple[str, Recording, Case]]:
    """The change from each template of a Deployment to the next."""
    deployments = [event.object for event in recording.events if event.stream == DEPLOYMENTS]
    for name in dict.fromkeys(each["metadata"]["name"] for each in deployments):
        own = [each for each in deployments if each["metadata"]["name"] == name]
        chosen = {name, own[0]["metadata"]["namespace"]}
        known, names = shuffled(recording, sorted(chosen), seed)
        events = [event for event in known.events if event.stream == DEPLOYMENTS]
        templates = _templates([each.object for each in events], names[name])
        for number, (first, last) in enumerate(templates[1:]):
            label = ("next", "third")[number] if number < 2 else f"change {number + 1}"
            yield label, _only(known, names[name], first, last), _case(known, names[name], first)


def _templates(deployments: list[Object], name: str) -> list[tuple[int, int]]:
    """The first and the last generation of each template, in order."""
    found: list[tuple[int, int]] = []
    before: Object | None = None
    for each in deployments:
        generation = each["metadata"]["generation"]
        if each["metadata"]["name"] != name:
            continue
        if each["spec"]["template"] != before:
            before = each["spec"]["template"]
            found.append((generation, generation))
        found[-1] = (found[-1][0], max(found[-1][1], generation))
    return found


def _only(recording: Recording, name: str, first: int, last: int) -> Recording:
    """The recording with the Deployment as long as it has that template."""

    def stays(event: Any) -> bool:
        meta = event.object["metadata"]
        if event.stream != DEPLOYMENTS or meta["name"] != name:
            return True
        return bool(first <= meta["generation"] <= last)

    return replace(recording, events=[event for event in recording.events if stays(event)])


def _case(recording: Recording, name: str, generation: int) -> Case:
    objects = [event.object for event in recording.events if event.stream == DEPLOYMENTS]
    own = next(
        each
        for each in objects
        if each["metadata"]["name"] == name and each["metadata"]["generation"] == generation
    )
    space = own["metadata"]["namespace"]
    # Its pods are told by what only its template has: the hash is in no Deployment.
    wanted = own["spec"]["template"]["spec"]["containers"]
    target = Target(endpoint=name, namespace=space, model_name="m", candidate="2", stable="1")
    service = {
        "kind": "Service",
        "metadata": {"name": name, "resourceVersion": "1", "annotations": _ANNOTATIONS},
        "spec": {"selector": version_labels(name, "2"), "ports": [{"port": 80}]},
    }
    # Where nobody may read them, pods have to do.
    told = "endpointslices" in recording.streams
    stable = {**own, "metadata": {**own["metadata"], "name": f"{name}-v1"}, "status": {}}

    def is_candidates(pod: Object) -> bool:
        return _same_program(pod["spec"]["containers"], wanted)

    def look(present: Present) -> Any:
        pods = [
            pod | {"metadata": pod["metadata"] | {"labels": version_labels(name, "2" if new else "1")}}
            for pod, new in ((each, is_candidates(each)) for each in present.of("pods"))
        ]
        return look_at_replicas(
            target,
            Objects(
                service=service,
                stable=stable,
                candidate=present.objects.get((DEPLOYMENTS, name)),
                pods=pods,
                slices=present.of("endpointslices") if told else None,
            ),
        )

    return Case(target, look, _voucher(name, is_candidates), DEPLOYMENTS, lambda version: f"v{version}")


def _same_program(containers: list[Object], wanted: list[Object]) -> bool:
    """True if they run the same: a pod has more fields than its template."""
    keys = ("name", "image", "command", "args", "env")
    return [[each.get(key) for key in keys] for each in containers] == [
        [each.get(key) for key in keys] for each in wanted
    ]


def _voucher(name: str, is_candidates: Callable[[Object], bool]) -> Callable[[str, Present], bool]:
    def vouches(claim: str, present: Present) -> bool:
        pods = {each["metadata"]["name"]: each for each in present.of("pods")}
        deployment = present.objects.get((DEPLOYMENTS, name))
        ready = [
            pods.get(each["targetRef"]["name"])
            for found in present.of("endpointslices")
            for each in found.get("endpoints") or []
            if each["conditions"].get("ready")
        ]
        known = [pod for pod in ready if pod is not None]
        if claim == "routed":
            return len(known) == len(ready)
        if claim == "ready":
            return deployment is not None and _is_complete(deployment)
        if claim == "promoted":
            return bool(known) and len(ready) == len(known) and all(map(is_candidates, known))
        return False

    return vouches


def _is_complete(deployment: Object) -> bool:
    status, replicas = deployment.get("status", {}), deployment["spec"]["replicas"]
    counts = {status.get(key, 0) for key in ("updatedReplicas", "readyReplicas", "availableReplicas")}
    followed = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return bool(followed and min(counts) >= replicas)
