"""What a real API server refuses of pods is refused, as far as it is checked: status, field and reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.wrong_objects import (
    DUPLICATE,
    FORBIDDEN,
    HTTP,
    INVALID,
    MAIN,
    PODS,
    REQUIRED,
    UNKNOWN,
    Object,
    pod,
    refused,
    volume,
)

if TYPE_CHECKING:
    import httpx


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        (
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.bogus"}}}]},
            "env[0].valueFrom.fieldRef.fieldPath",
            INVALID,
        ),
        (
            {"envFrom": [{"configMapRef": {"name": "a"}, "secretRef": {"name": "b"}}]},
            "envFrom",
            INVALID,
        ),
        ({"envFrom": [{"configMapRef": {}}]}, "envFrom[0].configMapRef.name", REQUIRED),
        (
            {"ports": [{"containerPort": 80, "protocol": "ICMP"}]},
            "ports[0].protocol",
            UNKNOWN,
        ),
        (
            {"ports": [{"containerPort": 80, "name": "much-too-long-1"}, {"containerPort": 81, "name": "A"}]},
            "ports[1].name",
            INVALID,
        ),
        (
            {"ports": [{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}]},
            "ports[1].name",
            DUPLICATE,
        ),
        (
            {"ports": [{"containerPort": 80, "hostPort": 70000}]},
            "ports[0].hostPort",
            INVALID,
        ),
        ({"livenessProbe": {}}, "livenessProbe", REQUIRED),
        (
            {"livenessProbe": {"httpGet": {"port": 0}}},
            "livenessProbe.httpGet.port",
            INVALID,
        ),
        (
            {"startupProbe": {"exec": {"command": []}}},
            "startupProbe.exec.command",
            REQUIRED,
        ),
        (
            {"readinessProbe": {"httpGet": {"port": 80, "scheme": "FTP"}}},
            "readinessProbe.httpGet.scheme",
            UNKNOWN,
        ),
        (
            {"readinessProbe": {**HTTP, "terminationGracePeriodSeconds": 5}},
            "readinessProbe.terminationGracePeriodSeconds",
            INVALID,
        ),
        ({"livenessProbe": {"grpc": {"port": 80}}}, "livenessProbe", REQUIRED),
        ({"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}, "lifecycle", FORBIDDEN),
        (
            {"resources": {"requests": {"nvidia.com/gpu": "1"}}},
            "resources.limits",
            REQUIRED,
        ),
        (
            {"resources": {"limits": {"nvidia.com/gpu": "1500m"}}},
            "resources.limits[nvidia.com/gpu]",
            INVALID,
        ),
        (
            {"resources": {"limits": {"gpu": "1"}}},
            "resources.limits[gpu]",
            INVALID,
        ),
        (
            {"securityContext": {"runAsUser": -1}},
            "securityContext.runAsUser",
            INVALID,
        ),
        (
            {"restartPolicy": "Sometimes"},
            "restartPolicy",
            UNKNOWN,
        ),
    ],
)
def test_containers(http: httpx.Client, body: Object, field: str, reason: str) -> None:
    # A limit is the request too where none is given: both are told.
    assert (f"{MAIN}.{field}", reason) in refused(http, PODS, pod(body))


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        (
            {"restartPolicy": "Sometimes"},
            "restartPolicy",
            UNKNOWN,
        ),
        ({"hostname": "BAD_"}, "hostname", INVALID),
        ({"subdomain": "a.b"}, "subdomain", INVALID),
        (
            {"tolerations": [{"key": "a", "operator": "Maybe"}]},
            "tolerations[0].operator",
            UNKNOWN,
        ),
        (
            {"tolerations": [{"key": "a", "effect": "X"}]},
            "tolerations[0].effect",
            UNKNOWN,
        ),
        (
            {"initContainers": [{"name": "i", "image": "x", "livenessProbe": HTTP}]},
            "initContainers[0].livenessProbe",
            FORBIDDEN,
        ),
        (
            {"initContainers": [{"name": "main", "image": "x"}]},
            "initContainers[0].name",
            DUPLICATE,
        ),
        (
            {"ephemeralContainers": [{"name": "e", "image": "x"}]},
            "ephemeralContainers",
            FORBIDDEN,
        ),
        ({"schedulingGates": [{"name": "example.com/wait"}]}, "schedulingGates", FORBIDDEN),
        (
            {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}},
            "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
            REQUIRED,
        ),
        (
            {
                "topologySpreadConstraints": [
                    {"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}
                ]
            },
            "topologySpreadConstraints[0].maxSkew",
            INVALID,
        ),
    ],
)
def test_pods(http: httpx.Client, spec: Object, field: str, reason: str) -> None:
    assert refused(http, PODS, pod(**spec)) == {(f"spec.{field}", reason)}


@pytest.mark.parametrize(
    ("source", "field", "reason"),
    [
        ({"hostPath": {}}, "hostPath.path", REQUIRED),
        (
            {"hostPath": {"path": "/x", "type": "Nope"}},
            "hostPath.type",
            UNKNOWN,
        ),
        (
            {"configMap": {"name": "a", "defaultMode": 1000}},
            "configMap.defaultMode",
            INVALID,
        ),
        ({"secret": {}}, "secret.secretName", REQUIRED),
        (
            {"configMap": {"name": "a", "items": [{"key": "a", "path": "/abs"}]}},
            "configMap.items[0].path",
            INVALID,
        ),
        (
            {"projected": {"sources": [{"configMap": {"items": [{"key": "a", "path": "../a"}]}}]}},
            "projected.sources[0].configMap.items[0].path",
            INVALID,
        ),
    ],
)
def test_volumes(http: httpx.Client, source: Object, field: str, reason: str) -> None:
    assert (f"spec.volumes[0].{field}", reason) in refused(http, PODS, volume(**source))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"runtimeClassName": "gvisor"}, 'pod rejected: RuntimeClass "gvisor" not found'),
    ],
)
def test_what_admission_refuses(http: httpx.Client, spec: Object, why: str) -> None:
    answer = http.post(PODS, json=pod(**spec))
    assert (answer.status_code, answer.json()["reason"]) == (403, "Forbidden")
    assert answer.json()["message"].startswith(f'pods "wrong" is forbidden: {why}')
