"""What one process remembers while it drives: what a route really does, by the answers that come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nighttrain.providers.serving.rollouts.decide import Answers

if TYPE_CHECKING:
    from nighttrain.providers.serving.backends.traffic import Addresses, Look
    from nighttrain.providers.serving.rollouts.state import State
    from nighttrain.providers.serving.rollouts.surroundings import AskRoute

# After a change to or from everything, twenty answers of the right version: if a tenth went elsewhere still,
# they would all be right once in eight looks, and one more look would tell.
ANSWERS_EACH_LOOK = 20

# A change of several objects may take a few turns. Beyond that somebody else turns them back.
SET_TIMES = 10


@dataclass
class RouteAnswers:
    """The answers since the last change of the share."""

    fence: int = 0
    total: int = 0
    failed: int = 0
    by_version: Counter[str] = field(default_factory=Counter)

    async def ask(self, ask_route: AskRoute, addresses: Addresses, fence: int) -> Answers:
        """Send some more requests, and count."""
        if fence != self.fence:
            self.fence, self.total, self.failed, self.by_version = fence, 0, 0, Counter()
        came = await ask_route(addresses, ANSWERS_EACH_LOOK)
        self.total += len(came)
        self.failed += sum(version is None for version in came)
        self.by_version.update(version for version in came if version)
        return Answers(
            total=self.total,
            failed=self.failed,
            by_version=dict(self.by_version),
            newest=frozenset(version for version in came if version),
        )


@dataclass(kw_only=True)
class Driving:
    """What one process remembers while it drives; another process starts without it."""

    told: int
    names_looked_at: float = 0.0
    readiness: str = ""
    set_for: int = 0
    set_times: int = 0
    answers: RouteAnswers = field(default_factory=RouteAnswers)
    refusals: set[str] = field(default_factory=set)

    def told_apart(self, state: State, look: Look) -> Look:
        """The look, with another hand in it that undoes what is set before anybody sees it whole."""
        if self.set_for != state.fence:
            self.set_for, self.set_times = state.fence, 0
        if look.strayed or self.set_times < SET_TIMES or look.fence < state.fence:
            return look
        if state.percent == look.asked_percent:
            return look
        return replace(look, strayed=f"somebody changes the share as often as it is set: {SET_TIMES} times")
