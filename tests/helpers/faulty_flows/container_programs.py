"""The programs in the containers. They note their start and end in a file, and speak to MLflow as its own
client would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_BEGIN = """
import json, os, sys, time, urllib.error, urllib.request
book, codes = {book!r}, {codes!r}
with open(book, "a+") as f:
    f.write("start\\n"); f.flush(); f.seek(0)
    number = f.read().count("start")
code = codes[min(number, len(codes)) - 1]
slow = {slow!r}[min(number, len({slow!r})) - 1]
base = os.environ["MLFLOW_TRACKING_URI"]
def call(method, path, body, raw=None):
    data = json.dumps(body).encode() if raw is None else raw
    ask = urllib.request.Request(base + path, data, {{"Content-Type": "application/json"}}, method=method)
    return json.loads(urllib.request.urlopen(ask, timeout=60).read() or b"{{}}")
api = "/api/2.0/mlflow/"
run, experiment = os.environ.get("MLFLOW_RUN_ID"), os.environ.get("MLFLOW_EXPERIMENT_ID")
if not run:
    name = os.environ["MLFLOW_EXPERIMENT_NAME"]
    try:
        asked = base + api + "experiments/get-by-name?experiment_name=" + name
        found = json.loads(urllib.request.urlopen(asked).read())["experiment"]
    except urllib.error.HTTPError:
        found = call("POST", api + "experiments/create", {{"name": name}})
    experiment = found["experiment_id"]
    tags = [{{"key": k, "value": v}} for k, v in json.loads(os.environ["MLFLOW_RUN_CONTEXT"]).items()]
    body = {{"experiment_id": experiment, "start_time": int(time.time() * 1000), "tags": tags}}
    made = call("POST", api + "runs/create", body)
    run = made["run"]["info"]["run_id"]
print("epoch 1", flush=True)
# Another value in every attempt: MLflow refuses it where two of them share a run.
call("POST", api + "runs/log-parameter", {{"run_id": run, "key": "host", "value": os.environ["HOSTNAME"]}})
"""

_LOG_MODEL = """
if code == 0:
    body = {{"experiment_id": experiment, "name": "model", "source_run_id": run}}
    info = call("POST", api + "logged-models", body)["model"]["info"]
    place = info["artifact_uri"].removeprefix("mlflow-artifacts:/").strip("/")
    call("PUT", "/api/2.0/mlflow-artifacts/artifacts/" + place + "/MLmodel", None, b"flavors: {{}}\\n")
    body = {{"model_id": info["model_id"], "status": "LOGGED_MODEL_READY"}}
    call("PATCH", api + "logged-models/" + info["model_id"], body)
"""

_LOG_SCORES = """
for name, value in {scores!r}.items():
    body = {{"run_id": run, "key": name, "value": value, "timestamp": int(time.time() * 1000), "step": 0}}
    call("POST", api + "runs/log-metric", body)
"""

_END = """
if slow:
    time.sleep(slow)
with open(book, "a") as f:
    f.write("end %d\\n" % code)
sys.exit(code)
"""


def training(book: Path, codes: Sequence[int], slow: Sequence[float]) -> str:
    """Logs a model if it ends well.

    :param codes: how the first container ends, the second, ...; the last one's is that of all after it
    :param slow: how many seconds each takes
    """
    text = _BEGIN + _LOG_MODEL + _END
    return text.format(book=str(book), codes=tuple(codes), slow=tuple(slow))


def scoring(book: Path, scores: dict[str, float]) -> str:
    """Logs scores."""
    return (_BEGIN + _LOG_SCORES + _END).format(book=str(book), codes=(0,), slow=(0,), scores=scores)
