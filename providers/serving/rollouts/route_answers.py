"""What a route really does, counted from the answers that come back through it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nighttrain.providers.serving.rollouts.decide import Answers

if TYPE_CHECKING:
    from nighttrain.providers.serving.backends.traffic import Addresses
    from nighttrain.providers.serving.rollouts.surroundings import AskRoute

# After a change to or from everything, twenty answers of the right version: if a tenth went elsewhere still,
# they would all be right once in eight looks, and one more look would tell.
ANSWERS_EACH_LOOK = 20


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
