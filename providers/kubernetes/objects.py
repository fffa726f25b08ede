"""Reading Jobs, pods and events as they come: any field may be absent, null or of a surprising type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

Json = dict[str, Any]
TERMINAL_PHASES = frozenset({"Succeeded", "Failed"})
DEFAULT_CONTAINER_ANNOTATION = "kubectl.kubernetes.io/default-container"


def mapping(value: object) -> Json:
    """``value`` if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Json]:
    """The mappings in ``value`` if it is a list, else none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    """``value`` if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def whole(value: object) -> int | None:
    """``value`` if it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def metadata(obj: object) -> Json:
    return mapping(mapping(obj).get("metadata"))


def status(obj: object) -> Json:
    return mapping(mapping(obj).get("status"))


def name_of(obj: object) -> str:
    return text(metadata(obj).get("name"))


def uid_of(obj: object) -> str:
    return text(metadata(obj).get("uid"))


def is_deleting(obj: object) -> bool:
    return bool(metadata(obj).get("deletionTimestamp"))


def condition(obj: object, kind: str) -> Json | None:
    """The condition of this type whose status is "True"."""
    for entry in items(status(obj).get("conditions")):
        if entry.get("type") == kind and entry.get("status") == "True":
            return entry
    return None


def any_condition(obj: object, kind: str) -> Json:
    """The condition of this type whatever its status; empty if there is none."""
    for entry in items(status(obj).get("conditions")):
        if entry.get("type") == kind:
            return entry
    return {}


@dataclass(frozen=True)
class Container:
    """One container's status, flattened."""

    name: str
    init: bool
    state: str
    reason: str
    message: str
    exit_code: int | None
    started_at: str
    finished_at: str
    image: str
    image_id: str

    @property
    def failed(self) -> bool:
        return self.state == "terminated" and self.exit_code != 0


def containers(pod: object) -> list[Container]:
    """Init containers first, in the order of the status."""
    found = [_container(entry, init=True) for entry in items(status(pod).get("initContainerStatuses"))]
    return found + [_container(entry, init=False) for entry in items(status(pod).get("containerStatuses"))]


def _container(entry: Json, *, init: bool) -> Container:
    state = mapping(entry.get("state"))
    kind = next(
        (name for name in ("terminated", "running", "waiting") if isinstance(state.get(name), dict)), ""
    )
    detail = mapping(state.get(kind))
    return Container(
        name=text(entry.get("name")),
        init=init,
        state=kind,
        reason=text(detail.get("reason")),
        message=text(detail.get("message")),
        exit_code=whole(detail.get("exitCode")) if kind == "terminated" else None,
        started_at=text(detail.get("startedAt")),
        finished_at=text(detail.get("finishedAt")),
        image=text(entry.get("image")),
        image_id=text(entry.get("imageID")),
    )


def main_container(pod: object) -> Container | None:
    """The container that decides: the annotated one, else the first that is no init container."""
    wanted = text(mapping(metadata(pod).get("annotations")).get(DEFAULT_CONTAINER_ANNOTATION))
    plain = [container for container in containers(pod) if not container.init]
    return next((container for container in plain if container.name == wanted), plain[0] if plain else None)


def culprit(pod: object) -> Container | None:
    """The container that explains a pod's end: the one that failed, the main one before others."""
    main = main_container(pod)
    if main is not None and main.failed:
        return main
    return next((container for container in containers(pod) if container.failed), main)


def by_age(pods: Iterable[object]) -> list[Json]:
    """Oldest first; the name breaks ties, because creation times have whole seconds."""
    known = [pod for pod in pods if isinstance(pod, dict)]
    return sorted(known, key=lambda pod: (text(metadata(pod).get("creationTimestamp")), name_of(pod)))


def concerns(event: Json, obj: object) -> bool:
    """Whether an event is about this very object."""
    about = mapping(event.get("involvedObject")) or mapping(event.get("regarding"))
    return bool(uid_of(obj)) and about.get("uid") == uid_of(obj)


def event_text(event: Json) -> str:
    return text(event.get("message")) or text(event.get("note"))
