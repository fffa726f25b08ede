"""InferenceServices on the embedded cluster: runtimes, storage, refusals. Canaries are in the replays."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.polling import until
from helpers.serving_replay import container
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "/apis/serving.kserve.io"
SERVICES = f"{GROUP}/v1beta1/namespaces/default/inferenceservices"
MODE = "serving.kserve.io/deploymentMode"
VERSION = {"name": "V", "value": "v1"}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with EmbeddedCluster({"localhost/python": sys.executable}, serving=Serving()) as cluster:
        headers = {"Authorization": f"Bearer {cluster.token}"}
        with httpx.Client(base_url=cluster.url, headers=headers, timeout=20) as client:
            formats = [{"name": "mlflow", "autoSelect": True}]
            spec = {
                "supportedModelFormats": formats,
                "containers": [{**container(VERSION), "args": ["--model_name={{.Name}}"]}],
            }
            runtime = {
                "apiVersion": "serving.kserve.io/v1alpha1",
                "kind": "ServingRuntime",
                "metadata": {"name": "mlserver"},
                "spec": spec,
            }
            path = f"{GROUP}/v1alpha1/namespaces/default/servingruntimes?fieldValidation=Strict"
            client.post(path, json=runtime).raise_for_status()
            yield client


def create(
    http: httpx.Client, name: str, predictor: dict[str, Any], mode: str = "Standard", **spec: Any
) -> None:
    body = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": {MODE: mode}},
        "spec": {"predictor": predictor, **spec},
    }
    http.post(f"{SERVICES}?fieldValidation=Strict", json=body).raise_for_status()


def ready(http: httpx.Client, name: str) -> dict[str, Any]:
    """The condition Ready, once there is one."""

    def found() -> dict[str, Any] | None:
        status = http.get(f"{SERVICES}/{name}").json().get("status", {})
        return next((each for each in status.get("conditions", ()) if each["type"] == "Ready"), None)

    return dict(until(found))


def pod_of(http: httpx.Client, name: str) -> dict[str, Any]:
    path = f"/apis/apps/v1/namespaces/default/deployments/{name}-predictor"
    found = until(lambda: (answer := http.get(path)).status_code == 200 and answer.json())
    return dict(found["spec"]["template"]["spec"])


def test_a_runtime_is_found_by_the_models_format_and_told_where_the_model_is(http: httpx.Client) -> None:
    model = {
        "modelFormat": {"name": "mlflow"},
        "storageUri": "s3://models/1",
        "env": [{"name": "BAD", "value": "x"}],
    }
    create(http, "found", {"model": model, "terminationGracePeriodSeconds": 1})
    pod = pod_of(http, "found")
    (made,) = pod["containers"]
    variables = {each["name"]: each.get("value") for each in made["env"]}
    assert made["args"] == ["--model_name=found"]
    assert pod["terminationGracePeriodSeconds"] == 1
    assert variables == {
        "POD_IP": None,
        "V": "v1",
        "BAD": "x",
        "INFERENCE_SERVICE_NAME": "found",
        "STORAGE_URI": "s3://models/1",
    }
    until(lambda: ready(http, "found")["status"] == "True")


def test_a_claim_is_mounted_where_kserve_mounts_it(http: httpx.Client) -> None:
    model = {"modelFormat": {"name": "mlflow"}, "storageUri": "pvc://models/delays/7"}
    create(http, "claimed", {"model": model})
    pod = pod_of(http, "claimed")
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "models"
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert (mount["mountPath"], mount["subPath"], mount["readOnly"]) == ("/mnt/models", "delays/7", True)


def test_a_container_of_ones_own(http: httpx.Client) -> None:
    create(http, "own", {"containers": [container(VERSION)]})
    until(lambda: ready(http, "own")["status"] == "True")


@pytest.mark.parametrize(
    ("name", "mode", "runtime", "reason"),
    [
        ("knative", "Knative", "mlserver", "DeploymentModeNotServed"),
        ("unknown", "Standard", "triton", "RuntimeNotRecognized"),
    ],
)
def test_what_cannot_be_served_says_so(
    http: httpx.Client, name: str, mode: str, runtime: str, reason: str
) -> None:
    model = {"modelFormat": {"name": "mlflow"}, "runtime": runtime, "storageUri": "s3://models/1"}
    create(http, name, {"model": model}, mode)
    found = ready(http, name)
    assert (found["status"], found["reason"]) == ("False", reason)
    assert http.get(f"/apis/apps/v1/namespaces/default/deployments/{name}-predictor").status_code == 404


def test_predictors_of_one_name_are_refused(http: httpx.Client) -> None:
    model = {"modelFormat": {"name": "mlflow"}, "storageUri": "s3://models/1"}
    entry = {"trafficPercent": 10, "predictor": {"name": "next", "model": model}}
    create(http, "twice", {"model": model}, canary=[entry, entry])
    assert ready(http, "twice")["reason"] == "InvalidPredictorSpec"


def test_what_it_made_goes_with_it(http: httpx.Client) -> None:
    create(http, "passing", {"containers": [container(VERSION)]})
    until(lambda: ready(http, "passing")["status"] == "True")
    http.delete(f"{SERVICES}/passing").raise_for_status()
    routes = "/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes"
    made = (
        "/api/v1/namespaces/default/services/passing-predictor",
        "/apis/apps/v1/namespaces/default/deployments/passing-predictor",
        f"{routes}/passing-predictor",
        f"{routes}/passing",
    )
    until(lambda: all(http.get(path).status_code == 404 for path in made))
