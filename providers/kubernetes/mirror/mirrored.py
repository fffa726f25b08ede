"""The workloads of one kind in a namespace and their pods, as last heard from the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import is_deleting, mapping, metadata, text, uid_of

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.job.kinds import WorkloadKind
    from nighttrain.providers.plain_json import Json


class Mirror:
    """Holds the objects; a hub keeps them current.

    :param kind: the kind of the workloads
    """

    def __init__(self, kind: WorkloadKind) -> None:
        self._kind = kind
        self._owners: dict[str, str] = {}
        self.workloads: dict[str, Json] = {}
        # The pods of each workload, by one of its keys.
        self.pods: dict[str, dict[str, Json]] = {}
        self.workloads_listed = False
        self.pods_listed = False
        # What is held is old, because the cluster does not answer.
        self.outage = False

    @property
    def synced(self) -> bool:
        """True once the first lists have come."""
        return self.workloads_listed and self.pods_listed

    def pods_of(self, keys: tuple[str, ...]) -> list[Json]:
        """The pods that are filed under any of these keys."""
        return [pod for key in keys for pod in self.pods.get(key, {}).values()]

    def put_pod(self, pod: Json) -> str:
        """Store a pod.

        :return: the key of the workload it belongs to, empty if it belongs to none
        """
        owner, uid = self._owner(pod), uid_of(pod)
        if owner:
            _keep_first_deletion(self.pods.get(owner, {}).get(uid), pod)
            self.pods.setdefault(owner, {})[uid] = pod
            self._owners[uid] = owner
        return owner

    def drop_pod(self, pod: Json) -> str:
        """Forget a pod.

        :return: the key of the workload it belonged to, empty if it belonged to none
        """
        owner, uid = self._owner(pod), uid_of(pod)
        self._owners.pop(uid, None)
        pods = self.pods.get(owner, {})
        _keep_first_deletion(pods.pop(uid, None), pod)
        if not pods:
            self.pods.pop(owner, None)
        return owner

    def key_of(self, uid: str) -> str:
        """The key of the workload that a pod or a workload of this uid belongs to."""
        return self._owners.get(uid, uid)

    def _owner(self, pod: Json) -> str:
        owner = self._kind.owner_of(pod)
        if not owner:
            name = text(mapping(metadata(pod).get("labels")).get(self._kind.pod_label))
            owner = key_by_name(name) if name else ""
        return owner


def key_by_name(name: str) -> str:
    """The key of a workload whose pods know only its name."""
    return f"/{name}"  # no uid begins so


def _keep_first_deletion(before: Json | None, pod: Json) -> None:
    """Keep when a pod's deletion was asked for: its last step overwrites that, with a grace period of 0."""
    for field in ("deletionTimestamp", "deletionGracePeriodSeconds"):
        if before is not None and is_deleting(before) and field in metadata(before):
            pod["metadata"][field] = before["metadata"][field]
