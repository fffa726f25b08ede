"""Plain Kubernetes: one Deployment a version, one Service an endpoint that selects the version which serves.

All state is in the cluster: the Service's annotations say which version is stable, which was before it and
which one a rollout is bringing up; its selector says where requests go, and both change in one patch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from nighttrain.providers.errors import (
    ClusterError,
    ConfigurationError,
    ObjectConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    RolloutFailedError,
    ServingError,
    WorkloadConflictError,
    clip,
)
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS, PODS, SERVICES
from nighttrain.providers.kubernetes.job.pod_template import MAIN_CONTAINER
from nighttrain.providers.kubernetes.values.objects import (
    is_deleting,
    main_container_spec,
    mapping,
    metadata,
    status,
    text,
    whole,
)
from nighttrain.providers.redaction import redact
from nighttrain.providers.serving.backends.base import EndpointStatus, Progress, Readiness, VersionStatus
from nighttrain.providers.serving.backends.manifests import (
    build_deployment,
    build_service,
    deployment_name,
    now,
    version_labels,
)
from nighttrain.providers.serving.backends.pods import desired_replicas, judge
from nighttrain.providers.serving.spec import (
    CANDIDATE_ANNOTATION,
    DEPLOYED_ANNOTATION,
    DIGEST_ANNOTATION,
    ENDPOINT_LABEL,
    HASH_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_ANNOTATION,
    PERCENT_ANNOTATION,
    PREVIOUS_ANNOTATION,
    REPLACED_ANNOTATION,
    SCALED_UP_ANNOTATION,
    STABLE_ANNOTATION,
    SWITCHED_ANNOTATION,
    VERSION_LABEL,
    ServingSpec,
    check_endpoint,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json

_Result = TypeVar("_Result")

# The controllers write to a Deployment many times while it starts; after a conflict it is read again.
_WRITES = 10

# What a person needs to see why a server does not come up.
_LINES, _WIDTH = 20, 400

# What a Deployment in use remembers until the rollout that changed it is over.
_UNDO = frozenset({REPLACED_ANNOTATION, SCALED_UP_ANNOTATION})


class KubernetesDeployments:
    """The serving backend for a cluster without any serving system."""

    name = "a plain Kubernetes Service"

    def __init__(self, client: ClusterClient) -> None:
        self._client = client

    async def check(self, spec: ServingSpec) -> None:
        """Refuse an endpoint that is not ours, or another model's.

        :raises WorkloadConflictError: a Service or Deployment of that name was not made by nighttrain
        :raises ConfigurationError: the endpoint serves another model
        """
        service = await self.service(spec.endpoint, spec.namespace)
        deployment = await self.deployment(spec.endpoint, spec.namespace, spec.version)
        for found in (service, deployment):
            model = _annotations(found).get(MODEL_ANNOTATION) if found else None
            if found and model != spec.model_name:
                raise ConfigurationError(
                    "endpoint",
                    spec.endpoint,
                    f"it serves the model {model!r}; choose another endpoint for {spec.model_name!r}",
                )

    async def deploy(self, spec: ServingSpec, tell: Progress) -> bool:
        """Create the version's Deployment, adopt it if it is just so, or give it its new form.

        :raises WorkloadConflictError: the name is taken by an object that is not this version
        """
        service = await self.service(spec.endpoint, spec.namespace)
        await self._mark_candidate(spec, service)
        wanted = build_deployment(spec, await self._as_many_as_serve(spec, service))
        try:
            await self._client.create(DEPLOYMENTS, spec.namespace, wanted)
        except ObjectExistsError:
            return await self._adopt(spec, wanted, tell)
        return True

    async def _as_many_as_serve(self, spec: ServingSpec, service: Json | None) -> int:
        stable = _annotations(service).get(STABLE_ANNOTATION)
        if stable is None or spec.replicas is not None:
            return 1
        versions = await self.versions(spec.endpoint, spec.namespace)
        return max([1, *(version.replicas for version in versions if version.version == stable)])

    async def _mark_candidate(self, spec: ServingSpec, service: Json | None) -> None:
        if service is None or _annotations(service).get(CANDIDATE_ANNOTATION) == spec.version:
            return
        change = {"metadata": {"annotations": {CANDIDATE_ANNOTATION: spec.version}}}
        await self._client.patch(SERVICES, spec.namespace, spec.endpoint, change)

    async def _adopt(self, spec: ServingSpec, wanted: Json, tell: Progress) -> bool:
        async def attempt() -> bool:
            found = await self.deployment(spec.endpoint, spec.namespace, spec.version)
            if found is None:
                await self._client.create(DEPLOYMENTS, spec.namespace, wanted)
                return True
            if metadata(found).get("deletionTimestamp"):
                raise ServingError(
                    f"{metadata(found)['name']} is being deleted; start the rollout again once it is gone"
                )
            if _annotations(found).get(HASH_ANNOTATION) == _annotations(wanted)[HASH_ANNOTATION]:
                return await self._scaled_up(found, desired_replicas(wanted), tell)
            await self._client.replace(
                DEPLOYMENTS,
                spec.namespace,
                metadata(found)["name"],
                await self._new_form(spec, wanted, found),
            )
            _tell_replicas(found, desired_replicas(wanted), tell)
            return True

        return await self.written(attempt)

    async def _new_form(self, spec: ServingSpec, wanted: Json, found: Json) -> Json:
        """The wanted Deployment with the replicas it has, guarded: an autoscaler may write meanwhile.

        What serves, or is kept for a rollback, remembers the form it has.
        """
        annotations = dict(_annotations(wanted))
        service = await self.service(spec.endpoint, spec.namespace)
        in_use = (_annotations(service).get(key) for key in (STABLE_ANNOTATION, PREVIOUS_ANNOTATION))
        if REPLACED_ANNOTATION in _annotations(found):
            annotations[REPLACED_ANNOTATION] = _annotations(found)[REPLACED_ANNOTATION]
        elif spec.version in in_use:
            annotations[REPLACED_ANNOTATION] = json.dumps(_form(found))
        replicas = desired_replicas(found)
        if replicas == 0:
            replicas = desired_replicas(wanted)
            annotations[SCALED_UP_ANNOTATION] = str(replicas)
        elif SCALED_UP_ANNOTATION in _annotations(found):
            annotations[SCALED_UP_ANNOTATION] = _annotations(found)[SCALED_UP_ANNOTATION]
        guarded = {"resourceVersion": metadata(found)["resourceVersion"], "annotations": annotations}
        return {
            **wanted,
            "metadata": {**wanted["metadata"], **guarded},
            "spec": {**wanted["spec"], "replicas": replicas},
        }

    async def scale_up(
        self, endpoint: str, namespace: str, version: str, replicas: int, tell: Progress
    ) -> bool:
        """Give the version replicas if it has none."""

        async def attempt() -> bool:
            found = await self.deployment(endpoint, namespace, version)
            return found is not None and await self._scaled_up(found, replicas, tell)

        return await self.written(attempt)

    async def _scaled_up(self, found: Json, replicas: int, tell: Progress) -> bool:
        if desired_replicas(found) > 0:
            _tell_replicas(found, replicas, tell)
            return SCALED_UP_ANNOTATION in _annotations(found)
        held = metadata(found)
        # Only from zero, and a person or an autoscaler who was first keeps the say.
        guarded = {
            "resourceVersion": held["resourceVersion"],
            "annotations": {SCALED_UP_ANNOTATION: str(replicas)},
        }
        change = {"metadata": guarded, "spec": {"replicas": replicas}}
        await self._client.patch(DEPLOYMENTS, held["namespace"], held["name"], change)
        _tell_replicas(found, replicas, tell)
        return True

    async def readiness(self, endpoint: str, namespace: str, version: str) -> Readiness:
        """Judge the version's Deployment and pods."""
        deployment = await self.deployment(endpoint, namespace, version)
        if deployment is None:
            gone = "Its Deployment does not exist: it was never started, or somebody deleted it."
            return Readiness(ready=False, detail="no such Deployment", failure=gone)
        return judge(deployment, await self.pods(endpoint, namespace, version))

    async def last_lines(self, endpoint: str, namespace: str, version: str) -> tuple[str, ...]:
        """The last lines of the version's newest pod; empty if they cannot be had."""
        lines: list[str] = []
        try:
            pods = await self.pods(endpoint, namespace, version)
            if not pods:
                return ()
            newest = max(pods, key=lambda pod: str(metadata(pod).get("creationTimestamp", "")))
            # By name: where a mesh adds containers of its own, the API demands one.
            asked = self._client.logs(
                namespace, metadata(newest)["name"], container=MAIN_CONTAINER, tail_lines=_LINES
            )
            async for line in asked:
                lines.append(clip(redact(line), _WIDTH))
        except ClusterError:
            pass
        return tuple(lines)

    async def switch(self, endpoint: str, namespace: str, version: str) -> None:
        """Change selector, stable and previous version in one patch.

        :raises RolloutFailedError: the version is gone or scaled to zero
        """

        async def attempt() -> None:
            deployment = await self.deployment(endpoint, namespace, version)
            gone = deployment is None or is_deleting(deployment)
            if deployment is None or gone or desired_replicas(deployment) == 0:
                what = "deleted" if gone else "scaled to zero replicas"
                raise RolloutFailedError(f"{endpoint}: version {version} was {what} just before the switch")
            service = await self.service(endpoint, namespace)
            if service is None:
                await self.create_service(build_service(deployment))
            else:
                await self._switch(endpoint, namespace, version, service)
            await self.settle(deployment)

        await self.written(attempt)

    async def settle(self, deployment: Json) -> None:
        """Forget how a version's Deployment was: there is nothing to undo any more."""
        if _UNDO & _annotations(deployment).keys():
            held, settled = metadata(deployment), {"metadata": {"annotations": dict.fromkeys(_UNDO)}}
            await self._client.patch(DEPLOYMENTS, held["namespace"], held["name"], settled)

    async def create_service(self, body: Json) -> None:
        """Make the endpoint's Service.

        :raises ObjectConflictError: somebody else just made it
        """
        held = body["metadata"]
        try:
            await self._client.create(SERVICES, held["namespace"], body)
        except ObjectExistsError as error:
            raise ObjectConflictError(f"Service {held['name']} was just made by somebody else") from error

    async def _switch(self, endpoint: str, namespace: str, version: str, service: Json) -> None:
        if (change := switch_patch(service, endpoint, version)) is not None:
            await self._client.patch(SERVICES, namespace, endpoint, change)

    async def revert(self, endpoint: str, namespace: str, version: str) -> None:
        """Undo :meth:`deploy`."""

        async def attempt() -> None:
            service = await self.service(endpoint, namespace)
            held = _annotations(service) if service else {}
            if version in (held.get(STABLE_ANNOTATION), held.get(PREVIOUS_ANNOTATION)):
                # The patch that switches takes the mark away: whoever ended right after it left a success.
                switched = held.get(STABLE_ANNOTATION) == version and CANDIDATE_ANNOTATION not in held
                await self._restore(endpoint, namespace, version, switched=switched)
            else:
                await self.remove(endpoint, namespace, version)
            if held.get(CANDIDATE_ANNOTATION) == version:
                change = {"metadata": {"annotations": {CANDIDATE_ANNOTATION: None}}}
                await self._client.patch(SERVICES, namespace, endpoint, change)

        await self.written(attempt)

    async def _restore(self, endpoint: str, namespace: str, version: str, *, switched: bool) -> None:
        found = await self.deployment(endpoint, namespace, version)
        if found is None or not _UNDO & _annotations(found).keys():
            return
        if switched:
            await self.settle(found)
            return
        held, replicas = _annotations(found), desired_replicas(found)
        # Replicas go back to zero only if nobody has changed them since.
        back = 0 if held.get(SCALED_UP_ANNOTATION) == str(replicas) else replicas
        kept = {key: metadata(found)[key] for key in ("name", "namespace", "resourceVersion")}
        old = json.loads(held[REPLACED_ANNOTATION]) if REPLACED_ANNOTATION in held else _form(found)
        annotations = {key: value for key, value in old["annotations"].items() if key not in _UNDO}
        body = {
            "metadata": {**kept, "annotations": annotations, "labels": old["labels"]},
            "spec": {**old["spec"], "replicas": back},
        }
        await self._client.replace(
            DEPLOYMENTS, namespace, kept["name"], {"apiVersion": "apps/v1", "kind": "Deployment", **body}
        )

    async def status(self, endpoint: str, namespace: str) -> EndpointStatus | None:
        """Read off the Service and its Deployments. :raises ConfigurationError: no name of an endpoint"""
        check_endpoint(endpoint, namespace)
        service = await self.service(endpoint, namespace)
        if service is None:
            return None
        held = _annotations(service)
        versions = await self.versions(endpoint, namespace)
        stable = held.get(STABLE_ANNOTATION, "")
        serving = next((version for version in versions if version.version == stable), None)
        port = service["spec"]["ports"][0]["port"]
        address = service["spec"].get("clusterIP", "")
        selected = _selected_version(service, endpoint)
        ready = serving.ready_replicas if serving and selected == stable else 0
        return EndpointStatus(
            endpoint=endpoint,
            namespace=namespace,
            model_name=held.get(MODEL_ANNOTATION, ""),
            stable_version=stable,
            previous_version=held.get(PREVIOUS_ANNOTATION),
            candidate_version=held.get(CANDIDATE_ANNOTATION),
            url=f"http://{endpoint}.{namespace}.svc:{port}",
            cluster_ip_url=f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}",
            ready_replicas=ready,
            replicas=serving.replicas if serving else 0,
            switched_at=held.get(SWITCHED_ANNOTATION, ""),
            versions=tuple(versions),
            selected_version=selected,
        )

    async def remove(self, endpoint: str, namespace: str, version: str) -> None:
        """Delete the version's Deployment; its pods get SIGTERM and their grace period."""
        found = await self.deployment(endpoint, namespace, version)
        if found is None:
            return
        name, uid = metadata(found)["name"], metadata(found)["uid"]

        async def attempt() -> None:
            nonlocal found
            # One that was made anew under that name is another rollout's.
            if found is None or metadata(found)["uid"] != uid:
                return
            try:
                await self._client.delete(DEPLOYMENTS, namespace, name, uid=uid, propagation="Background")
            except ObjectNotFoundError:
                return
            except ObjectConflictError:
                found = await self.deployment(endpoint, namespace, version)
                raise

        await self.written(attempt)

    async def versions(self, endpoint: str, namespace: str) -> list[VersionStatus]:
        """The versions that are up, oldest first."""
        selector = f"{ENDPOINT_LABEL}={endpoint},{MANAGED_BY_LABEL}={MANAGED_BY}"
        listed = await self._client.list(DEPLOYMENTS, namespace, label_selector=selector)
        versions = [
            VersionStatus(
                version=metadata(item)["labels"].get(VERSION_LABEL, ""),
                ready_replicas=whole(status(item).get("readyReplicas")) or 0,
                replicas=desired_replicas(item),
                artifact_digest=_annotations(item).get(DIGEST_ANNOTATION, ""),
                image=text(main_container_spec(item["spec"]["template"]).get("image")),
                deployed_at=_annotations(item).get(DEPLOYED_ANNOTATION, ""),
            )
            for item in listed["items"]
            if not metadata(item).get("deletionTimestamp")
        ]
        return sorted(versions, key=lambda version: (len(version.version), version.version))

    async def pods(self, endpoint: str, namespace: str, version: str) -> list[Json]:
        """The pods of one version."""
        selector = f"{ENDPOINT_LABEL}={endpoint},{VERSION_LABEL}={version}"
        listed = await self._client.list(PODS, namespace, label_selector=selector)
        return list(listed["items"])

    async def service(self, endpoint: str, namespace: str) -> Json | None:
        """The endpoint's Service, if there is one.

        :raises WorkloadConflictError: it is not nighttrain's
        """
        try:
            found = await self._client.get(SERVICES, namespace, endpoint)
        except ObjectNotFoundError:
            return None
        return _ours(found, {ENDPOINT_LABEL: endpoint})

    async def deployment(self, endpoint: str, namespace: str, version: str) -> Json | None:
        """A version's Deployment, if there is one.

        :raises WorkloadConflictError: it is not nighttrain's
        """
        try:
            found = await self._client.get(DEPLOYMENTS, namespace, deployment_name(endpoint, version))
        except ObjectNotFoundError:
            return None
        return _ours(found, version_labels(endpoint, version))

    @staticmethod
    async def written(attempt: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Read, change and write anew while somebody else wrote in between."""
        for _ in range(_WRITES - 1):
            try:
                return await attempt()
            except (ObjectConflictError, ObjectExistsError):
                continue
        return await attempt()


def switch_patch(service: Json, endpoint: str, version: str) -> Json | None:
    """What makes a version the stable one and sends it every request, bound to the Service as it was read.

    :return: ``None`` where it is so already
    """
    held = _annotations(service)
    selector = version_labels(endpoint, version)
    stable = held.get(STABLE_ANNOTATION)
    if stable == version and service["spec"].get("selector") == selector and CANDIDATE_ANNOTATION not in held:
        return None
    changed: dict[str, str | None] = {CANDIDATE_ANNOTATION: None}
    if stable != version:
        changed |= {STABLE_ANNOTATION: version, PREVIOUS_ANNOTATION: stable, SWITCHED_ANNOTATION: now()}
    guarded = {"resourceVersion": metadata(service)["resourceVersion"], "annotations": changed}
    return {"metadata": guarded, "spec": {"selector": whole_selector(service, selector)}}


def whole_selector(service: Json, selector: dict[str, str]) -> dict[str, str | None]:
    """A merge patch of a selector: it would keep the keys that it does not name, also somebody else's."""
    return dict.fromkeys(mapping(service["spec"].get("selector"))) | selector


def _annotations(found: Json | None) -> dict[str, str]:
    return mapping(metadata(found).get("annotations")) if found else {}


def _form(found: Json) -> Json:
    """The part of a Deployment that a new form replaces."""
    return {
        "annotations": _annotations(found),
        "labels": metadata(found).get("labels"),
        "spec": found["spec"],
    }


def _selected_version(service: Json, endpoint: str) -> str | None:
    selector = mapping(service["spec"].get("selector"))
    if selector == {ENDPOINT_LABEL: endpoint} and PERCENT_ANNOTATION in _annotations(service):
        # A rollout in steps shares the requests among the pods of two versions.
        return _annotations(service).get(STABLE_ANNOTATION)
    version = str(selector.get(VERSION_LABEL, ""))
    return version if version and selector == version_labels(endpoint, version) else None


def _tell_replicas(found: Json, wanted: int, tell: Progress) -> None:
    """Say what becomes of the replicas of a Deployment that exists, where it is not what one may expect."""
    name, replicas = metadata(found)["name"], desired_replicas(found)
    command = f"kubectl -n {metadata(found)['namespace']} scale deployment {name} --replicas={wanted}"
    if replicas == 0:
        tell(f"{name}: somebody scaled it to zero replicas; it is scaled up to {wanted}")
    elif replicas != wanted:
        tell(
            f"{name}: it exists, so its {replicas} replicas are left to autoscalers and people; "
            f"for {wanted}: {command}"
        )


def _ours(found: Json, wanted: dict[str, str]) -> Json:
    labels = mapping(metadata(found).get("labels"))
    if not (wanted | {MANAGED_BY_LABEL: MANAGED_BY}).items() <= labels.items():
        raise WorkloadConflictError(
            f"{found.get('kind', 'object')} {metadata(found).get('name')} exists and was not made "
            "by nighttrain for this endpoint: choose another endpoint name, or remove it"
        )
    return found
