"""The manifests and merge patches that are sent, and nothing else: pure functions of a plan.

Their shapes are those that recordings of a real cluster show to work. ``spec.canary`` is one value to a
merge patch, so each step sends the whole entry.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nighttrain.providers.kubernetes.api.resources import INFERENCE_SERVICES
from nighttrain.providers.serving.backends.kserve.plan import Mode, Plan
from nighttrain.providers.serving.backends.merge_patches import replacing
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, MANAGED_BY, MANAGED_BY_LABEL, MODEL_ANNOTATION

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target

MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
_AUTOSCALER_ANNOTATION = "serving.kserve.io/autoscalerClass"


def first_service(target: Target, plan: Plan) -> Json:
    """The InferenceService of an endpoint that had no version.

    Its labels and annotations stay as they are for good: KServe copies them to the pods of every version, and
    another value would start them anew.
    """
    annotations = {MODE_ANNOTATION: str(plan.mode), MODEL_ANNOTATION: target.model_name}
    if plan.mode is Mode.STANDARD:
        annotations[_AUTOSCALER_ANNOTATION] = "none"
    return {
        "apiVersion": INFERENCE_SERVICES.api_version,
        "kind": INFERENCE_SERVICES.kind,
        "metadata": {
            "name": target.endpoint,
            "labels": {MANAGED_BY_LABEL: MANAGED_BY, ENDPOINT_LABEL: target.endpoint},
            "annotations": annotations,
        },
        "spec": {"predictor": {**plan.candidate, **_size(plan)}},
    }


def canary(plan: Plan, percent: int) -> Json:
    """Standard mode: the candidate beside the stable version, with a share of the requests.

    Its replicas follow its share of the stable version's, as KServe's own default does; but with 0 percent
    there is one. KServe admits no more than the stable version has.
    """
    replicas = max(1, math.ceil(plan.stable_replicas * percent / 100))
    # The schema demands the model's name, which KServe's webhook fills in with nothing.
    model = {"name": "", **plan.candidate["model"]}
    predictor = {**plan.candidate, "model": model, "name": plan.candidate_name, "minReplicas": replicas}
    return {"spec": {"canary": [{"trafficPercent": percent, "predictor": predictor}]}}


def promotion(plan: Plan) -> Json:
    """Standard mode: name and model of the candidate become the predictor's, and the entry goes."""
    predictor = {**plan.candidate, "name": plan.candidate_name, **_size(plan)}
    return {"spec": {"predictor": predictor, "canary": None}}


def removal() -> Json:
    """Standard mode: the entry goes."""
    return {"spec": {"canary": None}}


def start(plan: Plan, percent: int) -> Json:
    """Knative mode: the candidate's predictor and its share, in one patch."""
    return _whole(plan, plan.candidate, plan.stable, percent)


def back(plan: Plan) -> Json:
    """Knative mode: the stable version's predictor again, still with 0 percent.

    Without a percentage everything would go to the latest ready revision, the rejected one, until the stable
    version's new revision is ready.
    """
    return _whole(plan, plan.stable, plan.candidate, 0)


def share(percent: int | None) -> Json:
    """Knative mode: the latest revision's share; ``None`` for all, for good."""
    return {"spec": {"predictor": {"canaryTrafficPercent": percent}}}


def _whole(plan: Plan, wanted: Json, replaced: Json, percent: int) -> Json:
    predictor = {**replacing(replaced, wanted), **_size(plan), "canaryTrafficPercent": percent}
    return {"spec": {"predictor": predictor}}


def _size(plan: Plan) -> Json:
    size: dict[str, Any] = {"minReplicas": plan.replicas}
    return size if plan.max_replicas is None else {**size, "maxReplicas": plan.max_replicas}
