"""The API's refusals as errors of this project: what was asked, what the server said, what to do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ClusterError,
    ClusterForbiddenError,
    ClusterRequestError,
    ClusterUnauthorizedError,
    ObjectConflictError,
    ObjectExistsError,
    ObjectInvalidError,
    ObjectNotFoundError,
    WatchExpiredError,
    clip,
)

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.calls import Asked

DOCS = "docs/use-a-real-cluster.md"
WRITES = frozenset({"create", "update", "patch"})
INVALID_REMEDY = "Correct the field that it names: the same object is refused however often it is sent"


def parse_status(body: bytes | str) -> dict[str, Any]:
    """The Status object of an answer; an answer in another form becomes its message."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    try:
        status = json.loads(text)
    except ValueError:
        return {"message": clip(text.strip(), 300)}
    return status if isinstance(status, dict) else {"message": clip(text.strip(), 300)}


def to_error(asked: Asked, code: int, status: dict[str, Any]) -> ClusterError:
    """The error that fits an answer outside 2xx, or an ERROR event of a watch.

    :param code: the HTTP status
    :param status: the Status object that the server answered
    """
    reason = str(status.get("reason") or "")
    said = clip(str(status.get("message") or "no message"), 1500)
    text = f"{asked}: {said} (HTTP {code}{f' {reason}' if reason else ''} from {asked.server})"
    if code == 401:
        return ClusterUnauthorizedError(
            f"{text}. The credentials are not accepted: renew the token or certificate of the connection"
        )
    if code == 403:
        return ClusterForbiddenError(f"{text}. {_forbidden_remedy(asked, said)}")
    if code == 404:
        return ObjectNotFoundError(text)
    if code == 409:
        return ObjectExistsError(text) if reason == "AlreadyExists" else ObjectConflictError(text)
    if code == 410:
        return WatchExpiredError(text)
    if code in (400, 422) and asked.verb in WRITES and status.get("kind") == "Status":
        return ObjectInvalidError(f"{text}. {INVALID_REMEDY}", status=code, reason=reason)
    return ClusterRequestError(text, status=code, reason=reason)


def _forbidden_remedy(asked: Asked, said: str) -> str:
    if "quota" in said:
        return "The namespace's quota leaves no room: free some, or ask for more"
    if "PodSecurity" in said:
        return 'The namespace enforces a Pod Security level: set pod_security="restricted"'
    where = f"in namespace {asked.namespace}" if asked.namespace else "at the cluster scope"
    return f"Grant {asked.verb} on {asked.what} {where}: {DOCS}"
