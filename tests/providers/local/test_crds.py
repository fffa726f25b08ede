"""The definitions of the systems that training runs on, their objects, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers import definition_generator
from nighttrain.providers.local.cluster.kinds.crds import SERVING

if TYPE_CHECKING:
    import httpx

FOLDER = Path(os.environ.get("NIGHTTRAIN_CRDS") or Path(__file__).parents[4] / "shared" / "crds")
FILES = sorted(FOLDER.glob("*.json"))

pytestmark = pytest.mark.skipif(
    not FILES, reason=f"no definitions in {FOLDER}: set NIGHTTRAIN_CRDS to a folder that has them"
)

POD = {"spec": {"containers": [{"name": "main", "image": "trainer"}]}}
REPLICAS = {"replicas": 2, "restartPolicy": "OnFailure", "template": POD}
METRIC = {"name": "errors", "provider": {"job": {"spec": {"template": POD}}}}
EXPERIMENT = {"objective": {"type": "minimize", "objectiveMetricName": "loss"}, "maxTrialCount": 3}

# Where the misspelt field goes, and an object that is right without it.
OBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "analysisruns.argoproj.io": ("spec", {"metrics": [METRIC]}),
    "analysistemplates.argoproj.io": ("spec", {"metrics": [METRIC]}),
    "rollouts.argoproj.io": (
        "spec.strategy",
        {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "a"}},
            "template": {**POD, "metadata": {"labels": {"app": "a"}}},
            "strategy": {"canary": {"steps": [{"setWeight": 20}, {"pause": {"duration": "1h"}}]}},
        },
    ),
    "clusterqueues.kueue.x-k8s.io": (
        "spec.resourceGroups[0]",
        {
            "namespaceSelector": {},
            "resourceGroups": [
                {
                    "coveredResources": ["cpu"],
                    "flavors": [
                        {"name": "plain", "resources": [{"name": "cpu", "nominalQuota": 4}]},
                    ],
                }
            ],
        },
    ),
    "localqueues.kueue.x-k8s.io": ("spec", {"clusterQueue": "all"}),
    "resourceflavors.kueue.x-k8s.io": ("spec", {"nodeLabels": {"kind": "small"}}),
    "workloads.kueue.x-k8s.io": (
        "spec.podSets[0]",
        {"queueName": "q", "podSets": [{"name": "main", "count": 1, "template": POD}]},
    ),
    "jobsets.jobset.x-k8s.io": (
        "spec.replicatedJobs[0]",
        {"replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": {"template": POD}}}]},
    ),
    "trainjobs.trainer.kubeflow.org": (
        "spec.trainer",
        {"runtimeRef": {"name": "torch"}, "trainer": {"numNodes": 2}},
    ),
    "clustertrainingruntimes.trainer.kubeflow.org": (
        "spec.mlPolicy",
        {
            "mlPolicy": {"numNodes": 1},
            "template": {
                "spec": {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": POD}}}]}
            },
        },
    ),
    "pytorchjobs.kubeflow.org": (
        "spec.pytorchReplicaSpecs.Master",
        {"pytorchReplicaSpecs": {"Master": REPLICAS}},
    ),
    "tfjobs.kubeflow.org": ("spec.tfReplicaSpecs.Worker", {"tfReplicaSpecs": {"Worker": REPLICAS}}),
    "xgboostjobs.kubeflow.org": ("spec.xgbReplicaSpecs.Master", {"xgbReplicaSpecs": {"Master": REPLICAS}}),
    "mpijobs.kubeflow.org": ("spec.mpiReplicaSpecs.Launcher", {"mpiReplicaSpecs": {"Launcher": REPLICAS}}),
    "jaxjobs.kubeflow.org": ("spec.jaxReplicaSpecs.Worker", {"jaxReplicaSpecs": {"Worker": REPLICAS}}),
    "paddlejobs.kubeflow.org": (
        "spec.paddleReplicaSpecs.Worker",
        {"paddleReplicaSpecs": {"Worker": REPLICAS}},
    ),
    "experiments.kubeflow.org": ("spec", EXPERIMENT),
    "suggestions.kubeflow.org": ("spec", {"requests": 1}),
    "trials.kubeflow.org": ("spec", {"objective": EXPERIMENT["objective"]}),
    "inferenceservices.serving.kserve.io": (
        "spec.predictor.model",
        {
            "predictor": {
                "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "pvc://models/delay"},
                "minReplicas": 1,
            }
        },
    ),
    "inferencegraphs.serving.kserve.io": (
        "spec.nodes.root",
        {"nodes": {"root": {"routerType": "Sequence", "steps": [{"serviceName": "delay"}]}}},
    ),
    "servingruntimes.serving.kserve.io": (
        "spec.supportedModelFormats[0]",
        {
            "supportedModelFormats": [{"name": "sklearn", "version": "1", "autoSelect": True}],
            "containers": [{"name": "kserve-container", "image": "server"}],
        },
    ),
    "services.serving.knative.dev": (
        "spec.traffic[0]",
        {
            "template": {"spec": {"containers": [{"image": "server"}]}},
            "traffic": [{"latestRevision": True, "percent": 100}],
        },
    ),
    "gateways.gateway.networking.k8s.io": (
        "spec.listeners[0]",
        {"gatewayClassName": "any", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]},
    ),
    "httproutes.gateway.networking.k8s.io": (
        "spec.rules[0]",
        {
            "parentRefs": [{"name": "gate"}],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                    "backendRefs": [{"name": "delay", "port": 80}],
                }
            ],
        },
    ),
}
# Their schemas name no fields at all: a real API server takes whatever comes, and so does this one.
OPEN = ("experiments.kubeflow.org", "suggestions.kubeflow.org", "trials.kubeflow.org")


@pytest.fixture(scope="module")
def definitions(http: httpx.Client) -> dict[str, dict[str, Any]]:
    """All of them in one cluster, as a platform team has them."""
    accepted = {}
    for path in FILES:
        answer = http.post(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            params={"fieldValidation": "Strict"},
            json=json.loads(path.read_text()),
        )
        assert answer.status_code == 201, f"{path.name}: {answer.text}"
        assert "warning" not in answer.headers, f"{path.name}: {answer.headers['warning']}"
        name = answer.json()["metadata"]["name"]
        accepted[name] = http.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}").json()
    return accepted


def place(definition: dict[str, Any], version: str, space: str) -> str:
    spec = definition["spec"]
    scope = f"namespaces/{space}/" if spec["scope"] == "Namespaced" else ""
    return f"/apis/{spec['group']}/{version}/{scope}{spec['names']['plural']}"


def manifest(definition: dict[str, Any], version: str, name: str) -> dict[str, Any]:
    spec = definition["spec"]
    return {
        "apiVersion": f"{spec['group']}/{version}",
        "kind": spec["names"]["kind"],
        "metadata": {"name": name},
        "spec": json.loads(json.dumps(OBJECTS[definition["metadata"]["name"]][1])),
    }


def inside(obj: Any, path: str) -> Any:
    for part in path.replace("[", ".").replace("]", "").split("."):
        obj = obj[int(part)] if isinstance(obj, list) else obj[part]
    return obj


def test_there_is_an_object_for_every_definition() -> None:
    assert sorted(OBJECTS) == sorted(path.stem for path in FILES)


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_a_definition_is_established(name: str, definitions: dict[str, dict[str, Any]]) -> None:
    status = definitions[name]["status"]
    assert {each["type"]: each["status"] for each in status["conditions"]} == {
        "NamesAccepted": "True",
        "Established": "True",
    }


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_an_object_is_accepted_and_a_misspelt_one_refused(
    name: str, definitions: dict[str, dict[str, Any]], http: httpx.Client, space: str
) -> None:
    definition = definitions[name]
    version = next(each["name"] for each in definition["spec"]["versions"] if each["storage"])
    where, strict = place(definition, version, space), {"fieldValidation": "Strict"}

    right = manifest(definition, version, "right")
    created = http.post(where, params=strict, json=right)
    assert created.status_code == 201, created.text
    assert "warning" not in created.headers, created.headers.get("warning")
    again = http.get(f"{where}/right").json()
    assert again == created.json()

    path = OBJECTS[name][0]
    wrong = manifest(definition, version, "wrong")
    inside(wrong, path)["misspelt"] = "value"
    refused = http.post(where, params=strict, json=wrong)
    if name in OPEN:
        assert refused.status_code == 201, refused.text
        return
    assert refused.status_code == 400, refused.text
    assert f'strict decoding error: unknown field "{path}.misspelt"' in refused.json()["message"]
    # A client that does not ask for strictness gets a warning, and an object without the field.
    warned = http.post(where, json=wrong)
    assert warned.status_code == 201, warned.text
    assert f"{path}.misspelt" in warned.headers["warning"]
    assert "misspelt" not in inside(warned.json(), path)


@pytest.mark.parametrize(
    ("name", "change", "code", "field", "says"),
    [
        (
            "trainjobs.trainer.kubeflow.org",
            {"trainer": {"numNodes": "two"}},
            "FieldValueTypeInvalid",
            "spec.trainer.numNodes",
            'must be of type integer: "string"',
        ),
        ("pytorchjobs.kubeflow.org", {"pytorchReplicaSpecs": None}, "FieldValueRequired", "spec", "Required"),
        (
            "clusterqueues.kueue.x-k8s.io",
            {"queueingStrategy": "Random"},
            "FieldValueNotSupported",
            "spec.queueingStrategy",
            'Unsupported value: "Random"',
        ),
    ],
)
def test_a_wrong_value_is_refused_at_its_field(
    name: str,
    change: dict[str, Any],
    code: str,
    field: str,
    says: str,
    definitions: dict[str, dict[str, Any]],
    http: httpx.Client,
    space: str,
) -> None:
    definition = definitions[name]
    version = next(each["name"] for each in definition["spec"]["versions"] if each["storage"])
    wrong = manifest(definition, version, "wrong")
    wrong["spec"].update(change)
    answer = http.post(place(definition, version, space), json=wrong)
    assert answer.status_code == 422, answer.text
    causes = answer.json()["details"]["causes"]
    found = [each for each in causes if each["reason"] == code and each["field"].startswith(field)]
    assert found, causes
    assert says in found[0]["message"]


def test_every_version_shows_the_same_objects(
    definitions: dict[str, dict[str, Any]], http: httpx.Client, space: str
) -> None:
    definition = definitions["localqueues.kueue.x-k8s.io"]
    new, old = place(definition, "v1beta2", space), place(definition, "v1beta1", space)
    http.post(old, json=manifest(definition, "v1beta1", "q")).raise_for_status()
    assert http.get(f"{new}/q").json()["apiVersion"] == "kueue.x-k8s.io/v1beta2"
    assert [each["metadata"]["name"] for each in http.get(old).json()["items"]] == ["q"]
    lines = http.get(old, params={"watch": "1", "timeoutSeconds": "1"}).text.splitlines()
    assert [json.loads(line)["object"]["apiVersion"] for line in lines] == ["kueue.x-k8s.io/v1beta1"]


def test_the_definitions_that_come_along_are_upstreams() -> None:
    """Of the Gateway API and KServe; ``helpers/definition_generator.py`` writes them."""
    assert json.loads(gzip.decompress(SERVING.read_bytes())) == definition_generator.definitions(FOLDER)
