"""MLflow's model registry: models, versions, aliases, stages, tags.

Everything here may be repeated: setting what is already set changes nothing, not even a timestamp.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ConfigurationError,
    ModelNotFoundError,
    ModelVersionNotFoundError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingUnreachableError,
)
from nighttrain.providers.redaction import redact
from nighttrain.providers.registry.artifacts import (
    ArtifactManifest,
    artifact_manifest,
    logged_model_manifest,
    run_files_manifest,
)
from nighttrain.providers.registry.lineage import split_lineage
from nighttrain.providers.registry.run_models import find_model
from nighttrain.providers.registry.versions import (
    ACTIVE_STAGES,
    DIGEST_TAG,
    ModelVersion,
    RegisteredModel,
    check_alias,
    check_name,
    check_stage,
    check_version,
)
from nighttrain.providers.tracking.names import MAX_VERSION_TAG, check_description, check_key
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.tags import PREFIX, clean_tags, quoted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from nighttrain.providers.tracking.client import MLflowClient
    from nighttrain.providers.tracking.runs import LoggedModel

REGISTRATION_TAG = f"{PREFIX}registration"
"""A fresh token of each ``register`` call: tells a double that this call made from somebody else's
version. It goes once that is known."""

PAGE = 200
"""Versions for each search call: two hundred nights at once, about 100 kB."""


class ModelRegistry:
    """MLflow's registry.

    :param client: the tracking server's client; the registry's own address is taken from its configuration
    """

    def __init__(self, client: MLflowClient) -> None:
        self.client = client
        self._registry = client.for_registry()

    async def get_model(self, name: str) -> RegisteredModel:
        """The registered model of that name. :raises ModelNotFoundError: there is none"""
        try:
            answer = await self._registry.get("registered-models/get", {"name": check_name(name)})
        except TrackingNotFoundError as error:
            raise ModelNotFoundError(
                f"MLflow at {self._registry.uri} has no registered model {name!r}: check the name, or "
                "register a first "
                "version"
            ) from error
        return RegisteredModel.from_api(answer["registered_model"])

    async def model_names(self) -> list[str]:
        """The names of all registered models, sorted."""
        names: list[str] = []
        query: dict[str, Any] = {"max_results": PAGE}
        while True:
            answer = await self._registry.get("registered-models/search", query)
            names += [item["name"] for item in answer.get("registered_models", ())]
            if not answer.get("next_page_token"):
                return sorted(names)
            query["page_token"] = answer["next_page_token"]

    async def ensure_model(self, name: str, *, description: str | None = None) -> None:
        """Create the registered model when it is missing."""
        try:
            text = None if description is None else check_description(redact(description))
            body = {"name": check_name(name), "description": text}
            await self._registry.post("registered-models/create", body)
        except TrackingRequestError as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    async def get_version(self, name: str, version: str | int) -> ModelVersion:
        """The version of that number. :raises ModelVersionNotFoundError: there is none"""
        query = {"name": check_name(name), "version": check_version(version)}
        try:
            answer = await self._registry.get("model-versions/get", query)
        except TrackingNotFoundError as error:
            raise ModelVersionNotFoundError(
                f"MLflow at {self._registry.uri} has no version {version} of {name!r}"
            ) from error
        return ModelVersion.from_api(answer["model_version"])

    async def version_by_alias(self, name: str, alias: str) -> ModelVersion:
        """The version that the alias is on.

        :raises ModelVersionNotFoundError: the alias is not set
        :raises ModelNotFoundError: no such model
        """
        model = await self.get_model(name)
        version = model.aliases.get(check_alias(alias))
        if version is None:
            known = ", ".join(sorted(model.aliases)) or "none"
            raise ModelVersionNotFoundError(f"{name!r} has no alias {alias!r}; its aliases: {known}")
        return await self.get_version(name, version)

    async def version_in_stage(self, name: str, stage: str) -> ModelVersion:
        """The version in that stage; of several, the one that was updated last, which a transition does.

        :raises ModelVersionNotFoundError: nothing in that stage
        :raises ModelNotFoundError: no such model
        """
        stage = check_stage(stage)
        async for version in self.iterate(name):
            if version.stage == stage:
                # Searching leaves the aliases out.
                return await self.get_version(name, version.version)
        await self.get_model(name)
        raise ModelVersionNotFoundError(f"no version of {name!r} is in stage {stage}")

    async def newest_version(self, name: str) -> ModelVersion:
        """The version with the highest number.

        :raises ModelVersionNotFoundError: the model has none
        :raises ModelNotFoundError: no such model
        """
        model = await self.get_model(name)
        newest = max((int(version.version) for version in model.latest_versions), default=None)
        if newest is None:
            raise ModelVersionNotFoundError(f"{name!r} has no version yet")
        return await self.get_version(name, newest)

    async def versions(
        self,
        name: str,
        *,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> list[ModelVersion]:
        """Versions, the last updated first (their aliases are empty: MLflow's search leaves them out).

        :raises ConfigurationError: a name or value that MLflow's filters cannot hold
        """
        found: list[ModelVersion] = []
        async for version in self.iterate(name, run_id=run_id, tags=tags):
            found.append(version)
            if limit is not None and len(found) >= limit:
                break
        return found

    async def iterate(
        self, name: str, *, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> AsyncIterator[ModelVersion]:
        """As :meth:`versions`, page by page; stop when you have seen enough."""
        terms = {"name": check_name(name)}
        if run_id is not None:
            terms["run_id"] = run_id
        terms |= {f"tags.`{check_key(key, field='tags')}`": value for key, value in (tags or {}).items()}
        query: dict[str, Any] = {
            "filter": " and ".join(f"{key} = {_literal(key, value)}" for key, value in terms.items()),
            "order_by": ["last_updated_timestamp DESC"],
            "max_results": PAGE,
        }
        while True:
            answer = await self._registry.get("model-versions/search", query)
            for item in answer.get("model_versions", ()):
                version = ModelVersion.from_api(item)
                if version.name == name:  # some databases compare without regard to case
                    yield version
            if not answer.get("next_page_token"):
                return
            query["page_token"] = answer["next_page_token"]

    async def register(
        self,
        name: str,
        *,
        run_id: str,
        model_id: str | None = None,
        model_name: str | None = None,
        tags: Mapping[str, object] | None = None,
        lineage: Mapping[str, str] | None = None,
        description: str | None = None,
    ) -> ModelVersion:
        """Make the model that a run logged a version, with the sha256 of its artifact in the version's tags.

        Repeating it returns the same version. Of several models of one name in the run the newest counts: a
        retry of the training logs its model again. Versions of the same model that exist already are
        adopted, the lowest number first. Serialise registrations of one model: MLflow cannot do both steps
        at once.

        Where the run itself logged no model: its files that are one (MLflow 2's client, ``log_artifacts``),
        then the only one of the runs below it; the version's run is the one that logged it.

        :param model_name: which of the run's models, by the name it was logged under or a folder of files
        :param lineage: where it comes from: a few of these become tags, all of them a file of the run, see
            :mod:`nighttrain.providers.registry.lineage`
        :param description: of a version that has none; a text that is there stays
        :raises ConfigurationError: a tag's name or a description that MLflow refuses
        :raises RunWithoutModelError: the run logged no READY model, or several and it is not said which
        """
        check_name(name)
        description = check_description(redact(description)) if description else None
        wanted = clean_tags(tags, limit=MAX_VERSION_TAG)
        model = await self.logged_model(run_id, model_id=model_id, model_name=model_name)
        run_id = model.run_id or run_id
        wanted = await self._with_lineage(run_id, model, lineage or {}) | wanted
        version = await self._existing(name, run_id, model)
        if version is None:
            manifest = await self._manifest(run_id, model)
            await self.ensure_model(name)
            wanted |= clean_tags(manifest.tags(), limit=MAX_VERSION_TAG)
            return await self._create(name, run_id, model, wanted, description)
        await ensure_recorded(self, version)
        changed = {k: v for k, v in wanted.items() if version.tags.get(k) != v}
        if changed:
            await self.set_tags(name, version.version, changed)
        if description and not version.description:
            await self.set_description(name, version.version, description)
        return await self.get_version(name, version.version)

    async def logged_model(
        self, run_id: str, *, model_id: str | None = None, model_name: str | None = None
    ) -> LoggedModel:
        """The READY model of a run that :meth:`register` would take. :raises RunWithoutModelError: none"""
        return await find_model(self.client, run_id, model_id=model_id, model_name=model_name)

    async def _with_lineage(
        self, run_id: str, model: LoggedModel, lineage: Mapping[str, str]
    ) -> dict[str, str]:
        if not lineage:
            return {}
        run = await RunTree(self.client).get(run_id)
        tags = await split_lineage(self.client, run, model.path, lineage)
        return clean_tags(tags, limit=MAX_VERSION_TAG)

    async def _manifest(self, run_id: str, model: LoggedModel) -> ArtifactManifest:
        if model.path is None:
            return await logged_model_manifest(self.client, model.model_id)
        return await run_files_manifest(self.client, await RunTree(self.client).get(run_id), model.path)

    async def set_alias(self, name: str, alias: str, version: str | int) -> None:
        """Point ``alias`` at the version, whatever it pointed at.

        :raises ModelVersionNotFoundError: no such version
        """
        body = {"name": check_name(name), "alias": check_alias(alias), "version": check_version(version)}
        await self._on_version("registered-models/alias", body)

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove the alias; no error when it is not set. :raises ModelNotFoundError: no such model"""
        try:
            await self._registry.delete(
                "registered-models/alias", {"name": check_name(name), "alias": check_alias(alias)}
            )
        except TrackingNotFoundError as error:
            raise ModelNotFoundError(
                f"MLflow at {self._registry.uri} has no registered model {name!r}"
            ) from error

    async def transition_stage(
        self, name: str, version: str | int, stage: str, archive_existing: bool = True
    ) -> ModelVersion:
        """Move the version to ``stage``. Nothing is written when it is there already.

        :param archive_existing: versions in that stage go to Archived, in the same transaction of MLflow's;
            has no meaning, and no effect, for None and Archived
        """
        stage = check_stage(stage)
        archive = archive_existing and stage in ACTIVE_STAGES
        current = await self.get_version(name, version)
        if current.stage == stage and not (archive and await self._others_in(stage, current)):
            return current
        body = {
            "name": name,
            "version": current.version,
            "stage": stage,
            "archive_existing_versions": archive,
        }
        answer = await self._on_version("model-versions/transition-stage", body)
        return ModelVersion.from_api(answer["model_version"])

    async def set_tags(self, name: str, version: str | int, tags: Mapping[str, object]) -> None:
        """Set tags of a version, redacted and clipped. :raises ModelVersionNotFoundError: no such version"""
        name, number = check_name(name), check_version(version)
        for key, value in clean_tags(tags, limit=MAX_VERSION_TAG).items():
            body = {"name": name, "version": number, "key": key, "value": value}
            await self._on_version("model-versions/set-tag", body)

    async def delete_tag(self, name: str, version: str | int, key: str) -> None:
        """Remove a tag of a version; no error when it is not set.

        :raises ModelVersionNotFoundError: no such version
        """
        current = await self.get_version(name, version)
        if key in current.tags:
            body = {"name": current.name, "version": current.version, "key": key}
            with contextlib.suppress(TrackingNotFoundError):  # somebody else was faster
                await self._registry.delete("model-versions/delete-tag", body)

    async def delete_version(self, name: str, version: str | int) -> None:
        """Delete a version, for good; its run and the model's files stay. No error when there is none."""
        body = {"name": check_name(name), "version": check_version(version)}
        with contextlib.suppress(TrackingNotFoundError):
            await self._registry.delete("model-versions/delete", body)

    async def set_description(self, name: str, version: str | int, description: str) -> None:
        """Describe a version. MLflow counts it as an update, so it is written only when it differs."""
        text = check_description(redact(description))
        current = await self.get_version(name, version)
        if current.description != text:
            body = {"name": name, "version": current.version, "description": text}
            await self._registry.patch("model-versions/update", body)

    async def _on_version(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._registry.post(path, body)
        except TrackingNotFoundError as error:
            raise ModelVersionNotFoundError(
                f"MLflow at {self._registry.uri} has no version {body['version']} of {body['name']!r}"
            ) from error

    async def _others_in(self, stage: str, than: ModelVersion) -> bool:
        async for version in self.iterate(than.name):
            if version.stage == stage and version.version != than.version:
                return True
        return False

    async def _same(self, name: str, run_id: str, model: LoggedModel) -> list[ModelVersion]:
        """This run's versions of this very model, lowest number first."""
        found = await self.versions(name, run_id=run_id)
        return sorted((v for v in found if _is_of(v, model)), key=lambda v: int(v.version))

    async def _existing(self, name: str, run_id: str, model: LoggedModel) -> ModelVersion | None:
        return next(iter(await self._same(name, run_id, model)), None)

    async def _create(
        self, name: str, run_id: str, model: LoggedModel, tags: Mapping[str, str], description: str | None
    ) -> ModelVersion:
        token = uuid.uuid4().hex
        pairs = [{"key": key, "value": value} for key, value in {**tags, REGISTRATION_TAG: token}.items()]
        body = {
            "name": name,
            "source": model.source,
            "run_id": run_id,
            "model_id": model.model_id or None,
            "tags": pairs,
            "description": description,
        }
        try:
            await self._registry.post("model-versions/create", body, idempotent=False)
        except (TrackingUnreachableError, TrackingRequestError) as error:
            # The answer may be lost though the version is there; a refusal leaves none.
            lost = await self._existing(name, run_id, model)
            if lost is None:
                raise error
        first, *rest = await self._same(name, run_id, model)
        for double in rest:
            if double.tags.get(REGISTRATION_TAG) == token:
                await self._registry.delete(
                    "model-versions/delete", {"name": name, "version": double.version}
                )
        if first.tags.get(REGISTRATION_TAG) == token:
            await self.delete_tag(name, first.version, REGISTRATION_TAG)
        return await self.get_version(name, first.version)


async def ensure_recorded(registry: ModelRegistry, version: ModelVersion) -> str:
    """The recorded digest; recorded now when there is none.

    For versions registered by hand in MLflow. Trust on first use: it says what the bytes are from now on,
    not that they are the bytes the training wrote.
    """
    recorded = version.tags.get(DIGEST_TAG)
    if recorded:
        return recorded
    manifest = await artifact_manifest(registry.client, version)
    await registry.set_tags(version.name, version.version, manifest.tags())
    return manifest.digest


def _is_of(version: ModelVersion, model: LoggedModel) -> bool:
    if model.path is None:
        return version.model_id == model.model_id
    # By hand, MLflow's client may have written either form.
    return version.source.rstrip("/") in (model.source, f"runs:/{model.run_id}/{model.path}".rstrip("/"))


def _literal(field_name: str, value: str) -> str:
    literal = quoted(str(value))
    if literal is None:
        raise ConfigurationError(
            field_name, value, "use one sort of quote only: MLflow's filters have no escapes"
        )
    return literal
