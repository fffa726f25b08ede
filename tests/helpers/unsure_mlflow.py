"""A real MLflow behind a proxy of which some answers do not come: refused before, or lost after it acted."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from helpers.mlflow_proxy import Answer, Asked, Proxy, proxy, refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True)
class Unsure:
    """One answer that does not come.

    :param at: the number of the request, from 1
    :param acted: MLflow acted on it first
    """

    at: int
    acted: bool


@dataclass
class UnsureMLflow:
    """Passes requests on, and answers some of them itself.

    :param struck: how many answers did not come
    """

    upstream: str
    uri: str = ""
    struck: int = 0
    _asked: int = 0
    _due: dict[int, bool] = field(default_factory=dict)

    def begin(self, answers: Iterable[Unsure]) -> None:
        """From now on these answers do not come; requests are counted anew."""
        self._asked = 0
        self._due = {each.at: each.acted for each in answers}

    def judge(self, asked: Asked) -> Answer | None:
        """The answer of the proxy itself, if it is one of those."""
        self._asked += 1
        if self._asked not in self._due:
            return None
        self.struck += 1
        if self._due.pop(self._asked):
            Proxy(self.upstream, lambda _: None).answer(asked)
        return refused(503, "TEMPORARILY_UNAVAILABLE")


@contextlib.contextmanager
def unsure_mlflow(upstream: str) -> Iterator[UnsureMLflow]:
    """The proxy, on a port of its own."""
    made = UnsureMLflow(upstream)
    with proxy(upstream, made.judge) as running:
        made.uri = running.uri
        yield made
