"""Retries of ours are one sentence in the log; those of others, and others' hooks, are left alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import stamina
import stamina.instrumentation

from nighttrain.providers.errors import ClusterUnreachableError
from nighttrain.providers.retries import say_retries_plainly

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def hooks() -> Iterator[None]:
    stamina.instrumentation.set_on_retry_hooks([stamina.instrumentation.LoggingOnRetryHook])
    with stamina.set_testing(True, attempts=2):
        yield
    stamina.instrumentation.set_on_retry_hooks(None)


def fail_once(error: Exception) -> None:
    tries = []
    for attempt in stamina.retry_context(on=type(error), attempts=2, wait_initial=0):
        with attempt:
            tries.append(attempt.num)
            if len(tries) == 1:
                raise error


def test_our_retry_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    say_retries_plainly()
    say_retries_plainly()
    with caplog.at_level(logging.INFO):
        fail_once(ClusterUnreachableError("no answer from http://cluster"))
    assert [record.getMessage() for record in caplog.records] == [
        "Trying again in 0.0 s: no answer from http://cluster"
    ]


def test_the_retries_of_others_are_logged_as_before(caplog: pytest.LogCaptureFixture) -> None:
    say_retries_plainly()
    with caplog.at_level(logging.INFO):
        fail_once(KeyError("not ours"))
    assert [record.name for record in caplog.records] == ["stamina"]


def test_a_metrics_hook_hears_of_ours_too() -> None:
    heard: list[Any] = []
    stamina.instrumentation.set_on_retry_hooks([stamina.instrumentation.LoggingOnRetryHook, heard.append])
    say_retries_plainly()
    fail_once(ClusterUnreachableError("gone"))
    assert len(heard) == 1
