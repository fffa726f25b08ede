"""What people give with ``-C NAME=VALUE``: known by name, read by its sort, refused with a fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.strategy import Strategy

_Read = Callable[[str, Any], Any]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(name, value, "write a text that is not empty")
    return value.strip()


def _whole(name: str, value: Any) -> int:
    try:
        return int(value) if isinstance(value, str) else _same(value, int)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(name, value, "write a whole number") from error


def _seconds(name: str, value: Any) -> float:
    try:
        return float(value) if isinstance(value, str) else float(_same(value, (int, float)))
    except (ValueError, TypeError) as error:
        raise ConfigurationError(name, value, "write seconds, as a number") from error


def _same(value: Any, kind: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(value)
    return value


def _mapping(name: str, value: Any) -> dict[str, Any]:
    found = _parsed(name, value)
    if not isinstance(found, dict):
        raise ConfigurationError(name, value, 'write a mapping as JSON: {"name": "value"}')
    return found


def _list(name: str, value: Any) -> list[Any]:
    found = _parsed(name, value)
    if not isinstance(found, list):
        raise ConfigurationError(name, value, "write a list as JSON: [...]")
    return found


def _backend(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        return {"type": _text(name, value)}
    return _mapping(name, value)


def _strategy(name: str, value: Any) -> Strategy:
    """From a file, or from JSON or YAML that begins with a brace."""
    if isinstance(value, Strategy):
        value.validate()
        return value
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        try:
            text = Path(value).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            fix = f"the file cannot be read ({error}); give the path of a YAML or JSON file, or JSON itself"
            raise ConfigurationError(name, value, fix) from error
        found = _parsed(f"{name}: {value}", text)
        if not isinstance(found, dict):
            raise ConfigurationError(name, value, "the file has to hold a mapping with steps")
        return Strategy.from_dict(found)
    return Strategy.from_dict(_mapping(name, value))


def _parsed(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    import yaml

    try:
        return yaml.safe_load(value)  # JSON is YAML, too
    except yaml.YAMLError as error:
        raise ConfigurationError(
            name, value, f"it is neither JSON nor YAML: {' '.join(str(error).split())}"
        ) from error


@dataclass(frozen=True)
class _Known:
    read: _Read
    help: str


# Kept with the version, so that an update needs to say only what is to be another.
_OF_PODS = {
    "image": _Known(_text, "image with MLflow and the model's libraries; needed by the first create"),
    "port": _Known(_whole, "port of the endpoint and of the scoring server; 8080, if left out"),
    "container_resources": _Known(_mapping, 'JSON: {"requests": {"cpu": "1"}, "limits": {"memory": "2Gi"}}'),
    "env_vars": _Known(_mapping, "JSON: plain variables of the pods; no secrets"),
    "node_selector": _Known(_mapping, "JSON: labels that a node must have"),
    "tolerations": _Known(_list, "JSON: list of tolerations, as Kubernetes has them"),
    "service_account_name": _Known(_text, "the pods' service account"),
    "image_pull_secrets": _Known(_list, 'JSON: [{"name": "the-secret"}]'),
    "image_pull_policy": _Known(_text, "Always, IfNotPresent or Never"),
    "labels": _Known(_mapping, "JSON: labels of Deployment and pods"),
    "pod_security": _Known(_text, "baseline (the default) or restricted"),
    "startup_timeout_seconds": _Known(_seconds, "how long a version may take to become ready; 600"),
    "mlflow_secret": _Known(_text, "Kubernetes Secret with the MLFLOW_TRACKING_* credentials of the pods"),
    "mlflow_uri": _Known(_text, "MLflow's address as the pods reach it; the one in use here, if left out"),
}

_OF_ROLLOUTS = {
    "replicas": _Known(_whole, "pods of a version that is new; as many as the one that serves, if left out"),
    "strategy": _Known(_strategy, "file (YAML, JSON) or JSON: steps, analysis; all at once, if left out"),
    "backend": _Known(_backend, 'serving system: its name, or JSON {"type": name, ...}; the one in use'),
    "measured_from": _Known(_text, "here (the default), or cluster: by Jobs in the namespace"),
    "alias": _Known(_text, "moves to the version with its requests, and back if it is undone"),
    "stage": _Known(_text, "the same for a stage"),
}

KNOWN = _OF_PODS | _OF_ROLLOUTS


def describe_settings() -> str:
    """Every setting with a line for people."""
    width = max(map(len, KNOWN))
    return "\n".join(f"  {name.ljust(width)}  {known.help}" for name, known in KNOWN.items())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a create or an update was given.

    :param pods: what the pods are like, by the setting's name
    :param rollout: how the version gets there, by the setting's name
    """

    pods: Mapping[str, Any] = field(default_factory=dict)
    rollout: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> Settings:
        """Check and convert what people wrote.

        :raises ConfigurationError: names the setting, the value and the fix
        """
        found: dict[str, Any] = {}
        for name, value in (given or {}).items():
            if name not in KNOWN:
                near = get_close_matches(str(name), KNOWN, n=1)
                fix = f"did you mean {near[0]}?" if near else f"known are {', '.join(KNOWN)}"
                raise ConfigurationError(f"-C {name}", value, f"there is no such setting; {fix}")
            found[name] = KNOWN[name].read(f"-C {name}", value)
        return cls(
            pods={name: value for name, value in found.items() if name in _OF_PODS},
            rollout={name: value for name, value in found.items() if name in _OF_ROLLOUTS},
        )

    def __bool__(self) -> bool:
        return bool(self.pods or self.rollout)

    def over(self, remembered: Settings) -> Settings:
        """With the pods as they are, where nothing else is said."""
        return replace(self, pods={**remembered.pods, **self.pods})

    def to_text(self) -> str:
        """What the pods are like, to be kept with the version."""
        return json.dumps(dict(self.pods), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Settings:
        """What :meth:`to_text` gave.

        :raises ConfigurationError: somebody changed it
        """
        return cls(pods=cls.read(_mapping("the settings kept with the version", text)).pods)
