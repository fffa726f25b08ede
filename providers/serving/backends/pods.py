"""The readiness of a Deployment, as a pure function of what the API reports."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nighttrain.providers.errors import clip
from nighttrain.providers.kubernetes.outcome import not_started
from nighttrain.providers.kubernetes.values.objects import (
    CANNOT_START,
    any_condition,
    is_deleting,
    items,
    mapping,
    metadata,
    name_of,
    status,
    text,
    whole,
)
from nighttrain.providers.redaction import redact
from nighttrain.providers.serving.backends.base import Readiness
from nighttrain.providers.serving.scoring_server import EXIT_DIGEST_MISMATCH
from nighttrain.providers.serving.spec import TEMPLATE_ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nighttrain.providers.plain_json import Json

# One start may have met a restart of MLflow; the third that ends the same way met something that stays.
FAILED_STARTS = 3

# What registries say about an image that will not come, however often it is asked for.
_NO_SUCH_IMAGE = re.compile(
    r"not found|manifest unknown|name unknown|does not exist|denied|unauthorized", re.IGNORECASE
)
_ADMISSION = re.compile(r"violates PodSecurity|is forbidden|admission webhook|is invalid")

# As many of a container's last lines as a task's log shows without hiding the rest.
_LINES, _WIDTH = 20, 400


def judge(deployment: Json, pods: Sequence[Json]) -> Readiness:
    """Say how far the version is. Total: whatever the objects hold, it returns; in doubt it is not ready."""
    wanted = desired_replicas(deployment)
    state = status(deployment)
    ready, updated = (whole(state.get(key)) or 0 for key in ("readyReplicas", "updatedReplicas"))
    available, total = (whole(state.get(key)) or 0 for key in ("availableReplicas", "replicas"))
    seen = (whole(state.get("observedGeneration")) or 0) >= (
        whole(metadata(deployment).get("generation")) or 0
    )
    progress = f"{min(ready, updated)} of {wanted} pods are ready"
    if wanted == 0:
        return Readiness(ready=False, detail="scaled to zero", doubt="It is scaled to zero replicas.")
    if seen and is_deleting(deployment):
        return Readiness(
            ready=False, detail="being deleted", failure="Its Deployment is being deleted by somebody."
        )
    if seen and updated == ready == available == total == wanted:
        return Readiness(ready=True, detail=progress, answers=True)
    answers = seen and updated == total and min(ready, available) > 0 and not is_deleting(deployment)
    doubts = []
    for pod in pods:
        settled = is_deleting(pod) or any_condition(pod, "Ready").get("status") == "True"
        if settled or _is_left_over(deployment, pod):
            continue
        failure, doubt = _pod(pod)
        if failure:
            return Readiness(ready=False, detail=progress, failure=redact(failure), answers=answers)
        doubts += [redact(doubt)] if doubt else []
    failure, doubt = _conditions(deployment) if seen else (None, None)
    doubts += [redact(doubt)] if doubt else []
    if failure:
        reasons = "\n".join([redact(failure), *doubts])
        return Readiness(ready=False, detail=progress, failure=reasons, answers=answers)
    detail = f"{progress}; {clip(doubts[0].splitlines()[0], 200)}" if doubts else progress
    return Readiness(ready=False, detail=detail, doubt="\n".join(doubts) or None, answers=answers)


def desired_replicas(deployment: Json) -> int:
    """The number of pods that the Deployment asks for; the API takes 1 where nobody said."""
    wanted = whole(mapping(deployment.get("spec")).get("replicas"))
    return 1 if wanted is None else wanted


def _is_left_over(deployment: Json, pod: Json) -> bool:
    """Tell a pod of a form given up, or of a deleted Deployment of that name, from the present ones."""
    born, pod_born = (text(metadata(item).get("creationTimestamp")) for item in (deployment, pod))
    template = mapping(mapping(deployment.get("spec")).get("template"))
    held = (mapping(metadata(item).get("annotations")) for item in (template, pod))
    form, pod_form = (text(annotations.get(TEMPLATE_ANNOTATION)) for annotations in held)
    return bool(pod_born and pod_born < born) or bool(pod_form and form and pod_form != form)


def _conditions(deployment: Json) -> tuple[str | None, str | None]:
    """The failure and the doubt that the Deployment itself reports."""
    refused = any_condition(deployment, "ReplicaFailure")
    if refused.get("status") == "True":
        said = text(refused.get("message"))
        sentence = f"The cluster does not let its pods be created: {clip(said, 600)}"
        quota = "exceeded quota" in said
        return (sentence, None) if _ADMISSION.search(said) and not quota else (None, sentence)
    progressing = any_condition(deployment, "Progressing")
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        return f"No progress before its deadline: {text(progressing.get('message'))}", None
    return None, None


def _pod(pod: Json) -> tuple[str | None, str | None]:
    """The failure and the doubt that one pod reports which is not ready."""
    state = status(pod)
    # An init container that has done what it was for says nothing more.
    first = [entry for entry in items(state.get("initContainerStatuses")) if not _is_done(entry)]
    for entry in (*first, *items(state.get("containerStatuses"))):
        now = mapping(entry.get("state"))
        last = mapping(now.get("terminated")) or mapping(mapping(entry.get("lastState")).get("terminated"))
        if last and (
            now.get("terminated") or now.get("waiting") or last.get("exitCode") == EXIT_DIGEST_MISMATCH
        ):
            return _ended(pod, entry, last)
        waiting = mapping(now.get("waiting"))
        reason, message = text(waiting.get("reason")), text(waiting.get("message"))
        sentence = f"Pod {name_of(pod)} waits: {reason}: {clip(message, 600)}"
        if reason in not_started.PERMANENT_IMAGE:
            return f"{sentence}\nWhat to do: correct the image's name.", None
        if reason in ("ErrImagePull", "ImagePullBackOff"):
            advice = f"{sentence}\nWhat to do: check the image's name and tag, and image_pull_secrets."
            return (advice, None) if _NO_SUCH_IMAGE.search(message) else (None, advice)
    wait = not_started.why_pending(pod, [])
    return None, f"Pod {name_of(pod)}: {wait.detail}" if wait.kind is not None else None


def _is_done(entry: Json) -> bool:
    return whole(mapping(mapping(entry.get("state")).get("terminated")).get("exitCode")) == 0


def _ended(pod: Json, entry: Json, ended: Json) -> tuple[str | None, str | None]:
    code, reason = whole(ended.get("exitCode")), text(ended.get("reason"))
    restarts = whole(entry.get("restartCount")) or 0
    lines = [clip(line, _WIDTH) for line in text(ended.get("message")).strip().splitlines()[-_LINES:]]
    # Counted are starts: the one that ended just now, or is waited for again, is not in restartCount yet.
    starts = restarts if mapping(mapping(entry.get("state")).get("running")) else restarts + 1
    told = [
        f"Pod {name_of(pod)} ended with exit code {code} ({reason or 'no reason given'}), "
        f"{starts} {'start' if starts == 1 else 'starts'} so far."
    ]
    told += ["Last lines of the log:", *(f"  {line}" for line in lines)] if lines else []
    sentence = "\n".join(told)
    if code == EXIT_DIGEST_MISMATCH:
        advice = "The artifact is not the one that passed the gate. Find out who changed it; register anew."
        return f"{sentence}\nWhat to do: {advice}", None
    if reason == "OOMKilled":
        return f"{sentence}\nWhat to do: raise container_resources.limits.memory.", None
    if reason in CANNOT_START:
        return f"{sentence}\nWhat to do: use an image that has python and mlflow.", None
    return (sentence, None) if starts >= FAILED_STARTS else (None, sentence)
