"""What a rollout has to know about a model server; see ``servers.py`` for those that are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

FOLDER = "/nighttrain"
"""Where a server's container finds the verified version (``model``) and its own files (``files``)."""


class Payload(StrEnum):
    """The form of the body that a server takes, for probes and golden requests."""

    MLFLOW = "mlflow"
    """``{"dataframe_split": {"columns": [...], "data": [...]}}`` and its kin."""
    OPEN_INFERENCE = "open-inference"
    """``{"inputs": [{"name", "shape", "datatype", "data"}]}``, version 2 of the protocol."""
    TENSORFLOW = "tensorflow"
    """``{"instances": [...]}``, a row each."""
    OPENAI = "openai"
    """``{"model": "<the registered model's name>", "prompt": ...}``, or ``messages``."""
    OWN = "own"
    """Whatever the handler that came with the model reads."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series of a server's metrics.

    :param matchers: what selects it, as Prometheus writes it: ``status="5xx"``
    :param unit_seconds: of a time: how long one of its units is
    :param histogram: of a time: it has ``_bucket``, ``_sum`` and ``_count``. Else it is a sum over requests,
        which gives a mean and no percentile
    """

    name: str
    matchers: tuple[str, ...] = ()
    unit_seconds: float = 1.0
    histogram: bool = False

    def select(self, *matchers: str, suffix: str = "") -> str:
        """The selector, with further matchers: ``name_suffix{...}``."""
        return f"{self.name}{suffix}{{{','.join([*self.matchers, *matchers])}}}"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a server tells Prometheus.

    :param port: None where it is the port that the server answers on
    :param requests: counters whose sum is the requests for predictions
    :param errors: counters whose sum is those of them that failed
    :param latency: the time that a request takes
    :param names_version: its series carry the version as a label that can be relied on
    """

    path: str
    requests: tuple[Series, ...]
    errors: tuple[Series, ...]
    latency: Series
    port: int | None = None
    names_version: bool = False


@dataclass(frozen=True, kw_only=True)
class Flavor:
    """A flavor of an MLmodel file, where need be with a setting.

    :param setting: a key of the flavor's own mapping
    :param like: what the setting's value must contain, a regular expression
    """

    name: str
    setting: str | None = None
    like: str = ""

    def is_in(self, flavors: Mapping[str, Any]) -> bool:
        """Say whether a version's MLmodel has it."""
        settings = flavors.get(self.name)
        if self.setting is None or settings is None:
            return self.name in flavors
        value = settings.get(self.setting) if isinstance(settings, Mapping) else None
        return value is not None and re.search(self.like, str(value)) is not None

    def __str__(self) -> str:
        return self.name if self.setting is None else f"{self.name} with {self.setting} like {self.like!r}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A part of the version's files, and where the server wants it.

    :param source: a path in the artifact; empty for all of it
    :param path: an absolute path in the container
    """

    source: str = ""
    path: str


@dataclass(frozen=True, kw_only=True)
class ModelServer:
    """A model server: how it starts, says that it is ready, is measured and stops.

    Texts may have ``{model}``, ``{version}`` and ``{port}``; :meth:`filled` puts them in. To change a little,
    use :func:`dataclasses.replace`: ``replace(VLLM, args=(*VLLM.args, "--max-model-len=8192"))``. Credentials
    come from a Secret with ``env_from``, and are written ``$(NAME)``.

    :param flavors: what it can load
    :param command: None for the image's own entrypoint
    :param env: variables; the user's ``env_vars`` win
    :param files: name -> text, to be found in ``/nighttrain/files``
    :param places: where the version's files have to be, beside ``/nighttrain/model``
    :param downloads: it fetches and verifies the version itself; else an init container does
    :param readiness_path: answers 200 once the version can be asked, and not before
    :param request_path: where predictions are asked for
    :param drains: told to stop, it goes on taking requests for ``drain_seconds`` by itself; else the cluster
        waits so long before it tells it
    :param finishes: told to stop, it answers what it has taken. Else the longest request has to end within
        ``drain_seconds``
    :param version_header: the header of an answer that names its version
    :param version_field: the field of an answer's JSON that names it, where no header does
    :param version_value: what header or field then hold
    """

    name: str
    flavors: tuple[Flavor, ...]
    readiness_path: str
    request_path: str
    payload: Payload
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    places: tuple[Place, ...] = ()
    downloads: bool = False
    metrics: Metrics | None = None
    drains: bool = False
    finishes: bool = False
    version_header: str | None = None
    version_field: str | None = None
    version_value: str = "{version}"

    @property
    def names_version(self) -> bool:
        """True if an answer says which version gave it: only then can shares be counted by answers."""
        return self.version_header is not None or self.version_field is not None

    def serves(self, flavors: Mapping[str, Any]) -> bool:
        """Say whether it can load a version.

        :param flavors: the ``flavors`` of the version's MLmodel file
        """
        return any(flavor.is_in(flavors) for flavor in self.flavors)

    def filled(self, *, model: str, version: str, port: int) -> ModelServer:
        """The same for one version: no text has a placeholder any more."""
        values = {"{model}": model, "{version}": version, "{port}": str(port)}
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name in _TEMPLATES}
        return replace(self, **{name: _filled(value, values) for name, value in given.items()})


_TEMPLATES = frozenset(
    {"readiness_path", "request_path", "command", "args", "env", "files", "places", "version_value"}
)


def _filled(given: Any, values: Mapping[str, str]) -> Any:
    if isinstance(given, str):
        for placeholder, value in values.items():
            given = given.replace(placeholder, value)
        return given
    if isinstance(given, Mapping):
        return {key: _filled(value, values) for key, value in given.items()}
    if isinstance(given, tuple):
        return tuple(_filled(value, values) for value in given)
    if isinstance(given, Place):
        return Place(source=_filled(given.source, values), path=_filled(given.path, values))
    return given
