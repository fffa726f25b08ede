"""Indexed Jobs: which indexes are done, which have failed for good, which need a pod. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.kinds import job_policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nighttrain.providers.local.cluster.store.store import Object

INDEX = "batch.kubernetes.io/job-completion-index"
FAILURES = "batch.kubernetes.io/job-index-failure-count"


def index_of(pod: Object) -> int | None:
    text = (pod["metadata"].get("annotations") or {}).get(INDEX, "")
    return int(text) if text.isdigit() else None


def mark(job: Object, pod: Object, index: int, failures: int) -> None:
    """Give a new pod its index: annotation, label, host name and JOB_COMPLETION_INDEX."""
    metadata, spec = pod["metadata"], pod["spec"]
    metadata["generateName"] = f"{job['metadata']['name']}-{index}-"
    metadata["annotations"][INDEX] = str(index)
    metadata["labels"][INDEX] = str(index)
    if job["spec"].get("backoffLimitPerIndex") is not None:
        metadata["annotations"][FAILURES] = str(failures)
    spec["hostname"] = f"{job['metadata']['name']}-{index}"
    field = {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}
    variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": field}}
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        env = container.setdefault("env", [])
        if all(each["name"] != variable["name"] for each in env):
            env.append(variable)


def counted(job: Object, pods: list[Object]) -> dict[str, str]:
    """The fields of the status that say which indexes are done."""
    if job["spec"].get("completionMode") != "Indexed":
        return {}
    fields = {}
    done = completed(job, pods)
    if done:
        fields["completedIndexes"] = ranges(done)
    if job["spec"].get("backoffLimitPerIndex") is not None:
        fields["failedIndexes"] = ranges(failed(job, pods))
    return fields


def completed(job: Object, pods: Iterable[Object]) -> set[int]:
    done = parse((job.get("status") or {}).get("completedIndexes", ""))
    return done | {i for pod in pods if _phase(pod) == "Succeeded" and (i := index_of(pod)) is not None}


def failed(job: Object, pods: list[Object]) -> set[int]:
    """Indexes that are given up: too many failures of their own, or a FailIndex rule."""
    limit = job["spec"].get("backoffLimitPerIndex")
    gone = parse((job.get("status") or {}).get("failedIndexes", ""))
    if limit is None:
        return gone
    for pod in pods:
        index = index_of(pod)
        if index is None or _phase(pod) != "Failed" or job_policy.ignored(job, pod):
            continue
        if _failures(pod) > limit or job_policy.fail_index(job, pod):
            gone.add(index)
    return gone - completed(job, pods)


def verdict(job: Object, pods: list[Object]) -> tuple[str, tuple[str, str]] | None:
    """Whether all indexes are settled: the condition, with reason and message."""
    wanted = job["spec"].get("completions") or 0
    done, lost = completed(job, pods), failed(job, pods)
    most = job["spec"].get("maxFailedIndexes")
    if most is not None and len(lost) > most:
        return "FailureTarget", (
            "MaxFailedIndexesExceeded",
            "Job has exceeded the specified maximal number of failed indexes",
        )
    done = {index for index in done if index < wanted}
    if lost and len(done | lost) >= wanted:
        return "FailureTarget", ("FailedIndexes", "Job has failed indexes")
    rule = job_policy.success_rule(job, done)
    if rule is not None:
        return "SuccessCriteriaMet", ("SuccessPolicy", f"Matched rules at index {rule}")
    if len(done) >= wanted:
        return "SuccessCriteriaMet", ("CompletionsReached", "Reached expected number of succeeded pods")
    return None


def missing(
    job: Object, pods: list[Object], blocked: list[Object]
) -> Iterator[tuple[int, int, Object | None]]:
    """Indexes without a pod, in order: index, its failures so far, and the pod that failed last."""
    settled = completed(job, pods) | failed(job, pods) | {index_of(pod) for pod in blocked}
    for index in range(job["spec"].get("completions") or 0):
        if index in settled:
            continue
        past = [pod for pod in pods if index_of(pod) == index and _phase(pod) == "Failed"]
        counting = [pod for pod in past if not job_policy.ignored(job, pod)]
        last = max(counting, key=_failures, default=None)
        yield index, (_failures(last) if last is not None else 0), last


def replaced(job: Object, pod: Object, pods: list[Object]) -> bool:
    """Whether a failed pod's index has its next pod, or gets none any more.

    Until then the failed pod is kept uncounted: it is where the index's failures are written.
    """
    index = index_of(pod)
    if job["spec"].get("backoffLimitPerIndex") is None or index is None:
        return True
    if index in completed(job, pods) or index in failed(job, pods):
        return True
    return any(index_of(each) == index and _failures(each) > _failures(pod) for each in pods)


def _failures(pod: Object) -> int:
    """Failures of the pod's index, its own included."""
    text = (pod["metadata"].get("annotations") or {}).get(FAILURES, "0")
    return int(text) + 1


def _phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase", ""))


def ranges(indexes: Iterable[int]) -> str:
    """``0,2-5``: two in a row are written apart, three or more as a range."""
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and parts[-1][-1] == index - 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    texts = []
    for run in parts:
        texts.append(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)))
    return ",".join(texts)


def parse(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
