"""The rules for Services, Secrets, EndpointSlices, PriorityClasses and ResourceQuotas."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.rules import validation_names as names
from nighttrain.providers.local.cluster.rules.validation_pods import amount_sentences, is_extended
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    duplicate_value,
    forbidden_value,
    invalid_value,
    required_value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Object = dict[str, Any]

_IMMUTABLE = "field is immutable"

# The largest priority that is not the system's, and the two classes that are.
_HIGHEST_PRIORITY = 1_000_000_000
_SYSTEM_CLASSES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}

_MOST_ADDRESSES = 100

_QUOTA_NAMES = frozenset(
    (
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.storage",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "persistentvolumeclaims",
        "configmaps",
        "services.nodeports",
        "services.loadbalancers",
    )
)
# Those that do not count things.
_AMOUNTS = re.compile(r"(.*\.)?(cpu|memory|storage|ephemeral-storage)")

# What a Secret of a type must have.
_SECRET_KEYS: dict[str, tuple[str, ...]] = {
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
_JSON_KEYS = (".dockercfg", ".dockerconfigjson")


def validate_service(service: Object, old: Object | None) -> Iterator[Cause]:
    spec = service["spec"]
    ports = spec.get("ports") or []
    if not ports and spec["type"] == "ClusterIP" and spec.get("clusterIP") != "None":
        yield required_value("spec.ports")
    numbers = [(port["protocol"], port.get("port")) for port in ports]
    titles = [port.get("name", "") for port in ports]
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        if "port" not in port:
            yield from (invalid_value(f"{path}.port", 0, why) for why in names.port_number(0))
        if len(ports) > 1 and not port.get("name"):
            yield required_value(f"{path}.name")
        elif port.get("name") in titles[:index] and port.get("name"):
            yield duplicate_value(f"{path}.name", port["name"])
        if numbers[index] in numbers[:index]:
            yield duplicate_value(path, {"protocol": port["protocol"], "port": port.get("port")})
        if port.get("nodePort"):
            why = "may not be used when `type` is 'ClusterIP'"
            yield forbidden_value(f"{path}.nodePort", why)
    for key, value in (spec.get("selector") or {}).items():
        yield from (invalid_value("spec.selector", key, why) for why in names.qualified_name(key))
        yield from (invalid_value("spec.selector", value, why) for why in names.label_value(value))
    if spec["type"] == "ExternalName":
        yield from _external_name(spec)
    else:
        yield from _cluster_ip(spec, (old or {}).get("spec", {}).get("clusterIP"))


def _external_name(spec: Object) -> Iterator[Cause]:
    name = spec.get("externalName", "")
    if not name:
        yield required_value("spec.externalName")
    else:
        end = name.removesuffix(".")
        yield from (invalid_value("spec.externalName", end, why) for why in names.subdomain(end))
    if spec.get("clusterIP"):
        yield forbidden_value("spec.clusterIPs[0]", "may not be set for ExternalName services")


def _cluster_ip(spec: Object, had: str | None) -> Iterator[Cause]:
    asked = spec.get("clusterIP") or ""
    if asked not in ("", "None"):
        yield from (invalid_value("spec.clusterIPs[0]", asked, why) for why in names.address(asked))
    if had and asked != had:
        yield invalid_value("spec.clusterIPs[0]", spec.get("clusterIPs"), _IMMUTABLE)


def validate_secret_type(secret: Object) -> Iterator[Cause]:
    """A Secret of a type that Kubernetes knows has what the type is for."""
    type_, data = secret.get("type", ""), secret.get("data") or {}
    for key in _SECRET_KEYS.get(type_, ()):
        path = f"data[{key}]"
        if key not in data or (key == "ssh-privatekey" and not data[key]):
            yield required_value(path)
        elif key in _JSON_KEYS:
            yield from _json_object(data[key], path)
    if type_ == "kubernetes.io/basic-auth" and not {"username", "password"} & set(data):
        yield from (required_value(f"data[{key}]") for key in ("username", "password"))
    account = "kubernetes.io/service-account.name"
    annotations = secret["metadata"].get("annotations") or {}
    if type_ == "kubernetes.io/service-account-token" and not annotations.get(account):
        yield required_value(f"metadata.annotations[{account}]")


def _json_object(encoded: str, path: str) -> Iterator[Cause]:
    hidden = "<secret contents redacted>"
    try:
        value = json.loads(base64.b64decode(encoded).decode(errors="replace"))
    except json.JSONDecodeError as error:
        what = error.doc[error.pos : error.pos + 1]
        why = f"invalid character '{what}' looking for beginning of value" if what else ""
        yield invalid_value(path, hidden, why or "unexpected end of JSON input")
    except RecursionError:
        yield invalid_value(path, hidden, "exceeded max depth")
    else:
        if not isinstance(value, dict | None):
            why = "json: cannot unmarshal into Go value of type map[string]interface {}"
            yield invalid_value(path, hidden, why)


def validate_endpoint_slice(piece: Object) -> Iterator[Cause]:
    for index, endpoint in enumerate(piece.get("endpoints") or ()):
        path = f"endpoints[{index}].addresses"
        addresses = endpoint.get("addresses") or []
        if not addresses:
            yield required_value(path, "must contain at least 1 address")
        if len(addresses) > _MOST_ADDRESSES:
            what = f"Too many: {len(addresses)}: must have at most {_MOST_ADDRESSES} items"
            yield Cause("FieldValueTooMany", what, path)
        for at, text in enumerate(addresses):
            yield from (
                invalid_value(f"{path}[{at}]", text, why) for why in _address(piece.get("addressType"), text)
            )


def _address(type_: object, text: str) -> list[str]:
    """Loopback addresses are refused by a real cluster. Here all are."""
    if type_ == "FQDN":
        return names.subdomain(text.removesuffix("."))
    if type_ not in ("IPv4", "IPv6"):
        return []
    wrong = bool(names.address(text))
    fitting = not wrong and (":" in text) is (type_ == "IPv6")
    return [] if fitting else [f"must be a valid {type_} address"]


def validate_priority_class(class_: Object, old: Object | None) -> Iterator[Cause]:
    name, value = class_["metadata"].get("name", ""), class_.get("value", 0)
    if name.startswith("system-"):
        if _SYSTEM_CLASSES.get(name) != value:
            why = (
                "priority class names with 'system-' prefix are reserved for system use only. error: "
                f"{name} is not a known system priority class"
            )
            yield forbidden_value("metadata.name", why)
    elif value > _HIGHEST_PRIORITY:
        why = f"maximum allowed value of a user defined priority is {_HIGHEST_PRIORITY}"
        yield forbidden_value("value", why)
    if old is not None and value != old.get("value", 0):
        yield forbidden_value("value", "may not be changed in an update.")
    if old is not None and class_.get("preemptionPolicy") != old.get("preemptionPolicy"):
        yield invalid_value("preemptionPolicy", class_.get("preemptionPolicy"), _IMMUTABLE)


def validate_quota(quota: Object) -> Iterator[Cause]:
    for name, amount in ((quota.get("spec") or {}).get("hard") or {}).items():
        path = f"spec.hard[{name}]"
        yield from (invalid_value(path, name, why) for why in _quota_name(name))
        whole = _counts(name) or is_extended(name)
        yield from (invalid_value(path, amount, why) for why in amount_sentences(amount, whole=whole))


def _counts(name: str) -> bool:
    return name in _QUOTA_NAMES and not _AMOUNTS.fullmatch(name)


def _quota_name(name: str) -> list[str]:
    found = names.qualified_name(name)
    if (
        "/" not in name
        and name not in _QUOTA_NAMES
        and not name.startswith(("hugepages-", "requests.hugepages-"))
    ):
        found += [
            "must be a standard resource type or fully qualified",
            "must be a standard resource for quota",
        ]
    return found
