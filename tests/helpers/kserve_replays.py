"""How a recording of KServe is read as a rollout of ours: who is the candidate, and what our labels said.

The recorded objects have no labels of nighttrain's; what tells their versions apart is a variable of the
container, or the storage address. The labels are put where KServe puts a predictor's: on its pods' template
and on its revision.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from helpers.replays import Case, Recording, shuffled
from nighttrain.providers.serving.backends.kserve.look import read
from nighttrain.providers.serving.backends.kserve.objects import Objects
from nighttrain.providers.serving.backends.kserve.plan import Mode, Plan, form_of, service_name
from nighttrain.providers.serving.backends.traffic import Target
from nighttrain.providers.serving.spec import VERSION_LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.interleaved import Present

Object = dict[str, Any]
SERVICES = "inferenceservices"


def is_kserve(recording: Recording) -> bool:
    return SERVICES in recording.streams


def cases(recording: Recording, seed: int) -> Iterator[tuple[str, Recording, Case]]:
    """Each InferenceService twice: the first version's rollout, and the next one's beside it."""
    found = {e.object["metadata"]["name"]: e for e in reversed(recording.events) if e.stream == SERVICES}
    space = {e.object["metadata"]["namespace"] for e in found.values()}
    predictors = {p["name"] for e in recording.events for p in _predictors(e.object) if p.get("name")}
    known, names = shuffled(recording, sorted({*found, *space, *predictors}), seed)
    dressed = _dressed(known)
    for old_name, first in sorted(found.items()):
        name = names[old_name]
        events = [event for event in dressed.events if event.stream == SERVICES]
        own = [event.object for event in events if event.object["metadata"]["name"] == name]
        versions = _versions(own)
        mode = Mode.of(first.object["metadata"]["annotations"]["serving.kserve.io/deploymentMode"])
        yield "first", dressed, _case(dressed, mode, own, None, versions[0])
        candidate = versions[1] if len(versions) > 1 else "2"
        yield "next", dressed, _case(dressed, mode, own, versions[0], candidate)


def _case(recording: Recording, mode: Mode, own: list[Object], stable: str | None, candidate: str) -> Case:
    first = own[0]["spec"]["predictor"]
    name = own[0]["metadata"]["name"]
    entries = [p for each in own for p in _predictors(each) if p["labels"][VERSION_LABEL] == candidate]
    named = next((p["name"] for p in entries if p.get("name")), "" if stable is None else "v2")
    forms = {version: _form(own, version) for version in (stable, candidate) if version}
    plan = Plan(
        mode=mode,
        stable_name=first.get("name") or "",
        candidate_name="" if stable is None else named,
        stable=forms.get(stable or "", {}),
        candidate=forms[candidate],
        stable_replicas=first.get("minReplicas", 1),
        replicas=first.get("minReplicas", 1),
        max_replicas=first.get("maxReplicas"),
    )
    target = Target(
        endpoint=name,
        namespace=own[0]["metadata"]["namespace"],
        model_name="m",
        candidate=candidate,
        stable=stable,
        names=plan.to_names(),
    )

    def look(present: Present) -> Any:
        return read(target, objects_in(present, name))

    return Case(target, look, _voucher(target, plan), SERVICES, lambda version: f"v{version}")


def objects_in(present: Present, name: str) -> Objects:
    """What the backend would read of what is there."""

    def of(stream: str) -> dict[str, Object]:
        return {each["metadata"]["name"]: each for each in present.of(stream)}

    return Objects(
        service=of(SERVICES).get(name),
        deployments=of("deployments"),
        route=of("httproutes").get(name),
        revisions=of("revisions"),
    )


def _predictors(obj: Object) -> list[Object]:
    spec = obj.get("spec") or {}
    if "predictor" not in spec:
        return []
    return [spec["predictor"], *(each["predictor"] for each in spec.get("canary") or [])]


def _versions(own: list[Object]) -> list[str]:
    """In the order in which the InferenceService asked for them."""
    found: dict[str, None] = {}
    for each in own:
        for predictor in _predictors(each):
            found[predictor["labels"][VERSION_LABEL]] = None
    return list(found)


def _form(own: list[Object], version: str) -> Object:
    for each in own:
        for predictor in _predictors(each):
            if predictor["labels"][VERSION_LABEL] == version:
                return form_of(predictor)
    return {}


def _dressed(recording: Recording) -> Recording:
    """The recording as if its predictors had been ours."""
    numbers: dict[str, str] = {}
    events = []
    for event in recording.events:
        obj = copy.deepcopy(event.object)
        for predictor in _predictors(obj):
            inside = predictor.get("model") or predictor["containers"][0]
            predictor.setdefault("labels", {})[VERSION_LABEL] = _number(inside, predictor, numbers)
        events.append(replace(event, object=obj))
    for event in events:
        obj, spec = event.object, event.object.get("spec") or {}
        if event.stream == "deployments":
            inside = spec["template"]["spec"]["containers"][0]
            meta = spec["template"]["metadata"]
            meta.setdefault("labels", {})[VERSION_LABEL] = _number(inside, meta, numbers)
        elif event.stream == "revisions":
            meta = obj["metadata"]
            meta.setdefault("labels", {})[VERSION_LABEL] = _number(spec["containers"][0], meta, numbers)
    return replace(recording, events=events)


def _number(container: Object, holder: Object, numbers: dict[str, str]) -> str:
    variables = {each["name"]: each.get("value") for each in container.get("env") or []}
    uri = container.get("storageUri") or (holder.get("annotations") or {}).get(
        "internal.serving.kserve.io/storage-initializer-sourceuri"
    )
    told = variables.get("V") or uri or "1"
    digits = told.rpartition("/")[2].lstrip("v")
    return numbers.setdefault(told, digits if digits.isdecimal() else str(len(numbers) + 1))


def _voucher(target: Target, plan: Plan) -> Callable[[str, Present], bool]:
    """Looks at the raw fields, with no regard for how the backend reads them."""
    service: dict[str | None, str] = {target.candidate: service_name(target.endpoint, plan.candidate_name)}
    if target.stable is not None:
        service[target.stable] = service_name(target.endpoint, plan.stable_name)

    def ready_pods(present: Present, version: str | None) -> bool:
        for obj in present.of("deployments"):
            if obj["metadata"]["name"] != service.get(version):
                continue
            if _label(obj["spec"]["template"]) != version:
                return False
            state, wanted = obj.get("status") or {}, obj["spec"]["replicas"]
            seen = state.get("observedGeneration") == obj["metadata"]["generation"]
            return seen and state.get("readyReplicas") == state.get("updatedReplicas") == wanted
        own = (each for each in present.of("revisions") if _label(each) == version)
        return any(_says(each, "Ready") for each in own)

    def receivers(present: Present) -> set[str]:
        """Versions that have any weight, by the route or by the status."""
        isvc = next(each for each in present.of(SERVICES) if each["metadata"]["name"] == target.endpoint)
        if plan.mode is Mode.KNATIVE:
            versions = {each["metadata"]["name"]: _label(each) for each in present.of("revisions")}
            traffic = isvc["status"]["components"]["predictor"].get("traffic") or []
            return {versions[each["revisionName"]] for each in traffic if each.get("percent")}
        route = next(each for each in present.of("httproutes") if each["metadata"]["name"] == target.endpoint)
        refs = [ref for rule in route["spec"]["rules"] for ref in rule["backendRefs"] if ref["weight"]]
        behind = {each["metadata"]["name"]: _label(each["spec"]["template"]) for each in _deployed(present)}
        return {behind.get(ref["name"], "nobody") for ref in refs}

    def vouches(claim: str, present: Present) -> bool:
        there = any(each["metadata"]["name"] == target.endpoint for each in present.of(SERVICES))
        if claim in ("ready", "stable_ready"):
            return ready_pods(present, target.candidate if claim == "ready" else target.stable)
        if not there:
            return target.stable is None and claim in ("undone", "routed")
        if claim == "routed":
            return receivers(present) <= {target.candidate, target.stable} - {None}
        only = target.candidate if claim == "promoted" else target.stable
        return receivers(present) == {only} and ready_pods(present, only)

    return vouches


def _deployed(present: Present) -> list[Object]:
    return present.of("deployments")


def _label(obj: Object) -> str:
    return str(obj["metadata"]["labels"][VERSION_LABEL])


def _says(obj: Object, kind: str) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)
