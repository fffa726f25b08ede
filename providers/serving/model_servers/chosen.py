"""The model server of a version: by name, or by the flavors that its MLmodel file lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nighttrain.providers.errors import RegistryError
from nighttrain.providers.registry.artifacts import read_version_file
from nighttrain.providers.serving.model_servers.servers import choose, named

if TYPE_CHECKING:
    from nighttrain.providers.registry.versions import ModelVersion
    from nighttrain.providers.serving.model_servers.model_server import ModelServer
    from nighttrain.providers.tracking.client import MLflowClient

BY_FLAVOR = "by flavor"

# They have some kilobytes; one of a megabyte is none.
MAX_MLMODEL_BYTES = 1_000_000


async def chosen_server(client: MLflowClient, version: ModelVersion, name: str) -> ModelServer:
    """The server that a person named, or the first known one that loads the version as it is.

    No model is loaded: an MLmodel file is read as data.

    :param name: a server's name, or :data:`BY_FLAVOR`
    :raises ConfigurationError: there is no such server, or none loads these flavors
    :raises RegistryError: the version's MLmodel file is missing or cannot be read
    """
    if name != BY_FLAVOR:
        return named(name)
    import yaml

    about = f"version {version.version} of {version.name!r}"
    content = await read_version_file(client, version, "MLmodel", limit=MAX_MLMODEL_BYTES)
    if content is None:
        raise RegistryError(f"{about} has no MLmodel file: name its server instead of {BY_FLAVOR!r}")
    try:
        document = yaml.safe_load(content.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise RegistryError(f"the MLmodel file of {about} is no YAML: name its server") from error
    flavors = document.get("flavors") if isinstance(document, Mapping) else None
    if not isinstance(flavors, Mapping):
        raise RegistryError(f"the MLmodel file of {about} lists no flavors: name its server")
    return choose(flavors)
