"""A trigger's arguments are a wire format: those that an earlier version stored are still accepted."""

from __future__ import annotations

import pytest

from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.sensors.triggers import WorkloadTrigger

WORKLOAD = {"namespace": "ml", "name": "j", "uid": "u", "attempt": 1}


def test_the_time_outs_of_an_earlier_version_are_accepted() -> None:
    stored = {"startup_timeout_seconds": 5.0, "schedule_timeout_seconds": None, "queue_timeout_seconds": 7.0}
    trigger = WorkloadTrigger(kubernetes_conn_id="k", workload=WORKLOAD, **stored)  # type: ignore[arg-type]
    _, arguments = trigger.serialize()
    assert Timeouts.from_dict(arguments["timeouts"]) == Timeouts(5.0, queue=7.0)
    assert not set(stored) & set(arguments)


@pytest.mark.parametrize("given", [Timeouts(5.0), Timeouts(5.0, 6.0, 7.0, sidecar_grace=8.0, node_lost=9.0)])
def test_the_time_outs_come_back_as_they_were(given: Timeouts) -> None:
    trigger = WorkloadTrigger(kubernetes_conn_id="k", workload=WORKLOAD, timeouts=given.to_dict())
    _, arguments = trigger.serialize()
    again = WorkloadTrigger(**arguments)
    assert Timeouts.from_dict(again.timeouts) == given
    later = {**given.to_dict(), "of_a_later_version": 1.0}
    assert Timeouts.from_dict(later) == given
