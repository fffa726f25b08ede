"""The model of a run becomes a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from nighttrain.operators.common import task_context
from nighttrain.operators.common.clients import open_registry
from nighttrain.operators.registry.base import RegistryOperator
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import RunInTrashError
from nighttrain.providers.texts import text_of
from nighttrain.sensors.common.failures import failing_clearly

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nighttrain.providers.registry.versions import ModelVersion


class RegisterModelOperator(RegistryOperator):
    """Registers the model that a run logged as a new version, with its lineage and its artifact's digest.

    The version's tags say the night, the DAG run, the Job and the digest; all of the lineage is in the file
    ``nighttrain/lineage.json`` of its run. Its description says for people what is known of it.

    Running it again for the same run returns the same version. Returns ``{"model_name", "version", "run_id",
    "artifact_digest"}``.

    :param model_name: the registered model, made if missing (templated)
    :param run_id: the run that logged the model, usually ``train.output["run_id"]`` (templated)
    :param logged_model_name: the name given to ``log_model``; needed only where a run logged several
    :param description: text of your own for the version's description, at most 5,000 characters (templated);
        a text that a person wrote there stays
    :param tags: tags for the version, beside the lineage (templated); at most 5,000 characters each
    :param mlflow_conn_id: connection of type ``mlflow``
    """

    template_fields: Sequence[str] = ("model_name", "run_id", "logged_model_name", "description", "tags")
    text_fields = ("model_name", "run_id", "logged_model_name", "description")
    structured_fields: ClassVar[Mapping[str, type | tuple[type, ...]]] = {"tags": dict}

    def __init__(
        self,
        *,
        model_name: str,
        run_id: str,
        logged_model_name: str | None = None,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.run_id = run_id
        self.logged_model_name = logged_model_name
        self.description = description
        self.tags = tags

    def execute(self, context: Context) -> dict[str, Any]:
        from nighttrain.providers.registry.versions import DIGEST_TAG

        with failing_clearly():
            tags, description = self._checked_texts()
            self._connect()
            try:
                version = run_sync(self._register(context, tags, description))
            except RunInTrashError as error:
                raise RunInTrashError(f"{error}; then clear this task") from error
        self._link(context, version.name, version.version)
        self.log.info("%s version %s, from run %s", version.name, version.version, version.run_id)
        return {
            "model_name": version.name,
            "version": version.version,
            "run_id": version.run_id,
            "artifact_digest": version.tags.get(DIGEST_TAG),
        }

    def _checked_texts(self) -> tuple[dict[str, str], str]:
        from nighttrain.providers.tracking.names import check_description

        description = check_description(self.description or "")
        tags = checked_tags(self.tags)
        secretless = task_context.without_secrets({**tags, "": description})
        return secretless, secretless.pop("")

    async def _register(self, context: Context, tags: Mapping[str, str], description: str) -> ModelVersion:
        from nighttrain.providers.registry.lineage import DAG_RUN_URL, lineage_of
        from nighttrain.providers.registry.version_page import refreshed_if_possible
        from nighttrain.providers.tracking.run_tree import RunTree

        async with open_registry(self._mlflow) as registry:
            run = await RunTree(registry.client).get(self.run_id)
            lineage = lineage_of(run)
            url = task_context.dag_run_url(context)
            version = await registry.register(
                self.model_name,
                run_id=self.run_id,
                model_name=self.logged_model_name,
                tags=tags,
                lineage={**lineage, DAG_RUN_URL: url} if lineage and url else lineage,
                description=description,
            )
            await refreshed_if_possible(registry, version.name, version.version)
            return version


def checked_tags(tags: Any) -> dict[str, str]:
    """Tags that a person gave, as text. :raises ConfigurationError: one that MLflow does not take"""
    from nighttrain.providers.tracking.names import read_tags

    return read_tags(_texts("tags", tags))


def _texts(field: str, given: Any) -> Any:
    if given is not None and not isinstance(given, Mapping):
        return given  # read_tags says what it should be
    return {
        text_of(f"{field} key", name): text_of(f"{field}[{name!r}]", value)
        for name, value in (given or {}).items()
    }
