"""Queries to Prometheus: a number, or requests and bad ones of both versions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources.asking.pages import limits_of
from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell
from nighttrain.providers.serving.analysis.sources.samples import interval_of, sample, unmeasured
from nighttrain.providers.serving.analysis.values import Counts
from nighttrain.providers.serving.backends.manifests import deployment_name
from nighttrain.providers.serving.model_servers.model_server import Series
from nighttrain.providers.serving.model_servers.servers import KNOWN

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.sources.base import Memory, Window
    from nighttrain.providers.serving.analysis.sources.choice import Ways
    from nighttrain.providers.serving.analysis.values import Sample

KINDS = frozenset({Kind.ERRORS, Kind.LATENCY, Kind.WRONG, Kind.NUMBER})
PARAMETERS = frozenset(
    {"url", "query", "requests", "bad", "template", "select", "token_env", "token_secret", "timeout_seconds"}
)

# Prometheus itself gives up after two minutes; a query for a rollout is answered at once, or is too large.
TIMEOUT_SECONDS = 10.0

# Of the stable version's requests, for its quantile: recent enough to be like now.
EARLIER_SECONDS = 3600

# A strategy may name no other variable of this process: it would be sent to the strategy's own address.
_TOKEN = re.compile(r"PROMETHEUS_[A-Z0-9_]+")
_PLACEHOLDER = re.compile(r"\{(version|endpoint|namespace|model|deployment|window)\}")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_TEXTS = ("query", "requests", "bad", "select")


@dataclass(frozen=True, kw_only=True)
class Template:
    """What to ask of one kind of server.

    :param select: the matchers that find one version's series
    """

    requests: tuple[Series, ...]
    errors: tuple[Series, ...]
    latency: Series
    select: str


# Labels that every usual configuration puts on a pod's series; a Deployment's pods are named after it.
_BY_POD = 'namespace="{namespace}",pod=~"{deployment}-[a-z0-9]+-[a-z0-9]+"'

# Knative and KServe choose the pods' names: their labels tell, where the configuration maps pods' labels.
_BY_LABELS = 'namespace="{namespace}",nighttrain_dev_endpoint="{endpoint}",nighttrain_dev_version="{version}"'
_KNATIVE = Series(name="revision_app_request_count")
_ISTIO = Series(name="istio_requests_total", matchers=('reporter="source"',))
_ENVOY = Series(name="envoy_cluster_upstream_rq_total")
TEMPLATES: Mapping[str, Template] = {
    **{
        server.name: Template(
            requests=server.metrics.requests,
            errors=server.metrics.errors,
            latency=server.metrics.latency,
            select=_BY_POD,
        )
        for server in KNOWN
        if server.metrics
    },
    "kserve": Template(
        requests=(_KNATIVE,),
        errors=(Series(name=_KNATIVE.name, matchers=('response_code_class="5xx"',)),),
        latency=Series(name="revision_app_request_latencies", unit_seconds=1e-3, histogram=True),
        select=_BY_LABELS,
    ),
    "istio": Template(
        requests=(_ISTIO,),
        # 0: the client, or the server, ended the connection without an answer.
        errors=(Series(name=_ISTIO.name, matchers=(*_ISTIO.matchers, 'response_code=~"5..|0"')),),
        latency=Series(
            name="istio_request_duration_milliseconds",
            matchers=_ISTIO.matchers,
            unit_seconds=1e-3,
            histogram=True,
        ),
        select='destination_workload_namespace="{namespace}",destination_workload="{deployment}"',
    ),
    "envoy": Template(
        requests=(_ENVOY,),
        errors=(
            Series(name="envoy_cluster_upstream_rq_xx", matchers=('envoy_response_code_class="5"',)),
            Series(name="envoy_cluster_upstream_rq_timeout"),
        ),
        latency=Series(name="envoy_cluster_upstream_rq_time", unit_seconds=1e-3, histogram=True),
        select='envoy_cluster_name=~"(.*[^a-z0-9-])?{deployment}\\\\.{namespace}([^a-z0-9-].*)?"',
    ),
}


class Prometheus:
    """Asks a Prometheus server, with instant queries at the interval's end.

    Numbers over an interval are what ``increase()`` makes of the last scrapes, rounded.
    """

    def __init__(self, ways: Ways) -> None:
        self._ways = ways

    async def measure(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
        """Ask for this interval."""
        try:
            if metric.kind is Kind.NUMBER:
                (found,) = await self._ask(metric, window, [_filled(metric.source["query"], window)])
                return sample(metric, window, value=found.get("")), memory
            if metric.kind is Kind.LATENCY and "template" in metric.source:
                return await self._slow(metric, window, memory)
            if not window.seconds:
                return sample(metric, window), memory
            return sample(metric, window, **await self._counts(metric, window)), memory
        except CannotTell as error:
            return unmeasured(metric, window, error), memory

    async def _ask(self, metric: Metric, window: Window, queries: list[str]) -> list[dict[str, float]]:
        source = metric.source
        task = {
            "kind": "query",
            "url": source["url"],
            "queries": queries,
            "at": window.at,
            "timeout": source.get("timeout_seconds", TIMEOUT_SECONDS),
            "token_env": source.get("token_env"),
        }
        ask = self._ways.asker(secret=source.get("token_secret"))
        found: list[dict[str, float]] = await ask(interval_of(window), task, {"want": "all"})
        return found

    async def _counts(self, metric: Metric, window: Window) -> dict[str, Counts]:
        versions = _versions(window)
        queries = [_of_version(metric, window, version) for version in versions.values()]
        flat = [text for requests, bad in queries for text in (*requests, *bad)]
        numbers = iter(await self._ask(metric, window, flat))
        counts = {}
        for side, (requests, bad) in zip(versions, queries, strict=True):
            asked = [next(numbers).get("") for _ in requests]
            failed = [next(numbers).get("") for _ in bad]
            counts[side] = _count(asked, failed)
        return counts

    async def _slow(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
        versions = _versions(window)
        template = TEMPLATES[metric.source["template"]]
        if memory.get("tau") is None:
            if "stable" not in versions:
                return sample(metric, window), memory
            query = _buckets(metric, template, window, versions["stable"], EARLIER_SECONDS)
            found = _bounds((await self._ask(metric, window, [query]))[0], template)
            wanted = {"quantile": metric.quantile, "increase": metric.increase}
            tau, bound = limits_of([found], wanted) if found else (None, None)
            return sample(metric, window), {**memory, "tau": tau, "bound": bound}
        if not window.seconds:
            return sample(metric, window), memory
        seconds = window.seconds
        queries = [_buckets(metric, template, window, version, seconds) for version in versions.values()]
        counts = {}
        for side, said in zip(versions, await self._ask(metric, window, queries), strict=True):
            limit = memory["tau"] if side == "stable" else memory["bound"]
            counts[side] = _over(_bounds(said, template), limit)
        return sample(metric, window, **counts), memory


def _versions(window: Window) -> dict[str, str]:
    versions = {"candidate": window.candidate, "stable": window.stable}
    return {side: version for side, version in versions.items() if version is not None}


def _of_version(metric: Metric, window: Window, version: str) -> tuple[list[str], list[str]]:
    """The queries for one version's requests, and for its bad ones."""
    source = metric.source
    if "template" not in source:
        filled = {name: _filled(source[name], window, version) for name in ("requests", "bad")}
        return [filled["requests"]], [filled["bad"]]
    template = TEMPLATES[source["template"]]
    select = _filled(source.get("select", template.select), window, version)
    made = [
        [f"sum(increase({each.select(select)}[{_duration(window.seconds)}]))" for each in series]
        for series in (template.requests, template.errors)
    ]
    return made[0], made[1]


def _buckets(metric: Metric, template: Template, window: Window, version: str, seconds: float) -> str:
    select = _filled(metric.source.get("select", template.select), window, version)
    buckets = template.latency.select(select, suffix="_bucket")
    return f"sum by (le) (increase({buckets}[{_duration(seconds)}]))"


def _bounds(said: Mapping[str, float], template: Template) -> dict[float, float]:
    """Upper bound in seconds -> requests; empty if there were none."""
    unit = template.latency.unit_seconds
    try:
        found = {float(le) * unit: number for le, number in said.items()}
    except ValueError as error:
        raise CannotTell(f"{template.latency.name} has a bucket without a bound") from error
    return found if found.get(math.inf) else {}


def _over(found: Mapping[float, float], limit: float) -> Counts:
    total = found.get(math.inf, 0.0)
    within = max((number for bound, number in found.items() if bound <= limit * (1 + 1e-9)), default=0.0)
    return _count([total], [total - within])


def _count(requests: Sequence[float | None], bad: Sequence[float | None]) -> Counts:
    """Whole numbers; what does not exist yet has not happened, and a part is not more than the whole."""
    asked, failed = (max(0, round(sum(each or 0.0 for each in some))) for some in (requests, bad))
    return Counts(requests=max(asked, 0), bad=min(asked, failed))


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds))}s"


def _filled(text: str, window: Window, version: str | None = None) -> str:
    """A query with its placeholders filled in; they stand inside double quotes, see :func:`check`."""
    chosen = version or window.candidate
    values = {
        "version": chosen,
        "endpoint": window.endpoint,
        "namespace": window.namespace,
        "model": window.model_name,
        "deployment": deployment_name(window.endpoint, chosen),
    }
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        for name, value in values.items()
    }
    escaped["window"] = _duration(window.seconds or EARLIER_SECONDS)
    return _PLACEHOLDER.sub(lambda found: escaped[found[1]], text)


def check(where: str, metric: Metric, golden: Golden | None) -> None:
    """Refuse what this source cannot measure.

    :raises ConfigurationError: names the field, the value and the fix
    """
    source = metric.source
    url = urlsplit(source["url"]) if isinstance(source.get("url"), str) else None
    if url is None or url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigurationError(f"{where}.url", source.get("url"), "give Prometheus' http(s) address")
    if url.username or url.password:
        raise ConfigurationError(f"{where}.url", None, "leave credentials out of it; name them in token_env")
    seconds = source.get("timeout_seconds", TIMEOUT_SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= 60:
        raise ConfigurationError(f"{where}.timeout_seconds", seconds, "give seconds, 60 at most")
    _check_token(where, source)
    _check_queries(where, metric)
    for name in _TEXTS:
        _check_text(f"{where}.{name}", source.get(name))


def _check_token(where: str, source: Mapping[str, Any]) -> None:
    name = source.get("token_env")
    if name is not None and not (isinstance(name, str) and _TOKEN.fullmatch(name)):
        raise ConfigurationError(
            f"{where}.token_env", None, "name a variable that begins with PROMETHEUS_, not the token itself"
        )
    secret = source.get("token_secret")
    if secret is not None and (name is None or not isinstance(secret, str)):
        raise ConfigurationError(
            f"{where}.token_secret", secret, "name the Secret that holds token_env, for Jobs"
        )


def _check_queries(where: str, metric: Metric) -> None:
    source = metric.source
    given = sorted({"query", "requests", "bad", "template"} & source.keys())
    if metric.kind is Kind.NUMBER:
        allowed = [["query"]]
    elif metric.kind is Kind.WRONG:
        allowed = [["bad", "requests"]]
    else:
        allowed = [["template"], ["bad", "requests"]]
    if given not in allowed:
        fix = " or ".join(" and ".join(names) for names in allowed)
        raise ConfigurationError(f"{where}", given, f"{metric.kind} needs {fix}")
    template = source.get("template")
    if template is not None and template not in TEMPLATES:
        raise ConfigurationError(
            f"{where}.template", template, f"choose one of {', '.join(sorted(TEMPLATES))}"
        )
    if template and metric.kind is Kind.LATENCY and not TEMPLATES[template].latency.histogram:
        raise ConfigurationError(
            f"{where}.template",
            template,
            "it tells how long requests take together, and not how many are slow: use a probe",
        )
    if "select" in source and not template:
        raise ConfigurationError(f"{where}.select", source["select"], "it goes with a template")


def _check_text(where: str, text: Any) -> None:
    if text is None:
        return
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(where, text, "write it in PromQL")
    for found in _PLACEHOLDER.finditer(_QUOTED.sub("", text)):
        if found[1] != "window":
            raise ConfigurationError(where, text, f"put {found[0]} between double quotes")
