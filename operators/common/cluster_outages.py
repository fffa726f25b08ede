"""An API server that is away for a while is no reason to use up a task's retries."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from nighttrain.providers.errors import ClusterError, ClusterRequestError, ClusterUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Each try is five requests of the client's own over a quarter of a minute: more often gains nothing.
PAUSE_SECONDS = 5.0


def is_outage(error: ClusterError) -> bool:
    """True if the cluster gave no answer, or one that says that it cannot now (429, 5xx)."""
    if isinstance(error, ClusterRequestError):
        return error.is_busy
    return isinstance(error, ClusterUnreachableError)


def waiting_out(
    work: Callable[[], T],
    *,
    seconds: float,
    warn: Callable[..., object],
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Do ``work``, which may be repeated; while the cluster does not answer, try again.

    :param warn: called at each failure, as a logger's ``warning``
    :param seconds: how long after the first failure a last try may begin
    :raises ClusterError: the outage lasted longer, or it was another error
    """
    until: float | None = None
    while True:
        try:
            return work()
        except ClusterError as error:
            now = clock()
            until = now + seconds if until is None else until
            if not is_outage(error) or now >= until:
                raise
            warn("The cluster does not answer; trying for another %.0f s: %s", until - now, error)
            sleep(min(PAUSE_SECONDS, until - now))
