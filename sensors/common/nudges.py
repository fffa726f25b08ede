"""A webhook's way to the triggerers: one Airflow variable, whose value is another one after each webhook.

The API server writes it (``nighttrain.sensors.webhook_receiver``), each triggerer reads it once a second:
one row of Airflow's database. It says only "look now"; what there is to see is MLflow's to say.
"""

from __future__ import annotations

import uuid

NUDGE_VARIABLE = "nighttrain_registry_nudge"


async def read_nudge() -> str | None:
    """The variable's value as a triggerer sees it; ``None`` where nobody ever nudged."""
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetVariable, VariableResult

    ask = getattr(getattr(task_runner, "SUPERVISOR_COMMS", None), "asend", None)
    if ask is None:
        return None
    # Not Variable.get: it would block the triggerer's event loop, and look for it in the environment first.
    answer = await ask(GetVariable(key=NUDGE_VARIABLE))
    return answer.value if isinstance(answer, VariableResult) else None


def write_nudge() -> None:
    """Nudge every triggerer. For the API server, which has Airflow's database."""
    from airflow.models.variable import Variable

    Variable.set(NUDGE_VARIABLE, uuid.uuid4().hex, description="Changes with each of MLflow's webhooks")
