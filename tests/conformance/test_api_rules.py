"""Rules of single fields, and of fields together, as the API reference states them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import causes, config_map, refusal

if TYPE_CHECKING:
    from helpers.conformance_client import Space

pytestmark = pytest.mark.api

Object = dict[str, Any]

INVALID, REQUIRED, UNKNOWN = "FieldValueInvalid", "FieldValueRequired", "FieldValueNotSupported"
FORBIDDEN, DUPLICATE = "FieldValueForbidden", "FieldValueDuplicate"


def pod(container: Object | None = None, **spec: Any) -> Object:
    main = {"name": "main", "image": "example", **(container or {})}
    return {"metadata": {"name": "one"}, "spec": {"containers": [main], **spec}}


def job(**spec: Any) -> Object:
    template = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "example"}]}
    return {"metadata": {"name": "one"}, "spec": {"suspend": True, "template": {"spec": template}, **spec}}


def exit_codes(*values: int, **fields: Any) -> Object:
    codes = {"operator": "In", "values": list(values), **fields}
    return job(podFailurePolicy={"rules": [{"action": "FailJob", "onExitCodes": codes}]})


def deployment(**rolling: Any) -> Object:
    labels = {"app": "one"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "main", "image": "example"}]},
    }
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    return {"metadata": {"name": "one"}, "spec": {**spec, "strategy": {"rollingUpdate": rolling}}}


def service(*ports: Object, **spec: Any) -> Object:
    return {"metadata": {"name": "one"}, "spec": {"ports": list(ports), **spec}}


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        # ContainerPort: protocol UDP, TCP or SCTP; hostPort 0 < x < 65536; names unique in the container
        (
            pod({"ports": [{"containerPort": 80, "protocol": "ICMP"}]}),
            "containers[0].ports[0].protocol",
            UNKNOWN,
        ),
        (
            pod({"ports": [{"containerPort": 80, "hostPort": 70000}]}),
            "containers[0].ports[0].hostPort",
            INVALID,
        ),
        # EnvVarSource, fieldRef: the supported fields
        (
            pod({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.bogus"}}}]}),
            "containers[0].env[0].valueFrom.fieldRef.fieldPath",
            INVALID,
        ),
        # Probe: a handler; HTTPGetAction, port 1 to 65535; terminationGracePeriodSeconds is positive
        (pod({"livenessProbe": {"periodSeconds": 1}}), "containers[0].livenessProbe", REQUIRED),
        (
            pod({"livenessProbe": {"httpGet": {"path": "/", "port": 0}}}),
            "containers[0].livenessProbe.httpGet.port",
            INVALID,
        ),
        (
            pod({"livenessProbe": {"tcpSocket": {"port": 80}, "terminationGracePeriodSeconds": 0}}),
            "containers[0].livenessProbe.terminationGracePeriodSeconds",
            INVALID,
        ),
        # Init Containers: no probes and no lifecycle, but for sidecars
        (
            pod(initContainers=[{"name": "i", "image": "x", "readinessProbe": {"tcpSocket": {"port": 80}}}]),
            "initContainers[0].readinessProbe",
            FORBIDDEN,
        ),
        # Extended resources: whole numbers, and the request is the limit
        (
            pod({"resources": {"requests": {"example.com/gpu": "1"}}}),
            "containers[0].resources.limits",
            REQUIRED,
        ),
        # Toleration: Exists has no value; without a key the operator is Exists; seconds are for NoExecute
        pytest.param(
            pod(tolerations=[{"key": "a", "operator": "Exists", "value": "x"}]),
            "tolerations[0].operator",
            INVALID,
            marks=pytest.mark.not_embedded("rules for tolerations"),
        ),
        pytest.param(
            pod(tolerations=[{"operator": "Equal", "value": "x"}]),
            "tolerations[0].operator",
            INVALID,
            marks=pytest.mark.not_embedded("rules for tolerations"),
        ),
        pytest.param(
            pod(tolerations=[{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 1}]),
            "tolerations[0].effect",
            INVALID,
            marks=pytest.mark.not_embedded("rules for tolerations"),
        ),
        # Volumes: modes up to 0777; paths of items are relative; hostPath types are a list
        (
            pod(volumes=[{"name": "v", "configMap": {"name": "c", "defaultMode": 0o1000}}]),
            "volumes[0].configMap.defaultMode",
            INVALID,
        ),
        (
            pod(
                volumes=[{"name": "v", "secret": {"secretName": "s", "items": [{"key": "k", "path": "/k"}]}}]
            ),
            "volumes[0].secret.items[0].path",
            INVALID,
        ),
        (
            pod(volumes=[{"name": "v", "hostPath": {"path": "/x", "type": "Link"}}]),
            "volumes[0].hostPath.type",
            UNKNOWN,
        ),
        # PodSpec: dnsPolicy None needs a dnsConfig; ephemeral containers come later, by their own request
        pytest.param(
            pod(dnsPolicy="None"),
            "dnsConfig",
            REQUIRED,
            marks=pytest.mark.not_embedded("rules for DNS settings"),
        ),
        (pod(ephemeralContainers=[{"name": "e", "image": "x"}]), "ephemeralContainers", FORBIDDEN),
    ],
)
def test_pods(space: Space, body: Object, field: str, reason: str) -> None:
    assert (f"spec.{field}", reason) in causes(space.try_create("pods", body))


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        # PodReplacementPolicy: TerminatingOrFailed or Failed
        (job(podReplacementPolicy="Never"), "podReplacementPolicy", UNKNOWN),
        # Backoff limit per index: Indexed Jobs only
        (job(backoffLimitPerIndex=1), "backoffLimitPerIndex", INVALID),
        pytest.param(
            job(completionMode="Indexed", completions=2, maxFailedIndexes=1),
            "backoffLimitPerIndex",
            REQUIRED,
            marks=pytest.mark.not_embedded("limit of failures for each index"),
        ),
        # PodFailurePolicyOnExitCodesRequirement: values are ordered, without duplicates, at least one
        (exit_codes(2, 1), "podFailurePolicy.rules[0].onExitCodes.values", INVALID),
        (exit_codes(1, 1), "podFailurePolicy.rules[0].onExitCodes.values[1]", DUPLICATE),
        (exit_codes(), "podFailurePolicy.rules[0].onExitCodes.values", INVALID),
        (
            exit_codes(1, containerName="other"),
            "podFailurePolicy.rules[0].onExitCodes.containerName",
            INVALID,
        ),
        # Success policy: Indexed Jobs only
        (job(successPolicy={"rules": [{"succeededCount": 1}]}), "successPolicy", INVALID),
        # JobSpec, managedBy: a domain-prefixed path
        (job(managedBy="me"), "managedBy", INVALID),
        # Jobs, Specifying your own pod selector: manualSelector must be set
        (job(selector={"matchLabels": {"a": "b"}}), "selector", INVALID),
    ],
)
def test_jobs(space: Space, body: Object, field: str, reason: str) -> None:
    assert (f"spec.{field}", reason) in causes(space.try_create("jobs", body))


@pytest.mark.parametrize(
    ("rolling", "field"),
    [
        ({"maxSurge": -1}, "maxSurge"),
        ({"maxUnavailable": "101%"}, "maxUnavailable"),
        ({"maxSurge": "x"}, "maxSurge"),
    ],
)
def test_rolling_updates(space: Space, rolling: Object, field: str) -> None:
    """RollingUpdateDeployment: an absolute number, or a percentage."""
    found = causes(space.try_create("deployments", deployment(**rolling)))
    assert (f"spec.strategy.rollingUpdate.{field}", INVALID) in found


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        # ServicePort, targetPort: 1 to 65535, or an IANA_SVC_NAME
        (service({"port": 80, "targetPort": 70000}), "spec.ports[0].targetPort", INVALID),
        (service({"port": 80, "targetPort": "more-than-fifteen"}), "spec.ports[0].targetPort", INVALID),
        # ServiceSpec: sessionAffinity ClientIP or None; clusterIP an address; an ExternalName has one
        (service({"port": 80}, sessionAffinity="Cookie"), "spec.sessionAffinity", UNKNOWN),
        (service({"port": 80}, clusterIP="999.1.1.1"), "spec.clusterIPs[0]", INVALID),
        pytest.param(
            service(type="ExternalName"),
            "spec.externalName",
            REQUIRED,
            marks=pytest.mark.not_embedded("Services of type ExternalName"),
        ),
        # Ports of a Service: each protocol and number once
        (service({"name": "a", "port": 80}, {"name": "b", "port": 80}), "spec.ports[1]", DUPLICATE),
    ],
)
def test_services(space: Space, body: Object, field: str, reason: str) -> None:
    assert (field, reason) in causes(space.try_create("services", body))


@pytest.mark.parametrize("port", [[], {}, 1.5, True])
def test_a_port_is_a_number_or_a_name(space: Space, port: Any) -> None:
    """IntOrString."""
    answer = space.try_create("services", service({"port": 80, "targetPort": port}))
    refusal(answer, 400, "BadRequest")


@pytest.mark.not_embedded("rules for a Secret's type")
@pytest.mark.parametrize(
    ("type_", "missing"),
    [
        ("kubernetes.io/tls", {"data[tls.crt]", "data[tls.key]"}),
        ("kubernetes.io/basic-auth", {"data[username]", "data[password]"}),
        ("kubernetes.io/dockerconfigjson", {"data[.dockerconfigjson]"}),
        ("kubernetes.io/ssh-auth", {"data[ssh-privatekey]"}),
    ],
)
def test_a_secret_has_what_its_type_is_for(space: Space, type_: str, missing: set[str]) -> None:
    """Secrets, Types of Secret."""
    answer = space.try_create("secrets", {"metadata": {"name": "one"}, "type": type_})
    assert causes(answer) == {(field, REQUIRED) for field in missing}


@pytest.mark.not_embedded("rules for an EndpointSlice's addresses")
def test_an_endpoint_has_addresses_of_the_slices_type(space: Space) -> None:
    """EndpointSlice, addressType: all addresses are of it."""
    body = {"metadata": {"name": "one"}, "addressType": "IPv4", "endpoints": [{"addresses": ["nope"]}]}
    found = causes(space.try_create("endpointslices", body))
    assert ("endpoints[0].addresses[0]", INVALID) in found


def test_a_finalizer_has_a_domain(space: Space) -> None:
    """Finalizers: fully qualified names, but for Kubernetes' own."""
    found = causes(space.try_create("configmaps", config_map("one", finalizers=["hold"])))
    assert found == {("metadata.finalizers[0]", INVALID)}


def test_an_absent_runtime_class_is_forbidden(space: Space) -> None:
    """Runtime Class: the admission plugin knows the class."""
    refusal(space.try_create("pods", pod(runtimeClassName="no-such-class")), 403, "Forbidden")
