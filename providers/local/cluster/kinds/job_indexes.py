"""Indexed Jobs: which indexes are done, and which need a pod. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nighttrain.providers.local.cluster.store.store import Object

INDEX = "batch.kubernetes.io/job-completion-index"


def index_of(pod: Object) -> int | None:
    text = (pod["metadata"].get("annotations") or {}).get(INDEX, "")
    return int(text) if text.isdigit() else None


def mark(job: Object, pod: Object, index: int) -> None:
    """Give a new pod its index: annotation, label, host name and JOB_COMPLETION_INDEX."""
    metadata, spec = pod["metadata"], pod["spec"]
    metadata["generateName"] = f"{job['metadata']['name']}-{index}-"
    metadata.setdefault("annotations", {})[INDEX] = str(index)
    metadata["labels"][INDEX] = str(index)
    spec["hostname"] = f"{job['metadata']['name']}-{index}"
    field = {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}
    variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": field}}
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        env = container.setdefault("env", [])
        if all(each["name"] != variable["name"] for each in env):
            env.append(variable)


def completed(job: Object, pods: Iterable[Object]) -> set[int]:
    done = parse((job.get("status") or {}).get("completedIndexes", ""))
    return done | {
        i
        for pod in pods
        if (pod.get("status") or {}).get("phase") == "Succeeded" and (i := index_of(pod)) is not None
    }


def missing(job: Object, pods: list[Object], blocked: list[Object]) -> Iterator[int]:
    """Indexes without a pod, in order."""
    settled = completed(job, pods) | {index_of(pod) for pod in blocked}
    return (index for index in range(job["spec"].get("completions") or 0) if index not in settled)


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
