"""How the workloads of the recordings ended, and what their objects show of it."""

from __future__ import annotations

from typing import Any

from nighttrain.providers.kubernetes.outcome.outcome import OutcomeKind

K = OutcomeKind

# scenario, Job, how the first FINISHED observation says it ended, exit code, infrastructure
ENDINGS = [
    ("job-success", None, K.SUCCEEDED, 0, False),
    ("job-exit-3", None, K.APPLICATION_ERROR, 3, False),
    ("job-backoff", None, K.APPLICATION_ERROR, 1, False),
    ("job-fail-fast", None, K.APPLICATION_ERROR, 42, False),
    ("job-oom", None, K.OUT_OF_MEMORY, 137, False),
    ("job-deadline", None, K.DEADLINE_EXCEEDED, None, False),
    ("pod-deadline", None, K.DEADLINE_EXCEEDED, 137, False),
    ("job-deleted-background", None, K.CANCELLED, None, False),
    ("job-deleted-foreground", None, K.CANCELLED, 0, False),
    ("job-evicted-failed", None, K.EVICTED, 137, True),
    # It ended with 0 inside its grace period, which may be half of the training: never called a success.
    ("job-evicted-finished-in-grace", None, K.EVICTED, None, True),
    ("job-evicted-replaced", None, K.SUCCEEDED, 0, False),
    ("job-image-invalid", None, K.IMAGE_PULL, None, False),
    ("job-image-never", None, K.IMAGE_PULL, None, False),
    ("job-image-pull", None, K.CANCELLED, None, False),
    ("job-indexed", None, K.APPLICATION_ERROR, 1, False),
    ("job-pod-deleted", None, K.SUCCEEDED, 0, False),
    ("job-pod-deleted-failed", None, K.CANCELLED, 137, False),
    ("job-pod-force-deleted", None, K.SUCCEEDED, 0, False),
    ("job-suspend-resume", None, K.SUCCEEDED, 0, False),
    ("job-ttl", None, K.SUCCEEDED, 0, False),
    ("job-unschedulable", None, K.CANCELLED, None, False),
    ("command-missing", None, K.REJECTED, 128, False),
    ("configmap-missing", None, K.CANCELLED, None, False),
    ("secret-missing", None, K.CANCELLED, None, False),
    ("init-failed", None, K.APPLICATION_ERROR, 2, False),
    ("native-sidecar", None, K.SUCCEEDED, 0, False),
    ("node-taint", None, K.SUCCEEDED, 0, False),
    ("preempted", "low", K.SUCCEEDED, 0, False),
    ("preempted", "high", K.SUCCEEDED, 0, False),
    ("quota", "q1", K.SUCCEEDED, 0, False),
    ("quota", "q2", K.SUCCEEDED, 0, False),
    ("restart-on-failure", None, K.SUCCEEDED, 0, False),
    # Kueue's development head, and the release 0.19.2 with its other words.
    *(
        (f"{release}-{scenario}", job, kind, exit_code, False)
        for release in ("kueue", "kueue-0.19")
        for scenario, job, kind, exit_code in (
            ("admitted", None, K.SUCCEEDED, 0),
            ("deleted-waiting", None, K.QUOTA_WAIT, None),
            ("drained", None, K.SUCCEEDED, 0),
            ("never-fits", None, K.QUOTA_WAIT, None),
            ("no-queue", None, K.SUCCEEDED, 0),
            ("preempted", "k1", K.SUCCEEDED, 0),
            ("preempted", "k2", K.SUCCEEDED, 0),
            ("waits", None, K.SUCCEEDED, 0),
        )
    ),
]


def is_complete(job: Any) -> bool:
    return job is not None and any(
        entry["type"] == "Complete" and entry["status"] == "True"
        for entry in job["status"].get("conditions", [])
    )


def has_succeeded(pod: Any) -> bool:
    """By its own status, with nobody having told it to go."""
    told = "deletionTimestamp" in pod["metadata"] or any(
        entry["type"] == "DisruptionTarget" for entry in pod["status"].get("conditions", [])
    )
    return pod["status"].get("phase") == "Succeeded" and not told
