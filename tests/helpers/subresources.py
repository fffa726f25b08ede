"""What kubelets and controllers write, through nighttrain's client, which itself writes no subresource."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nighttrain.providers.kubernetes.api.resources import Resource


@dataclass(frozen=True)
class _Subresource(Resource):
    below: str = ""

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        return super().path(namespace, name, subresource or self.below)


def below(resource: Resource, subresource: str) -> Resource:
    """The subresource of a kind, for example its ``scale``."""
    given = {each.name: getattr(resource, each.name) for each in fields(resource)}
    return _Subresource(**given, below=subresource)


def status_of(resource: Resource) -> Resource:
    """The ``status`` of a kind."""
    return below(resource, "status")
