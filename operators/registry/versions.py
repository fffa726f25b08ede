"""A version looked up, tagged, deleted: for DAGs that do these steps themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from nighttrain.operators.common import task_context
from nighttrain.operators.common.clients import open_registry
from nighttrain.operators.registry.base import RegistryOperator
from nighttrain.operators.registry.registration import checked_tags
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError, RegistryError
from nighttrain.sensors.common.failures import failing_clearly

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion


class GetModelVersionOperator(RegistryOperator):
    """Looks up a version: by its number, its alias or its stage, or the newest.

    Returns ``{"model_name", "version", "run_id", "stage", "aliases", "tags", "description", "source",
    "model_uri", "artifact_digest"}``.

    :param model_name: the registered model (templated)
    :param version: a version's number; give at most one of the three, the newest is meant without (templated)
    :param alias: the version that this alias is on (templated)
    :param stage: the version that holds this stage (templated)
    :param mlflow_conn_id: connection of type ``mlflow``
    """

    template_fields: Sequence[str] = ("model_name", "version", "alias", "stage")
    text_fields = ("model_name", "version", "alias", "stage")

    def __init__(
        self,
        *,
        model_name: str,
        version: str | None = None,
        alias: str | None = None,
        stage: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        given = {"version": version, "alias": alias, "stage": stage}
        if sum(value is not None for value in given.values()) > 1:
            raise ConfigurationError("version, alias, stage", given, "name at most one of the three")
        self.model_name = model_name
        self.version = version
        self.alias = alias
        self.stage = stage

    def execute(self, context: Context) -> dict[str, Any]:
        with failing_clearly():
            self._connect()
            found = run_sync(self._find())
        self._link(context, found.name, found.version)
        self.log.info("%s version %s, stage %s", found.name, found.version, found.stage)
        return {
            "model_name": found.name,
            "version": found.version,
            "run_id": found.run_id,
            "stage": found.stage,
            "aliases": list(found.aliases),
            "tags": dict(found.tags),
            "description": found.description,
            "source": found.source,
            "model_uri": found.uri,
            "artifact_digest": found.digest,
        }

    async def _find(self) -> ModelVersion:
        async with open_registry(self._mlflow) as registry:
            if self.version is not None:
                return await registry.get_version(self.model_name, self.version)
            if self.alias is not None:
                return await registry.version_by_alias(self.model_name, self.alias)
            if self.stage is not None:
                return await registry.version_in_stage(self.model_name, self.stage)
            return await registry.newest_version(self.model_name)


class SetModelVersionTagsOperator(RegistryOperator):
    """Sets tags of a version. Those that it has beside them stay.

    Returns ``{"model_name", "version", "tags"}``.

    :param model_name: the registered model (templated)
    :param version: the version (templated)
    :param tags: tags to set, at most 5,000 characters each (templated)
    :param mlflow_conn_id: connection of type ``mlflow``
    """

    template_fields: Sequence[str] = ("model_name", "version", "tags")
    text_fields = ("model_name", "version")
    structured_fields: ClassVar[Mapping[str, type | tuple[type, ...]]] = {"tags": dict}

    def __init__(self, *, model_name: str, version: str, tags: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not tags:
            raise ConfigurationError("tags", tags, "name one or more")
        self.model_name = model_name
        self.version = version
        self.tags = tags

    def execute(self, context: Context) -> dict[str, Any]:
        with failing_clearly():
            tags = task_context.without_secrets(checked_tags(self.tags))
            self._connect()
            run_sync(self._set(tags))
        self._link(context, self.model_name, str(self.version))
        return {"model_name": self.model_name, "version": str(self.version), "tags": tags}

    async def _set(self, tags: Mapping[str, str]) -> None:
        async with open_registry(self._mlflow) as registry:
            await registry.set_tags(self.model_name, self.version, tags)


class DeleteModelVersionOperator(RegistryOperator):
    """Deletes a version from the registry, for good; its run and the files of its model stay.

    One that is in use is refused: with an alias, in Staging or Production, or served by an endpoint. One that
    is gone already is no error. Returns ``{"model_name", "version"}``.

    :param model_name: the registered model (templated)
    :param version: the version (templated)
    :param mlflow_conn_id: connection of type ``mlflow``
    """

    template_fields: Sequence[str] = ("model_name", "version")
    text_fields = ("model_name", "version")

    def __init__(self, *, model_name: str, version: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.version = version

    def execute(self, context: Context) -> dict[str, Any]:
        with failing_clearly():
            self._connect()
            run_sync(self._delete())
        return {"model_name": self.model_name, "version": str(self.version)}

    async def _delete(self) -> None:
        from nighttrain.providers.errors import ModelVersionNotFoundError

        async with open_registry(self._mlflow) as registry:
            try:
                found = await registry.get_version(self.model_name, self.version)
            except ModelVersionNotFoundError:
                self.log.info("%s has no version %s (any more)", self.model_name, self.version)
                return
            await _refuse_if_in_use(registry, found)
            await registry.delete_version(found.name, found.version)


async def _refuse_if_in_use(registry: ModelRegistry, version: ModelVersion) -> None:
    from nighttrain.providers.registry.version_page.serving import SERVING_TAG
    from nighttrain.providers.registry.versions import ACTIVE_STAGES

    uses = [f"alias {alias}" for alias in version.aliases]
    uses += [f"stage {version.stage}"] if version.stage in ACTIVE_STAGES else []
    uses += [f"endpoint {version.tags[SERVING_TAG]}"] if version.tags.get(SERVING_TAG) else []
    if uses:
        raise RegistryError(
            f"version {version.version} of {version.name!r} is in use ({', '.join(uses)}) and is not "
            "deleted: promote or roll out another one first"
        )
