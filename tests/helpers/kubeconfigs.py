"""Kubeconfigs for servers that are no whole cluster."""

from __future__ import annotations

from typing import Any


def kubeconfig(
    server: str,
    *,
    context: str = "here",
    namespace: str = "default",
    authority: str | None = None,
    **user: Any,
) -> dict[str, Any]:
    """A kubeconfig with one context.

    :param authority: the certificate authority, as kubeconfigs hold it
    :param user: the fields of its user
    """
    cluster = {"server": server} | ({"certificate-authority-data": authority} if authority else {})
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": context,
        "contexts": [
            {"name": context, "context": {"cluster": "k", "user": "u", "namespace": namespace}},
        ],
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
