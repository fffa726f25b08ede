"""Bodies of requests, read with care: whoever sends them may mean harm."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.store import errors

if TYPE_CHECKING:
    from starlette.requests import Request

# An object is at most this large in a real cluster, where etcd sets the limit.
MAX_BODY_BYTES = 3 * 1024 * 1024

# No object of the API nests half as deep, and everything that walks objects here still has stack to spare.
MAX_DEPTH = 100


async def read(request: Request) -> bytes:
    """The whole body, as long as it is not too large; what is too large is not kept, nor read to its end.

    :raises ApiError: 413
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        pieces.append(piece)
    return b"".join(pieces)


def _too_large() -> errors.ApiError:
    message = f"Request entity too large: limit is {MAX_BODY_BYTES}"
    # The rest of the body is still on its way: nobody may take it for the next request.
    return errors.ApiError(413, "RequestEntityTooLarge", message, {}, {"Connection": "close"})


def checked(raw: bytes, value: Any) -> Any:
    """The body as it was read, if it is fit to be worked with.

    :raises ApiError: 400 for what is nested too deep
    """
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        check_depth(value)
    # Half of a pair of surrogates is no character; as in Go, a replacement character stands for it.
    return _whole_characters(value) if b"\\ud" in raw.lower() else value


def check_depth(value: Any) -> None:
    """:raises ApiError: 400 for what is nested too deep"""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            below.extend(each.values() if isinstance(each, dict) else each)
        level = [each for each in below if isinstance(each, dict | list)]
        if not level:
            return
    raise too_deep()


def too_deep() -> errors.ApiError:
    return errors.bad_request(f"json parse error: exceeded max depth ({MAX_DEPTH})")


def _whole_characters(value: Any) -> Any:
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
