"""Log a call that is tried again as one sentence, instead of the retry library's record."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from nighttrain.providers.errors import NighttrainError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from stamina.instrumentation import RetryDetails, RetryHook

log = logging.getLogger(__name__)

# The library's own log hooks. A hook that somebody else set, for metrics say, goes on hearing of every retry.
_LOG_HOOKS = ("stamina.instrumentation._structlog", "stamina.instrumentation._logging")


def say_retries_plainly() -> None:
    """Log retries of this project's calls as a sentence; other projects' retries are logged as before."""
    from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

    hooks = get_on_retry_hooks()
    logging_hooks = [hook for hook in hooks if getattr(hook, "__module__", "") in _LOG_HOOKS]
    if logging_hooks:
        others = [hook for hook in hooks if hook not in logging_hooks]
        set_on_retry_hooks([_say, *map(_for_others, logging_hooks), *others])


def _say(details: RetryDetails) -> None:
    error = _ours(details)
    if error is not None:
        log.warning("Trying again in %.1f s: %s", details.wait_for, error)


def _for_others(hook: RetryHook) -> RetryHook:
    def call(details: RetryDetails) -> AbstractContextManager[None] | None:
        return None if _ours(details) is not None else hook(details)

    return call


def _ours(details: RetryDetails) -> NighttrainError | None:
    cause = details.caused_by
    error = getattr(cause, "error", cause)
    return error if isinstance(error, NighttrainError) else None
