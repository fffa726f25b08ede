"""Writes ``serving.json.gz``: the definitions that the embedded cluster brings along, from upstream's.

Run by hand when the kinds are upgraded (``python -m helpers.definition_generator FOLDER``, which has the
definitions as JSON). A GatewayClass is written here. Left out is what the stand-ins read nothing of: pods of
InferenceServices in all their depth, and the ways to name a model server that came before ``model``.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from nighttrain.providers.local.cluster.kinds.crds import SERVING

Schema = dict[str, Any]

UPSTREAM = (
    "gateways.gateway.networking.k8s.io",
    "httproutes.gateway.networking.k8s.io",
    "servingruntimes.serving.kserve.io",
    "inferenceservices.serving.kserve.io",
)
_ANYTHING = {"x-kubernetes-preserve-unknown-fields": True}
# Fields of pods: checked where the pods are made.
_DEEP = ("affinity", "containers", "initContainers", "volumes", "tolerations", "topologySpreadConstraints")
_OLD = (
    *("huggingface", "lightgbm", "onnx", "paddle", "pmml", "pytorch", "sklearn", "tensorflow", "triton"),
    *("xgboost", "workerSpec"),
)
_CONDITIONS = {"type": "array", "items": {"type": "object", **_ANYTHING}}
_CLASS_SCHEMA: Schema = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["controllerName"],
            "properties": {
                "controllerName": {"type": "string"},
                "description": {"type": "string"},
                "parametersRef": {"type": "object", **_ANYTHING},
            },
        },
        "status": {
            "type": "object",
            "properties": {
                "conditions": _CONDITIONS,
                "supportedFeatures": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"name": {"type": "string"}}},
                },
            },
        },
    },
}
GATEWAYCLASS: Schema = {
    "metadata": {"name": "gatewayclasses.gateway.networking.k8s.io"},
    "spec": {
        "group": "gateway.networking.k8s.io",
        "names": {
            "kind": "GatewayClass",
            "plural": "gatewayclasses",
            "shortNames": ["gc"],
            "categories": ["gateway-api"],
        },
        "scope": "Cluster",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": _CLASS_SCHEMA},
            }
        ],
    },
}


def definitions(folder: Path) -> list[Schema]:
    """What the file has, made from a folder of upstream's definitions."""
    found = [json.loads((folder / f"{name}.json").read_text()) for name in UPSTREAM]
    for definition in found:
        definition["metadata"] = {"name": definition["metadata"]["name"]}
        definition.pop("status", None)
        versions = definition["spec"]["versions"]
        definition["spec"]["versions"] = [each for each in versions if each["storage"]]
        for version in definition["spec"]["versions"]:
            _prune(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    return [GATEWAYCLASS, *(_checked(each) for each in found)]


def _checked(value: Any) -> Any:
    """Without what the embedded cluster neither checks nor shows."""
    if isinstance(value, list):
        return [_checked(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _checked(each)
        for key, each in value.items()
        if key not in ("x-kubernetes-validations", "additionalPrinterColumns")
        and not key.startswith("x-kubernetes-list-")
    }


def _prune(spec: Schema) -> None:
    properties = spec["properties"]
    for name in ("explainer", "transformer"):
        properties.pop(name, None)
    canary = properties.get("canary", {}).get("items", {}).get("properties", {})
    for part in (spec, properties.get("predictor"), canary.get("predictor")):
        fields = part["properties"] if part else {}
        if "name" in fields.get("model", {}).get("required", ()):
            # KServe's own admission fills it in before the API server looks.
            fields["model"]["required"].remove("name")
        for name in _DEEP:
            if name in fields:
                fields[name] = {**_ANYTHING, "type": fields[name]["type"]}
        for name in _OLD:
            fields.pop(name, None)


def main() -> None:
    raw = json.dumps(definitions(Path(sys.argv[1])), separators=(",", ":"), sort_keys=True).encode()
    SERVING.write_bytes(gzip.compress(raw, 9, mtime=0))


if __name__ == "__main__":
    main()
