"""The way to a cluster as a plain value: a kubeconfig, its content, or the pod that this process is in."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ClusterConfig:
    """The way to a cluster. At most one source is given.

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
        """Name the source of the server's address, for error messages; never credentials."""
        if self.in_cluster:
            return "the in-cluster service account"
        source = "a kubeconfig stored in the connection" if self.kubeconfig_content else "kubeconfig "
        if not self.kubeconfig_content:
            source += str(self.kubeconfig or default_kubeconfig() or "(none found)")
        return f"{source}, context {self.context!r}" if self.context else source


def default_kubeconfig() -> str | None:
    """The kubeconfig that kubectl would read: ``$KUBECONFIG``, else ``~/.kube/config`` if it is there."""
    from_environment = os.environ.get("KUBECONFIG")
    if from_environment:
        return from_environment
    default = Path("~/.kube/config").expanduser()
    return str(default) if default.is_file() else None
