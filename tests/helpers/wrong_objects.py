"""Manifests with something wrong in them, and what the API says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
