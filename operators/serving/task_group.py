"""A rollout whose steps are tasks: the same engine, for who wants to see each step in the grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup
from airflow.sdk.exceptions import AirflowSkipException

from nighttrain.operators.common import task_context
from nighttrain.operators.serving.picture import remember_picture
from nighttrain.operators.serving.rollout import RolloutModelOperator
from nighttrain.operators.serving.steps import as_strategy
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.strategy import Approval, Shadow, Strategy, Weight
from nighttrain.sensors.common.failures import failing_clearly

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nighttrain.providers.serving.rollouts.state import State

BEFORE_THE_FIRST = -1


class RolloutStepOperator(RolloutModelOperator):
    """One step of a rollout that several tasks carry: it ends once the step was held.

    Made by :func:`rollout_task_group`. The first begins the rollout; clearing any of them goes on with the
    one that is under way, and clearing the first after the end begins anew.

    :param group: what the tasks of one rollout share
    :param step: the step to be held; -1 stands for the candidate's readiness, ``None`` for the end
    """

    def __init__(self, *, group: str, step: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.group = group
        self.step = step

    def execute(self, context: Context) -> dict[str, Any] | None:
        if self.step == BEFORE_THE_FIRST:
            return super().execute(context)
        with failing_clearly():
            self._connect()
            state = run_sync(
                self._steps().drive(
                    self.endpoint, self._rollout_id(context), until=lambda _: True, tell=self.log.info
                )
            )
        return self._go_on(context, state)

    def _begin_steps(self, context: Context, pinned: Mapping[str, str], strategy: Strategy) -> State | None:
        begun = super()._begin_steps(context, pinned, strategy)
        if begun is None:
            raise AirflowSkipException(
                f"version {pinned['version']} serves already: there is no step to hold"
            )
        return begun

    def _rollout_id(self, context: Context) -> str:
        return f"airflow:{task_context.dag_run(context)}/{self.group}"

    def _finish_steps(self, context: Context) -> dict[str, Any]:
        if self.step is None:
            return super()._finish_steps(context)
        from nighttrain.providers.serving.rollouts.state import has_held

        step = self.step
        state = run_sync(
            self._steps().drive(
                self.endpoint,
                self._rollout_id(context),
                until=lambda present: has_held(present, step),
                tell=self.log.info,
            )
        )
        if state.ended:
            run_sync(self._steps().take(state))
        remember_picture(context, self._mlflow, state, self.log.warning)
        self._raise_unless_promoted(state)
        return {"endpoint": self.endpoint, "version": state.target.candidate, "phase": state.phase.value}


def rollout_task_group(group_id: str, *, strategy: Strategy | Mapping[str, Any], **rollout: Any) -> TaskGroup:
    """A rollout with a task for each step: ``begin``, one for each step, ``promote``.

    :param strategy: as :class:`RolloutModelOperator` takes it
    :param rollout: the other parameters of :class:`RolloutModelOperator`
    :raises ConfigurationError: the strategy cannot be, or ``task_id`` is given: the tasks have names
    """
    if "task_id" in rollout:
        raise ConfigurationError(
            "task_id", rollout["task_id"], "leave it out: each step is a task of its own"
        )
    steps = as_strategy(strategy)
    if steps is None:
        raise ConfigurationError("strategy", None, "give the steps")
    with TaskGroup(group_id) as group:
        shared = {**rollout, "strategy": steps, "group": group_id}
        before = RolloutStepOperator(task_id="begin", step=BEFORE_THE_FIRST, **shared)
        for number, step in enumerate(steps.steps):
            task = RolloutStepOperator(task_id=_name(number, step), step=number, **shared)
            before >> task
            before = task
        before >> RolloutStepOperator(task_id="promote", step=None, **shared)
    return group


def _name(number: int, step: Weight | Shadow | Approval) -> str:
    if isinstance(step, Approval):
        return f"step_{number + 1}_approval"
    return f"step_{number + 1}_{'shadow' if isinstance(step, Shadow) else 'weight'}_{step.percent}"
