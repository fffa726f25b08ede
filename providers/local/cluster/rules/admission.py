"""The checks that an object passes before it is stored: defaults, addresses, rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nighttrain.providers.local.cluster.rules.defaults import apply_defaults, label_job
from nighttrain.providers.local.cluster.rules.dependents import collect
from nighttrain.providers.local.cluster.rules.validation import validate
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.resources import (
    JOBS,
    PERSISTENTVOLUMECLAIMS,
    PODS,
    SERVICEACCOUNTS,
    SERVICES,
    ResourceType,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.local.cluster.rules.claims import ClaimFolders
    from nighttrain.providers.local.cluster.store.store import Object, Store


class Addresses(Protocol):
    """A pool of Service addresses, as the network has one."""

    def take(self) -> str: ...

    def claim(self, address: str) -> bool: ...

    def owns(self, address: str) -> bool: ...

    def give_back(self, address: str) -> None: ...


class Admission:
    """The ``admit`` and ``release`` of a :class:`Store`.

    :param addresses: where Services get theirs; without, they have none
    :param quotas: namespace -> how many pods it may hold; may change at any time
    """

    def __init__(
        self, addresses: Addresses | None = None, *, quotas: Mapping[str, int] | None = None
    ) -> None:
        self.store: Store | None = None
        self.claims: ClaimFolders | None = None
        self._addresses = addresses
        self._quotas = quotas if quotas is not None else {}

    def admit(self, resource: ResourceType, new: Object, old: Object | None) -> None:
        """:raises ApiError: 403, 422"""
        if resource.custom is None:
            apply_defaults(resource, new, old)
        else:
            resource.custom.check(resource, new, old)
        if resource is PODS and old is None:
            _check_runtime_class(new)
        validate(resource, new, old)
        if resource is JOBS and old is None:
            label_job(new)
        elif resource is PODS and old is None:
            self._check_service_account(new)
            self._check_quota(new)
        elif resource is PERSISTENTVOLUMECLAIMS and old is None and self.claims is not None:
            self.claims.make(new["metadata"]["uid"])
        if resource is SERVICES:
            self._give_address(new, old)

    def release(self, resource: ResourceType, obj: Object) -> None:
        """The object is gone."""
        address = obj.get("spec", {}).get("clusterIP") if resource is SERVICES else None
        if self._addresses is not None and address and address != "None":
            self._addresses.give_back(address)
        if resource is PERSISTENTVOLUMECLAIMS and self.claims is not None:
            self.claims.remove(obj["metadata"]["uid"])
        if resource.custom is not None and self.store is not None:
            collect(self.store, obj)

    def _check_quota(self, pod: Object) -> None:
        """Refuse a pod too many, as a ResourceQuota named ``one`` on ``count/pods`` does."""
        space = pod["metadata"]["namespace"]
        most = self._quotas.get(space)
        if most is None or self.store is None:
            return
        used = len(self.store.list(PODS, space)[0])
        if used >= most:
            why = f"requested: count/pods=1, used: count/pods={used}, limited: count/pods={most}"
            raise errors.forbidden(PODS, pod["metadata"]["name"], f"exceeded quota: one, {why}")

    def _check_service_account(self, pod: Object) -> None:
        """The default account is there by definition; another one must exist."""
        name, space = pod["spec"]["serviceAccountName"], pod["metadata"]["namespace"]
        if name == "default" or self.store is None or self.store.find(SERVICEACCOUNTS, space, name):
            return
        why = f'error looking up service account {space}/{name}: serviceaccount "{name}" not found'
        raise errors.forbidden(PODS, pod["metadata"]["name"], why)

    def _give_address(self, service: Object, old: Object | None) -> None:
        spec = service["spec"]
        had = (old or {}).get("spec", {}).get("clusterIP")
        asked = spec.get("clusterIP")
        if self._addresses is None or asked == "None":
            return
        if asked and asked == had:
            return
        if asked:
            why = _cannot_have(asked, self._addresses)
            if why:
                cause = errors.invalid_value(
                    "spec.clusterIPs", [asked], f"failed to allocate IP {asked}: {why}"
                )
                raise errors.invalid(SERVICES, service["metadata"]["name"], [cause])
        else:
            spec["clusterIP"] = self._addresses.take()
        spec["clusterIPs"] = [spec["clusterIP"]]


def _check_runtime_class(pod: Object) -> None:
    """There are no RuntimeClasses here, so none is found."""
    name = pod["spec"].get("runtimeClassName")
    if name:
        why = f'pod rejected: RuntimeClass "{name}" not found'
        raise errors.forbidden(PODS, pod["metadata"].get("name", ""), why)


def _cannot_have(asked: str, addresses: Addresses) -> str:
    """The reason why the address cannot be had; empty once it is taken."""
    if not addresses.owns(asked):
        return "the provided IP is not in the valid range of the cluster's Services"
    return "" if addresses.claim(asked) else "provided IP is already allocated"
