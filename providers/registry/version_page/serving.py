"""The tag that says which endpoint serves a version. It goes when the endpoint serves another one."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.version_page.description import Endpoint
from nighttrain.providers.tracking.names import MAX_VERSION_TAG
from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nighttrain.providers.registry.models import ModelRegistry

SERVING_TAG = f"{PREFIX}serving"
"""``namespace/endpoint``; of several, with commas between."""

SERVING_URL_TAG = f"{PREFIX}serving_url"
"""The endpoints' addresses, in the same order."""

SERVING_SINCE_TAG = f"{PREFIX}serving_since"
"""Since when, ISO 8601 in UTC, and by whom, after a blank; in the same order."""

_BETWEEN = ", "


def endpoints_of(tags: Mapping[str, str]) -> tuple[Endpoint, ...]:
    """The endpoints that serve a version, as its tags say."""
    names = [name for name in tags.get(SERVING_TAG, "").split(_BETWEEN) if name]
    urls = tags.get(SERVING_URL_TAG, "").split(_BETWEEN)
    since = tags.get(SERVING_SINCE_TAG, "").split(_BETWEEN)
    return tuple(
        Endpoint(name, url, *_since_and_by(words))
        for name, url, words in zip(names, _as_long(urls, names), _as_long(since, names), strict=False)
    )


def _as_long(values: list[str], names: Sequence[str]) -> list[str]:
    return [*values, *[""] * (len(names) - len(values))]


def _since_and_by(words: str) -> tuple[str, str]:
    since, _, by = words.partition(" ")
    return since, by


async def mark_serving(
    registry: ModelRegistry,
    name: str,
    version: str | int,
    endpoint: str | None,
    *,
    url: str = "",
    by: str = "",
    clock: Callable[[], float] = time.time,
) -> None:
    """Say on a version which endpoint serves it, beside those that it has; ``None``: none does any more.

    Repeating it changes nothing.

    :param endpoint: ``namespace/endpoint``
    :param url: its address, where it is known
    :param by: who rolled it out
    :param clock: seconds since 1970; injected in tests
    :raises ModelVersionNotFoundError: no such version
    """
    if endpoint is None:
        await _write(registry, name, version, ())
        return
    _check(endpoint)
    known = endpoints_of((await registry.get_version(name, version)).tags)
    others = [each for each in known if each.name != endpoint]
    present = next((each for each in known if each.name == endpoint and each.since), None)
    since = present.since if present else datetime.fromtimestamp(clock(), UTC).isoformat(timespec="seconds")
    who = present.by if present else by.replace(",", " ")
    await _write(registry, name, version, (*others, Endpoint(endpoint, url, since, who)))


async def mark_withdrawn(registry: ModelRegistry, name: str, version: str | int, endpoint: str) -> None:
    """Say on a version that this endpoint no longer serves it; others still may.

    :raises ModelVersionNotFoundError: no such version
    """
    known = endpoints_of((await registry.get_version(name, version)).tags)
    left = tuple(each for each in known if each.name != endpoint)
    if left != known:
        await _write(registry, name, version, left)


async def _write(
    registry: ModelRegistry, name: str, version: str | int, endpoints: Sequence[Endpoint]
) -> None:
    for tag, values in (
        (SERVING_URL_TAG, [each.url for each in endpoints]),
        (SERVING_SINCE_TAG, [f"{each.since} {each.by}".strip() for each in endpoints]),
        (SERVING_TAG, [each.name for each in endpoints]),
    ):
        joined = _BETWEEN.join(values) if any(values) else ""
        if joined and len(joined) <= MAX_VERSION_TAG:
            await registry.set_tags(name, version, {tag: joined})
        else:
            await registry.delete_tag(name, version, tag)


def _check(endpoint: str) -> None:
    namespace, _, rest = endpoint.partition("/")
    if not namespace or not rest or "/" in rest or "," in endpoint:
        raise ConfigurationError("endpoint", endpoint, "write it as namespace/endpoint")
