"""The Job of one attempt, and the hash that says what it runs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.job.pod_template import containers_of, strings
from nighttrain.providers.kubernetes.job.shipped_files import attach_files, files_digest, replace_reference
from nighttrain.providers.kubernetes.values.identity import PREFIX, SPEC_HASH_ANNOTATION

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.job.checked import CheckedWorkload
    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
    from nighttrain.providers.plain_json import Json

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def build_job(workload: CheckedWorkload, identity: WorkloadIdentity, attempt: int) -> Json:
    """The Job of one attempt.

    A disruption (preemption, eviction, node drain) does not count as a failure, and its replacement starts
    only when the disrupted pod has ended: two trainings never write to one run.
    """
    spec, template = workload.spec, workload.pod_template()
    labels = {**strings("labels", spec.labels), **identity.labels(attempt)}
    annotations = {**strings("annotations", spec.annotations), **identity.annotations()}
    template["metadata"]["labels"] = {**template["metadata"].get("labels", {}), **labels}
    template["metadata"]["annotations"] = {**template["metadata"].get("annotations", {}), **annotations}
    if spec.files:
        attach_files(template["spec"], identity.name(attempt))
    job_spec: Json = {
        "backoffLimit": spec.backoff_limit,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                # The next attempt is the orchestrator's to start, which counts them: a Job that replaced its
                # pods itself would do so without end.
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
            ]
        },
        "template": template,
    }
    if spec.active_deadline_seconds is not None:
        job_spec["activeDeadlineSeconds"] = spec.active_deadline_seconds
    if spec.ttl_seconds_after_finished is not None:
        job_spec["ttlSecondsAfterFinished"] = spec.ttl_seconds_after_finished
    metadata: Json = {"name": identity.name(attempt), "labels": labels, "annotations": annotations}
    if spec.namespace is not None:
        metadata["namespace"] = spec.namespace
    if spec.queue_name is not None:
        metadata["labels"] = {**labels, QUEUE_LABEL: spec.queue_name}
        job_spec["suspend"] = True
    job: Json = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job_spec}
    # Copies, so that no two places of the manifest share one mapping.
    job = copy.deepcopy(job)
    job["metadata"]["annotations"][SPEC_HASH_ANNOTATION] = spec_hash(
        job, volatile_env=spec.volatile_env, files=spec.files
    )
    return job


def spec_hash(
    job: Json, *, volatile_env: Collection[str] = (), files: Mapping[str, str] | None = None
) -> str:
    """Sixteen hexadecimal digits that say what a Job runs, whoever it belongs to.

    ``files`` count by their contents; the ConfigMap that brings them is named as the Job.

    Left out: the name, everything under ``nighttrain.dev/``, and the variables named in ``volatile_env``.
    The hash of a Job on a cluster is its annotation: the server adds defaults to what was sent.
    """
    body = copy.deepcopy({"metadata": job.get("metadata") or {}, "spec": job.get("spec") or {}})
    pod = body["spec"].get("template") or {}
    for metadata in (body["metadata"], pod.get("metadata") or {}):
        metadata.pop("name", None)
        for kind in ("labels", "annotations"):
            held = metadata.get(kind) or {}
            metadata[kind] = {key: value for key, value in held.items() if not key.startswith(PREFIX)}
    volatile = frozenset(volatile_env)
    for container in containers_of(pod.get("spec") or {}):
        env = [item for item in container.pop("env", None) or [] if item.get("name") not in volatile]
        if env:
            container["env"] = env
    if files:
        replace_reference(pod["spec"], files_digest(files))
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
