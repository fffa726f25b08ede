"""How to reach a cluster: from a kubeconfig, its content, or from inside a pod."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ClusterUnauthorizedError, ConfigurationError

if TYPE_CHECKING:
    from kubernetes_asyncio.client import Configuration

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class ClusterConfig:
    """Where a cluster is and who we are there. At most one source is given.

    :param kubeconfig: path of a kubeconfig file
    :param context: a context of that file; the file's current one by default
    :param in_cluster: use the service account of the pod we run in
    :param kubeconfig_content: the kubeconfig as a mapping, for connections that store it inline
    :param namespace: the connection's default namespace
    :param verify_ssl: ``False`` accepts any certificate; for tests only

    With no source at all, kubectl's order applies: ``$KUBECONFIG``, then ``~/.kube/config``, then the pod.
    """

    kubeconfig: str | None = None
    context: str | None = None
    in_cluster: bool = False
    kubeconfig_content: dict[str, Any] | None = field(default=None, repr=False)
    namespace: str | None = None
    verify_ssl: bool = True

    @property
    def key(self) -> str:
        """Equal for equal configurations; reveals nothing of the content."""
        plain = json.dumps(
            [
                *(self.kubeconfig, self.context, self.in_cluster, self.kubeconfig_content),
                *(self.namespace, self.verify_ssl, os.environ.get("KUBECONFIG")),
            ],
            sort_keys=True,
            default=str,
        )
        return hashlib.sha256(plain.encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.key)

    def describe(self) -> str:
        """Where the server's address comes from, for error messages; never credentials."""
        if self.in_cluster:
            return "the in-cluster service account"
        source = "a kubeconfig stored in the connection" if self.kubeconfig_content else "kubeconfig "
        if not self.kubeconfig_content:
            source += str(self.kubeconfig or _default_kubeconfig() or "(none found)")
        return f"{source}, context {self.context!r}" if self.context else source


@dataclass(frozen=True)
class Loaded:
    """What loading a ClusterConfig gives."""

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
    path = config.kubeconfig or (None if any(given) else _default_kubeconfig())
    if config.in_cluster or (not any(given) and path is None and "KUBERNETES_SERVICE_HOST" in os.environ):
        return _load_in_cluster(config)
    if path is None and config.kubeconfig_content is None:
        raise ConfigurationError(
            "cluster connection", None, "no kubeconfig given, none at ~/.kube/config, and not inside a pod"
        )
    return await _load_kubeconfig(config, path)


async def _load_kubeconfig(config: ClusterConfig, path: str | None) -> Loaded:
    from kubernetes_asyncio.client import Configuration
    from kubernetes_asyncio.config import ConfigException, load_kube_config, load_kube_config_from_dict

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
    from kubernetes_asyncio.client import Configuration
    from kubernetes_asyncio.config import ConfigException, load_incluster_config

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
    from kubernetes_asyncio.config import kube_config

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


def _default_kubeconfig() -> str | None:
    from_environment = os.environ.get("KUBECONFIG")
    if from_environment:
        return from_environment
    default = Path("~/.kube/config").expanduser()
    return str(default) if default.is_file() else None
