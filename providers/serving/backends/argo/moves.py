"""The next change towards a share, or back: a pure function. Each has the form of a recorded one.

Whoever decided on an older look is refused: every change is bound to the resourceVersion that was seen. And
nothing is promoted unless the status is about the candidate: for a moment after a new version it is still
about the one before, paused, with generations that agree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.errors import RolloutFailedError
from nighttrain.providers.kubernetes.values.objects import mapping, status, whole
from nighttrain.providers.serving.backends.argo.look import stable_answers, stable_is_full
from nighttrain.providers.serving.backends.argo.objects import (
    STABLE_HASH,
    STABLE_TEMPLATE,
    Found,
    Objects,
    Stage,
    find,
    is_observed,
    pause_reasons,
    selected,
    template_of,
)
from nighttrain.providers.serving.backends.argo.routed import is_settled
from nighttrain.providers.serving.backends.argo.steps import is_open_pause, steps_of
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.backends.merge_patches import replacing
from nighttrain.providers.serving.spec import ENDPOINT_LABEL

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target

_INCONCLUSIVE = "InconclusiveAnalysisRun"


@dataclass(frozen=True, kw_only=True)
class Move:
    """One change.

    :param body: merge patch of the Rollout
    :param below: the subresource that it goes to, if any
    :param selector: of the endpoint's Service instead
    """

    body: Json | None = None
    below: str | None = None
    selector: dict[str, str] | None = None


ABORT = Move(body={"status": {"abort": True}}, below="status")
PROMOTE = Move(body={"status": {"pauseConditions": None}}, below="status")
PROMOTE_IN_FULL = Move(body={"status": {"promoteFull": True}}, below="status")


def towards(target: Target, objects: Objects, percent: int) -> Move | None:
    """The next change towards a share; ``None`` where Argo is on its way, or nothing is to be changed.

    :raises RolloutFailedError: there is no way there
    """
    found = find(target, objects)
    if percent == 0:
        return _to_nothing(target, objects, found)
    if found.stage in (Stage.EVERYTHING, Stage.GONE) or not found.followed:
        return None
    if found.stage is not Stage.STEPS:
        raise RolloutFailedError(f"{target.endpoint}: no share can be set: {found.stage}")
    opened = objects.routed or selected(target, objects) is None
    if percent == 100 and not opened:
        # The stable version's pods go as the candidate's come: the Service has to select both first.
        return _wider(target, objects)
    if found.weight > percent:
        raise RolloutFailedError(
            f"{target.endpoint}: it is at {found.weight} percent, and Argo's steps only rise; {percent} "
            "percent cannot be asked for any more"
        )
    if found.weight < percent or (percent == 100 and not objects.routed):
        return onwards(target, objects)
    return None if opened else _wider(target, objects)


def onwards(target: Target, objects: Objects) -> Move | None:
    """Past the pause at which the candidate waits; ``None`` unless it is sure that it does."""
    found, rollout = find(target, objects), objects.rollout
    if rollout is None or found.stage is not Stage.STEPS or not found.followed or not is_settled(rollout):
        return None
    index = whole(status(rollout).get("currentStepIndex")) or 0
    if mapping(rollout.get("spec")).get("paused") is True:
        return None
    if _INCONCLUSIVE in pause_reasons(rollout):
        # Without the next step's index the analysis would only run again.
        state = {"pauseConditions": None, "controllerPause": False, "currentStepIndex": index + 1}
        return Move(body={"status": state}, below="status")
    return PROMOTE if is_open_pause(steps_of(rollout), index) else None


def back(target: Target, objects: Objects) -> Move | None:
    """The next change towards the stable version alone, once no request goes to the candidate."""
    found = find(target, objects)
    if found.stage is Stage.STEPS:
        # What Argo has not seen yet it would not abort: a new template takes an abort back.
        followed = found.followed and objects.rollout is not None and is_observed(objects.rollout)
        return ABORT if followed else _stable_template(target, objects)
    if found.stage is Stage.ABORTED and stable_is_full(target, objects):
        return _stable_template(target, objects)
    return None


def _to_nothing(target: Target, objects: Objects, found: Found) -> Move | None:
    if found.stage is Stage.RETURNING:
        present = status(objects.rollout).get("currentPodHash")
        seen = objects.rollout is not None and is_observed(objects.rollout)
        return PROMOTE_IN_FULL if seen and present == target.names.get(STABLE_HASH) else None
    if found.stage is Stage.EVERYTHING:
        return _stable_template(target, objects)
    begun = found.stage is Stage.STEPS and found.followed
    if objects.routed:
        return ABORT if begun and found.weight else None
    if selected(target, objects) == 0 or target.endpoint not in objects.services:
        return None
    if not stable_answers(target, objects):
        return ABORT if begun else None
    return Move(selector=version_labels(target.endpoint, target.stable or ""))


def _wider(target: Target, objects: Objects) -> Move | None:
    waits = objects.rollout is not None and is_settled(objects.rollout)
    return Move(selector={ENDPOINT_LABEL: target.endpoint}) if waits else None


def _stable_template(target: Target, objects: Objects) -> Move:
    template = json.loads(target.names[STABLE_TEMPLATE])
    return Move(body={"spec": {"template": replacing(template_of(objects.rollout), template)}})
