"""Functions as people write them in DAG files, that can and cannot be shipped."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from nowhere import DataFrame  # type: ignore[import-not-found]

LIMIT = 3


def sum(*_: object) -> str:  # noqa: A001
    return "not the builtin one"


def train(
    rate: float, rows: DataFrame | None = None, *, names: list[str], depth: int = 4, **more: Any
) -> str:
    """Everything that is the function's own.

    Indented text stays.
    """
    import json
    import os
    from pathlib import Path

    kept: dict[str, Any] = {"rate": rate, "names": names, "depth": depth, "more": more, "rows": rows}

    class Model:
        size: int = depth

        def __init__(self) -> None:
            super().__init__()

    def again(number: int) -> int:
        return 0 if number == 0 else 1 + again(number - 1)

    kept["size"], kept["again"] = Model.size, again(sorted([2, len(names)])[0])
    text = f"""
  two before {rate}
none before"""
    # ä, ☃: more than ASCII
    kept["text"] = text + "☃"
    Path(os.environ["RESULT"]).write_text(json.dumps(kept), "utf-8")
    print("trained", flush=True)
    return "not used"


if LIMIT:

    @functools.partial(lambda limit, function: function, LIMIT)
    def indented(rate: float) -> str:
        # A comment of its own
        return f"""
    {rate}
        """


def counts() -> int:
    global seen  # noqa: PLW0603
    seen = 1
    return seen


async def asynchronous() -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def asynchronous_generator() -> AsyncIterator[int]:
    yield 1


class Trainer:
    def fit(self) -> None: ...

    @staticmethod
    def static() -> None: ...


def uses_module() -> float:
    return math.pi


def uses_constant_deep_inside() -> list[Any]:
    return [lambda: [LIMIT for _ in range(3)]]


def uses_default(limit: int = LIMIT) -> int:
    return limit


def uses_neighbour() -> None:
    uses_module()


def uses_shadowed_builtin() -> object:
    return sum([1])


def positional(rate: float, /) -> None: ...


def variadic(*rates: float) -> None: ...


def around(rate: float) -> Callable[[], float]:
    def closure() -> float:
        return rate

    return closure


@functools.wraps(uses_default)
def wrapped() -> None: ...


shortened = functools.partial(train, 0.1)
nameless = lambda: None  # noqa: E731
