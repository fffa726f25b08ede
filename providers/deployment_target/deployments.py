"""The endpoints of one namespace under MLflow's verbs: create, update, delete, list, get, predict."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.commands.environment import URI_VARIABLE, tracking_from_environment
from nighttrain.providers.deployment_target.predictions import ask
from nighttrain.providers.deployment_target.references import ModelReference, parse_model_uri, parse_target
from nighttrain.providers.deployment_target.removal import take_down, take_down_rest
from nighttrain.providers.deployment_target.rolling_out import Way, roll_out
from nighttrain.providers.deployment_target.settings import Settings
from nighttrain.providers.deployment_target.standing import (
    SETTINGS_ANNOTATION,
    Standing,
    look_at,
    look_at_all,
    look_at_served,
)
from nighttrain.providers.errors import ConfigurationError, NighttrainError, ObjectExistsError
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.registry.history.entries import Kind
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import Author, note
from nighttrain.providers.registry.version_page import mark_withdrawn, record_serving, refresh_description
from nighttrain.providers.tracking.client import MLflowClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from nighttrain.providers.serving.backends.base import Progress
    from nighttrain.providers.tracking.client import TrackingConfig

# An endpoint that is taken down says so in MLflow, where that answers; nobody waits long for that.
_TOLD_SECONDS = 10.0


class Deployments:
    """What a person does with endpoints from MLflow's command line, without any orchestrator.

    The cluster is the kubeconfig's, credentials for MLflow are those of MLflow's own variables.

    :param target: ``kubernetes:/NAMESPACE``, see :func:`~.references.parse_target`
    :param mlflow_uri: MLflow's address; only creating and updating need it
    :param actor: who gives the commands, for histories
    :param tell: takes lines of progress
    :raises ConfigurationError: the target is not of that form
    """

    def __init__(
        self, target: str, mlflow_uri: str, *, registry_uri: str | None = None, actor: str, tell: Progress
    ) -> None:
        self._place = parse_target(target)
        self._mlflow_uri, self._registry_uri = mlflow_uri, registry_uri
        self._actor, self._tell = actor, tell

    async def create(self, name: str, model_uri: str, config: Mapping[str, Any] | None) -> dict[str, Any]:
        """Bring the first version up on a new endpoint.

        :raises ObjectExistsError: there is such an endpoint
        :raises NighttrainError: as :func:`~.rolling_out.roll_out`
        """
        settings, reference = Settings.read(config), parse_model_uri(model_uri)
        async with self._way() as (way, namespace):
            standing = await look_at(way.client, name, namespace)
            if standing.version:
                raise ObjectExistsError(
                    f"there is an endpoint {name} in namespace {namespace} already, which serves version "
                    f"{standing.version} of {standing.model_name}: use update, or another name"
                )
            await roll_out(way, standing, reference, settings)
            return await self._served(way, name, namespace)

    async def update(
        self, name: str, model_uri: str | None, config: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Take an endpoint to another version, or give the one that serves another form.

        What is not said stays as it was given for the version that serves.

        :raises ObjectNotFoundError: there is no such endpoint
        :raises NighttrainError: as :func:`~.rolling_out.roll_out`
        """
        settings = Settings.read(config)
        reference = parse_model_uri(model_uri) if model_uri else None
        if reference is None and not settings:
            raise ConfigurationError(
                "model-uri", None, "nothing is to be changed: give -m, or settings with -C"
            )
        async with self._way() as (way, namespace):
            standing = await look_at_served(way.client, name, namespace)
            if reference is None:
                reference = ModelReference(name=standing.model_name, version=standing.version)
            await roll_out(way, standing, reference, settings.over(self._remembered(standing)))
            return await self._served(way, name, namespace)

    async def delete(self, name: str) -> None:
        """Take an endpoint down completely; one that is not there is no error.

        The registry stays as it is, but for the mark on the version that served, and an entry in its history.

        :raises NighttrainError: as :func:`~.removal.take_down`
        """
        async with self._client() as (client, namespace):
            if await take_down_rest(client, name, namespace, self._tell):
                return
            standing = await look_at(client, name, namespace)
            if not await take_down(client, standing, self._tell):
                self._tell(f"there was no endpoint {name} in namespace {namespace}")
                return
        if standing.version:
            await self._tell_registry_of_the_end(standing)

    async def list(self) -> list[dict[str, Any]]:
        """Every endpoint of the namespace, also those of operators."""
        async with self._client() as (client, namespace):
            shown = ("name", "model_name", "version", "state", "replicas", "url", "rollout", "created_by")
            found = [standing.to_dict() for standing in await look_at_all(client, namespace)]
        return [{key: each[key] for key in shown if key in each} for each in found]

    async def get(self, name: str) -> dict[str, Any]:
        """One endpoint. :raises ObjectNotFoundError: there is none"""
        async with self._client() as (client, namespace):
            return (await look_at_served(client, name, namespace)).to_dict()

    async def predict(self, name: str, question: dict[str, Any]) -> dict[str, Any]:
        """Send a question to the endpoint.

        :param question: in a form of MLflow's scoring server, e.g. ``{"dataframe_split": ...}``
        :raises ObjectNotFoundError: there is no such endpoint
        :raises ServingError: it cannot be asked, or refuses the question
        """
        async with self._client() as (client, namespace):
            return await ask(client, await look_at_served(client, name, namespace), question)

    def _remembered(self, standing: Standing) -> Settings:
        if text := standing.annotations.get(SETTINGS_ANNOTATION):
            return Settings.from_text(text)
        image = standing.to_dict().get("image")
        self._tell(
            f"{standing.name}: version {standing.version} was not brought up by mlflow deployments: of its "
            "settings only the image is kept; give the others with -C"
        )
        return Settings(pods={"image": image} if image else {})

    async def _served(self, way: Way, name: str, namespace: str) -> dict[str, Any]:
        """The endpoint after a rollout; MLflow is told, whatever it says."""
        standing = await look_at_served(way.client, name, namespace)
        shown = standing.to_dict()
        url = shown.get("url", "")
        self._tell(f"{name} serves version {standing.version} of {standing.model_name} at {url}")
        try:
            await record_serving(
                ModelRegistry(way.mlflow),
                standing.model_name,
                standing.version,
                f"{namespace}/{name}",
                url=url,
                by=self._actor,
                previous=shown.get("previous_version"),
            )
        except NighttrainError as error:
            self._tell(f"MLflow does not say yet that {name} serves version {standing.version}: {error}")
        return shown

    async def _tell_registry_of_the_end(self, standing: Standing) -> None:
        name, version, where = standing.model_name, standing.version, f"{standing.namespace}/{standing.name}"
        author = Author(actor=self._actor, reason=f"endpoint {where} was taken down")
        try:
            config = replace(self._tracking(), retry_seconds=_TOLD_SECONDS)
            async with MLflowClient(config) as mlflow:
                registry = ModelRegistry(mlflow)
                await mark_withdrawn(registry, name, version, where)
                await refresh_description(registry, name, version)
                await note(registry, name, Kind.ROLLOUT, version=version, author=author)
        except NighttrainError as error:
            self._tell(f"MLflow does not say yet that {where} was taken down: {error}")

    def _tracking(self) -> TrackingConfig:
        if not self._mlflow_uri.startswith(("http://", "https://")):
            raise ConfigurationError(
                URI_VARIABLE,
                self._mlflow_uri,
                "give the http(s) address of a tracking server, which pods reach, too",
            )
        config = tracking_from_environment(self._mlflow_uri)
        other = self._registry_uri if self._registry_uri != self._mlflow_uri else None
        return replace(config, registry_uri=other) if other else config

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[tuple[ClusterClient, str]]:
        config = ClusterConfig(context=self._place.context, namespace=self._place.namespace)
        async with await ClusterClient.open(config) as client:
            yield client, self._place.namespace or client.namespace

    @asynccontextmanager
    async def _way(self) -> AsyncIterator[tuple[Way, str]]:
        tracking = self._tracking()
        async with self._client() as (client, namespace), MLflowClient(tracking) as mlflow:
            yield Way(client=client, mlflow=mlflow, actor=self._actor, tell=self._tell), namespace
