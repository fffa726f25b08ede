"""The bounds of waits, one for each kind of wait, as one value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Pulling a training image of several GB on a fresh node takes minutes; a wait of ten is more often a mistake
# (a wrong name, a request no node can give) than a slow node. Waiting in a Kueue queue is not counted.
DEFAULT_STARTUP_TIMEOUT_SECONDS = 600.0

# A proxy that notices the end of what it serves goes within seconds, and one that does not never goes by
# itself; ten seconds are nothing beside a training, and enough to send the last metrics.
DEFAULT_SIDECAR_GRACE_SECONDS = 10.0


# A quarter of an hour since it fell silent: five minutes until the cluster marks the pod (the usual
# toleration), ten for a machine to boot again, or for whoever runs the nodes to notice that it does not.
DEFAULT_NODE_LOST_TIMEOUT_SECONDS = 900.0

# Between a Job's creation and Airflow's record that its task waits for it lie seconds; a database or a
# scheduler in need makes minutes of them. What is younger is not reaped.
DEFAULT_MINIMUM_AGE_SECONDS = 300.0


@dataclass(frozen=True)
class Timeouts:
    """The bounds of a wait, in seconds. Another kind of wait, and any healthy state, starts its time anew.

    :param startup: how long the workload may go without getting nearer to running, once it has quota and a
        node. A queue that does not exist counts as well: no waiting grants it.
    :param schedule: how long it may wait for a node; as long as for its start if not given
    :param queue: how long it may wait in a queue, or for quota that others use. Without bound if not given:
        such a wait says how busy the cluster is, not that something is wrong, and a nightly run that waits
        its turn until morning is healthy.
    :param sidecar_grace: how long other containers may go on after the main one's end
    :param node_lost: how long it may be unknown whether it still runs, because its node does not answer
    :param fail_if_over_quota: whether a request above the whole of today's quota ends the wait at once. If
        not, it waits in the queue for a larger quota
    """

    startup: float
    schedule: float | None = None
    queue: float | None = None
    sidecar_grace: float = DEFAULT_SIDECAR_GRACE_SECONDS
    node_lost: float = DEFAULT_NODE_LOST_TIMEOUT_SECONDS
    fail_if_over_quota: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Timeouts:
        """The inverse of :meth:`to_dict`; what a later version added is ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
