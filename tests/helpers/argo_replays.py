"""How a recording of Argo Rollouts is read as a rollout of ours: who is the candidate, what labels said.

The recorded objects have no labels of nighttrain's; a variable of the container tells their versions apart.
Where no HTTPRoute shares the requests, every pod gets some: as if the endpoint's Service selected both.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from helpers.replays import Case, Recording, shuffled
from nighttrain.providers.errors import RolloutFailedError
from nighttrain.providers.serving.backends.argo import moves
from nighttrain.providers.serving.backends.argo.look import read
from nighttrain.providers.serving.backends.argo.objects import ROLLOUT, STABLE_HASH, STABLE_TEMPLATE, Objects
from nighttrain.providers.serving.backends.argo.reading import route_of
from nighttrain.providers.serving.backends.traffic import Target
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, VERSION_LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.interleaved import Present
    from nighttrain.providers.serving.backends.argo.moves import Move

Object = dict[str, Any]
ROLLOUTS, SETS = "rollouts", "replicasets"
HASH = "rollouts-pod-template-hash"


def is_argo(recording: Recording) -> bool:
    return ROLLOUTS in recording.streams


def cases(recording: Recording, seed: int) -> Iterator[tuple[str, Recording, Case]]:
    """The first version's rollout, and that of each later one beside it."""
    meta = [event.object["metadata"] for event in recording.events if event.stream == ROLLOUTS]
    chosen = {meta[0]["name"], meta[0]["namespace"]}
    known, names = shuffled(recording, sorted(chosen), seed)
    dressed = _dressed(known, names[meta[0]["name"]])
    own = [event.object for event in dressed.events if event.stream == ROLLOUTS]
    versions = list(dict.fromkeys(_version(each["spec"]["template"]) for each in own))
    sets = [event.object for event in dressed.events if event.stream == SETS]
    first = next((_hash(each) for each in sets if _raw_version(each) == versions[0]), "")
    yield "first", dressed, _case(own[0], None, versions[0], "")
    for number, version in enumerate(versions[1:] or ["2"]):
        yield ("next", "third")[number], dressed, _case(own[0], versions[0], version, first)


def _case(first: Object, stable: str | None, candidate: str, stable_hash: str) -> Case:
    name = first["metadata"]["name"]
    target = Target(
        endpoint=name,
        namespace=first["metadata"]["namespace"],
        model_name="m",
        candidate=candidate,
        stable=stable,
        names={
            ROLLOUT: name,
            STABLE_HASH: stable_hash,
            STABLE_TEMPLATE: json.dumps(first["spec"]["template"]),
        },
    )

    def look(present: Present) -> Any:
        objects = objects_in(present, name)
        if target.stable is not None:
            _never_the_wrong_move(target, objects, present)
        return read(target, objects)

    return Case(target, look, _voucher(target), ROLLOUTS, lambda version: f"v{version}")


def objects_in(present: Present, name: str) -> Objects:
    """What the backend would read of what is there."""
    rollout = next(iter(present.of(ROLLOUTS)), None)
    services = {each["metadata"]["name"]: each for each in present.of("services")}
    both = {"metadata": {"name": name, "resourceVersion": "1"}, "spec": {"selector": {ENDPOINT_LABEL: name}}}
    routes = (each for each in present.of("httproutes") if each["metadata"]["name"] == route_of(rollout))
    return Objects(
        rollout=rollout,
        replica_sets=present.of(SETS),
        services={name: both, **services},
        route=next(routes, None),
    )


def _never_the_wrong_move(target: Target, objects: Objects, present: Present) -> None:
    """Whatever is asked for at this moment: a version is promoted only while the status is about it."""
    asked: list[Callable[[], Move | None]] = [
        *(lambda p=percent: moves.towards(target, objects, p) for percent in (0, 1, 25, 50, 99, 100)),
        lambda: moves.onwards(target, objects),
        lambda: moves.back(target, objects),
    ]
    for ask in asked:
        try:
            move = ask()
        except RolloutFailedError:
            continue
        if move is None or move.body is None:
            continue
        rollout = present.of(ROLLOUTS)[0]
        state, template = rollout["status"], rollout["spec"]["template"]
        sets = {_hash(each): _raw_version(each) for each in present.of(SETS)}
        about, body = sets.get(state.get("currentPodHash")), move.body.get("status", {})
        if "pauseConditions" in body:
            assert about == _raw_version_in(template) == target.candidate, (body, state)
            assert state["phase"] == "Paused"
            assert _observed(rollout)
            assert "currentStepIndex" not in body or body["currentStepIndex"] == state["currentStepIndex"] + 1
        elif "promoteFull" in body:
            assert about == _raw_version_in(template) == target.stable, (body, state)
        elif "abort" in body:
            assert about == target.candidate, (body, state)
            assert state["stableRS"] != state["currentPodHash"]
        else:
            assert _raw_version_in(move.body["spec"]["template"]) == target.stable
            assert HASH not in move.body["spec"]["template"].get("metadata", {}).get("labels", {})


def _dressed(recording: Recording, name: str) -> Recording:
    """The recording as if the Rollout's template had been ours."""
    events = []
    for event in recording.events:
        obj = copy.deepcopy(event.object)
        if event.stream in (ROLLOUTS, SETS):
            template = obj["spec"]["template"]
            own = {ENDPOINT_LABEL: name, VERSION_LABEL: _raw_version_in(template)}
            template["metadata"]["labels"] |= own
            if event.stream == SETS:
                obj["metadata"]["labels"] |= own
        events.append(replace(event, object=obj))
    return replace(recording, events=events)


def _version(template: Object) -> str:
    return str(template["metadata"]["labels"][VERSION_LABEL])


def _hash(obj: Object) -> str:
    return str(obj["metadata"]["labels"][HASH])


def _raw_version_in(template: Object) -> str:
    """By the container's variable, whatever labels say."""
    env = {each["name"]: each.get("value") for each in template["spec"]["containers"][0].get("env") or []}
    return str(env.get("V", "v1")).lstrip("v")


def _raw_version(obj: Object) -> str:
    return _raw_version_in(obj["spec"]["template"])


def _observed(rollout: Object) -> bool:
    return str(rollout["metadata"]["generation"]) == rollout["status"].get("observedGeneration")


def _voucher(target: Target) -> Callable[[str, Present], bool]:
    """Looks at the raw fields, with no regard for how the backend reads them."""

    def pods(present: Present, version: str | None) -> tuple[int, int]:
        """Of a version: how many there are to be, and how many are ready by a status that has followed."""
        own = [each for each in present.of(SETS) if _raw_version(each) == version]
        wanted = sum(each["spec"]["replicas"] for each in own)
        ready = sum(each["status"].get("readyReplicas") or 0 for each in own)
        seen = all(e["status"].get("observedGeneration", 0) >= e["metadata"]["generation"] for e in own)
        return wanted, ready if seen else -1

    def receivers(present: Present) -> set[str]:
        if not route_of(present.of(ROLLOUTS)[0]):
            return {_raw_version(e) for e in present.of(SETS) if e["status"].get("readyReplicas")}
        route = present.of("httproutes")[0]
        named = {
            ref["name"] for rule in route["spec"]["rules"] for ref in rule["backendRefs"] if ref["weight"]
        }
        selectors = {each["metadata"]["name"]: each["spec"]["selector"] for each in present.of("services")}
        sets = {_hash(each): _raw_version(each) for each in present.of(SETS)}
        return {sets[selectors[name][HASH]] for name in named}

    def settled_on(present: Present, version: str | None) -> bool:
        rollout = present.of(ROLLOUTS)[0]
        state = rollout["status"]
        sets = {_hash(each): _raw_version(each) for each in present.of(SETS)}
        both = sets[state["stableRS"]] == sets[state["currentPodHash"]] == version
        size = rollout["spec"]["replicas"]
        whole = pods(present, version) == (size, size)
        return both and whole and _observed(rollout) and state["phase"] == "Healthy"

    def vouches(claim: str, present: Present) -> bool:
        if claim in ("ready", "stable_ready"):
            wanted, ready = pods(present, target.candidate if claim == "ready" else target.stable)
            return wanted == ready > 0
        if not present.of(ROLLOUTS):
            return target.stable is None and claim in ("undone", "routed")
        if claim == "routed":
            return receivers(present) <= {target.candidate, target.stable} - {None}
        version = target.candidate if claim == "promoted" else target.stable
        if claim == "undone" and pods(present, target.candidate)[0]:
            return False
        return settled_on(present, version) and receivers(present) == {version}

    return vouches
