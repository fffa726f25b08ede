"""The object in the cluster that an attempt runs as."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# What triggers that an early version stored do not say.
DEFAULT_KIND = "Job"


@dataclass(frozen=True)
class Workload:
    """One attempt's object. ``uid`` tells it from a later one of the same name.

    :param adopted: it existed already when it was submitted
    :param infrastructure_failures: attempts before this one that the cluster ended, since the last clear
    :param run_id: the MLflow run that the container was started with
    :param experiment_id: that run's experiment
    :param run_context: the tags, as JSON, of a run that the container opens because it was started without
    :param kind: which of :data:`~nighttrain.providers.kubernetes.job.kinds.KINDS` it is
    """

    namespace: str
    name: str
    uid: str
    attempt: int
    adopted: bool = False
    infrastructure_failures: int = 0
    run_id: str | None = None
    kind: str = DEFAULT_KIND
    experiment_id: str | None = None
    run_context: str | None = None

    @property
    def described(self) -> str:
        """For messages: its kind, name and namespace."""
        return f"{self.kind} {self.name} in namespace {self.namespace}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Workload:
        """The inverse of :meth:`to_dict`."""
        return cls(
            namespace=value["namespace"],
            name=value["name"],
            uid=value["uid"],
            attempt=int(value["attempt"]),
            adopted=bool(value.get("adopted", False)),
            infrastructure_failures=int(value.get("infrastructure_failures", 0)),
            run_id=value.get("run_id"),
            kind=value.get("kind", DEFAULT_KIND),
            experiment_id=value.get("experiment_id"),
            run_context=value.get("run_context"),
        )
