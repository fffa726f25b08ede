"""What a real API server refuses is refused: status, field, reason and the API's sentence."""

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


def refused(http: httpx.Client, path: str, body: Object) -> list[tuple[str, str, str]]:
    answer = http.post(path, json=body)
    assert answer.status_code == 422, answer.text
    status = answer.json()
    assert (status["reason"], status["status"]) == ("Invalid", "Failure")
    return [(each["field"], each["reason"], each["message"]) for each in status["details"]["causes"]]


@pytest.mark.parametrize(
    ("body", "field", "reason", "message"),
    [
        (
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.bogus"}}}]},
            "env[0].valueFrom.fieldRef.fieldPath",
            INVALID,
            '"spec.bogus": error converting fieldPath: field label not supported: spec.bogus',
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]},
            "env[0].valueFrom.fieldRef.fieldPath",
            UNKNOWN,
            '"status.phase": supported values: "metadata.name", "metadata.namespace", "metadata.uid", ',
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.gpu"}}}]},
            "env[0].valueFrom.resourceFieldRef.resource",
            UNKNOWN,
            'supported values: "limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu"',
        ),
        (
            {"envFrom": [{"configMapRef": {"name": "a"}, "secretRef": {"name": "b"}}]},
            "envFrom",
            INVALID,
            "may not have more than one field specified at a time",
        ),
        ({"envFrom": [{"configMapRef": {}}]}, "envFrom[0].configMapRef.name", REQUIRED, "Required value"),
        (
            {"ports": [{"containerPort": 80, "protocol": "ICMP"}]},
            "ports[0].protocol",
            UNKNOWN,
            'Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"',
        ),
        (
            {"ports": [{"containerPort": 80, "name": "much-too-long-1"}, {"containerPort": 81, "name": "A"}]},
            "ports[1].name",
            INVALID,
            '"A": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)',
        ),
        (
            {"ports": [{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}]},
            "ports[1].name",
            DUPLICATE,
            'Duplicate value: "a"',
        ),
        (
            {"ports": [{"containerPort": 80, "hostPort": 70000}]},
            "ports[0].hostPort",
            INVALID,
            "Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        ({"livenessProbe": {}}, "livenessProbe", REQUIRED, "must specify a handler type"),
        (
            {"livenessProbe": {"httpGet": {"port": 0}}},
            "livenessProbe.httpGet.port",
            INVALID,
            "must be between 1 and 65535, inclusive",
        ),
        (
            {"startupProbe": {"exec": {"command": []}}},
            "startupProbe.exec.command",
            REQUIRED,
            "Required value",
        ),
        (
            {"readinessProbe": {"httpGet": {"port": 80, "scheme": "FTP"}}},
            "readinessProbe.httpGet.scheme",
            UNKNOWN,
            'Unsupported value: "FTP": supported values: "HTTP", "HTTPS"',
        ),
        (
            {"readinessProbe": {**HTTP, "terminationGracePeriodSeconds": 5}},
            "readinessProbe.terminationGracePeriodSeconds",
            INVALID,
            "must not be set for readinessProbes",
        ),
        ({"lifecycle": {"preStop": {}}}, "lifecycle.preStop", REQUIRED, "must specify a handler type"),
        (
            {"resources": {"requests": {"nvidia.com/gpu": "1"}}},
            "resources.limits",
            REQUIRED,
            "Limit must be set for non overcommitable resources",
        ),
        (
            {"resources": {"limits": {"nvidia.com/gpu": "1500m"}}},
            "resources.limits[nvidia.com/gpu]",
            INVALID,
            "must be an integer",
        ),
        (
            {"resources": {"limits": {"gpu": "1"}}},
            "resources.limits[gpu]",
            INVALID,
            "must be a standard resource for containers",
        ),
        (
            {"securityContext": {"runAsUser": -1}},
            "securityContext.runAsUser",
            INVALID,
            "must be between 0 and 2147483647, inclusive",
        ),
        (
            {"securityContext": {"privileged": True, "allowPrivilegeEscalation": False}},
            "securityContext",
            INVALID,
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ),
        (
            {"restartPolicy": "Sometimes"},
            "restartPolicy",
            UNKNOWN,
            'supported values: "Always", "Never", "OnFailure"',
        ),
    ],
)
def test_containers(http: httpx.Client, body: Object, field: str, reason: str, message: str) -> None:
    # A limit is the request too where none is given: both are told.
    causes = refused(http, PODS, pod(body))
    assert next(each[:2] for each in causes if message in each[2]) == (f"{MAIN}.{field}", reason)


@pytest.mark.parametrize(
    ("spec", "field", "reason", "message"),
    [
        (
            {"restartPolicy": "Sometimes"},
            "restartPolicy",
            UNKNOWN,
            'Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"',
        ),
        ({"dnsPolicy": "None"}, "dnsConfig", REQUIRED, "must provide `dnsConfig` when `dnsPolicy` is None"),
        ({"hostname": "BAD_"}, "hostname", INVALID, "a lowercase RFC 1123 label must consist of"),
        ({"subdomain": "a.b"}, "subdomain", INVALID, 'Invalid value: "a.b": must not contain dots'),
        ({"nodeSelector": {"bad key": "x"}}, "nodeSelector", INVALID, "name part must consist of"),
        ({"nodeSelector": {"a": "bad value!"}}, "nodeSelector", INVALID, "a valid label must be an empty"),
        (
            {"tolerations": [{"key": "a", "operator": "Maybe"}]},
            "tolerations[0].operator",
            UNKNOWN,
            'Unsupported value: "Maybe": supported values: "Equal", "Exists"',
        ),
        (
            {"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]},
            "tolerations[0].operator",
            INVALID,
            "value must be empty when `operator` is 'Exists'",
        ),
        (
            {"tolerations": [{"operator": "Equal", "value": "x"}]},
            "tolerations[0].operator",
            INVALID,
            'operator must be Exists when `key` is empty, which means "match all values and all keys"',
        ),
        (
            {"tolerations": [{"key": "a", "effect": "X"}]},
            "tolerations[0].effect",
            UNKNOWN,
            'supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"',
        ),
        (
            {"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 5}]},
            "tolerations[0].effect",
            INVALID,
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        ),
        (
            {"initContainers": [{"name": "i", "image": "x", "livenessProbe": HTTP}]},
            "initContainers[0].livenessProbe",
            FORBIDDEN,
            "may not be set for init containers without restartPolicy=Always",
        ),
        (
            {"initContainers": [{"name": "main", "image": "x"}]},
            "initContainers[0].name",
            DUPLICATE,
            'Duplicate value: "main"',
        ),
        (
            {"ephemeralContainers": [{"name": "e", "image": "x"}]},
            "ephemeralContainers",
            FORBIDDEN,
            "cannot be set on create",
        ),
        (
            {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}},
            "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
            REQUIRED,
            "must have at least one node selector term",
        ),
        (
            {
                "topologySpreadConstraints": [
                    {"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}
                ]
            },
            "topologySpreadConstraints[0].maxSkew",
            INVALID,
            "Invalid value: 0: must be greater than zero",
        ),
    ],
)
def test_pods(http: httpx.Client, spec: Object, field: str, reason: str, message: str) -> None:
    causes = refused(http, PODS, pod(**spec))
    assert [each[:2] for each in causes if message in each[2]] == [(f"spec.{field}", reason)]


@pytest.mark.parametrize(
    ("source", "field", "reason", "message"),
    [
        ({"hostPath": {"path": "/a/../b"}}, "hostPath.path", INVALID, "must not contain '..'"),
        ({"hostPath": {}}, "hostPath.path", REQUIRED, "Required value"),
        (
            {"hostPath": {"path": "/x", "type": "Nope"}},
            "hostPath.type",
            UNKNOWN,
            'supported values: "", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", ',
        ),
        (
            {"configMap": {"name": "a", "defaultMode": 1000}},
            "configMap.defaultMode",
            INVALID,
            "Invalid value: 1000: must be a number between 0 and 0777 (octal), both inclusive",
        ),
        ({"secret": {}}, "secret.secretName", REQUIRED, "Required value"),
        (
            {"configMap": {"name": "a", "items": [{"key": "a", "path": "/abs"}]}},
            "configMap.items[0].path",
            INVALID,
            'Invalid value: "/abs": must be a relative path',
        ),
        (
            {"downwardAPI": {"items": [{"path": "a"}]}},
            "downwardAPI",
            REQUIRED,
            "one of fieldRef and resourceFieldRef is required",
        ),
        (
            {"projected": {"sources": [{"configMap": {"items": [{"key": "a", "path": "../a"}]}}]}},
            "projected.sources[0].configMap.items[0].path",
            INVALID,
            "must not contain '..'",
        ),
    ],
)
def test_volumes(http: httpx.Client, source: Object, field: str, reason: str, message: str) -> None:
    causes = refused(http, PODS, volume(**source))
    assert [each[:2] for each in causes if message in each[2]] == [(f"spec.volumes[0].{field}", reason)]


@pytest.mark.parametrize(
    ("body", "field", "reason", "message"),
    [
        (job(completionMode="X"), "completionMode", UNKNOWN, 'supported values: "NonIndexed", "Indexed"'),
        (
            job(podReplacementPolicy="X"),
            "podReplacementPolicy",
            UNKNOWN,
            'supported values: "Failed", "TerminatingOrFailed"',
        ),
        (
            {**codes(1), "spec": {**codes(1)["spec"], "podReplacementPolicy": "TerminatingOrFailed"}},
            "podReplacementPolicy",
            UNKNOWN,
            'Unsupported value: "TerminatingOrFailed": supported values: "Failed"',
        ),
        (
            job(backoffLimitPerIndex=1),
            "backoffLimitPerIndex",
            INVALID,
            "Invalid value: 1: requires indexed completion mode",
        ),
        (
            indexed(maxFailedIndexes=1),
            "backoffLimitPerIndex",
            REQUIRED,
            "when maxFailedIndexes is specified",
        ),
        (
            indexed(maxFailedIndexes=4, backoffLimitPerIndex=1),
            "maxFailedIndexes",
            INVALID,
            "must be less than or equal to completions",
        ),
        (
            indexed(parallelism=200_000),
            "parallelism",
            INVALID,
            "must be less than or equal to 100000 when completion mode is Indexed",
        ),
        (job(selector={"matchLabels": {"a": "b"}}), "selector", INVALID, "`selector` not auto-generated"),
        (
            job(manualSelector=True, selector={"matchLabels": {"a": "b"}}),
            "template.metadata.labels",
            INVALID,
            "`selector` does not match template `labels`",
        ),
        (job(manualSelector=True), "selector", REQUIRED, "Required value"),
        (
            codes(),
            "podFailurePolicy.rules[0].onExitCodes.values",
            INVALID,
            "Invalid value: []: at least one value is required",
        ),
        (codes(2, 1), "podFailurePolicy.rules[0].onExitCodes.values", INVALID, "[2,1]: must be ordered"),
        (codes(1, 1), "podFailurePolicy.rules[0].onExitCodes.values[1]", DUPLICATE, "Duplicate value: 1"),
        (
            codes(1, operator="Like"),
            "podFailurePolicy.rules[0].onExitCodes.operator",
            UNKNOWN,
            'Unsupported value: "Like": supported values: "In", "NotIn"',
        ),
        (
            codes(1, containerName="other"),
            "podFailurePolicy.rules[0].onExitCodes.containerName",
            INVALID,
            '"other": must be one of the container or initContainer names in the pod template',
        ),
        (
            rule(),
            "podFailurePolicy.rules[0]",
            INVALID,
            "Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
        ),
        (
            rule(onPodConditions=[{"type": "A", "status": "Maybe"}]),
            "podFailurePolicy.rules[0].onPodConditions[0].status",
            UNKNOWN,
            'supported values: "False", "True", "Unknown"',
        ),
        (
            job(successPolicy={"rules": [{"succeededCount": 1}]}),
            "successPolicy",
            INVALID,
            "requires indexed completion mode",
        ),
        (
            indexed(successPolicy={"rules": [{}]}),
            "successPolicy.rules[0]",
            REQUIRED,
            "at least one of succeededCount or succeededIndexes must be specified",
        ),
        (
            indexed(successPolicy={"rules": [{"succeededIndexes": "2-9"}]}),
            "successPolicy.rules[0].succeededIndexes",
            INVALID,
            "error parsing succeededIndexes: too large index",
        ),
        (
            indexed(successPolicy={"rules": [{"succeededIndexes": "0-1", "succeededCount": 3}]}),
            "successPolicy.rules[0].succeededCount",
            INVALID,
            "must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)",
        ),
        (
            job(managedBy="bad"),
            "managedBy",
            INVALID,
            '"bad": must be a domain-prefixed path (such as "acme.io/foo")',
        ),
        (
            job({"ephemeralContainers": [{"name": "e", "image": "x"}]}),
            "template.spec.ephemeralContainers",
            FORBIDDEN,
            "ephemeral containers not allowed in pod template",
        ),
    ],
)
def test_jobs(http: httpx.Client, body: Object, field: str, reason: str, message: str) -> None:
    causes = refused(http, JOBS, body)
    assert [each[:2] for each in causes if message in each[2]] == [(f"spec.{field}", reason)]


def test_an_indexed_jobs_name_is_part_of_host_names(http: httpx.Client) -> None:
    body = {**indexed(), "metadata": {"name": "with.dots"}}
    [(field, reason, message)] = refused(http, JOBS, body)
    assert (field, reason) == ("metadata.name", INVALID)
    assert message.endswith("will not able to create pod with invalid DNS label: with.dots-2")


@pytest.mark.parametrize(
    ("path", "body", "field", "reason", "message"),
    [
        (
            DEPLOYMENTS,
            deployment(strategy={"type": "X"}),
            "spec.strategy.type",
            UNKNOWN,
            'supported values: "Recreate", "RollingUpdate"',
        ),
        (
            DEPLOYMENTS,
            rolling(maxSurge=-1),
            "spec.strategy.rollingUpdate.maxSurge",
            INVALID,
            "Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            DEPLOYMENTS,
            rolling(maxSurge="many"),
            "spec.strategy.rollingUpdate.maxSurge",
            INVALID,
            "a valid percent string must be a numeric string followed by an ending '%'",
        ),
        (
            DEPLOYMENTS,
            rolling(maxUnavailable="150%"),
            "spec.strategy.rollingUpdate.maxUnavailable",
            INVALID,
            'Invalid value: "150%": must not be greater than 100%',
        ),
        (
            DEPLOYMENTS,
            deployment({"activeDeadlineSeconds": 5}),
            "spec.template.spec.activeDeadlineSeconds",
            FORBIDDEN,
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ),
        (
            DEPLOYMENTS,
            deployment(selector={"matchExpressions": [{"key": "app", "operator": "Like"}]}),
            "spec.selector.matchExpressions[0].operator",
            INVALID,
            '"Like": not a valid selector operator',
        ),
        (
            DEPLOYMENTS,
            deployment(selector={}),
            "spec.selector",
            INVALID,
            "empty selector is invalid for deployment",
        ),
        (
            SERVICES,
            service(ports=[{"port": 80, "targetPort": 70000}]),
            "spec.ports[0].targetPort",
            INVALID,
            "65535",
        ),
        (
            SERVICES,
            service(ports=[{"port": 80, "targetPort": "sixteen-letters1"}]),
            "spec.ports[0].targetPort",
            INVALID,
            "must be no more than 15 bytes",
        ),
        (
            SERVICES,
            service(ports=[{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]),
            "spec.ports[1]",
            DUPLICATE,
            "Duplicate value",
        ),
        (
            SERVICES,
            service(sessionAffinity="X"),
            "spec.sessionAffinity",
            UNKNOWN,
            'supported values: "ClientIP", "None"',
        ),
        (
            SERVICES,
            service(clusterIP="999.1.1.1"),
            "spec.clusterIPs[0]",
            INVALID,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (SERVICES, service(externalIPs=["x"]), "spec.externalIPs[0]", INVALID, "must be a valid IP address"),
        (SERVICES, service(type="ExternalName"), "spec.externalName", REQUIRED, "Required value"),
        (
            SERVICES,
            service(ports=[{"port": 80, "nodePort": 30000}]),
            "spec.ports[0].nodePort",
            FORBIDDEN,
            "may not be used when `type` is 'ClusterIP'",
        ),
        (
            SECRETS,
            named(type="kubernetes.io/tls", data={"tls.crt": ""}),
            "data[tls.key]",
            REQUIRED,
            "Required value",
        ),
        (
            SECRETS,
            named(type="kubernetes.io/dockerconfigjson", data={".dockerconfigjson": "eA=="}),
            "data[.dockerconfigjson]",
            INVALID,
            "\"<secret contents redacted>\": invalid character 'x' looking for beginning of value",
        ),
        (SECRETS, named(type="kubernetes.io/ssh-auth"), "data[ssh-privatekey]", REQUIRED, "Required value"),
        (
            SECRETS,
            named(type="kubernetes.io/service-account-token"),
            "metadata.annotations[kubernetes.io/service-account.name]",
            REQUIRED,
            "Required value",
        ),
        (
            CONFIGMAPS,
            named(data={"a": "x"}, binaryData={"a": "YQ=="}),
            "data[a]",
            INVALID,
            "duplicate of key present in binaryData",
        ),
        (
            CONFIGMAPS,
            {"metadata": {"name": "wrong", "finalizers": ["hold"]}},
            "metadata.finalizers[0]",
            INVALID,
            '"hold": name is neither a standard finalizer name nor is it fully qualified',
        ),
        (
            CONFIGMAPS,
            {"metadata": {"name": "wrong", "generateName": "Bad_"}},
            "metadata.generateName",
            INVALID,
            "a lowercase RFC 1123 subdomain must consist of",
        ),
        (SLICES, slice_of("X", "a"), "addressType", UNKNOWN, 'supported values: "FQDN", "IPv4", "IPv6"'),
        (
            SLICES,
            slice_of("IPv4", "127.0.0.1", "::1"),
            "endpoints[0].addresses[1]",
            INVALID,
            'Invalid value: "::1": must be a valid IPv4 address',
        ),
        (SLICES, slice_of("IPv4"), "endpoints[0].addresses", REQUIRED, "must contain at least 1 address"),
    ],
)
def test_other_kinds(
    http: httpx.Client, path: str, body: Object, field: str, reason: str, message: str
) -> None:
    causes = refused(http, path, body)
    assert [each[:2] for each in causes if message in each[2]] == [(field, reason)]


def test_basic_auth_has_a_name_or_a_password(http: httpx.Client) -> None:
    causes = refused(http, SECRETS, named(type="kubernetes.io/basic-auth"))
    assert [each[:2] for each in causes] == [("data[username]", REQUIRED), ("data[password]", REQUIRED)]
    body = {"metadata": {"name": "basic"}, "type": "kubernetes.io/basic-auth", "data": {"password": ""}}
    assert http.post(SECRETS, json=body).status_code == 201


def test_owners_are_named_without_an_index(http: httpx.Client) -> None:
    body = {"metadata": {"name": "wrong", "ownerReferences": [{"kind": "Job", "name": "x"}]}}
    fields = {field: (reason, message) for field, reason, message in refused(http, CONFIGMAPS, body)}
    empty = (INVALID, 'Invalid value: "": must not be empty')
    assert fields == {f"metadata.ownerReferences.{name}": empty for name in ("apiVersion", "uid")}


@pytest.mark.parametrize(
    ("path", "body", "shown"),
    [
        (SERVICES, service(ports=[{"port": 80, "targetPort": []}]), "array"),
        (SERVICES, service(ports=[{"port": 80, "targetPort": {}}]), "object"),
        (SERVICES, service(ports=[{"port": 80, "targetPort": 1.5}]), "number 1.5"),
        (SERVICES, service(ports=[{"port": 80, "targetPort": True}]), "bool"),
        (PODS, pod({"livenessProbe": {"tcpSocket": {"port": {}}}}), "object"),
        (DEPLOYMENTS, rolling(maxSurge=[]), "array"),
    ],
)
def test_what_is_neither_a_number_nor_a_text_is_a_bad_request(
    http: httpx.Client, path: str, body: Object, shown: str
) -> None:
    answer = http.post(path, json=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
    wrong = f"json: cannot unmarshal {shown} into Go value of type int32"
    assert answer.json()["message"].endswith(wrong)


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
        (JOBS, indexed(successPolicy={"rules": [{"succeededIndexes": "0,2", "succeededCount": 1}]})),
        (JOBS, codes(1, 2, containerName="main")),
        (DEPLOYMENTS, rolling(maxSurge="200%", maxUnavailable=0)),
        (SERVICES, service(ports=[{"port": 80, "targetPort": "http"}, {"port": 80, "protocol": "UDP"}])),
        (SERVICES, service(type="ExternalName", externalName="example.com.", ports=[])),
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
