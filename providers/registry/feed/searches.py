"""MLflow's searches over a set of models: as few calls as its filters allow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from nighttrain.providers.errors import TrackingBusyError, TrackingRequestError
from nighttrain.providers.registry.versions import ModelVersion, check_name
from nighttrain.providers.tracking.tags import quoted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from nighttrain.providers.registry.feed.model_state import TagFilter
    from nighttrain.providers.tracking.client import MLflowClient

FILTER_CHARACTERS = 6_000
"""The names in one filter, as they stand in the address: proxies take addresses of 8,000 characters."""

MODELS_PAGE = 1_000
"""The most models that MLflow gives at once."""

VERSIONS_PAGE = 1_000
"""Versions for each call where all are read: 1 to 3 MB."""

NEWEST_FIRST = ("last_updated_timestamp DESC", "name ASC", "version_number DESC")
IN_ORDER = ("name ASC", "version_number ASC")

T = TypeVar("T")


class Searches:
    """The searches of one server's registry.

    A filter narrows what MLflow sends; what comes is compared with the names all the same, since some
    databases compare without regard to case, and some servers take no list of names.

    :param client: the registry's client
    """

    def __init__(self, client: MLflowClient) -> None:
        self._client = client
        self._takes_lists = True
        self._fits_one_page = True

    async def models(self, names: Collection[str]) -> list[dict[str, Any]]:
        """Those of the models that exist, as MLflow's JSON.

        One call where the names fit one filter, or the whole registry one page.
        """
        filters = self._filters(names)
        found: list[dict[str, Any]] = []
        if len(filters) > 1 and self._fits_one_page:
            found, more = await self._models_page({})
            if not more:
                return [model for model in found if model["name"] in names]
            self._fits_one_page, found = False, []
        for narrowed in filters:
            found += await self._narrowed(narrowed, self._models)
        return [model for model in found if model["name"] in names]

    async def versions(self, names: Collection[str]) -> list[ModelVersion]:
        """Every version of the models."""
        found: list[ModelVersion] = []
        for narrowed in self._filters(names):
            found += await self._narrowed(narrowed, lambda terms: self._versions(terms, IN_ORDER))
        return [version for version in found if version.name in names]

    async def tagged(self, tag: TagFilter, names: Collection[str]) -> list[ModelVersion]:
        """The versions of the models that carry a tag: one call for each thousand."""
        term = f"tags.`{tag[0]}` = {quoted(tag[1])}"
        found = await self._narrowed(
            self._one_filter(names), lambda terms: self._versions([*terms, term], IN_ORDER)
        )
        return [version for version in found if version.name in names]

    async def updated(
        self, names: Collection[str], is_enough: Callable[[ModelVersion], bool], first_page: int
    ) -> list[ModelVersion]:
        """Versions, the last updated first, until ``is_enough`` says so of one, which is left out.

        :param first_page: how many to ask for at first
        """
        found = await self._narrowed(
            self._one_filter(names),
            lambda terms: self._versions(terms, NEWEST_FIRST, first_page, is_enough),
        )
        return [version for version in found if version.name in names]

    async def _narrowed(
        self, narrowed: str | None, search: Callable[[Sequence[str]], Awaitable[list[T]]]
    ) -> list[T]:
        if narrowed is not None and self._takes_lists:
            try:
                return await search([narrowed])
            except TrackingBusyError:
                raise
            except TrackingRequestError as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                found = await search([])
                self._takes_lists = False
                return found
        return await search([])

    async def _models(self, terms: Sequence[str]) -> list[dict[str, Any]]:
        query: dict[str, Any] = {"filter": _joined(terms)}
        found, token = await self._models_page(query)
        while token:
            page, token = await self._models_page({**query, "page_token": token})
            found += page
        return found

    async def _models_page(self, query: dict[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
        answer = await self._client.get("registered-models/search", {**query, "max_results": MODELS_PAGE})
        return list(answer.get("registered_models", ())), answer.get("next_page_token") or None

    async def _versions(
        self,
        terms: Sequence[str],
        order: Sequence[str],
        first_page: int = VERSIONS_PAGE,
        is_enough: Callable[[ModelVersion], bool] = lambda version: False,
    ) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        query: dict[str, Any] = {"filter": _joined(terms), "order_by": list(order), "max_results": first_page}
        while True:
            answer = await self._client.get("model-versions/search", query)
            for item in answer.get("model_versions", ()):
                version = ModelVersion.from_api(item)
                if is_enough(version):
                    return found
                found.append(version)
            if not answer.get("next_page_token"):
                return found
            query |= {"page_token": answer["next_page_token"], "max_results": VERSIONS_PAGE}

    def _filters(self, names: Collection[str]) -> Sequence[str | None]:
        """Filters that name all of the models; none at all where the server takes no lists."""
        return _filters(sorted(names)) if self._takes_lists else [None]

    def _one_filter(self, names: Collection[str]) -> str | None:
        filters = self._filters(names)
        return filters[0] if len(filters) == 1 else None


def _filters(names: list[str]) -> list[str]:
    lists: list[list[str]] = [[]]
    size = 0
    for name in names:
        literal = quoted(check_name(name)) or ""
        length = len(quote(literal)) + len(quote(", "))
        if lists[-1] and size + length > FILTER_CHARACTERS:
            lists.append([])
            size = 0
        lists[-1].append(literal)
        size += length
    return [f"name IN ({', '.join(each)})" for each in lists if each]


def _joined(terms: Sequence[str]) -> str | None:
    return " and ".join(terms) or None
