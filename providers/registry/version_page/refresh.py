"""A version's description, written anew from what MLflow holds: tags, lineage, the evaluation's run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    ModelVersionNotFoundError,
    NighttrainError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingUnauthorizedError,
)
from nighttrain.providers.registry.gates.evaluation import (
    EVALUATION_RUN_TAG,
    SUMMARY_TAG,
    VERDICT_TAG,
    group_measurements,
)
from nighttrain.providers.registry.lineage import (
    DAG_RUN_TAG,
    DAG_RUN_URL,
    JOB_TAG,
    NIGHT_TAG,
    few_tags,
    read_lineage,
)
from nighttrain.providers.registry.version_page.description import VersionFacts, compose, describe
from nighttrain.providers.registry.version_page.serving import (
    SERVING_TAG,
    endpoints_of,
    mark_serving,
    mark_withdrawn,
)
from nighttrain.providers.tracking.runs import Run
from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion

_log = logging.getLogger(__name__)


async def refresh_description(registry: ModelRegistry, name: str, version: str | int) -> bool:
    """Write what is known of a version into its description, between the marks; a person's text stays.

    Nothing is written where nothing is new: MLflow counts a description as an update. Nor is it where that
    would make another version the last updated one of its stage, which is who holds the stage.

    :returns: whether it was written
    :raises ModelVersionNotFoundError: no such version
    :raises TrackingError: MLflow does not answer, or refuses
    """
    current = await registry.get_version(name, version)
    wanted = compose(current.description, describe(await facts_of(registry, current)))
    if wanted == current.description:
        return False
    if not await _holds_its_stage(registry, current):
        _log.info(
            "The description of %s version %s stays: another version was moved to stage %s later",
            name,
            current.version,
            current.stage,
        )
        return False
    await registry.set_description(name, current.version, wanted)
    return True


async def facts_of(registry: ModelRegistry, version: ModelVersion) -> VersionFacts:
    """What MLflow holds of a version. :raises TrackingUnreachableError: MLflow does not answer"""
    lineage = await read_lineage(registry.client, version)
    few = {**few_tags(lineage), **version.tags}
    evaluation = await _evaluation(registry, version.tags.get(EVALUATION_RUN_TAG, ""))
    return VersionFacts(
        name=version.name,
        version=version.version,
        verdict=version.tags.get(VERDICT_TAG, ""),
        reasons=version.tags.get(SUMMARY_TAG, ""),
        measurements=group_measurements(evaluation.metrics) if evaluation else {},
        champion_version=evaluation.params.get("champion_version", "") if evaluation else "",
        night=few.get(NIGHT_TAG, ""),
        interval=(
            lineage.get(f"{PREFIX}data_interval_start", ""),
            lineage.get(f"{PREFIX}data_interval_end", ""),
        ),
        dag_run=few.get(DAG_RUN_TAG, ""),
        dag_run_url=lineage.get(DAG_RUN_URL, ""),
        job=few.get(JOB_TAG, ""),
        serving=endpoints_of(version.tags),
    )


async def record_serving(
    registry: ModelRegistry,
    name: str,
    version: str,
    endpoint: str,
    *,
    url: str = "",
    by: str = "",
    previous: str | None = None,
) -> None:
    """Say that an endpoint serves this version and no other, on the versions and in their descriptions.

    :param endpoint: ``namespace/endpoint``
    :param by: who rolled it out
    :param previous: the version that it served before; whoever still carries the tag loses it too
    :raises NighttrainError: MLflow does not answer, or refuses
    """
    await mark_serving(registry, name, version, endpoint, url=url, by=by)
    tagged = await registry.versions(name, tags={SERVING_TAG: endpoint})
    withdrawn = {each.version for each in tagged} | ({previous} if previous else set())
    for other in sorted(withdrawn - {version}):
        try:
            await mark_withdrawn(registry, name, other, endpoint)
            await refresh_description(registry, name, other)
        except ModelVersionNotFoundError:  # deleted meanwhile: it says nothing any more
            continue
    await refresh_description(registry, name, version)


async def refreshed_if_possible(registry: ModelRegistry, name: str, version: str | int) -> None:
    """As :func:`refresh_description`, for whoever has done their work: what fails is told, no more."""
    try:
        await refresh_description(registry, name, version)
    except NighttrainError as error:
        _log.warning("The description of %s version %s stays as it is: %s", name, version, error)


async def _evaluation(registry: ModelRegistry, run_id: str) -> Run | None:
    if not run_id:
        return None
    try:
        return Run.from_api((await registry.client.get("runs/get", {"run_id": run_id}))["run"])
    except (TrackingNotFoundError, TrackingRequestError, TrackingUnauthorizedError) as error:
        _log.debug("no evaluation %s: %s", run_id, error)
        return None


async def _holds_its_stage(registry: ModelRegistry, version: ModelVersion) -> bool:
    """True if to update it moves no other version from the first place of its stage."""
    if version.stage == "None":
        return True
    try:
        return (await registry.version_in_stage(version.name, version.stage)).version == version.version
    except ModelVersionNotFoundError:  # it was moved right now
        return False
