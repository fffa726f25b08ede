"""More memory for the attempt that follows one that ran out of it. Opt-in, and never beyond a ceiling."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.values.names import parse_quantity

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.plain_json import Json

MEBIBYTE = 1024 * 1024


def check_growth(spec: WorkloadSpec) -> None:
    """Check ``oom_memory_factor`` and ``oom_memory_max`` against each other and against the memory limit.

    :raises ConfigurationError: names the field
    """
    factor, ceiling = spec.oom_memory_factor, spec.oom_memory_max
    if factor is None and ceiling is None:
        return
    if factor is None or isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor <= 1:
        raise ConfigurationError("oom_memory_factor", factor, "must be a number above 1, such as 1.5")
    if ceiling is None:
        raise ConfigurationError("oom_memory_max", ceiling, "set the most memory to give, such as '32Gi'")
    limit = _memory_of(spec)
    if limit is None:
        raise ConfigurationError(
            "oom_memory_factor", factor, "needs a container_resources.limits.memory to start from"
        )
    if parse_quantity("oom_memory_max", ceiling) < parse_quantity("memory", limit):
        raise ConfigurationError("oom_memory_max", ceiling, f"must not be below the memory limit {limit}")


def grown_memory(spec: WorkloadSpec, last: str | None) -> str | None:
    """The memory after an attempt that ran out of ``last`` (or of the spec's own limit); ``None`` if the spec
    does not ask for growth."""
    if spec.oom_memory_factor is None or spec.oom_memory_max is None:
        return None
    had = parse_quantity("memory", last or _memory_of(spec) or "0")
    most = parse_quantity("oom_memory_max", spec.oom_memory_max)
    wanted = min(had * Decimal(str(spec.oom_memory_factor)), most)
    # Whole mebibytes: what people write, and what every cluster shows without a fraction.
    return f"{int((wanted / MEBIBYTE).to_integral_value(ROUND_CEILING))}Mi"


def set_memory(template: Json, memory: str) -> None:
    """Give the main container of a pod template this memory: the limit, and the request if there is one."""
    container = template["spec"]["containers"][0]
    resources = container.setdefault("resources", {})
    resources.setdefault("limits", {})["memory"] = memory
    if "memory" in (resources.get("requests") or {}):
        resources["requests"]["memory"] = memory


def _memory_of(spec: WorkloadSpec) -> str | None:
    limits = (spec.resources() or {}).get("limits") or {}
    memory = limits.get("memory")
    return None if memory is None else str(memory)
