"""The pace of things: pauses between tries, and the pace of a real control plane's controllers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackOff:
    """Seconds between tries: the first pause, doubled up to the longest. A real kubelet's numbers."""

    first: float = 10.0
    longest: float = 300.0

    def seconds(self, pause: int) -> float:
        return float(min(self.longest, self.first * 2 ** min(pause, 32)))


@dataclass(frozen=True)
class Pace:
    """The pace of a real controller; the embedded ones take no time.

    :param writes_per_second: what its client allows itself on average
    :param burst: how many requests it may make at once after a rest
    :param gather_seconds: how long news of a Job's pods, and of its own status, is gathered before the Job is
        looked at
    """

    writes_per_second: float
    burst: int
    gather_seconds: float


# kube-controller-manager's --kube-api-qps and --kube-api-burst as they are if nobody says otherwise, and the
# Job controller's period for batches of pod updates.
REAL_PACE = Pace(writes_per_second=20.0, burst=30, gather_seconds=1.0)


class Bucket:
    """Tokens for requests. It may go into debt: what a look at an object writes is known when it is over."""

    def __init__(self, pace: Pace) -> None:
        self._rate = pace.writes_per_second
        self._most = float(pace.burst)
        self._tokens = self._most
        self._at: float | None = None

    def seconds_left(self, now: float) -> float:
        """The pause until another request may be made; 0 if there is none."""
        passed = 0.0 if self._at is None else now - self._at
        self._tokens = min(self._most, self._tokens + passed * self._rate)
        self._at = now
        # A microsecond's worth of a token is a matter of rounding.
        return 0.0 if self._tokens > 1.0 - 1e-6 * self._rate else (1.0 - self._tokens) / self._rate

    def take(self, requests: int) -> None:
        """So many requests were made."""
        self._tokens -= requests
