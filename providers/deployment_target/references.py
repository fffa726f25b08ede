"""What a command names: the place that endpoints are in, and a version of a registered model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.values.names import check_dns_label

if TYPE_CHECKING:
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion

SCHEME = "kubernetes"

_TARGET_FIX = "write kubernetes:/NAMESPACE, or kubernetes:/NAMESPACE?context=CONTEXT for another cluster"
_MODEL_FIX = "write models:/NAME/VERSION, models:/NAME@ALIAS or models:/NAME/STAGE"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where endpoints are.

    :param namespace: the kubeconfig context's, if not said
    :param context: the kubeconfig's context; its current one, if not said
    """

    namespace: str | None = None
    context: str | None = None


def parse_target(uri: str) -> Place:
    """The place that a target URI names.

    :raises ConfigurationError: it is not of the form ``kubernetes:/NAMESPACE?context=CONTEXT``
    """
    parts = urlsplit(uri)
    if uri == SCHEME:
        return Place()
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    context = given.pop("context", None)
    namespace = parts.path.strip("/")
    if parts.scheme != SCHEME or parts.netloc or "/" in namespace or given or parts.fragment or context == "":
        raise ConfigurationError("target", uri, _TARGET_FIX)
    if namespace:
        check_dns_label("target: namespace", namespace)
    return Place(namespace=namespace or None, context=context)


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """A registered model, and what names one of its versions; none of the three is the newest."""

    name: str
    version: str | None = None
    alias: str | None = None
    stage: str | None = None

    async def resolve(self, registry: ModelRegistry) -> ModelVersion:
        """The version that it names now.

        :raises ModelNotFoundError: no such model
        :raises ModelVersionNotFoundError: no such version, alias, or nothing in that stage
        """
        if self.version is not None:
            return await registry.get_version(self.name, self.version)
        if self.alias is not None:
            return await registry.version_by_alias(self.name, self.alias)
        if self.stage is not None:
            return await registry.version_in_stage(self.name, self.stage)
        return await registry.newest_version(self.name)


def parse_model_uri(uri: str) -> ModelReference:
    """The registered model and version of a ``models:/`` URI, in the forms that MLflow has for them.

    :raises ConfigurationError: another form; only registered versions can be served, since only these have a
        recorded digest and a history
    """
    scheme, _, path = str(uri).partition(":/")
    if scheme != "models" or path.startswith("/"):
        raise ConfigurationError("model-uri", uri, f"{_MODEL_FIX}: register the model first")
    name, slash, suffix = path.partition("/")
    if slash and name and suffix and "/" not in suffix:
        if suffix.isascii() and suffix.isdecimal():
            return ModelReference(name=name, version=suffix)
        return ModelReference(name=name, stage=None if suffix.lower() == "latest" else suffix)
    name, at, alias = path.rpartition("@")
    if not slash and at and name and alias:
        return ModelReference(name=name, alias=alias)
    raise ConfigurationError("model-uri", uri, _MODEL_FIX)
