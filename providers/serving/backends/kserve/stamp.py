"""What a rollout asked of an InferenceService last: kept beside it, in a ConfigMap.

Not on the InferenceService: KServe copies its labels and annotations to the pods of every version (a
recorded Deployment's template shows them), so that each stamp would start all of them anew, and in Knative
mode make a revision.

Two objects cannot be written at once. So the stamp says what is asked now and what was asked before; which
of the two the InferenceService shows tells whether the change was made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import mapping, metadata, text, whole
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, MANAGED_BY, MANAGED_BY_LABEL

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target

_KEY = "asked"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an InferenceService is asked for, as its spec shows it.

    :param stage: see the constants below
    :param percent: the candidate's share
    """

    stage: str
    percent: int


NOTHING = Asked(stage="stable", percent=0)
"""The stable version alone."""
EVERYTHING = Asked(stage="promoted", percent=100)
"""The candidate alone."""
RETURNING = Asked(stage="returning", percent=0)
"""Knative mode: the stable version's new revision comes up, with 0 percent."""
OTHER = Asked(stage="something else", percent=0)
"""What no rollout of these two versions asks for."""


def sharing(percent: int) -> Asked:
    """Both versions, the candidate with a share."""
    return Asked(stage="shared", percent=percent)


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """The newest change of one rollout, and the one before it.

    :param candidate: whose rollout it is: another one counts its fences from the beginning
    """

    candidate: str
    fence: int
    asked: Asked
    fence_before: int
    asked_before: Asked

    def fence_of(self, found: Asked) -> int:
        """The fence of the change that the InferenceService shows."""
        if found != self.asked and found == self.asked_before:
            return self.fence_before
        return self.fence

    def explains(self, found: Asked) -> bool:
        """True if this rollout asked for what is found."""
        return found in (self.asked, self.asked_before)


def stamp_name(endpoint: str) -> str:
    """The ConfigMap's name."""
    return f"{endpoint}-kserve"


def read_stamp(target: Target, config_map: Json | None) -> Stamp | None:
    """This rollout's stamp; ``None`` where it left none, or what is there cannot be read."""
    data = mapping(config_map.get("data")) if config_map else {}
    try:
        held = mapping(json.loads(text(data.get(_KEY)) or "null"))
    except ValueError:
        return None
    asked, before = _asked(held.get("asked")), _asked(held.get("asked_before"))
    fence, fence_before = whole(held.get("fence")), whole(held.get("fence_before"))
    if held.get("candidate") != target.candidate or asked is None or before is None:
        return None
    if fence is None or fence_before is None:
        return None
    return Stamp(
        candidate=target.candidate, fence=fence, asked=asked, fence_before=fence_before, asked_before=before
    )


def stamp_object(target: Target, service: Json, stamp: Stamp, resource_version: str | None) -> Json:
    """The ConfigMap, owned by the InferenceService so that it goes with it.

    :param resource_version: of the one that is replaced; ``None`` where there is none yet
    """
    owner = {
        "apiVersion": text(service.get("apiVersion")),
        "kind": text(service.get("kind")),
        "name": metadata(service)["name"],
        "uid": metadata(service)["uid"],
    }
    meta = {
        "name": stamp_name(target.endpoint),
        "labels": {MANAGED_BY_LABEL: MANAGED_BY, ENDPOINT_LABEL: target.endpoint},
        "ownerReferences": [owner],
    }
    if resource_version is not None:
        meta["resourceVersion"] = resource_version
    held = {
        "candidate": stamp.candidate,
        "fence": stamp.fence,
        "asked": {"stage": stamp.asked.stage, "percent": stamp.asked.percent},
        "fence_before": stamp.fence_before,
        "asked_before": {"stage": stamp.asked_before.stage, "percent": stamp.asked_before.percent},
    }
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}
    return {**body, "data": {_KEY: json.dumps(held, sort_keys=True)}}


def _asked(given: object) -> Asked | None:
    held = mapping(given)
    stage, percent = text(held.get("stage")), whole(held.get("percent"))
    return Asked(stage=stage, percent=percent) if stage and percent is not None else None
