"""What the work raises comes out of the bridge as it is, with nothing of the bridge's own in its chain."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from nighttrain.providers.bridge import run_sync


async def fails() -> None:
    raise ValueError("the training is gone")


async def fails_for_a_reason() -> None:
    try:
        raise KeyError("the reason")
    except KeyError as error:
        raise ValueError("the training is gone") from error


async def called_where_a_loop_runs() -> None:
    run_sync(fails())


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_an_error_is_told_without_a_word_about_event_loops() -> None:
    with pytest.raises(ValueError, match="gone") as caught:
        run_sync(fails())
    assert caught.value.__context__ is None
    assert "event loop" not in told(caught.value)


def test_neither_is_it_where_a_loop_runs() -> None:
    with pytest.raises(ValueError, match="gone") as caught:
        asyncio.run(called_where_a_loop_runs())
    assert caught.value.__context__ is None
    assert "event loop" not in told(caught.value)


def test_the_chain_that_the_work_made_is_kept() -> None:
    with pytest.raises(ValueError, match="gone") as caught:
        run_sync(fails_for_a_reason())
    assert isinstance(caught.value.__cause__, KeyError)
    assert "event loop" not in told(caught.value)
