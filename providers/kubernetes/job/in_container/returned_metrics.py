"""Writes the numbers that a function returned into its run, as metrics.

It is shipped beside the function and runs in its container: plain Python, with MLflow where that can be
imported and with MLflow's REST API where it cannot. Nothing here ends a training: it is done by then. What is
left out, and what could not be written, is a line of the log.
"""

from __future__ import annotations

import base64
import importlib
import json
import math
import numbers
import os
import pathlib
import posixpath
import re
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# MLflow's own rule for a metric's name, and its limits of one request.
_NAME = re.compile(r"[/\w.\- :]+")
_LONGEST_NAME = 250
_AT_ONCE = 1000
_SHOWN = 10

# A server that restarts is back within a minute. MLflow's own client waits longer.
_TRIES = 5
_PAUSE_SECONDS = 3.0
_TIMEOUT_SECONDS = 30.0


def report(returned: object, run_id: str | None) -> None:
    """Log a returned dict of numbers to a run.

    :param returned: what the function returned; ``None`` is nothing to say
    :param run_id: the run that the container was started with, before MLflow forgot it
    """
    if returned is None:
        return
    if not isinstance(returned, dict):
        _say(f"what the function returned is a {type(returned).__name__}, not a dict of numbers: no metrics")
        return
    metrics, refused = metrics_of(returned)
    if refused:
        more = [f"and {len(refused) - _SHOWN} more"] if refused[_SHOWN:] else []
        _say(f"of what the function returned, these are no metrics: {'; '.join(refused[:_SHOWN] + more)}")
    if not metrics:
        return
    try:
        run_id = run_id or _run_of_mlflow()
        if not run_id:
            _say(f"no run to log them to; the function returned {_shown(metrics)}")
            return
        _log(run_id, metrics)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        _say(f"could not be logged ({why}); the function returned {_shown(metrics)}")
    else:
        _say(f"logged {_shown(metrics)}")


def metrics_of(returned: dict[object, object]) -> tuple[dict[str, float], list[str]]:
    """The entries that are metrics, and a sentence on each of the others."""
    metrics: dict[str, float] = {}
    refused: list[str] = []
    for name, value in returned.items():
        shown = repr(name)[:60]
        if not isinstance(name, str) or not _takes(name):
            refused.append(f"{shown} (MLflow takes no such name)")
            continue
        number = _number(value)
        if number is None:
            refused.append(f"{shown} (a {type(value).__name__})")
        else:
            metrics[name] = number
    return metrics, refused


def _takes(name: str) -> bool:
    plain = _NAME.fullmatch(name) and posixpath.normpath(name) == name and name != "."
    return bool(plain) and len(name) <= _LONGEST_NAME and not name.startswith(("..", "/"))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return None  # a flag is no measurement
    if not isinstance(value, numbers.Real):
        # NumPy's scalars, and arrays and tensors of one element.
        item = getattr(value, "item", None)
        try:
            value = item() if item is not None else None
        except Exception:  # of more than one element, in the words of whatever library
            return None
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def _run_of_mlflow() -> str | None:
    """The run that the function's own code opened, where the container was started without one."""
    mlflow = sys.modules.get("mlflow")
    last = mlflow.last_active_run() if mlflow is not None else None
    return last.info.run_id if last is not None else None


def _log(run_id: str, metrics: dict[str, float]) -> None:
    now = int(time.time() * 1000)
    entries = [
        {"key": name, "value": value, "timestamp": now, "step": 0} for name, value in sorted(metrics.items())
    ]
    log = _with_mlflow() or _over_rest
    for start in range(0, len(entries), _AT_ONCE):
        log(run_id, entries[start : start + _AT_ONCE])


def _with_mlflow() -> Callable[[str, list[dict[str, Any]]], None] | None:
    # No process of nighttrain's own imports MLflow, so that no import of it stands in a file of nighttrain's.
    try:
        mlflow = importlib.import_module("mlflow")
    except ImportError:
        return None

    def log(run_id: str, entries: list[dict[str, Any]]) -> None:
        metrics = [mlflow.entities.Metric(**entry) for entry in entries]
        mlflow.MlflowClient().log_batch(run_id, metrics=metrics)

    return log


def _over_rest(run_id: str, entries: list[dict[str, Any]]) -> None:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if urllib.parse.urlsplit(uri).scheme not in ("http", "https"):
        raise ValueError(f"MLFLOW_TRACKING_URI is no http address, and MLflow cannot be imported: {uri!r}")
    for entry in entries:
        if not math.isfinite(entry["value"]):
            entry["value"] = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(entry["value"], "NaN")
    body = json.dumps({"run_id": run_id, "metrics": entries}).encode()
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/runs/log-batch"
    for left in reversed(range(_TRIES)):
        try:
            _post(url, body)
            return
        except urllib.error.HTTPError as error:
            if left == 0 or (error.code not in (408, 429) and error.code < 500):
                raise
        except OSError:
            if left == 0:
                raise
        time.sleep(_PAUSE_SECONDS)


def _post(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, _headers(), method="POST")  # noqa: S310
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=_tls()) as answer:  # noqa: S310
        answer.read()


def _headers() -> dict[str, str]:
    """As MLflow's client sends them, from the same variables."""
    given = os.environ.get
    headers = {"Content-Type": "application/json"}
    if given("MLFLOW_WORKSPACE"):
        headers["X-MLFLOW-WORKSPACE"] = os.environ["MLFLOW_WORKSPACE"]
    if given("MLFLOW_TRACKING_USERNAME"):
        pair = f"{given('MLFLOW_TRACKING_USERNAME')}:{given('MLFLOW_TRACKING_PASSWORD', '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    elif given("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {given('MLFLOW_TRACKING_TOKEN')}"
    elif given("MLFLOW_TRACKING_AUTH", "").startswith("kubernetes"):
        account = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
        headers["Authorization"] = f"Bearer {(account / 'token').read_text().strip()}"
        if given("MLFLOW_TRACKING_AUTH") == "kubernetes-namespaced":
            headers.setdefault("X-MLFLOW-WORKSPACE", (account / "namespace").read_text().strip())
    return headers


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _shown(metrics: dict[str, float]) -> str:
    items = sorted(metrics.items())
    more = f" and {len(items) - _SHOWN} more" if items[_SHOWN:] else ""
    return ", ".join(f"{name}={value:.6g}" for name, value in items[:_SHOWN]) + more


def _say(sentence: str) -> None:
    print(f"[nighttrain] returned metrics: {sentence}", flush=True)
