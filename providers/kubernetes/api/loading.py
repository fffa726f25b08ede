"""Load a cluster's configuration with the client library: addresses, certificates, credentials."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.config import (
    ConfigException,
    kube_config,
    load_incluster_config,
    load_kube_config,
    load_kube_config_from_dict,
)

from nighttrain.providers.errors import ClusterUnauthorizedError, ConfigurationError
from nighttrain.providers.kubernetes.api.connection import default_kubeconfig

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.connection import ClusterConfig

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Loaded:
    """A configuration as it was loaded.

    :param namespace: the connection's default namespace
    :param source: where the configuration comes from, for messages
    """

    configuration: Configuration = field(repr=False)
    namespace: str
    source: str


async def load(config: ClusterConfig) -> Loaded:
    """Read the configuration, running exec plugins where the kubeconfig names one.

    :raises ConfigurationError: the source is missing, ambiguous or not a kubeconfig
    :raises ClusterUnauthorizedError: a credential plugin did not deliver
    """
    given = [config.kubeconfig is not None, config.kubeconfig_content is not None, config.in_cluster]
    if sum(given) > 1:
        raise ConfigurationError(
            "cluster connection", None, "give one of kubeconfig path, kubeconfig content and in-cluster"
        )
    path = config.kubeconfig or (None if any(given) else default_kubeconfig())
    if config.in_cluster or (not any(given) and path is None and "KUBERNETES_SERVICE_HOST" in os.environ):
        return _load_in_cluster(config)
    if path is None and config.kubeconfig_content is None:
        raise ConfigurationError(
            "cluster connection", None, "no kubeconfig given, none at ~/.kube/config, and not inside a pod"
        )
    return await _load_kubeconfig(config, path)


async def _load_kubeconfig(config: ClusterConfig, path: str | None) -> Loaded:
    configuration = Configuration()
    _forget_lost_files()
    expanded = None if path is None else _existing(path)
    try:
        if expanded is not None:
            loader = await load_kube_config(
                config_file=expanded,
                context=config.context,
                client_configuration=configuration,
                persist_config=False,
            )
        else:
            loader = await load_kube_config_from_dict(
                config.kubeconfig_content, context=config.context, client_configuration=configuration
            )
    except ConfigException as error:
        if "exec" in str(error):
            raise ClusterUnauthorizedError(
                f"the credential plugin of {config.describe()} failed: {error}"
            ) from error
        raise ConfigurationError("kubeconfig", path, f"{error} ({config.describe()})") from error
    except (FileNotFoundError, PermissionError) as error:
        if error.filename in (expanded or "").split(os.pathsep):
            raise ConfigurationError("kubeconfig", path, f"cannot be read: {error.strerror}") from error
        # Certificates are looked for before they are opened: what is left to open is the plugin.
        raise ClusterUnauthorizedError(
            f"the credential plugin {error.filename!r} of {config.describe()} cannot be run: "
            f"{error.strerror}. Install it where Airflow's workers and triggerer run, or use a token"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AssertionError, AttributeError) as error:
        raise ConfigurationError("kubeconfig", path, f"not a kubeconfig: {error!r}") from error
    except Exception as error:  # the YAML parser's errors share no public base with the ones above
        raise ConfigurationError("kubeconfig", path, f"not a kubeconfig: {type(error).__name__}") from error
    current = loader.current_context or {}
    namespace = (current.get("context") or {}).get("namespace")
    _finish(configuration, config)
    return Loaded(configuration, config.namespace or namespace or "default", config.describe())


def _load_in_cluster(config: ClusterConfig) -> Loaded:
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        own = SERVICE_ACCOUNT_NAMESPACE.read_text().strip() if SERVICE_ACCOUNT_NAMESPACE.is_file() else ""
    except (ConfigException, OSError) as error:
        raise ConfigurationError(
            "in_cluster", True, f"{error} Only a pod with a service-account token can use it."
        ) from error
    _finish(configuration, config)
    return Loaded(configuration, config.namespace or own or "default", "the in-cluster service account")


def _forget_lost_files() -> None:
    """The library keeps certificates in temporary files and never looks whether they are still there.

    A triggerer lives longer than a machine's temporary files, and a forked worker's end deletes its parent's.
    """
    held: dict[Any, str] = getattr(kube_config, "_temp_files", {})
    for content, name in list(held.items()):
        if not Path(name).is_file():
            del held[content]


def _existing(path: str) -> str:
    """The files of a path list that are there: like kubectl, one of several may be missing."""
    parts = [Path(part).expanduser() for part in path.split(os.pathsep) if part]
    found = [str(part) for part in parts if part.is_file()]
    if not found:
        raise ConfigurationError("kubeconfig", path, "no such file")
    return os.pathsep.join(found)


def _finish(configuration: Configuration, config: ClusterConfig) -> None:
    if not config.verify_ssl:
        configuration.verify_ssl = False
