"""Label and field selectors: parsed once, then matched against many objects."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.store.errors import ApiError, bad_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.local.cluster.store.resources import ResourceType

_TOKEN = re.compile(r"\s*(==|!=|=|!|\(|\)|,|[^\s=!(),]+)")
_LABEL_KEY = re.compile(r"^([a-z0-9A-Z.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_EXPECTED = "in, notin, =, ==, !="

# What clients may filter by, besides name and namespace, which every kind has.
_FIELDS: dict[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    "events": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    "jobs": ("status.successful",),
    "namespaces": ("status.phase",),
    "nodes": ("spec.unschedulable",),
    "replicasets": ("status.replicas",),
    "secrets": ("type",),
    "services": ("spec.clusterIP", "spec.type"),
}


class Operator(enum.StrEnum):
    """What a label selector asks of a key; the values are the words of ``matchExpressions``."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    ABSENT = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """``key operator values``."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case Operator.IN:
                return value is not None and value in self.values
            case Operator.NOT_IN:
                return value is None or value not in self.values
            case Operator.EXISTS:
                return value is not None
            case Operator.ABSENT:
                return value is None


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All requirements must hold; none of them matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, obj: Mapping[str, Any]) -> bool:
        return self.matches_labels(obj["metadata"].get("labels") or {})

    def matches_labels(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)

    @classmethod
    def equal(cls, labels: Mapping[str, str]) -> LabelSelector:
        """``labels`` as they are in ``matchLabels`` or in a Service's selector."""
        return cls(tuple(Requirement(key, Operator.IN, (value,)) for key, value in labels.items()))

    @classmethod
    def from_object(cls, selector: Mapping[str, Any] | None) -> LabelSelector:
        """The ``matchLabels`` + ``matchExpressions`` form of Jobs, ReplicaSets and Deployments."""
        if not selector:
            return cls()
        found = list(cls.equal(selector.get("matchLabels") or {}).requirements)
        for item in selector.get("matchExpressions") or []:
            operator = item.get("operator")
            if operator not in list(Operator):
                raise bad_request(f'"{operator}" is not a valid label selector operator')
            values = tuple(item.get("values") or ())
            found.append(Requirement(str(item["key"]), Operator(operator), values))
        return cls(tuple(found))

    @classmethod
    def parse(cls, text: str) -> LabelSelector:
        """The form of a query: ``a=b,c!=d,e in (f,g),h,!i``.

        :raises ApiError: 400 with the API's sentence
        """
        tokens = _TOKEN.findall(text)
        found = []
        position = 0
        while position < len(tokens):
            requirement, position = _requirement(tokens, position)
            found.append(requirement)
            if position < len(tokens):
                if tokens[position] != ",":
                    raise _unexpected(tokens[position], "',' or 'end of string'")
                position += 1
        return cls(tuple(found))


def _requirement(tokens: list[str], position: int) -> tuple[Requirement, int]:
    def at(index: int) -> str:
        return tokens[index] if index < len(tokens) else ""

    if at(position) == "!":
        return Requirement(_key(at(position + 1)), Operator.ABSENT), position + 2
    key = _key(at(position))
    operator = at(position + 1)
    if operator in ("", ","):
        return Requirement(key, Operator.EXISTS), position + 1
    if operator in ("=", "==", "!="):
        value = at(position + 2)
        end = position + 3
        if value in ("", ","):
            value, end = "", position + 2
        asked = Operator.NOT_IN if operator == "!=" else Operator.IN
        return Requirement(key, asked, (value,)), end
    if operator in ("in", "notin"):
        asked = Operator.IN if operator == "in" else Operator.NOT_IN
        return _set_requirement(key, asked, tokens, position + 2)
    raise _unexpected(operator, _EXPECTED)


def _set_requirement(
    key: str, operator: Operator, tokens: list[str], position: int
) -> tuple[Requirement, int]:
    if position >= len(tokens) or tokens[position] != "(":
        found = tokens[position] if position < len(tokens) else ""
        raise bad_request(f"unable to parse requirement: found '{found}' expected: '('")
    try:
        end = tokens.index(")", position)
    except ValueError:
        raise bad_request("unable to parse requirement: found '', expected: ',', or ')'") from None
    values = tuple(token for token in tokens[position + 1 : end] if token != ",")
    return Requirement(key, operator, values), end + 1


def _unexpected(token: str, expected: str) -> ApiError:
    return bad_request(f"unable to parse requirement: found '{token}', expected: {expected}")


def _key(token: str) -> str:
    if not _LABEL_KEY.match(token):
        raise bad_request(
            f"unable to parse requirement: found '{token}', expected: !, identifier, or 'end of string'"
        )
    return token


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """True if an object's selector matches the labels; one that is wrong is refused elsewhere."""
    try:
        return LabelSelector.from_object(selector).matches_labels(labels)
    except (ApiError, KeyError):
        return True


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """``path=value`` terms over a fixed set of paths; all must hold."""

    terms: tuple[tuple[tuple[str, ...], str, bool], ...] = ()

    def matches(self, obj: Mapping[str, Any]) -> bool:
        return all((_field(obj, path) == value) is equal for path, value, equal in self.terms)

    @property
    def name(self) -> str | None:
        """The object's name, if the selector asks for exactly one: a list need not look at the others."""
        for path, value, equal in self.terms:
            if equal and path == ("metadata", "name"):
                return value
        return None

    @classmethod
    def parse(cls, text: str, resource: ResourceType) -> FieldSelector:
        """:raises ApiError: 400 for a path that the kind does not support"""
        known = ("metadata.name", "metadata.namespace", *_FIELDS.get(resource.plural, ()))
        terms = []
        for term in filter(None, (part.strip() for part in text.split(","))):
            match = re.match(r"^([^=!]+)(==|!=|=)(.*)$", term)
            if not match:
                raise bad_request(f"invalid selector: '{term}'; can't understand '{term}'")
            path, operator, value = match.groups()
            if path not in known:
                shown = ", ".join(f'"{name}"' for name in known)
                raise bad_request(f'"{path}" is not a known field selector: only {shown}')
            terms.append((tuple(path.split(".")), value, operator != "!="))
        return cls(tuple(terms))


def _field(obj: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """The field as text; absent is the empty string, as the API compares it."""
    if path == ("source",):
        return str((obj.get("source") or {}).get("component") or obj.get("reportingComponent") or "")
    if path == ("status", "successful"):
        path = ("status", "succeeded")
    value: Any = obj
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            return "0" if path[-1] in ("succeeded", "replicas") else _absent(path)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _absent(path: tuple[str, ...]) -> str:
    return "false" if path[-1] in ("unschedulable", "hostNetwork") else ""
