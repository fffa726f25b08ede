"""Binds PersistentVolumeClaims of the one storage class there is, and protects those in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.controllers.reconcile import Controller
from nighttrain.providers.local.cluster.rules.claims import (
    IN_USE_FINALIZER,
    STORAGE_CLASS,
    claims_of,
    why_not_provided,
)
from nighttrain.providers.local.cluster.store.events import EventRecorder
from nighttrain.providers.local.cluster.store.resources import PERSISTENTVOLUMECLAIMS, PODS
from nighttrain.providers.local.cluster.store.store import DELETED

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.controllers.reconcile import ReconcileLoop
    from nighttrain.providers.local.cluster.machine.claim_folders import ClaimFolders
    from nighttrain.providers.local.cluster.store.resources import ResourceType
    from nighttrain.providers.local.cluster.store.store import Object

_BOUND = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}


class ClaimController(Controller):
    """Gives each claim its folder, and takes the folder back when the claim goes."""

    def __init__(self, loop: ReconcileLoop, folders: ClaimFolders) -> None:
        super().__init__(loop)
        self._folders = folders
        self._recorder = EventRecorder(loop.store, "persistentvolume-controller")

    def changed(self, type_: str, resource: ResourceType, obj: Object) -> None:
        metadata = obj["metadata"]
        if resource is PERSISTENTVOLUMECLAIMS:
            if type_ == DELETED:
                self._folders.remove(metadata["uid"])
            else:
                self.enqueue(metadata["namespace"], metadata["name"])
        elif resource is PODS and type_ == DELETED:
            for name in claims_of(obj):
                self.enqueue(metadata["namespace"], name)

    def reconcile(self, namespace: str, name: str) -> None:
        claim = self.store.find(PERSISTENTVOLUMECLAIMS, namespace, name)
        if claim is None:
            return
        if "deletionTimestamp" in claim["metadata"]:
            if not self._in_use(namespace, name):
                self.store.mutate(PERSISTENTVOLUMECLAIMS, namespace, name, _unprotect)
        elif claim["status"].get("phase") == "Pending":
            self._bind_or_explain(claim)

    def _in_use(self, namespace: str, name: str) -> bool:
        """Whether a pod that has a node names it, as long as the pod's object exists."""
        pods = self.store.list(PODS, namespace)[0]
        return any(pod["spec"].get("nodeName") and name in claims_of(pod) for pod in pods)

    def _bind_or_explain(self, claim: Object) -> None:
        chosen = claim["spec"].get("storageClassName")
        if claim["spec"].get("volumeName"):
            return  # it waits for that volume, and there are no volumes but those that are made here
        if chosen == STORAGE_CLASS:
            why = why_not_provided(claim["spec"])
            if why is None:
                self._bind(claim)
            else:
                failed = f'failed to provision volume with StorageClass "{chosen}": {why}'
                self._recorder.warning(claim, "ProvisioningFailed", failed)
        elif not chosen:
            why = "no persistent volumes available for this claim and no storage class is set"
            self._recorder.normal(claim, "FailedBinding", why)
        else:
            why = f'storageclass.storage.k8s.io "{chosen}" not found'
            self._recorder.warning(claim, "ProvisioningFailed", why)

    def _bind(self, claim: Object) -> None:
        metadata = claim["metadata"]
        volume = f"pvc-{metadata['uid']}"
        self._folders.make(metadata["uid"])

        def write(obj: Object) -> None:
            obj["metadata"].setdefault("annotations", {}).update(_BOUND)
            spec = obj["spec"]
            spec["volumeName"] = volume
            obj["status"] = {
                "phase": "Bound",
                "accessModes": spec["accessModes"],
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            }

        self.store.mutate(PERSISTENTVOLUMECLAIMS, metadata["namespace"], metadata["name"], write)
        self._recorder.normal(claim, "ProvisioningSucceeded", f"Successfully provisioned volume {volume}")


def _unprotect(claim: Object) -> None:
    finalizers = claim["metadata"].get("finalizers") or []
    claim["metadata"]["finalizers"] = [each for each in finalizers if each != IN_USE_FINALIZER]
