"""The sources, by the types that metrics name, and the other things that are asked of a route."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.sources.asker import Asker, JobForEachOrder, here

if TYPE_CHECKING:
    from types import ModuleType

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.sources.base import Source
    from nighttrain.providers.tracking.client import MLflowClient

_HERE = "nighttrain.providers.serving.analysis.sources"


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How sources reach what they measure.

    :param in_cluster: requests come from a Job in the cluster, and not from this process
    :param image: for Jobs: any image with Python
    """

    client: ClusterClient
    mlflow: MLflowClient
    in_cluster: bool = False
    image: str | None = None

    def jobs(self, image: str | None = None, secrets: tuple[str, ...] = ()) -> JobForEachOrder:
        """Where Jobs are made.

        :raises ConfigurationError: no image is known for them
        """
        chosen = image or self.image
        if not chosen:
            raise ConfigurationError("image", chosen, "name an image with Python for Jobs that measure")
        return JobForEachOrder(client=self.client, image=chosen, secrets=secrets)

    def asker(self) -> Asker:
        """Asks from where requests are to come from."""
        return Asker(self.jobs() if self.in_cluster else here)


_MAKE: Mapping[str, tuple[str, Callable[[ModuleType, Ways, Asker], Source]]] = {
    "comparison": ("comparison", lambda module, ways, ask: module.Comparison(ask)),
    "counters": ("counters", lambda module, ways, ask: module.Counters(ask, ways.client)),
    "probe": ("probe", lambda module, ways, ask: module.Probe(ask)),
}


def make_sources(ways: Ways) -> Mapping[str, Source]:
    """Every source, on open clients.

    :raises ConfigurationError: requests are to come from Jobs, and no image is known for them
    """
    ask = ways.asker()
    return {
        name: make(import_module(f"{_HERE}.{module}"), ways, ask) for name, (module, make) in _MAKE.items()
    }


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
