"""What a real API server refuses is refused, as far as it is checked: status, field and reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

Object = dict[str, Any]

_CORE = "/api/v1/namespaces/default"
PODS = f"{_CORE}/pods"
SERVICES = f"{_CORE}/services"
SECRETS = f"{_CORE}/secrets"
CONFIGMAPS = f"{_CORE}/configmaps"
JOBS = "/apis/batch/v1/namespaces/default/jobs"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"

INVALID, REQUIRED, UNKNOWN = "FieldValueInvalid", "FieldValueRequired", "FieldValueNotSupported"
DUPLICATE, FORBIDDEN = "FieldValueDuplicate", "FieldValueForbidden"

MAIN = "spec.containers[0]"
HTTP = {"httpGet": {"path": "/", "port": 80}}


def pod(container: Object | None = None, **spec: Any) -> Object:
    main = {"name": "main", "image": "example", **(container or {})}
    return {"metadata": {"name": "wrong"}, "spec": {"containers": [main], **spec}}


def volume(**source: Any) -> Object:
    return pod(volumes=[{"name": "v", **source}])


def job(template: Object | None = None, **spec: Any) -> Object:
    containers = [{"name": "main", "image": "example"}]
    inner = {"restartPolicy": "Never", "containers": containers, **(template or {})}
    return {"metadata": {"name": "wrong"}, "spec": {"suspend": True, "template": {"spec": inner}, **spec}}


def rule(**fields: Any) -> Object:
    return job(podFailurePolicy={"rules": [{"action": "FailJob", **fields}]})


def codes(*values: int, **fields: Any) -> Object:
    return rule(onExitCodes={"operator": "In", "values": list(values), **fields})


def indexed(**spec: Any) -> Object:
    return job(completionMode="Indexed", completions=3, **spec)


def deployment(template: Object | None = None, **spec: Any) -> Object:
    inner = {"containers": [{"name": "main", "image": "example"}], **(template or {})}
    labels = {"app": "wrong"}
    filled = {
        "replicas": 0,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": inner},
    }
    return {"metadata": {"name": "wrong"}, "spec": {**filled, **spec}}


def rolling(**fields: Any) -> Object:
    return deployment(strategy={"rollingUpdate": fields})


def service(**spec: Any) -> Object:
    return {"metadata": {"name": "wrong"}, "spec": {"ports": [{"port": 80}], **spec}}


def named(**fields: Any) -> Object:
    return {"metadata": {"name": "wrong"}, **fields}


def slice_of(type_: str, *addresses: str) -> Object:
    return named(addressType=type_, endpoints=[{"addresses": list(addresses)}])


def refused(http: httpx.Client, path: str, body: Object) -> set[tuple[str, str]]:
    """Field and reason of each cause."""
    answer = http.post(path, json=body, params={"dryRun": "All"})
    assert answer.status_code == 422, answer.text
    status = answer.json()
    assert (status["reason"], status["status"]) == ("Invalid", "Failure")
    causes = status["details"]["causes"]
    assert all(each["message"] for each in causes)
    return {(each["field"], each["reason"]) for each in causes}


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
    ("spec", "why"),
    [
        ({"runtimeClassName": "gvisor"}, 'pod rejected: RuntimeClass "gvisor" not found'),
    ],
)
def test_what_admission_refuses(http: httpx.Client, spec: Object, why: str) -> None:
    answer = http.post(PODS, json=pod(**spec))
    assert (answer.status_code, answer.json()["reason"]) == (403, "Forbidden")
    assert answer.json()["message"].startswith(f'pods "wrong" is forbidden: {why}')


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
