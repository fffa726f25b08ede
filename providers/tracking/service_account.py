"""A service account's token as MLflow's credentials, as MLflow's own client has it: ``MLFLOW_TRACKING_AUTH``.

The kubelet replaces the token about once an hour, so it is read for every request.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nighttrain.providers.errors import TrackingMisconfiguredError

if TYPE_CHECKING:
    from nighttrain.providers.tracking.client import TrackingConfig

AUTH_VARIABLE = "MLFLOW_TRACKING_AUTH"
WORKSPACE_VARIABLE = "MLFLOW_WORKSPACE"
WORKSPACE_HEADER = "X-MLFLOW-WORKSPACE"

KUBERNETES, NAMESPACED = "kubernetes", "kubernetes-namespaced"
MODES = (KUBERNETES, NAMESPACED)
"""The second also takes the namespace as the workspace, where none is named."""

FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the kubelet mounts it, and where MLflow's own client looks."""


def authorization(config: TrackingConfig) -> str:
    """The header's value, from the token as it is now.

    :raises TrackingMisconfiguredError: there is no token
    """
    return f"Bearer {_read(config, 'token')}"


def workspace_of(config: TrackingConfig) -> str | None:
    """The workspace that is named, or that the service account's namespace stands for.

    :raises TrackingMisconfiguredError: it is to be the namespace, and there is none
    """
    if config.workspace or config.auth != NAMESPACED:
        return config.workspace
    return _read(config, "namespace")


def page(server: str, place: str, config: TrackingConfig) -> str:
    """The address of a page of MLflow's, in its workspace where that is known without asking."""
    address = f"{server.rstrip('/')}/#/{place}"
    return f"{address}?workspace={config.workspace}" if config.workspace else address


def _read(config: TrackingConfig, name: str) -> str:
    path = Path(config.service_account_folder, name)
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TrackingMisconfiguredError(
            f"auth = {config.auth!r} needs a service account's {name}, and {path} cannot be read: this "
            "process does not run in a pod that has one (automountServiceAccountToken). Give it a token and "
            "a workspace of its own; pods use auth all the same"
        ) from error
    if not text:
        raise TrackingMisconfiguredError(f"auth = {config.auth!r}: {path} is empty")
    return text
