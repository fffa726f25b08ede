"""The tracking server and who asks it: its address, its credentials, its workspace.

A service account's token serves as credentials as MLflow's own client has it: ``MLFLOW_TRACKING_AUTH``. The
kubelet replaces the token about once an hour, so it is read for every request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from nighttrain.providers.errors import ConfigurationError, TrackingMisconfiguredError
from nighttrain.providers.redaction import redact

AUTH_VARIABLE = "MLFLOW_TRACKING_AUTH"
WORKSPACE_VARIABLE = "MLFLOW_WORKSPACE"
WORKSPACE_HEADER = "X-MLFLOW-WORKSPACE"

KUBERNETES, NAMESPACED = "kubernetes", "kubernetes-namespaced"
AUTH_MODES = (KUBERNETES, NAMESPACED)
"""The second also takes the namespace as the workspace, where none is named."""

SERVICE_ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the kubelet mounts the token, and where MLflow's own client looks."""

TIMEOUT_SECONDS = 30.0
"""For one answer. Searches of a busy server take seconds; a minute of silence would be a hang to whoever
waits."""

RETRY_SECONDS = 45.0
"""How long one call is tried again. A tracking server restarts in 20 to 40 seconds: this bridges a
restart."""

PAGE = 1_000
"""The most runs or experiments that MLflow gives at once."""

_WORKSPACE = re.compile(r"[a-z0-9][-a-z0-9]{0,61}[a-z0-9]")
"""MLflow's own rule."""


@dataclass(frozen=True)
class TrackingConfig:
    """Address, credentials and workspace of a tracking server.

    :param uri: ``http://host:port`` or ``https://...``, with a path where the server runs under a prefix;
        ``user:password@`` in it is moved to ``username`` and ``password``
    :param token: bearer token. Basic authentication wins when both are given, as it does in MLflow's own
        client.
    :param registry_uri: a second address for the model registry; the credentials are the same
    :param workspace: MLflow's workspace for every call; the server's default if left out
    :param auth: ``kubernetes``: the service account's token of the pod that this runs in, where no other
        credentials are given; ``kubernetes-namespaced``: also its namespace as the workspace, where none is
        named. As MLflow's own client does with MLFLOW_TRACKING_AUTH
    :param service_account_folder: where that token is
    :param ca_certificate: path of a PEM file that signs the server's certificate
    :param timeout_seconds: for one answer
    :param retry_seconds: how long an unanswered or refused call is repeated; 0 asks once
    :raises ConfigurationError: an address that is not http or https, or a CA file that cannot be used
    """

    uri: str
    token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    registry_uri: str | None = None
    workspace: str | None = None
    auth: str | None = None
    service_account_folder: str = SERVICE_ACCOUNT_FOLDER
    ca_certificate: str | None = None
    verify_ssl: bool = True
    timeout_seconds: float = TIMEOUT_SECONDS
    retry_seconds: float = RETRY_SECONDS

    def __post_init__(self) -> None:
        uri, username, password = split_uri("uri", self.uri)
        object.__setattr__(self, "uri", uri)
        if username and not self.username:
            object.__setattr__(self, "username", username)
            object.__setattr__(self, "password", password)
        if self.registry_uri:
            registry_uri, registry_user, _ = split_uri("registry_uri", self.registry_uri)
            if registry_user:
                raise ConfigurationError(
                    "registry_uri",
                    None,
                    "give the user and password in username and password, not in the address",
                )
            object.__setattr__(self, "registry_uri", registry_uri)
        if self.workspace is not None and not _WORKSPACE.fullmatch(self.workspace):
            raise ConfigurationError(
                "workspace",
                self.workspace,
                "a workspace has 2 to 63 lower-case letters, digits and '-'",
            )
        if self.auth is not None and self.auth not in AUTH_MODES:
            raise ConfigurationError(
                "auth", self.auth, f"must be {' or '.join(map(repr, AUTH_MODES))}, or left out"
            )
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise ConfigurationError(
                "token", None, "it has a character that no HTTP header takes: a line break at its end?"
            )
        if self.ca_certificate and not Path(self.ca_certificate).is_file():
            raise ConfigurationError(
                "ca_certificate",
                self.ca_certificate,
                "no such file; give the path of a PEM file on this machine",
            )


def split_uri(name: str, uri: str) -> tuple[str, str | None, str | None]:
    """Split an address into itself without user information, the user and the password."""
    try:
        parts = urlsplit(str(uri).strip())
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(name, redact(str(uri)), f"not an address: {redact(str(error))}") from error
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(
            name,
            redact(str(uri)),
            "nighttrain speaks MLflow's REST API: give the http:// or https:// address of a tracking server. "
            "To serve an existing store: mlflow server --backend-store-uri sqlite:///mlflow.db",
        )
    if not parts.hostname:
        raise ConfigurationError(name, redact(str(uri)), "the host is missing: write http://host:port")
    if parts.query or parts.fragment:
        raise ConfigurationError(name, redact(str(uri)), "remove everything from '?' or '#' on")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    location = host if port is None else f"{host}:{port}"
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    return urlunsplit((parts.scheme, location, parts.path.rstrip("/"), "", "")), username, password


def address_for_pods(name: str, uri: str) -> str:
    """MLflow's address as pods get it, checked.

    :raises ConfigurationError: not http or https, or with credentials in it
    """
    address, username, _ = split_uri(name, uri)
    if username:
        raise ConfigurationError(name, None, "leave the user out of it: pods get theirs from a Secret")
    return address


def authorization(config: TrackingConfig) -> str:
    """The header's value, from the token as it is now.

    :raises TrackingMisconfiguredError: there is no token
    """
    return f"Bearer {_service_account_file(config, 'token')}"


def workspace_of(config: TrackingConfig) -> str | None:
    """The workspace that is named, or that the service account's namespace stands for.

    :raises TrackingMisconfiguredError: it is to be the namespace, and there is none
    """
    if config.workspace or config.auth != NAMESPACED:
        return config.workspace
    return _service_account_file(config, "namespace")


def page_url(server: str, place: str, config: TrackingConfig) -> str:
    """The address of a page of MLflow's, in its workspace where that is known without asking."""
    address = f"{server.rstrip('/')}/#/{place}"
    return f"{address}?workspace={config.workspace}" if config.workspace else address


def _service_account_file(config: TrackingConfig, name: str) -> str:
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
