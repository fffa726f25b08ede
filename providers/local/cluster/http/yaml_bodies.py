"""Request bodies in YAML, which is JSON most of the time: what kubectl applies is."""

from __future__ import annotations

import functools
import json
from typing import Any

from nighttrain.providers.local.cluster.kinds.decoding import parse_json
from nighttrain.providers.local.cluster.store import errors

MAX_YAML_BYTES = 256 * 1024
"""The reader of YAML is slow, and the server does nothing else meanwhile: this much takes some seconds."""


def read_yaml(raw: bytes) -> Any:
    """The plain JSON data of a YAML body.

    :raises ApiError: 400 when it does not parse, uses anchors, or is long and not JSON
    """
    import yaml

    try:
        return parse_json(raw)
    except (ValueError, RecursionError):
        pass
    if len(raw) > MAX_YAML_BYTES:
        raise errors.bad_request(f"a YAML body may have {MAX_YAML_BYTES} bytes: send longer ones as JSON")
    try:
        # Dates and the like become text, keys too.
        plain = json.dumps(yaml.load(raw, Loader=_loader()), allow_nan=False)  # noqa: S506
        return parse_json(plain.encode())
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise errors.bad_request(f"error parsing YAML: {error}") from None


@functools.cache
def _loader() -> Any:
    """A safe loader without timestamps, which JSON does not have, and aliases, a few of which can stand for
    more data than any machine holds."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not read by the embedded cluster: write the value out")
            return super().compose_node(parent, index)

    timestamp = "tag:yaml.org,2002:timestamp"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != timestamp]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader
