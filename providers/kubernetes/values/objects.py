"""Reading Jobs, pods and events as they come: any field may be absent, null or of a surprising type."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.identity import MAIN_CONTAINER_ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nighttrain.providers.plain_json import Json

TERMINAL_PHASES = frozenset({"Succeeded", "Failed"})
# kubectl's own convention, for pods that ours is not on.
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


def moment(stamp: str) -> float | None:
    """An RFC 3339 time in seconds since 1970; ``None`` if it is none."""
    try:
        when = datetime.fromisoformat(stamp) if stamp else None
    except ValueError:
        return None
    return when.timestamp() if when is not None and when.tzinfo is not None else None


def metadata(obj: object) -> Json:
    """The object's ``metadata``; empty if it has none."""
    return mapping(mapping(obj).get("metadata"))


def status(obj: object) -> Json:
    """The object's ``status``; empty if it has none."""
    return mapping(mapping(obj).get("status"))


def name_of(obj: object) -> str:
    """The object's name; empty if it has none."""
    return text(metadata(obj).get("name"))


def uid_of(obj: object) -> str:
    """The object's uid; empty if it has none."""
    return text(metadata(obj).get("uid"))


def is_deleting(obj: object) -> bool:
    """True once the object's deletion was asked for."""
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


class ContainerState(Enum):
    """The state of a container, named as its status names it; UNSEEN while the status says nothing."""

    TERMINATED = "terminated"
    RUNNING = "running"
    WAITING = "waiting"
    UNSEEN = ""


@dataclass(frozen=True)
class Container:
    """One container's status, flattened.

    :param init: it runs before the others, or beside them as a native sidecar
    :param native_sidecar: an init container that the kubelet itself ends after the others
    :param restarts: it has ended and will be started again
    """

    name: str
    init: bool
    state: ContainerState
    reason: str
    message: str
    exit_code: int | None
    started_at: str
    finished_at: str
    image: str
    image_id: str
    native_sidecar: bool = False
    restarts: bool = False

    @property
    def failed(self) -> bool:
        """True if it has ended otherwise than with exit code 0."""
        return self.state is ContainerState.TERMINATED and self.exit_code != 0

    @property
    def over(self) -> bool:
        """True once it has ended for good."""
        return self.state is ContainerState.TERMINATED and not self.restarts

    @property
    def began(self) -> bool:
        """True if its program ever ran, as far as the status tells."""
        unseen = (*CANNOT_START, NEVER_SEEN)
        return self.state is ContainerState.RUNNING or (
            self.state is ContainerState.TERMINATED and self.reason not in unseen
        )


# The runtime could not start the program: no such command, not executable, wrong architecture.
CANNOT_START = frozenset({"StartError", "ContainerCannotRun"})
# What a kubelet writes of a container of which it knows nothing: mostly one that never ran.
NEVER_SEEN = "ContainerStatusUnknown"


def containers(pod: object) -> list[Container]:
    """Init containers first, in the order of the status."""
    found = []
    for written, specified, init in (
        ("initContainerStatuses", "initContainers", True),
        ("containerStatuses", "containers", False),
    ):
        specs = {text(entry.get("name")): entry for entry in _specified(pod, specified)}
        for entry in items(status(pod).get(written)):
            found.append(_container(pod, entry, specs.get(text(entry.get("name")), {}), init=init))
    return found


def _specified(pod: object, field: str) -> list[Json]:
    return items(mapping(mapping(pod).get("spec")).get(field))


def _container(pod: object, entry: Json, spec: Json, *, init: bool) -> Container:
    written = mapping(entry.get("state"))
    state = next(
        (each for each in ContainerState if isinstance(written.get(each.value), dict)), ContainerState.UNSEEN
    )
    detail = mapping(written.get(state.value))
    ended = state is ContainerState.TERMINATED
    code = whole(detail.get("exitCode")) if ended else None
    return Container(
        name=text(entry.get("name")),
        init=init,
        state=state,
        reason=text(detail.get("reason")),
        message=text(detail.get("message")),
        exit_code=code,
        started_at=text(detail.get("startedAt")),
        finished_at=text(detail.get("finishedAt")),
        image=text(entry.get("image")),
        image_id=text(entry.get("imageID")),
        native_sidecar=init and spec.get("restartPolicy") == "Always",
        restarts=ended and _restarts(pod, spec, code),
    )


def _restarts(pod: object, spec: Json, code: int | None) -> bool:
    """Tell whether the kubelet starts an ended container again: its rules, its policy, then the pod's."""
    if is_deleting(pod) or text(status(pod).get("phase")) in TERMINAL_PHASES:
        return False
    for rule in items(spec.get("restartPolicyRules")):
        asked = mapping(rule.get("exitCodes"))
        values = asked.get("values")
        listed = isinstance(values, list) and code in values
        if asked.get("operator") == "In" and listed:
            return True
        if asked.get("operator") == "NotIn" and not listed:
            return True
    whole_pod = mapping(mapping(pod).get("spec")).get("restartPolicy")
    policy = text(spec.get("restartPolicy")) or text(whole_pod) or "Never"
    return policy == "Always" or (policy == "OnFailure" and code != 0)


def main_container(pod: object) -> Container | None:
    """The container that decides; ``None`` while its status says nothing.

    It is the one that nighttrain's annotation names, else kubectl's, else the first of the spec: a status
    lists containers by name, and what is injected may come first.
    """
    plain = {container.name: container for container in containers(pod) if not container.init}
    names = [text(entry.get("name")) for entry in _specified(pod, "containers")] or list(plain)
    return plain.get(next((name for name in [*_asked_for(pod), *names] if name in {*names, *plain}), ""))


def main_container_spec(template: object) -> Json:
    """The main container as a pod or a pod template describes it; empty if it describes none.

    A webhook may have put another one first, in the template too.
    """
    described = {text(entry.get("name")): entry for entry in _specified(template, "containers")}
    return described.get(
        next((name for name in [*_asked_for(template), *described] if name in described), ""), {}
    )


def _asked_for(pod: object) -> list[str]:
    annotations = mapping(metadata(pod).get("annotations"))
    return [text(annotations.get(key)) for key in (MAIN_CONTAINER_ANNOTATION, DEFAULT_CONTAINER_ANNOTATION)]


def culprit(pod: object) -> Container | None:
    """The container that explains a pod's end: the main one, or an init container that kept it waiting."""
    main = main_container(pod)
    if main is not None and main.state is ContainerState.TERMINATED and main.reason != NEVER_SEEN:
        return main
    failed = (each for each in containers(pod) if each.init and not each.native_sidecar and each.failed)
    return next(failed, main)


def by_age(pods: Iterable[object]) -> list[Json]:
    """Oldest first; the name breaks ties, because creation times have whole seconds."""
    known = [pod for pod in pods if isinstance(pod, dict)]
    return sorted(known, key=lambda pod: (text(metadata(pod).get("creationTimestamp")), name_of(pod)))


def concerns(event: Json, obj: object) -> bool:
    """Tell whether an event is about this very object."""
    about = mapping(event.get("involvedObject")) or mapping(event.get("regarding"))
    return bool(uid_of(obj)) and about.get("uid") == uid_of(obj)


def event_text(event: Json) -> str:
    """The event's message, in either of the two forms of events."""
    return text(event.get("message")) or text(event.get("note"))
