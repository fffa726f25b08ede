"""Golden requests: what a version is asked when clients do not ask enough, and what it should answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.fields import is_number, require_a

# A request that takes longer hangs, for whoever sent it; most gateways give up sooner.
TIMEOUT_SECONDS = 10.0

# They are kept with the rollout's state, which is one object of the cluster with at most a megabyte.
MAX_CHARACTERS = 200_000


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Requests that may be sent again and again, to any version.

    :param requests: JSON bodies, each sent as it is
    :param expected: for each request the predictions that are right, or ``None`` where nobody knows; left
        out, an answer is only compared with the stable version's
    :param path: where the model server takes predictions; MLflow's scoring server's, if left out
    :param tolerance: two numbers that differ by no more agree
    :param timeout_seconds: a request without an answer by then has failed
    """

    requests: tuple[Any, ...]
    expected: tuple[Any, ...] = ()
    path: str = "/invocations"
    tolerance: float = 1e-6
    timeout_seconds: float = TIMEOUT_SECONDS

    def validate(self) -> None:
        """Find every mistake that can be found without a server.

        :raises ConfigurationError: names the field, the value and the fix
        """
        where = "strategy.golden"
        for name in ("requests", "expected"):
            require_a((list, tuple), f"{where}.{name}", getattr(self, name), "give a list")
        if not self.requests:
            raise ConfigurationError(f"{where}.requests", (), "give a request, or leave golden out")
        if self.expected and len(self.expected) != len(self.requests):
            raise ConfigurationError(
                f"{where}.expected",
                len(self.expected),
                f"give one for each of the {len(self.requests)} requests, null where nobody knows",
            )
        if not isinstance(self.path, str) or not self.path.startswith("/") or not self.path.isprintable():
            raise ConfigurationError(f"{where}.path", self.path, "give a path that begins with /")
        for name in ("tolerance", "timeout_seconds"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ConfigurationError(f"{where}.{name}", value, "give a number, 0 or more")
        try:
            size = len(json.dumps(asdict(self), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{where}.requests", None, f"give JSON values: {error}") from error
        if size > MAX_CHARACTERS:
            raise ConfigurationError(
                f"{where}.requests", size, f"give fewer or smaller ones: {MAX_CHARACTERS:,} characters in all"
            )

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Golden:
        """Golden requests from plain values.

        :raises ConfigurationError: names the field that is unknown or missing
        """
        require_a(Mapping, "strategy.golden", given, "give requests, and what is expected")
        if unknown := sorted(map(str, given.keys() - cls.__dataclass_fields__.keys())):
            known = ", ".join(cls.__dataclass_fields__)
            raise ConfigurationError(
                f"strategy.golden.{unknown[0]}", given[unknown[0]], f"there is no such field; known: {known}"
            )
        lists = {}
        for name in ("requests", "expected"):
            require_a((list, tuple), f"strategy.golden.{name}", given.get(name, ()), "give a list")
            lists[name] = tuple(given.get(name, ()))
        return cls(**{**given, **lists})
