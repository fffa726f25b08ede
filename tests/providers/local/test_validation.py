"""What a real API server refuses is refused, as far as it is checked (pods aside): status, field, reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.wrong_objects import (
    CONFIGMAPS,
    DEPLOYMENTS,
    DUPLICATE,
    FORBIDDEN,
    INVALID,
    JOBS,
    PODS,
    REQUIRED,
    SECRETS,
    SERVICES,
    SLICES,
    UNKNOWN,
    Object,
    codes,
    deployment,
    indexed,
    job,
    named,
    pod,
    refused,
    rolling,
    rule,
    service,
    slice_of,
    volume,
)

if TYPE_CHECKING:
    import httpx


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        (job(completionMode="X"), "completionMode", UNKNOWN),
        (
            job(podReplacementPolicy="X"),
            "podReplacementPolicy",
            UNKNOWN,
        ),
        (
            {**codes(1), "spec": {**codes(1)["spec"], "podReplacementPolicy": "TerminatingOrFailed"}},
            "podReplacementPolicy",
            UNKNOWN,
        ),
        (
            job(backoffLimitPerIndex=1),
            "backoffLimitPerIndex",
            INVALID,
        ),
        (
            indexed(maxFailedIndexes=1),
            "maxFailedIndexes",
            INVALID,
        ),
        (job(selector={"matchLabels": {"a": "b"}}), "selector", INVALID),
        (job(manualSelector=True), "manualSelector", INVALID),
        (
            codes(),
            "podFailurePolicy.rules[0].onExitCodes.values",
            INVALID,
        ),
        (codes(2, 1), "podFailurePolicy.rules[0].onExitCodes.values", INVALID),
        (codes(1, 1), "podFailurePolicy.rules[0].onExitCodes.values[1]", DUPLICATE),
        (
            codes(1, operator="Like"),
            "podFailurePolicy.rules[0].onExitCodes.operator",
            UNKNOWN,
        ),
        (
            codes(1, containerName="other"),
            "podFailurePolicy.rules[0].onExitCodes.containerName",
            INVALID,
        ),
        (
            rule(),
            "podFailurePolicy.rules[0]",
            INVALID,
        ),
        (
            rule(onPodConditions=[{"type": "A", "status": "Maybe"}]),
            "podFailurePolicy.rules[0].onPodConditions[0].status",
            UNKNOWN,
        ),
        (
            indexed(successPolicy={"rules": [{"succeededCount": 1}]}),
            "successPolicy",
            INVALID,
        ),
        (
            job(managedBy="bad"),
            "managedBy",
            INVALID,
        ),
        (
            job({"ephemeralContainers": [{"name": "e", "image": "x"}]}),
            "template.spec.ephemeralContainers",
            FORBIDDEN,
        ),
    ],
)
def test_jobs(http: httpx.Client, body: Object, field: str, reason: str) -> None:
    assert (f"spec.{field}", reason) in refused(http, JOBS, body)


def test_an_indexed_jobs_name_is_part_of_host_names(http: httpx.Client) -> None:
    body = {**indexed(), "metadata": {"name": "with.dots"}}
    assert refused(http, JOBS, body) == {("metadata.name", INVALID)}


@pytest.mark.parametrize(
    ("path", "body", "field", "reason"),
    [
        (
            DEPLOYMENTS,
            deployment(strategy={"type": "X"}),
            "spec.strategy.type",
            UNKNOWN,
        ),
        (
            DEPLOYMENTS,
            rolling(maxSurge=-1),
            "spec.strategy.rollingUpdate.maxSurge",
            INVALID,
        ),
        (
            DEPLOYMENTS,
            rolling(maxSurge="many"),
            "spec.strategy.rollingUpdate.maxSurge",
            INVALID,
        ),
        (
            DEPLOYMENTS,
            rolling(maxUnavailable="150%"),
            "spec.strategy.rollingUpdate.maxUnavailable",
            INVALID,
        ),
        (
            DEPLOYMENTS,
            deployment(selector={"matchExpressions": [{"key": "app", "operator": "Like"}]}),
            "spec.selector.matchExpressions[0].operator",
            INVALID,
        ),
        (
            DEPLOYMENTS,
            deployment(selector={}),
            "spec.selector",
            INVALID,
        ),
        (
            SERVICES,
            service(ports=[{"port": 80, "targetPort": 70000}]),
            "spec.ports[0].targetPort",
            INVALID,
        ),
        (
            SERVICES,
            service(ports=[{"port": 80, "targetPort": "sixteen-letters1"}]),
            "spec.ports[0].targetPort",
            INVALID,
        ),
        (
            SERVICES,
            service(ports=[{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]),
            "spec.ports[1]",
            DUPLICATE,
        ),
        (
            SERVICES,
            service(sessionAffinity="X"),
            "spec.sessionAffinity",
            UNKNOWN,
        ),
        (
            SERVICES,
            service(clusterIP="999.1.1.1"),
            "spec.clusterIPs[0]",
            INVALID,
        ),
        (SERVICES, service(type="ExternalName"), "spec.type", UNKNOWN),
        (DEPLOYMENTS, deployment(paused=True), "spec.paused", FORBIDDEN),
        (DEPLOYMENTS, deployment(minReadySeconds=1), "spec.minReadySeconds", FORBIDDEN),
        (
            CONFIGMAPS,
            named(data={"a": "x"}, binaryData={"a": "YQ=="}),
            "data[a]",
            INVALID,
        ),
        (
            CONFIGMAPS,
            {"metadata": {"name": "wrong", "finalizers": ["hold"]}},
            "metadata.finalizers[0]",
            INVALID,
        ),
        (
            CONFIGMAPS,
            {"metadata": {"name": "wrong", "generateName": "Bad_"}},
            "metadata.generateName",
            INVALID,
        ),
        (SLICES, slice_of("X", "a"), "addressType", UNKNOWN),
        (SLICES, slice_of("IPv4"), "endpoints[0].addresses", REQUIRED),
    ],
)
def test_other_kinds(http: httpx.Client, path: str, body: Object, field: str, reason: str) -> None:
    assert refused(http, path, body) == {(field, reason)}


def test_owners_are_named_without_an_index(http: httpx.Client) -> None:
    body = {"metadata": {"name": "wrong", "ownerReferences": [{"kind": "Job", "name": "x"}]}}
    fields = {f"metadata.ownerReferences.{name}" for name in ("apiVersion", "uid")}
    assert refused(http, CONFIGMAPS, body) == {(field, INVALID) for field in fields}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (SERVICES, service(ports=[{"port": 80, "targetPort": []}]), "spec.ports[0].targetPort"),
        (SERVICES, service(ports=[{"port": 80, "targetPort": {}}]), "spec.ports[0].targetPort"),
        (SERVICES, service(ports=[{"port": 80, "targetPort": 1.5}]), "spec.ports[0].targetPort"),
        (SERVICES, service(ports=[{"port": 80, "targetPort": True}]), "spec.ports[0].targetPort"),
        (
            PODS,
            pod({"livenessProbe": {"tcpSocket": {"port": {}}}}),
            "spec.containers[0].livenessProbe.tcpSocket.port",
        ),
        (DEPLOYMENTS, rolling(maxSurge=[]), "spec.strategy.rollingUpdate.maxSurge"),
    ],
)
def test_what_is_neither_a_number_nor_a_text_is_a_bad_request(
    http: httpx.Client, path: str, body: Object, field: str
) -> None:
    answer = http.post(path, json=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
    assert f": {field}: must be of type " in answer.json()["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PODS, pod({"imagePullPolicy": "", "terminationMessagePolicy": ""}, restartPolicy="", hostname="")),
        (PODS, pod(imagePullSecrets=[{"name": ""}])),
        (PODS, pod(terminationGracePeriodSeconds=-1)),
        (PODS, pod(schedulerName="BAD_NAME")),
        (PODS, pod({"restartPolicy": "OnFailure"})),
        (PODS, pod({"ports": [{"containerPort": 80, "protocol": "", "hostPort": 0}]}, hostNetwork=True)),
        (PODS, pod({"livenessProbe": {"httpGet": {"port": "http", "path": ""}}})),
        (PODS, pod({"resources": {"limits": {"nvidia.com/gpu": "1", "hugepages-2Mi": "4Mi"}}})),
        (PODS, pod(tolerations=[{"operator": "Exists"}, {"key": "a", "value": "b"}])),
        (PODS, pod(dnsPolicy="None", dnsConfig={"nameservers": ["1.1.1.1"]})),
        (PODS, volume(hostPath={"path": "relative", "type": "Directory"})),
        (PODS, volume(configMap={"name": "a", "defaultMode": 0, "items": [{"key": "a", "path": "b/.c"}]})),
        (JOBS, job(activeDeadlineSeconds=0, managedBy="example.com/queue")),
        (JOBS, codes(1, 2, containerName="main")),
        (DEPLOYMENTS, rolling(maxSurge="200%", maxUnavailable=0)),
        (SERVICES, service(ports=[{"port": 80, "targetPort": "http"}, {"port": 80, "protocol": "UDP"}])),
        (SECRETS, named(type="example.com/own")),
        (SECRETS, named(type="kubernetes.io/tls", stringData={"tls.crt": "", "tls.key": ""})),
        (SLICES, named(addressType="IPv4", endpoints=[])),
    ],
)
def test_what_a_real_server_takes_is_taken(http: httpx.Client, path: str, body: Object) -> None:
    for at, port in enumerate(body.get("spec", {}).get("ports") or []):
        port["name"] = f"p{at}"
    made = http.post(path, json={**body, "metadata": {"generateName": "right-"}})
    assert made.status_code == 201, made.text
