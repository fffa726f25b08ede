"""Keeps the status of ResourceQuotas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.controllers.reconcile import Controller
from nighttrain.providers.local.cluster.rules.quota import as_text, usage
from nighttrain.providers.local.cluster.store.resources import RESOURCEQUOTAS, ResourceType

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.store import Object


class QuotaController(Controller):
    """Keeps the status of quotas: what is allowed, and how much of it is used."""

    def changed(self, type_: str, resource: ResourceType, obj: Object) -> None:
        if resource is RESOURCEQUOTAS:
            self.enqueue(obj["metadata"]["namespace"], obj["metadata"]["name"])
        elif resource.namespaced:
            space = obj["metadata"].get("namespace", "default")
            for quota in self.store.list(RESOURCEQUOTAS, space)[0]:
                self.enqueue(space, quota["metadata"]["name"])

    def reconcile(self, namespace: str, name: str) -> None:
        quota = self.store.find(RESOURCEQUOTAS, namespace, name)
        if quota is None:
            return
        hard = quota.get("spec", {}).get("hard") or {}
        used = {key: as_text(amount) for key, amount in usage(self.store, namespace, hard).items()}

        def write(new: Object) -> None:
            new["status"] = {"hard": hard, "used": used}

        self.store.mutate(RESOURCEQUOTAS, namespace, name, write)
