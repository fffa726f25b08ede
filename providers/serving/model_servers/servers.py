"""The model servers that are known, and the choice among them.

MLflow's is run by the tests. The others are templates: written after their documentation and checked as
manifests, because their images cannot be run where the tests run. ``docs/reference/model-servers.md`` says
what was seen of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.model_servers.model_server import (
    FOLDER,
    Flavor,
    Metrics,
    ModelServer,
    Payload,
    Place,
    Series,
)

MLFLOW = ModelServer(
    name="mlflow",
    flavors=(Flavor(name="python_function"),),
    readiness_path="/ping",
    request_path="/invocations",
    payload=Payload.MLFLOW,
    downloads=True,
    drains=True,
    finishes=True,
    version_header="x-model-version",
    metrics=Metrics(
        path="/metrics",
        requests=(Series(name="nighttrain_requests_total"),),
        errors=(Series(name="nighttrain_request_errors_total"),),
        latency=Series(name="nighttrain_request_duration_seconds", histogram=True),
        names_version=True,
    ),
)

# All of the version's files lie in Triton's version folder: an ONNX model may have tensors in files beside
# it. Without its gRPC port there is one way in, which the Service and the probes use.
TRITON = ModelServer(
    name="triton",
    flavors=(Flavor(name="onnx"),),
    command=("tritonserver",),
    args=("--model-repository=/models", "--http-port={port}", "--allow-grpc=false", "--metrics-port=8002"),
    places=(Place(path="/models/{model}/{version}"),),
    readiness_path="/v2/models/{model}/versions/{version}/ready",
    request_path="/v2/models/{model}/infer",
    payload=Payload.OPEN_INFERENCE,
    finishes=True,
    version_field="model_version",
    metrics=Metrics(
        path="/metrics",
        port=8002,
        requests=(
            Series(name="nv_inference_request_success"),
            Series(name="nv_inference_request_failure"),
        ),
        errors=(Series(name="nv_inference_request_failure"),),
        latency=Series(name="nv_inference_request_duration_us", unit_seconds=1e-6),
        names_version=True,
    ),
)

# Only what is surely a SavedModel: Keras models are .keras or .h5 files by now. Its status page answers 200
# while it loads; metadata can be had only of what is loaded.
TENSORFLOW_SERVING = ModelServer(
    name="tensorflow-serving",
    flavors=(Flavor(name="tensorflow", setting="saved_model_dir", like="^tf2model$"),),
    command=("tensorflow_model_server",),
    args=(
        *("--rest_api_port={port}", "--model_name={model}", "--model_base_path=/models/{model}"),
        f"--monitoring_config_file={FOLDER}/files/monitoring.config",
    ),
    files={
        "monitoring.config": 'prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }\n'
    },
    places=(Place(source="tf2model", path="/models/{model}/{version}"),),
    readiness_path="/v1/models/{model}/versions/{version}/metadata",
    request_path="/v1/models/{model}:predict",
    payload=Payload.TENSORFLOW,
    metrics=Metrics(
        path="/monitoring/prometheus/metrics",
        requests=(Series(name=":tensorflow:serving:request_count"),),
        errors=(Series(name=":tensorflow:serving:request_count", matchers=('status!="OK"',)),),
        latency=Series(name=":tensorflow:serving:request_latency", unit_seconds=1e-6, histogram=True),
    ),
)

# It loads archives (.mar), which MLflow does not write: log one named <model>.mar among extra_files. Its port
# for management stays inside of the pod. It asks for tokens of its own making unless told otherwise.
TORCHSERVE = ModelServer(
    name="torchserve",
    flavors=(Flavor(name="pytorch", setting="extra_files", like=r"\.mar\b"),),
    command=("torchserve",),
    args=("--start", "--foreground", f"--ts-config={FOLDER}/files/config.properties"),
    files={
        "config.properties": "\n".join(
            [
                "inference_address=http://0.0.0.0:{port}",
                "management_address=http://127.0.0.1:8081",
                "metrics_address=http://0.0.0.0:8082",
                "metrics_mode=prometheus",
                f"model_store={FOLDER}/model/extra_files",
                "load_models=all",
                "disable_token_authorization=true",
                "",
            ]
        )
    },
    readiness_path="/ping",
    request_path="/predictions/{model}",
    payload=Payload.OWN,
    metrics=Metrics(
        path="/metrics",
        port=8082,
        requests=(Series(name="ts_inference_requests_total"),),
        errors=(Series(name="Requests5XX"),),
        latency=Series(name="ts_inference_latency_microseconds", unit_seconds=1e-6),
    ),
)

# Its model_infer_request_* say version "None" unless the client named one in the path (seen with 1.7.1), so
# the requests are counted by its REST server's series. It stops listening at once when told to stop.
_MLSERVER_PREDICTIONS = 'path=~"/invocations|/v2/models/.*infer"'
MLSERVER = ModelServer(
    name="mlserver",
    flavors=(Flavor(name="python_function"),),
    command=("mlserver", "start"),
    args=(f"{FOLDER}/files",),
    env={
        "MLSERVER_HTTP_PORT": "{port}",
        "MLSERVER_METRICS_PORT": "8082",
        "MLSERVER_MODEL_NAME": "{model}",
        "MLSERVER_MODEL_VERSION": "{version}",
        "MLSERVER_MODEL_URI": f"{FOLDER}/model",
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_mlflow.MLflowRuntime",
        # The model in the server's own process: replicas are the way to more, and one process has the counts.
        "MLSERVER_PARALLEL_WORKERS": "0",
    },
    readiness_path="/v2/models/{model}/ready",
    request_path="/v2/models/{model}/infer",
    payload=Payload.OPEN_INFERENCE,
    finishes=True,
    version_field="model_version",
    metrics=Metrics(
        path="/metrics",
        port=8082,
        requests=(Series(name="rest_server_requests_total", matchers=(_MLSERVER_PREDICTIONS,)),),
        errors=(
            Series(
                name="rest_server_requests_total",
                matchers=(_MLSERVER_PREDICTIONS, 'status_code=~"5.."'),
            ),
        ),
        latency=Series(
            name="rest_server_request_duration_seconds",
            matchers=(_MLSERVER_PREDICTIONS,),
            histogram=True,
        ),
    ),
)

# Two names: clients ask by the registered model's, and the first stands in the answers and on the metrics.
_VLLM_PREDICTIONS = 'handler=~"/v1/(chat/)?completions"'
VLLM = ModelServer(
    name="vllm",
    flavors=(Flavor(name="transformers", setting="task", like="^(text-generation|llm/v1/)"),),
    command=("vllm", "serve"),
    args=(
        f"{FOLDER}/model/model",
        f"--tokenizer={FOLDER}/model/components/tokenizer",
        "--port={port}",
        *("--served-model-name", "{model}:{version}", "{model}"),
    ),
    readiness_path="/health",
    request_path="/v1/completions",
    payload=Payload.OPENAI,
    version_field="model",
    version_value="{model}:{version}",
    metrics=Metrics(
        path="/metrics",
        requests=(Series(name="http_requests_total", matchers=(_VLLM_PREDICTIONS,)),),
        errors=(Series(name="http_requests_total", matchers=(_VLLM_PREDICTIONS, 'status="5xx"')),),
        latency=Series(name="vllm:e2e_request_latency_seconds", histogram=True),
    ),
)

# To be changed with dataclasses.replace. The paths are those of MLflow's containers, which others imitate.
OWN = ModelServer(
    name="own",
    flavors=(),
    readiness_path="/ping",
    request_path="/invocations",
    payload=Payload.OWN,
)

KNOWN = (TRITON, TENSORFLOW_SERVING, TORCHSERVE, VLLM, MLFLOW, MLSERVER, OWN)
"""From the most special to the most general: the order in which :func:`choose` asks."""


def choose(flavors: Mapping[str, Any]) -> ModelServer:
    """The first of the known servers that loads the version as it is.

    Nearly every version has ``python_function`` too, so the servers made for one format are asked first.
    MLServer and an image of one's own are taken by name only: what MLServer loads, MLflow's server loads too.

    :param flavors: the ``flavors`` of the version's MLmodel file, with their settings
    :raises ConfigurationError: none of them does
    """
    for server in KNOWN:
        if server.serves(flavors):
            return server
    known = "; ".join(
        f"{server.name}: {' or '.join(map(str, server.flavors))}" for server in KNOWN if server.flavors
    )
    raise ConfigurationError(
        "server",
        sorted(flavors),
        f"no model server is known for these flavors; known are {known}; or serve it with an image of your "
        "own, server=replace(OWN, ...)",
    )


def named(name: str) -> ModelServer:
    """The known server of that name.

    :raises ConfigurationError: there is none
    """
    for server in KNOWN:
        if server.name == name:
            return server
    raise ConfigurationError("server", name, f"use one of {', '.join(server.name for server in KNOWN)}")
