"""Refusals, in the form the Kubernetes API gives them: a ``Status`` object with code, reason and details."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nighttrain.providers.local.cluster.store.resources import ResourceType

MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing wrong with one field of an object.

    :param reason: ``FieldValueInvalid``, ``FieldValueRequired`` and the like
    :param field: path as the API writes it, for example ``spec.template.spec.containers[0].image``
    """

    reason: str
    message: str
    field: str

    def to_dict(self) -> dict[str, str]:
        return {"reason": self.reason, "message": self.message, "field": self.field}


def invalid_value(field: str, value: object, why: str) -> Cause:
    return Cause("FieldValueInvalid", f"Invalid value: {_shown(value)}: {why}", field)


def required_value(field: str, why: str = "") -> Cause:
    return Cause("FieldValueRequired", f"Required value: {why}" if why else "Required value", field)


def unsupported_value(field: str, value: object, allowed: Sequence[object]) -> Cause:
    """:param allowed: in the order in which the API names them"""
    choices = ", ".join(map(_shown, allowed))
    message = f"Unsupported value: {_shown(value)}: supported values: {choices}"
    return Cause("FieldValueNotSupported", message, field)


def duplicate_value(field: str, value: object) -> Cause:
    return Cause("FieldValueDuplicate", f"Duplicate value: {_shown(value)}", field)


def forbidden_value(field: str, why: str) -> Cause:
    return Cause("FieldValueForbidden", f"Forbidden: {why}", field)


def _shown(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


class ApiError(Exception):
    """A refusal. :meth:`status` is what goes over the wire.

    :param code: HTTP status
    :param reason: the API's word for it, for example ``NotFound``
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.headers = headers or {}

    def status(self) -> dict[str, Any]:
        """The ``Status`` object."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.code
        return body


def details_of(resource: ResourceType, name: str = "", *, kind: str = "") -> dict[str, Any]:
    details: dict[str, Any] = {}
    if name:
        details["name"] = name
    if resource.group:
        details["group"] = resource.group
    details["kind"] = kind or resource.plural
    return details


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def not_found(resource: ResourceType, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{resource.qualified} "{name}" not found', details_of(resource, name))


def already_exists(resource: ResourceType, name: str) -> ApiError:
    message = f'{resource.qualified} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, details_of(resource, name))


def conflict(resource: ResourceType, name: str, why: str = MODIFIED) -> ApiError:
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return ApiError(409, "Conflict", message, details_of(resource, name))


def precondition_failed(resource: ResourceType, name: str, field: str, wanted: str, actual: str) -> ApiError:
    happened = "deleted and then recreated" if field == "UID" else "modified"
    message = (
        f'Operation cannot be fulfilled on {resource.qualified_kind} "{name}": the {field} in the '
        f"precondition ({wanted}) does not match the {field} in record ({actual}). "
        f"The object might have been {happened}"
    )
    return ApiError(409, "Conflict", message, details_of(resource, name, kind=resource.kind))


def invalid(resource: ResourceType, name: str, causes: list[Cause]) -> ApiError:
    """422 with every cause; the message repeats them as the API does: one bare, several in brackets."""
    # The API folds equal sentences in the message, and lists each of them in the details.
    sentences = list(dict.fromkeys(f"{cause.field}: {cause.message}" for cause in causes))
    text = sentences[0] if len(sentences) == 1 else "[" + ", ".join(sentences) + "]"
    details = details_of(resource, name, kind=resource.kind)
    details["causes"] = [cause.to_dict() for cause in causes]
    return ApiError(422, "Invalid", f'{resource.qualified_kind} "{name}" is invalid: {text}', details)


def invalid_options(kind: str, cause: Cause) -> ApiError:
    """422 about a request's own parameters. :param kind: ``ListOptions`` and the like"""
    message = f'{kind}.meta.k8s.io "" is invalid: {cause.field}: {cause.message}'
    details = {"group": "meta.k8s.io", "kind": kind, "causes": [cause.to_dict()]}
    return ApiError(422, "Invalid", message, details)


def forbidden(resource: ResourceType, name: str, why: str) -> ApiError:
    named = f'{resource.qualified} "{name}"' if name else resource.qualified
    return ApiError(403, "Forbidden", f"{named} is forbidden: {why}", details_of(resource, name))


def expired(since: int, oldest: int) -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {since} ({oldest})")


def expired_list() -> ApiError:
    """A list at a version that is not kept any more."""
    return ApiError(410, "Expired", "The resourceVersion for the provided list is too old.")


def from_the_future(revision: int, current: int) -> ApiError:
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Timeout: Too large resource version: {revision}, current: {current}"
    return ApiError(504, "Timeout", message, details, {"Retry-After": "1"})


def method_not_allowed(
    message: str = "the server does not allow this method on the requested resource",
) -> ApiError:
    return ApiError(405, "MethodNotAllowed", message, {})


def unsupported_media_type(message: str = "415: Unsupported Media Type") -> ApiError:
    return ApiError(415, "UnsupportedMediaType", message, {})


def not_implemented(message: str) -> ApiError:
    """501 with a sentence: what the embedded cluster does not do, it refuses."""
    return ApiError(501, "NotImplemented", message, {})
