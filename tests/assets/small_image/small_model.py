"""A training and an evaluation of a tenth of a second: plain Python that speaks MLflow's REST API.

A model's only file is its error; the evaluation reads the errors of candidate and champion from it.
"""

# ruff: noqa: S310 - the address is the test's own server

from __future__ import annotations

import json
import os
import sys
import time
import urllib.parse
import urllib.request
from typing import Any

SERVER = os.environ["MLFLOW_TRACKING_URI"]
RUN = os.environ["MLFLOW_RUN_ID"]
EXPERIMENT = os.environ["MLFLOW_EXPERIMENT_ID"]
MLMODEL = b"flavors:\n  python_function:\n    loader_module: nothing\n"


def request(method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    call = urllib.request.Request(f"{SERVER}/api/2.0/{path}", body, method=method)
    if method != "PUT" and body is not None:
        call.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(call, timeout=30) as answer:
        content = answer.read()
    return dict(json.loads(content)) if content else {}


def post(path: str, method: str = "POST", **values: Any) -> dict[str, Any]:
    return request(method, f"mlflow/{path}", json.dumps(values).encode())


def log_metrics(**metrics: float) -> None:
    now = int(time.time() * 1000)
    entries = [{"key": k, "value": in_json(v), "timestamp": now, "step": 0} for k, v in metrics.items()]
    post("runs/log-batch", run_id=RUN, metrics=entries)


def in_json(value: float) -> float | str:
    return "Infinity" if value == float("inf") else value


def artifact(uri: str, name: str) -> str:
    place = uri.removeprefix("mlflow-artifacts:/").strip("/")
    return f"mlflow-artifacts/artifacts/{urllib.parse.quote(place)}/{name}"


def train(error: float) -> None:
    info = post("logged-models", experiment_id=EXPERIMENT, name="model", source_run_id=RUN)["model"]["info"]
    for name, content in (("MLmodel", MLMODEL), ("error.json", json.dumps(error).encode())):
        request("PUT", artifact(info["artifact_uri"], name), content)
    model_id = info["model_id"]
    post(f"logged-models/{model_id}", "PATCH", model_id=model_id, status="LOGGED_MODEL_READY")
    log_metrics(**{"train.mae": error})
    print(f"logged {model_id}", flush=True)


def error_of(uri: str) -> float:
    _, name, version = uri.split("/")
    query = urllib.parse.urlencode({"name": name, "version": version})
    source = request("GET", f"mlflow/model-versions/get?{query}")["model_version"]["source"]
    info = request("GET", f"mlflow/logged-models/{source.removeprefix('models:/')}")["model"]["info"]
    with urllib.request.urlopen(f"{SERVER}/api/2.0/{artifact(info['artifact_uri'], 'error.json')}") as answer:
        return float(json.load(answer))


def evaluate() -> None:
    metrics = {"candidate.mae": error_of(os.environ["CANDIDATE_MODEL_URI"]), "candidate.rows": 1000.0}
    if champion := os.environ.get("CHAMPION_MODEL_URI"):
        metrics |= {"champion.mae": error_of(champion), "champion.rows": 1000.0}
    log_metrics(**metrics)


def main(what: str, *rest: str) -> int:
    if what == "train":
        train(float(rest[0]))
    elif what == "evaluate":
        evaluate()
    elif what == "nothing":
        print("forgot to log a model", flush=True)
    elif what == "fail":
        print("reading the flights\nthe flights are late", flush=True)
        return 3
    elif what == "fail-once":
        if "NIGHTTRAIN_PREVIOUS_RUN_ID" not in os.environ:
            return 3
        train(1.0)
    elif what == "slow":
        print("slow", flush=True)
        time.sleep(3)
        train(1.0)
    elif what == "wait":
        print("waiting", flush=True)
        time.sleep(120)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
