"""Promotion and rollback in Dagster: jobs that a person launches, with a name and a reason."""

# No `from __future__ import annotations` here: Dagster reads the annotations below as they are.

from typing import Any

import dagster as dg
from pydantic import Field

from nighttrain.assets.resources import MLflowResource
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError, GateRejectedError, NighttrainError
from nighttrain.providers.registry.gates.evaluation import EVALUATION_RUN_TAG, VERDICT_TAG
from nighttrain.providers.registry.history.entries import Kind
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import NOBODY, Author, Change, note, promote, roll_back
from nighttrain.providers.registry.versions import check_alias, check_name, check_stage
from nighttrain.providers.tracking.run_tree import RunTree


class Approval(dg.Config):
    """What a person writes on the launchpad."""

    version: str = Field(description="the version to promote, which the gate accepted")
    approver: str = Field(description="your name, for the model's history")
    reason: str = Field(default="", description="why, for the model's history")


class Withdrawal(dg.Config):
    """What a person writes on the launchpad."""

    actor: str = Field(description="your name, for the model's history")
    reason: str = Field(default="", description="why, for the model's history")
    to: str | None = Field(default=None, description="the version to go back to; the one before if left out")


def promotion_job(
    *, name: str, model_name: str, alias: str = "champion", stage: str | None = None
) -> dg.JobDefinition:
    """Make a job that promotes a version once a person has approved it.

    Its configuration asks for the version, the approver and a reason. A version whose recorded verdict is not
    accepted is refused, and so is one that was judged beside another champion than there is now. Needs the
    resource ``mlflow``.

    :param stage: a stage to move the version to, too
    :raises ConfigurationError: a name that MLflow refuses
    """
    check_name(model_name)
    check_alias(alias)
    if stage is not None:
        check_stage(stage)

    @dg.op(name=f"{name}_op")
    def approve_and_promote(context: dg.OpExecutionContext, config: Approval, mlflow: MLflowResource) -> None:
        author = Author(
            actor=f"dagster:{context.job_name}",
            approver=_named("approver", config.approver),
            reason=config.reason,
            dag_run=context.run_id,
        )
        change = _failing_clearly(_approve(mlflow, model_name, config.version, alias, stage, author))
        _say(context, change)

    @dg.job(name=name, description=f"Promotes a version of {model_name} that a person has approved")
    def promotion() -> None:
        approve_and_promote()

    return promotion


def rollback_job(*, name: str, model_name: str, alias: str = "champion") -> dg.JobDefinition:
    """Make a job that undoes the last promotion of an alias, and moves back exactly what it had moved.

    Needs the resource ``mlflow``.

    :raises ConfigurationError: a name that MLflow refuses
    """
    check_name(model_name)
    check_alias(alias)

    @dg.op(name=f"{name}_op")
    def undo(context: dg.OpExecutionContext, config: Withdrawal, mlflow: MLflowResource) -> None:
        author = Author(actor=_named("actor", config.actor), reason=config.reason, dag_run=context.run_id)
        _say(context, _failing_clearly(_roll_back(mlflow, model_name, alias, config.to, author)))

    @dg.job(name=name, description=f"Undoes the last promotion of {model_name}")
    def rollback() -> None:
        undo()

    return rollback


async def _approve(
    mlflow: MLflowResource, model_name: str, number: str, alias: str, stage: str | None, author: Author
) -> Change:
    async with mlflow.client() as client:
        registry = ModelRegistry(client)
        version = await registry.get_version(model_name, number)
        verdict = version.tags.get(VERDICT_TAG)
        if verdict != "accepted":
            raise GateRejectedError(
                f"the gate's verdict on version {number} of {model_name!r} is {verdict or 'not there'}: only "
                "what it accepted is promoted"
            )
        evaluation = version.tags.get(EVALUATION_RUN_TAG)
        replaces = None
        if evaluation:
            run = await RunTree(client).get(evaluation)
            replaces = run.params.get("champion_version", NOBODY)
        await note(registry, model_name, Kind.APPROVED, version=number, author=author)
        return await promote(
            registry, model_name, number, alias=alias, stage=stage, replaces=replaces, author=author
        )


async def _roll_back(
    mlflow: MLflowResource, model_name: str, alias: str, to: str | None, author: Author
) -> Change:
    async with mlflow.client() as client:
        return await roll_back(ModelRegistry(client), model_name, alias=alias, to=to, author=author)


def _failing_clearly(work: Any) -> Change:
    try:
        found: Change = run_sync(work)
    except NighttrainError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return found


def _named(field: str, name: str) -> str:
    if not name.strip():
        raise ConfigurationError(field, name, "write your name: it goes into the model's history")
    return name.strip()


def _say(context: dg.OpExecutionContext, change: Change) -> None:
    context.log.info(
        f"{change.name}: {change.alias or change.stage} is on version {change.version}; before: "
        f"{change.previous_version or 'none'}"
    )
    context.add_output_metadata(
        {
            "version": str(change.version),
            "previous_version": change.previous_version or "none",
            "entry": change.number or 0,
        }
    )
