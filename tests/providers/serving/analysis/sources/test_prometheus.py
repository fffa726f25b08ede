"""Queries to a real Prometheus, and to servers that are none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from helpers.http_server import QuietHandler, serving
from helpers.measured_metric import Measured, a_metric, numbers
from helpers.odd_model_server import model_server
from helpers.polling import until_async
from helpers.prometheus_server import a_moment, need_prometheus, running_prometheus, samples
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources import choice, prometheus
from nighttrain.providers.serving.analysis.sources.base import Window
from nighttrain.providers.serving.analysis.sources.choice import Ways, make_sources

Make = Callable[..., Window]
NOW = a_moment()
BY_POD = 'namespace="default",pod="delay-v{version}-5c7d-abcde"'
BY_LABELS = 'namespace="default",nighttrain_dev_endpoint="delay",nighttrain_dev_version="{version}"'


def rises(series: str, by: str, candidate: float, stable: float) -> dict[str, float]:
    """In each five seconds, of both versions and of somebody else."""
    found = {}
    for version, rise in (("2", candidate), ("1", stable), ("3", 1000.0)):
        found[f"{series},{by.replace('{version}', version)}}}"] = rise
    return found


def past() -> dict[str, float]:
    """Ten and a hundred requests in each five seconds, of which two and one failed."""
    told = rises('nighttrain_requests_total{code="200"', BY_POD, 8, 99)
    told |= rises('nighttrain_requests_total{code="500"', BY_POD, 2, 1)
    told |= rises('nighttrain_request_errors_total{reason="status_5xx"', BY_POD, 2, 1)
    for le, candidate, stable in (("0.1", 3, 80), ("0.15", 6, 95), ("0.2", 7, 99), ("+Inf", 10, 100)):
        bucket = f'nighttrain_request_duration_seconds_bucket{{le="{le}"'
        told |= rises(bucket, BY_POD, candidate, stable)
    for code, candidate, stable in (("200", 8, 99), ("503", 2, 1)):
        path = f'path="/v2/models/m/infer",status_code="{code}"'
        told |= rises(f"rest_server_requests_total{{{path}", BY_POD, candidate, stable)
    told |= rises('nv_inference_request_success{gpu="0"', BY_POD, 8, 99)
    told |= rises('nv_inference_request_failure{gpu="0"', BY_POD, 2, 1)
    for code, candidate, stable in (("2xx", 8, 99), ("5xx", 2, 1)):
        counted = f'revision_app_request_count{{response_code_class="{code}"'
        told |= rises(counted, BY_LABELS, candidate, stable)
    for le, candidate, stable in (("100", 3, 80), ("150", 6, 95), ("200", 7, 99), ("+Inf", 10, 100)):
        told |= rises(f'revision_app_request_latencies_bucket{{le="{le}"', BY_LABELS, candidate, stable)
    workload = 'destination_workload_namespace="default",destination_workload="delay-v{version}"'
    for code, candidate, stable in (("200", 8, 99), ("503", 1, 1), ("0", 1, 0)):
        counted = f'istio_requests_total{{reporter="source",response_code="{code}"'
        told |= rises(counted, workload, candidate, stable)
        told |= rises(counted.replace("source", "destination"), workload, candidate, stable)
    cluster = 'envoy_cluster_name="outbound|8080||delay-v{version}.default.svc.cluster.local"'
    told |= rises('envoy_cluster_upstream_rq_total{x="y"', cluster, 10, 100)
    told |= rises('envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"', cluster, 2, 1)
    # Knows nothing of a time-out yet: Envoy tells of counters once they are not 0.
    told |= {'app_agreement{version="2"}': 0.0, 'app_odd{kind="NaN"}': 0.0}
    return told


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need_prometheus()
    told = samples(past(), NOW - 3600, NOW + 60)
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), told) as at:
        yield at


@pytest.fixture
def ways() -> Ways:
    return Ways(None, None)  # type: ignore[arg-type]


@pytest.fixture
def measured(ways: Ways, window: Make) -> Callable[..., Measured]:
    def make(kind: Kind, url: str, **given: Any) -> Measured:
        metric = a_metric(kind, "prometheus", url=url, **given)
        choice.check_source("m", metric, None)
        return Measured(make_sources(ways)["prometheus"], metric, window(at=float(NOW)))

    return make


TEMPLATES = ["mlflow", "mlserver", "triton", "kserve", "istio", "envoy"]


@pytest.mark.parametrize("template", TEMPLATES)
async def test_each_template_counts_both_versions_and_nobody_else(
    measured: Any, url: str, template: str
) -> None:
    errors = measured(Kind.ERRORS, url, template=template)
    sample = await errors.baseline()
    assert (sample.candidate, sample.stable, sample.error) == (None, None, None)
    sample = await errors.after(30)
    assert sample.error is None
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((60, 12), (600, 6))
    sample = await errors.after(10)
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((20, 4), (200, 2))


@pytest.mark.parametrize("template", ["mlflow", "kserve"])
async def test_time_is_compared_with_the_stable_versions_earlier_bucket(
    measured: Any, url: str, template: str
) -> None:
    slow = measured(Kind.LATENCY, url, template=template, quantile=0.95, increase=0.2)
    sample = await slow.baseline()
    assert (sample.candidate, sample.error) == (None, None)
    assert (slow.memory["tau"], slow.memory["bound"]) == (pytest.approx(0.15), pytest.approx(0.2))
    sample = await slow.after(30)
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((60, 18), (600, 30))


async def test_queries_of_ones_own(measured: Any, url: str) -> None:
    series = 'nighttrain_requests_total{{pod=~"{{deployment}}-.*",namespace="{{namespace}}"{}}}'
    total, failed = (series.format(more) for more in ("", ',code="500"'))
    errors = measured(
        Kind.ERRORS,
        url,
        requests=f"sum(increase({total}[{{window}}]))",
        bad=f"sum(increase({failed}[{{window}}]))",
    )
    sample = await errors.after(30)
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((60, 12), (600, 6))


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("1 + 1", 2.0),
        ('sum(rate(nighttrain_requests_total{pod=~"delay-v{version}-.*"}[30s]))', 2.0),
        ("vector(0.25)", 0.25),
        ('nothing_of_the_kind{version="{version}"}', None),
        ("vector(NaN)", None),
        ("1 / 0", None),
    ],
)
async def test_a_number(measured: Any, url: str, query: str, value: float | None) -> None:
    sample = await measured(Kind.NUMBER, url, query=query).after(30)
    assert (sample.value, sample.error) == (value if value is None else pytest.approx(value), None)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("sum(", r"parse error.*asked for sum\("),
        ("nighttrain_requests_total", "gives .* series, add them up with sum"),
        ("nighttrain_requests_total[30s]", "gives a matrix, a number is needed"),
        ('"text"', "gives a string, a number is needed"),
    ],
)
async def test_a_query_that_cannot_be_answered_is_told_with_prometheus_words(
    measured: Any, url: str, query: str, why: str
) -> None:
    sample = await measured(Kind.NUMBER, url, query=query).after(30)
    assert sample.value is None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(sample.error)


async def test_values_cannot_leave_their_quotes(measured: Any, url: str) -> None:
    number = measured(Kind.NUMBER, url, query='count(app_agreement{version="{model}"}) or vector(-1)')
    number.window = replace(number.window, model_name='x"} or vector(7) or app_agreement{version="2')
    assert (await number.after(30)).value == -1
    number.window = replace(number.window, model_name="back\\slash\nline")
    assert (await number.after(30)).value == -1


async def test_it_scrapes_pods_itself(measured: Any, tmp_path: Any, window: Make) -> None:
    need_prometheus()
    page = b'nighttrain_requests_total{code="200"} %d\n'
    with model_server(page=page % 1) as pod:
        with running_prometheus(tmp_path, "", (pod.url.removeprefix("http://"),)) as at:
            number = measured(Kind.NUMBER, at, query="sum(nighttrain_requests_total)")

            async def shows(value: float) -> bool:
                number.window = replace(number.window, at=time.time())
                return bool((await number.baseline()).value == value)

            await until_async(lambda: shows(1))
            pod.page = page % 5
            await until_async(lambda: shows(5))
        sample = await number.after(0.001)
    assert sample.error is not None
    assert f"Prometheus at {at}: ConnectionRefusedError" in sample.error


def answering(status: int, body: bytes, seen: list[Any] | None = None, **headers: str) -> Any:
    class Handler(QuietHandler):
        def do_POST(self) -> None:  # noqa: N802
            content = self.rfile.read(int(self.headers["content-length"]))
            if seen is not None:
                seen.append((self.headers.get("authorization"), content))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return serving(Handler)


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"<html>login</html>", "what answers there is no Prometheus"),
        (200, b"[" * 100_000, "no Prometheus"),
        (200, b"null", "no Prometheus"),
        (200, b'{"status": "success"}', "no number"),
        (200, b'{"status": "success", "data": {"resultType": "vector", "result": [{}]}}', "no number"),
        (200, b'{"status": "success", "data": {"resultType": "scalar", "result": [1, "x"]}}', "no number"),
        (302, b"", "HTTP 302"),
        (401, b"", "HTTP 401"),
        (502, b"bad gateway", "HTTP 502"),
        (503, b'{"status":"error","errorType":"timeout","error":"query timed out"}', "query timed out"),
    ],
)
async def test_what_is_no_answer_is_an_outage_and_no_bad_version(
    measured: Any, status: int, body: bytes, why: str
) -> None:
    with answering(status, body, location="http://127.0.0.1:1/") as at:
        for kind, given in ((Kind.NUMBER, {"query": "up"}), (Kind.ERRORS, {"template": "mlflow"})):
            sample = await measured(kind, at, **given).after(30)
            assert why in (sample.error or "")
            assert (sample.value, sample.candidate) == (None, None)


async def test_the_token_is_a_variables_and_goes_nowhere_else(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    good = b'{"status": "success", "data": {"resultType": "scalar", "result": [1, "3"]}}'
    with answering(200, good, seen) as at:
        number = measured(Kind.NUMBER, at, query="up", token_env="PROMETHEUS_TOKEN")
        sample = await number.after(30)
        assert "PROMETHEUS_TOKEN, which should hold the token, is not set" in (sample.error or "")
        monkeypatch.setenv("PROMETHEUS_TOKEN", "s3cret")
        assert (await number.after(30)).value == 3
    assert seen[0][0] == "Bearer s3cret"
    assert "s3cret" not in json.dumps(number.memory)


MISTAKES: list[tuple[Kind, dict[str, Any], str]] = [
    (Kind.NUMBER, {"query": "up"}, r"m\.source\.url: give Prometheus' http\(s\) address"),
    (Kind.NUMBER, {"url": "file:///etc/passwd", "query": "up"}, r"m\.source\.url = .*http\(s\) address"),
    (Kind.NUMBER, {"url": "http://me:pw@p", "query": "up"}, r"m\.source\.url: leave credentials out"),
    (Kind.NUMBER, {"url": "http://p"}, r"number needs query"),
    (Kind.NUMBER, {"url": "http://p", "query": " "}, r"m\.source\.query = ' ': write it in PromQL"),
    (Kind.NUMBER, {"url": "http://p", "query": "up", "bad": "x"}, r"number needs query"),
    (Kind.ERRORS, {"url": "http://p", "requests": "up"}, r"errors needs template or bad and requests"),
    (Kind.WRONG, {"url": "http://p", "template": "mlflow"}, r"wrong needs bad and requests"),
    (Kind.ERRORS, {"url": "http://p", "template": "nginx"}, r"m\.source\.template = 'nginx': choose one of"),
    (
        Kind.LATENCY,
        {"url": "http://p", "template": "triton"},
        r"m\.source\.template = 'triton': .*use a probe",
    ),
    (
        Kind.NUMBER,
        {"url": "http://p", "query": "x{version='{version}'}"},
        r"m\.source\.query = .*put \{version\} between double quotes",
    ),
    (Kind.NUMBER, {"url": "http://p", "query": "up", "token_env": "AWS_SECRET"}, r"begins with PROMETHEUS_"),
    (Kind.NUMBER, {"url": "http://p", "query": "up", "token_secret": "s"}, r"m\.source\.token_secret"),
    (Kind.NUMBER, {"url": "http://p", "query": "up", "select": 'a="b"'}, r"m\.source\.select = .*template"),
    (Kind.NUMBER, {"url": "http://p", "query": "up", "timeout_seconds": -1}, r"timeout_seconds = -1"),
    (Kind.DISTANCE, {"url": "http://p"}, r"prometheus measures errors, latency, number, wrong"),
]


@pytest.mark.parametrize(("kind", "given", "said"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_named(kind: Kind, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        choice.check_source("m", a_metric(kind, "prometheus", **given), None)


def test_templates_keep_their_placeholders_between_quotes() -> None:
    for template in prometheus.TEMPLATES.values():
        prometheus._check_text("select", template.select)
