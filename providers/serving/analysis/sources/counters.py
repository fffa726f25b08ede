"""The servers' own counters, read from every pod of both versions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ClusterError, ConfigurationError
from nighttrain.providers.kubernetes.api.resources import PODS
from nighttrain.providers.kubernetes.values.objects import (
    items,
    main_container_spec,
    mapping,
    status,
    text,
    uid_of,
)
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell
from nighttrain.providers.serving.analysis.sources.samples import interval_of, sample, unmeasured
from nighttrain.providers.serving.analysis.values import Counts
from nighttrain.providers.serving.backends.manifests import METRICS_PORT_NAME, PORT_NAME, version_labels
from nighttrain.providers.serving.model_servers.servers import MLFLOW, named

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.sources.asker import Asker, Interval
    from nighttrain.providers.serving.analysis.sources.base import Memory, Window
    from nighttrain.providers.serving.analysis.values import Sample
    from nighttrain.providers.serving.model_servers.model_server import Metrics, Series

KINDS = frozenset({Kind.ERRORS, Kind.LATENCY})
PARAMETERS = frozenset({"server", "hangs_after_seconds"})

# As for golden requests: most clients and gateways have given up by then.
HANGS_AFTER_SECONDS = 10.0

# A page of metrics comes within milliseconds, unless its pod is beyond help.
TIMEOUT_SECONDS = 5.0

_MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"(.*)"\s*')
_IN_FLIGHT = "nighttrain_requests_in_flight"


@dataclass(frozen=True, kw_only=True)
class _Pod:
    """A pod that can be read.

    :param key: changes when its server starts anew, with counters at 0
    """

    key: str
    url: str
    of_stable: bool


class Counters:
    """Counts what clients got, by what the model servers of both versions say of themselves.

    Counters are compared with those of the same server at the last look; those of a server that has started
    since begin at 0. A pod that cannot be read now is counted with the next look that can; a version of which
    no pod can be read is an error. What a server had not told when it was killed, nobody knows; of one that
    was started again in its pod, what it had under way counts as failed.
    """

    def __init__(self, ask: Asker, client: ClusterClient) -> None:
        self._ask = ask
        self._client = client
        self._looking: dict[Interval, asyncio.Task[list[_Pod]]] = {}

    async def measure(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
        """Read every pod, and compare with the last look."""
        server = named(metric.source.get("server", MLFLOW.name))
        if server.metrics is None:
            return unmeasured(metric, window, f"{server.name} tells nothing of itself"), memory
        try:
            pods = await self._pods(window, server.metrics)
            if not pods:
                return sample(metric, window), {**memory, "pods": {}}
            task = {"kind": "scrape", "pods": [pod.url for pod in pods], "timeout": TIMEOUT_SECONDS}
            want = _want(metric, memory, server.metrics, pods, own=server is MLFLOW)
            said = await self._ask(interval_of(window), task, want)
            return _counted(metric, window, memory, pods, said)
        except (CannotTell, ClusterError) as error:
            # Where counters stood at the beginning of a share is then not known: they are not compared.
            kept = memory if window.seconds else {key: memory[key] for key in memory if key != "pods"}
            return unmeasured(metric, window, error), kept

    async def _pods(self, window: Window, metrics: Metrics) -> list[_Pod]:
        """The pods of both versions; metrics that are measured at one moment share one look."""
        interval = interval_of(window)
        looking = self._looking.get(interval)
        if looking is None:
            looking = self._looking[interval] = asyncio.create_task(self._look(window, metrics))
            looking.add_done_callback(lambda _: self._looking.pop(interval, None))
        return await looking

    async def _look(self, window: Window, metrics: Metrics) -> list[_Pod]:
        found = []
        for version in filter(None, (window.candidate, window.stable)):
            labels = version_labels(window.endpoint, version)
            selector = ",".join(f"{name}={value}" for name, value in labels.items())
            listed = await self._client.list(PODS, window.namespace, label_selector=selector)
            for pod in items(listed.get("items")):
                if url := _page_of(pod, metrics):
                    found.append(_Pod(key=_key_of(pod), url=url, of_stable=version == window.stable))
        return found


def _page_of(pod: Json, metrics: Metrics) -> str | None:
    address = text(status(pod).get("podIP"))
    if text(status(pod).get("phase")) != "Running" or not address:
        return None
    given = items(main_container_spec(pod).get("ports"))
    ports = {each.get("name"): each.get("containerPort") for each in given}
    port = ports.get(METRICS_PORT_NAME, metrics.port or ports.get(PORT_NAME))
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}{metrics.path}" if port else None


def _key_of(pod: Json) -> str:
    name = text(main_container_spec(pod).get("name"))
    states = {text(each.get("name")): each for each in items(status(pod).get("containerStatuses"))}
    return f"{uid_of(pod)}/{mapping(states.get(name)).get('restartCount', 0)}"


def _want(
    metric: Metric, memory: Memory, metrics: Metrics, pods: Sequence[_Pod], *, own: bool
) -> dict[str, Any]:
    if metric.kind is Kind.LATENCY:
        return {
            "want": "over",
            "series": {**_series(metrics.latency), "unit": metrics.latency.unit_seconds},
            "required": own,
            "stable": [pod.of_stable for pod in pods],
            "quantile": metric.quantile,
            "increase": metric.increase,
            "tau": memory.get("tau"),
            "bound": memory.get("bound"),
        }
    return {
        "want": "requests",
        "requests": [_series(each) for each in metrics.requests],
        "errors": [_series(each) for each in metrics.errors],
        "in_flight": [{"name": _IN_FLIGHT, "matchers": []}] if own else [],
        "required": own,
    }


def _series(series: Series) -> dict[str, Any]:
    matched = [_MATCHER.fullmatch(each) for each in series.matchers]
    return {"name": series.name, "matchers": [list(match.groups()) for match in matched if match]}


# From rows to counts. A row is what a pod's counters say: requests, bad ones, and requests under way.


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What is remembered of one pod.

    :param mark: requests that it had been given when ``marked_at`` was taken
    :param old: requests that it had been given longer ago than a request may take
    :param hung: of those, how many were counted as hanging
    """

    requests: int
    bad: int
    under_way: int = 0
    mark: int = 0
    old: int = 0
    hung: int = 0

    @classmethod
    def read(cls, row: Sequence[int]) -> _Row:
        requests, bad, under_way = (*row, 0)[:3]
        return cls(requests=requests, bad=bad, under_way=under_way)

    def plain(self) -> list[int]:
        return [self.requests, self.bad, self.under_way, self.mark, self.old, self.hung]


def _counted(
    metric: Metric, window: Window, memory: Memory, pods: Sequence[_Pod], said: Mapping[str, Any]
) -> tuple[Sample, Memory]:
    rows = dict(zip((pod.key for pod in pods), said["pods"], strict=True))
    for of_stable in (False, True):
        own = [rows[pod.key] for pod in pods if pod.of_stable is of_stable]
        if own and all(row is None for row in own):
            who = "stable version" if of_stable else "candidate"
            raise CannotTell(f"no pod of the {who} can be read: {said['why']}")
    limits = {name: said[name] for name in ("tau", "bound") if name in said}
    had_limits = metric.kind is not Kind.LATENCY or memory.get("tau") is not None
    compares = bool(window.seconds) and memory.get("pods") is not None
    known: Mapping[str, list[int] | None] = memory["pods"] if compares else {}
    hangs_after = float(metric.source.get("hangs_after_seconds", HANGS_AFTER_SECONDS))
    marked_at = memory.get("marked_at") if compares else None
    marks_now = marked_at is None or window.at - marked_at >= hangs_after
    after: dict[str, list[int] | None] = {}
    counts = {False: Counts(), True: Counts()}
    for pod in pods:
        row, last = rows[pod.key], known.get(pod.key)
        if row is None:
            after[pod.key] = last
            continue
        now = _with_hung(_Row.read(row), _Row(**_fields(last)) if last else None, marks_now)
        after[pod.key] = now.plain()
        if compares and had_limits and (last or pod.key not in known):
            began = _Row(**_fields(last)) if last else _Row(requests=0, bad=0)
            counts[pod.of_stable] += _since(began, now) + _cut(pod.key, known)
    remembered = {"pods": after, "marked_at": window.at if marks_now else marked_at, **limits}
    if not compares or not had_limits:
        return sample(metric, window), remembered
    stable = counts[True] if window.stable is not None else None
    return sample(metric, window, candidate=counts[False], stable=stable), remembered


def _fields(row: Sequence[int]) -> dict[str, int]:
    return dict(zip(("requests", "bad", "under_way", "mark", "old", "hung"), row, strict=True))


def _with_hung(now: _Row, last: _Row | None, marks_now: bool) -> _Row:
    """The row with the requests that hang: given to it longer ago than a request may take, and not ended.

    How many were given is known of each look, and how many ended since; where later requests end, earlier
    ones that hang cannot be told from them. So it is the least number that can be.
    """
    given = now.requests + now.under_way
    restarted = last is not None and now.requests < last.requests
    if last is None or restarted:
        old, mark = 0, given
    else:
        old, mark = (last.mark, given) if marks_now else (last.old, last.mark)
    hung = min(now.under_way, max(0, old - now.requests))
    return _Row(requests=now.requests, bad=now.bad, under_way=now.under_way, mark=mark, old=old, hung=hung)


def _since(last: _Row, now: _Row) -> Counts:
    """What was counted between two looks at one server; one that counts less than before has started anew."""
    if now.requests < last.requests or now.bad < last.bad:
        last = _Row(requests=0, bad=0)
    hung = now.hung - last.hung
    bad = max(0, now.bad - last.bad + hung)
    return Counts(requests=max(bad, now.requests - last.requests + hung), bad=bad)


def _cut(key: str, known: Mapping[str, Sequence[int] | None]) -> Counts:
    """What a server had under way when it ended and was started again in the same pod."""
    if key in known:
        return Counts()
    uid, _, _ = key.partition("/")
    ended = [_Row(**_fields(row)) for other, row in known.items() if row and other.startswith(f"{uid}/")]
    cut = sum(row.under_way - row.hung for row in ended)
    return Counts(requests=cut, bad=cut)


def check(where: str, metric: Metric, golden: Golden | None) -> None:
    """Refuse what this source cannot measure.

    :raises ConfigurationError: names the field, the value and the fix
    """
    try:
        server = named(metric.source.get("server", MLFLOW.name))
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}.server", error.value, error.fix) from error
    if server.metrics is None:
        raise ConfigurationError(f"{where}.server", server.name, "it tells nothing of itself: use a probe")
    if metric.kind is Kind.LATENCY and not server.metrics.latency.histogram:
        raise ConfigurationError(
            f"{where}.server",
            server.name,
            "it tells how long requests take together, and not how many are slow: use a probe",
        )
    seconds = metric.source.get("hangs_after_seconds", HANGS_AFTER_SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise ConfigurationError(f"{where}.hangs_after_seconds", seconds, "give seconds above 0")
