"""From a serving spec to a Deployment and a Service: pure functions, without a cluster."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.job.api_models import plain
from nighttrain.providers.kubernetes.job.pod_template import build_pod_template
from nighttrain.providers.kubernetes.job.security import harden
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.objects import main_container_spec
from nighttrain.providers.serving.model_servers.model_server import FOLDER
from nighttrain.providers.serving.spec import (
    DEPLOYED_ANNOTATION,
    DIGEST_ANNOTATION,
    ENDPOINT_LABEL,
    HASH_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_ANNOTATION,
    STABLE_ANNOTATION,
    SWITCHED_ANNOTATION,
    TEMPLATE_ANNOTATION,
    VERSION_LABEL,
    VERSION_VOLUME,
    ServingSpec,
)

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.model_servers.model_server import Metrics, ModelServer

PORT_NAME, METRICS_PORT_NAME = "http", "metrics"
FETCH_CONTAINER = "fetch-model"

# A pod's name is this, a dash, ten characters, a dash and five: all of it must stay below a host name's 63.
_MAX_NAME = 46


def deployment_name(endpoint: str, version: str) -> str:
    """``<endpoint>-v<version>``; clipped, with a hash, where that is too long."""
    name = f"{endpoint}-v{version}"
    if len(name) <= _MAX_NAME:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{name[: _MAX_NAME - 7].rstrip('-')}-{mark}"


def version_labels(endpoint: str, version: str) -> dict[str, str]:
    """The labels that select the pods of one version."""
    return {ENDPOINT_LABEL: endpoint, VERSION_LABEL: version}


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def build_deployment(spec: ServingSpec, replicas: int = 1) -> Json:
    """The Deployment of one version.

    Who asked is in the annotations, which the hash leaves out. It leaves replicas out too: they are an
    autoscaler's or a person's once the Deployment exists.

    :param replicas: where the spec does not say
    """
    labels = version_labels(spec.endpoint, spec.version)
    body: Json = {
        # Versions are Deployments of their own; one old form is enough for `kubectl rollout undo`.
        "revisionHistoryLimit": 1,
        "progressDeadlineSeconds": math.ceil(spec.startup_timeout_seconds),
        "selector": {"matchLabels": labels},
        # A version that serves and gets another form keeps every replica until the new ones are ready.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": _template(spec, labels),
    }
    annotations = {
        **plain(spec.annotations, "dict(str, str)", "annotations"),
        MODEL_ANNOTATION: spec.model_name,
        DIGEST_ANNOTATION: spec.artifact_digest,
        HASH_ANNOTATION: _hash(body),
        DEPLOYED_ANNOTATION: now(),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": deployment_name(spec.endpoint, spec.version),
            "namespace": spec.namespace,
            "labels": {**_labels(spec), **labels, MANAGED_BY_LABEL: MANAGED_BY},
            "annotations": annotations,
        },
        "spec": {"replicas": spec.replicas or replicas, **body},
    }


def build_service(deployment: Json) -> Json:
    """The endpoint of a version's Deployment: made when the first version is ready, switched ever after."""
    metadata = deployment["metadata"]
    labels = {key: metadata["labels"][key] for key in (ENDPOINT_LABEL, VERSION_LABEL)}
    port = main_container_spec(deployment["spec"]["template"])["ports"][0]["containerPort"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": labels[ENDPOINT_LABEL],
            "namespace": metadata["namespace"],
            "labels": {ENDPOINT_LABEL: labels[ENDPOINT_LABEL], MANAGED_BY_LABEL: MANAGED_BY},
            "annotations": {
                MODEL_ANNOTATION: metadata["annotations"][MODEL_ANNOTATION],
                STABLE_ANNOTATION: labels[VERSION_LABEL],
                SWITCHED_ANNOTATION: now(),
            },
        },
        "spec": {
            "type": "ClusterIP",
            "selector": labels,
            # By name: a later version may listen elsewhere while the endpoint's address stays.
            "ports": [{"name": PORT_NAME, "port": port, "targetPort": PORT_NAME, "protocol": "TCP"}],
        },
    }


def _hash(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _labels(spec: ServingSpec) -> dict[str, str]:
    labels: dict[str, str] = plain(spec.labels, "dict(str, str)", "labels")
    return labels


def _template(spec: ServingSpec, labels: dict[str, str]) -> Json:
    server = spec.filled_server()
    template = build_pod_template(spec.workload())
    template["metadata"]["labels"] = {**_labels(spec), **labels}
    scraped = _scraped(server.metrics, spec.port) if server.metrics else {}
    given = plain(spec.pod_annotations, "dict(str, str)", "pod_annotations")
    template["metadata"]["annotations"] |= scraped | given
    pod = template["spec"]
    pod["restartPolicy"] = "Always"
    # The addresses of the namespace's Services are not the model's business.
    pod["enableServiceLinks"] = False
    container = pod["containers"][0]
    if server.downloads:
        container |= _downloading(spec, container.get("env", []))
        container["args"] += _literals(f"--port={spec.port}", f"--workers={spec.workers}")
        container["args"] += _literals(f"--drain-seconds={spec.drain_seconds:g}")
        container["args"] += _literals(f"--connection-seconds={spec.connection_seconds:g}")
    else:
        pod["initContainers"] = [_fetching(spec, server, container)]
        harden(pod, restricted=spec.pod_security == "restricted")
    if spec.drain_seconds and not server.drains:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": math.ceil(spec.drain_seconds)}}}
    container |= {
        "ports": _ports(server, spec.port),
        # No start-up or liveness probe: nothing depends on it before it is ready; slow is not dead.
        "readinessProbe": {
            "httpGet": {"path": server.readiness_path, "port": PORT_NAME},
            "periodSeconds": spec.readiness_period_seconds,
            "timeoutSeconds": spec.readiness_timeout_seconds,
            "failureThreshold": spec.readiness_failures,
        },
    }
    # Pods of a form given up by now are told from those of the present one by it.
    template["metadata"]["annotations"][TEMPLATE_ANNOTATION] = _hash(template)
    return template


def _scraped(metrics: Metrics, port: int) -> dict[str, str]:
    """The annotations by which the usual configurations of Prometheus find a pod."""
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/path": metrics.path,
        "prometheus.io/port": str(metrics.port or port),
    }


def _ports(server: ModelServer, port: int) -> list[Json]:
    ports = [{"name": PORT_NAME, "containerPort": port, "protocol": "TCP"}]
    if server.metrics and server.metrics.port:
        ports.append({"name": METRICS_PORT_NAME, "containerPort": server.metrics.port, "protocol": "TCP"})
    return ports


def _downloading(spec: ServingSpec, given: list[Json]) -> Json:
    """A container with our program, that can reach MLflow; its arguments begin with the version."""
    own: list[Json] = [
        {"name": "MLFLOW_TRACKING_URI", "value": spec.tracking_uri},
        *({"name": name, "value": value} for name, value in spec.mlflow_env.items()),
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    names = {variable["name"] for variable in own}
    version = (f"--model={spec.model_name}", f"--version={spec.version}", f"--digest={spec.artifact_digest}")
    return {
        "command": ["python", "-c", launcher()],
        "args": _literals(*version),
        "env": [*own, *(variable for variable in given if variable["name"] not in names)],
    }


def _fetching(spec: ServingSpec, server: ModelServer, main: Json) -> Json:
    """The init container that brings the version to a server which does not download by itself."""
    # The user's variables too: the artifact store's address may be among them.
    given = WorkloadSpec(env_vars=spec.env_vars, env_from=[*spec.env_from, *spec.mlflow_env_from])
    files = [f"--file={name}={text}" for name, text in sorted(server.files.items())]
    container = {
        "name": FETCH_CONTAINER,
        "image": spec.download_image,
        **_downloading(spec, given.env()),
        "envFrom": given.env_sources(),
        # A quota may ask every container for them. It costs nothing: what counts is the larger of the two.
        "resources": {
            kind: {name: amount for name, amount in amounts.items() if name in ("cpu", "memory")}
            for kind, amounts in main.get("resources", {}).items()
            if kind in ("limits", "requests")
        },
        "volumeMounts": [{"name": VERSION_VOLUME, "mountPath": FOLDER}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    container["args"] += _literals(f"--fetch-into={FOLDER}", *files)
    if spec.image_pull_policy:
        container["imagePullPolicy"] = spec.image_pull_policy
    return {name: value for name, value in container.items() if value}


def _literals(*arguments: str) -> list[str]:
    return [_literal(argument) for argument in arguments]


def _literal(argument: str) -> str:
    """The API replaces ``$(NAME)`` in arguments; ``$$`` stands for a dollar sign."""
    return argument.replace("$(", "$$(")


@cache
def launcher() -> str:
    """The program that runs in the pod."""
    return _literal(files("nighttrain.providers.serving").joinpath("scoring_server.py").read_text("utf-8"))
