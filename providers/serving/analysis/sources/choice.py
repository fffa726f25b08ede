"""The sources, by the types that metrics name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.sources.asker import Asker, JobForEachOrder, here

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.sources.base import Source
    from nighttrain.providers.tracking.client import MLflowClient

_HERE = "nighttrain.providers.serving.analysis.sources"


class Ways:
    """How sources reach what they measure.

    :param in_cluster: requests come from Jobs in the cluster, and not from this process
    :param image: for Jobs: any image with Python
    """

    def __init__(
        self,
        client: ClusterClient,
        mlflow: MLflowClient,
        *,
        in_cluster: bool = False,
        image: str | None = None,
    ) -> None:
        self.client = client
        self.mlflow = mlflow
        self.in_cluster = in_cluster
        self.image = image
        self._askers: dict[JobForEachOrder | None, Asker] = {}

    def jobs(self, image: str | None = None, **given: Any) -> JobForEachOrder:
        """Where Jobs are made.

        :param given: fields of :class:`JobForEachOrder`
        :raises ConfigurationError: no image is known for them
        """
        chosen = image or self.image
        if not chosen:
            raise ConfigurationError("image", chosen, "name an image with Python for Jobs that measure")
        return JobForEachOrder(client=self.client, image=chosen, **given)

    def job_asker(self, image: str | None = None, **given: Any) -> Asker:
        """Asks from a Job; one asker for all that want the same kind of Job."""
        jobs = self.jobs(image, **given)
        return self._askers.setdefault(jobs, Asker(jobs))

    def asker(self, *, secret: str | None = None) -> Asker:
        """Asks from where requests are to come from.

        :param secret: name of a Secret, for Jobs, whose keys become variables
        """
        if self.in_cluster:
            return self.job_asker(secrets=(secret,) if secret else ())
        return self._askers.setdefault(None, Asker(here))


_Make = Callable[[Any, Ways], "Source"]
_MAKE: Mapping[str, tuple[str, _Make]] = {
    "check": ("own_check", lambda module, ways: module.OwnCheck(ways)),
    "comparison": ("comparison", lambda module, ways: module.Comparison(ways.asker())),
    "counters": ("counters", lambda module, ways: module.Counters(ways.asker(), ways.client)),
    "mlflow": ("mlflow_runs", lambda module, ways: module.MLflowRuns(ways.mlflow)),
    "probe": ("probe", lambda module, ways: module.Probe(ways.asker())),
    "prometheus": ("prometheus", lambda module, ways: module.Prometheus(ways)),
}


def make_sources(ways: Ways) -> Mapping[str, Source]:
    """Every source, on open clients.

    :raises ConfigurationError: requests are to come from Jobs, and no image is known for them
    """
    return {name: make(import_module(f"{_HERE}.{module}"), ways) for name, (module, make) in _MAKE.items()}


def check_source(where: str, metric: Metric, golden: Golden | None) -> None:
    """Find every mistake in a metric's source that can be found without measuring.

    :param where: the metric's field, e.g. ``strategy.analysis.metrics[0]``
    :raises ConfigurationError: names the field, the value and the fix
    """
    where = f"{where}.source"
    kind = metric.source.get("type")
    if not isinstance(kind, str) or kind not in _MAKE:
        raise ConfigurationError(f"{where}.type", kind, f"choose one of {', '.join(sorted(_MAKE))}")
    module: Any = import_module(f"{_HERE}.{_MAKE[kind][0]}")
    known = module.PARAMETERS
    if unknown := sorted(str(key) for key in metric.source.keys() - known - {"type"}):
        raise ConfigurationError(
            f"{where}.{unknown[0]}", metric.source[unknown[0]], f"{kind} takes {', '.join(sorted(known))}"
        )
    if metric.kind not in module.KINDS:
        fix = f"{kind} measures {', '.join(sorted(module.KINDS))}"
        raise ConfigurationError(f"{where}.type", f"{kind} for {metric.kind}", fix)
    module.check(where, metric, golden)
