"""A container's environment, command and arguments, from its spec, its pod, ConfigMaps and Secrets."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.machine.processes import expand
from nighttrain.providers.local.cluster.store.resources import CONFIGMAPS, SECRETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.local.cluster.store.store import Object, Store

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class ConfigError(Exception):
    """The container cannot be configured yet: it waits with ``CreateContainerConfigError``."""


class Environment:
    """Resolves one container's variables.

    :param pod_ip: known once the pod has its sandbox
    """

    def __init__(self, store: Store, pod: Object, container: Object, *, pod_ip: str, host_ip: str) -> None:
        self._store = store
        self._pod = pod
        self._container = container
        self._pod_ip = pod_ip
        self._host_ip = host_ip

    def resolve(self, base: Mapping[str, str]) -> dict[str, str]:
        """``base`` (what the image gives) and the container's own variables. Raises :class:`ConfigError`."""
        env: dict[str, str] = {}
        for source in self._container.get("envFrom") or []:
            env |= self._from_source(source)
        for item in self._container.get("env") or []:
            value = self._value(item, env)
            if value is not None:
                env[item["name"]] = value
        return {**base, **env}

    def command(self, env: Mapping[str, str]) -> list[str]:
        """The whole argument list. As the official images of Python, an image here has no entry point, only
        the command ``python``: arguments alone take its place."""
        own = {item["name"] for item in self._container.get("env") or []}
        own |= {name for source in self._container.get("envFrom") or [] for name in self._from_source(source)}

        def known(name: str) -> str | None:
            return env.get(name) if name in own else None

        command = [expand(part, known) for part in self._container.get("command") or []]
        arguments = [expand(part, known) for part in self._container.get("args") or []]
        return [*command, *arguments] or ["python"]

    def _value(self, item: Object, env: Mapping[str, str]) -> str | None:
        source = item.get("valueFrom")
        if not source:
            return expand(item.get("value") or "", env.get)
        if "fieldRef" in source:
            return self.field(source["fieldRef"]["fieldPath"])
        for kind in ("configMapKeyRef", "secretKeyRef"):
            if kind in source:
                return self._key(kind, source[kind])
        raise ConfigError(f"invalid valueFrom of variable {item['name']!r}: {', '.join(source) or 'empty'}")

    def field(self, path: str) -> str:
        """The value of a pod's field, as in ``fieldRef``. Raises :class:`ConfigError`."""
        metadata, spec = self._pod["metadata"], self._pod["spec"]
        if match := _SUBSCRIPT.fullmatch(path):
            return str((metadata.get(match[1]) or {}).get(match[2], ""))
        known: dict[str, str] = {
            "metadata.name": metadata["name"],
            "metadata.namespace": metadata["namespace"],
            "metadata.uid": metadata["uid"],
            "spec.nodeName": spec.get("nodeName", ""),
            "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
            "status.podIP": self._pod_ip,
            "status.podIPs": self._pod_ip,
            "status.hostIP": self._host_ip,
            "status.hostIPs": self._host_ip,
        }
        if path not in known:
            raise ConfigError(f"unsupported fieldPath: {path}")
        return known[path]

    def _key(self, kind: str, reference: Object) -> str | None:
        name, key = reference.get("name", ""), reference["key"]
        data = self._data(kind.removesuffix("KeyRef"), name)
        if data is not None and key in data:
            return data[key]
        if reference.get("optional"):
            return None
        noun = "configmap" if kind == "configMapKeyRef" else "secret"
        if data is None:
            raise ConfigError(f'{noun} "{name}" not found')
        title = "ConfigMap" if noun == "configmap" else "Secret"
        raise ConfigError(f"couldn't find key {key} in {title} {self._pod['metadata']['namespace']}/{name}")

    def _from_source(self, source: Object) -> dict[str, str]:
        prefix = source.get("prefix") or ""
        for kind, noun in (("configMap", "configmap"), ("secret", "secret")):
            reference = source.get(f"{kind}Ref")
            if reference is None:
                continue
            data = self._data(kind, reference.get("name", ""))
            if data is None and not reference.get("optional"):
                raise ConfigError(f'{noun} "{reference.get("name", "")}" not found')
            return {prefix + key: value for key, value in (data or {}).items()}
        return {}

    def _data(self, kind: str, name: str) -> dict[str, str] | None:
        resource = CONFIGMAPS if kind == "configMap" else SECRETS
        found = self._store.find(resource, self._pod["metadata"]["namespace"], name)
        if found is None:
            return None
        data = found.get("data") or {}
        if resource is CONFIGMAPS:
            return {key: str(value) for key, value in data.items()}
        return {key: _decoded(value) for key, value in data.items()}


def _decoded(value: str) -> str:
    try:
        return base64.b64decode(value).decode("utf-8", "surrogateescape")
    except binascii.Error:
        return ""
