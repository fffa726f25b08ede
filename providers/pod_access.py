"""The settings with which pods reach MLflow: certificates, workspace, credentials by reference.

One rule for trainings and for serving. A training's container gets the certificate as a file, beside the Job;
a serving pod has nothing beside its Deployment, so its launcher writes the file from a variable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.plain_secrets import known_forms
from nighttrain.providers.kubernetes.job.shipped_files import FOLDER
from nighttrain.providers.tracking.config import AUTH_VARIABLE, WORKSPACE_VARIABLE, workspace_of

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.tracking.config import TrackingConfig

CA_FILE = "mlflow-ca.pem"
CA_PATH_VARIABLE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
CA_TEXT_VARIABLE = "NIGHTTRAIN_MLFLOW_CA"
INSECURE_VARIABLE = "MLFLOW_TRACKING_INSECURE_TLS"

MAX_CA_BYTES = 100_000
"""Linux takes 128 KiB in one variable, a ConfigMap 1 MiB; the certificates of a company take ten."""

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")


@dataclass(frozen=True, kw_only=True)
class PodAccess:
    """The way from pods to MLflow.

    :param uri: MLflow's address as they see it
    :param secret: the Kubernetes Secret with their MLFLOW_TRACKING_* credentials
    :param certificates: PEM text of the CA that signed the server's certificate
    :param insecure: any certificate will do
    :param workspace: MLflow's workspace
    :param known_secrets: this process's own credentials, in every form that must not stand in a manifest
    :param auth: how MLflow's client authenticates with the pod's service account
    """

    uri: str
    secret: str | None = None
    certificates: str | None = None
    insecure: bool = False
    workspace: str | None = None
    auth: str | None = None
    known_secrets: tuple[str, ...] = field(default=(), repr=False)

    def with_secret(self, secret: str | None) -> PodAccess:
        """The same with another Secret, if one is given."""
        return replace(self, secret=secret) if secret else self

    def environment(self) -> dict[str, str]:
        """Plain variables, for any pod."""
        given = {
            INSECURE_VARIABLE: "true" if self.insecure else None,
            WORKSPACE_VARIABLE: self.workspace,
            AUTH_VARIABLE: self.auth,
        }
        return {name: value for name, value in given.items() if value}

    def sources(self) -> list[dict[str, Any]]:
        """The ``env_from`` entry with the credentials."""
        return [{"secretRef": {"name": self.secret}}] if self.secret else []

    def serving_environment(self) -> dict[str, str]:
        """Plain variables for a serving pod, whose launcher makes a file of the certificates."""
        certificates = {CA_TEXT_VARIABLE: self.certificates} if self.certificates else {}
        return self.environment() | certificates


def pod_access(config: TrackingConfig, *, uri: str, secret: str | None = None) -> PodAccess:
    """The pods' way to MLflow, as a connection of this process describes it.

    :param uri: MLflow's address as pods see it
    :param secret: the Kubernetes Secret with the pods' credentials
    :raises ConfigurationError: the CA file holds no certificate, or too many
    :raises TrackingMisconfiguredError: the workspace is this process's namespace, and it has none
    """
    tls = uri.startswith("https://")
    return PodAccess(
        uri=uri,
        secret=secret,
        certificates=_certificates(config.ca_certificate) if tls and config.verify_ssl else None,
        insecure=tls and not config.verify_ssl,
        # Said also where it is the namespace: the pods' own namespace may be another one.
        workspace=workspace_of(config),
        auth=config.auth,
        known_secrets=known_forms((config.token, config.password), config.username),
    )


def with_access(spec: WorkloadSpec, access: PodAccess) -> WorkloadSpec:
    """``spec`` with what its container needs to reach MLflow; variables that the user set stay."""
    given = {variable["name"] for variable in spec.env()}
    environment = access.environment()
    files = dict(spec.files or {})
    # MLflow takes one of the two variables: who sets one has decided.
    if given & {CA_PATH_VARIABLE, INSECURE_VARIABLE}:
        environment.pop(INSECURE_VARIABLE, None)
    elif access.certificates:
        files[CA_FILE] = access.certificates
        environment[CA_PATH_VARIABLE] = f"{FOLDER}/{CA_FILE}"
    token = spec.automount_service_account_token
    spec = replace(
        spec,
        env_from=[*(spec.env_from or []), *access.sources()],
        files=files or None,
        known_secrets=[*spec.known_secrets, *access.known_secrets],
        automount_service_account_token=True if token is None and access.auth else token,
    )
    return spec.with_own_env(environment)


def _certificates(path: str | None) -> str | None:
    """The file's certificates and nothing else of it: whoever may read the Job may read them."""
    if path is None:
        return None
    try:
        found = _CERTIFICATE.findall(Path(path).read_text("ascii", "replace"))
    except OSError as error:
        raise ConfigurationError("ca_certificate", path, f"cannot be read: {error.strerror}") from error
    text = "".join(f"{certificate}\n" for certificate in found)
    if not found:
        raise ConfigurationError("ca_certificate", path, "holds no certificate in PEM form")
    if len(text) > MAX_CA_BYTES:
        raise ConfigurationError(
            "ca_certificate",
            path,
            f"its {len(found)} certificates are too much for pods ({len(text)} bytes, at most "
            f"{MAX_CA_BYTES}): keep the one that signed MLflow's",
        )
    return text
