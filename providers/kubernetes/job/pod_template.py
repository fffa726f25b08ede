"""The pod of a workload, from its spec: a pure function, without a cluster."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.api_models import plain
from nighttrain.providers.kubernetes.job.plain_secrets import check_no_secret, check_texts
from nighttrain.providers.kubernetes.job.security import check_restricted, harden
from nighttrain.providers.kubernetes.job.spec import RUN_VARIABLES
from nighttrain.providers.kubernetes.values.identity import MAIN_CONTAINER_ANNOTATION
from nighttrain.providers.kubernetes.values.names import check_dns_label, check_object_name
from nighttrain.providers.kubernetes.values.objects import DEFAULT_CONTAINER_ANNOTATION

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.plain_json import Json

MAIN_CONTAINER = "main"


def build_pod_template(spec: WorkloadSpec) -> Json:
    """The pod: template file, then full_pod_spec, then explicit parameters, then safe defaults beneath.

    :raises ConfigurationError: see :func:`~nighttrain.providers.kubernetes.job.checked.check_workload`
    """
    base = _merge(_template(spec), _full_pod_spec(spec.full_pod_spec))
    pod_spec: Json = base.get("spec") or {}
    containers = _named_first(pod_spec.get("containers") or [{}], spec.base_container_name)
    containers[0] = _overlay(containers[0], _explicit_container(spec))
    containers[0].setdefault("name", MAIN_CONTAINER)
    containers[0].setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    pod_spec["containers"] = containers
    pod_spec = _overlay(pod_spec, _explicit_pod(spec))
    pod_spec["restartPolicy"] = "Never"
    _attach_secrets(spec, pod_spec)
    _check_containers(pod_spec)
    check_no_secret(pod_spec, spec.known_secrets)
    check_texts(base.get("metadata") or {}, "pod template's metadata", spec.known_secrets)
    _check_dns(pod_spec)
    harden(pod_spec, restricted=spec.pod_security == "restricted")
    if spec.pod_security == "restricted":
        check_restricted(pod_spec)
    metadata = base.get("metadata") or {}
    kept: Json = {kind: dict(metadata[kind]) for kind in ("labels", "annotations") if metadata.get(kind)}
    # Ours says which container decides, kubectl's what ``kubectl logs`` shows: an injector may rewrite that.
    for annotation in (MAIN_CONTAINER_ANNOTATION, DEFAULT_CONTAINER_ANNOTATION):
        kept.setdefault("annotations", {})[annotation] = containers[0]["name"]
    return {"metadata": kept, "spec": pod_spec}


def put_own_variables(pod_spec: Json, variables: Mapping[str, str]) -> None:
    """Put nighttrain's own variables before the user's, in place; those of the run into every container.

    Kubernetes replaces ``$(NAME)`` only by what stands before it. A variable that is given already wins.

    :param pod_spec: a pod whose first container is the main one
    """
    _put_first(variables, pod_spec["containers"][0])
    of_the_run = {name: value for name, value in variables.items() if name in RUN_VARIABLES}
    for container in containers_of(pod_spec):
        _put_first(of_the_run, container)


def _put_first(variables: Mapping[str, str], container: Json) -> None:
    given = container.get("env") or []
    names = {variable.get("name") for variable in given}
    own = [{"name": name, "value": value} for name, value in variables.items() if name not in names]
    if own:
        container["env"] = [*own, *given]


def _explicit_container(spec: WorkloadSpec) -> Json:
    return _given(
        name=spec.base_container_name,
        image=spec.image,
        command=spec.command(),
        args=spec.args(),
        env=spec.env(),
        envFrom=spec.env_sources(),
        resources=spec.resources(),
        volumeMounts=plain(spec.volume_mounts, "list[V1VolumeMount]", "volume_mounts"),
        ports=plain(spec.ports, "list[V1ContainerPort]", "ports"),
        imagePullPolicy=spec.image_pull_policy,
        workingDir=plain(spec.working_dir, "str", "working_dir"),
        terminationMessagePolicy=spec.termination_message_policy,
        securityContext=plain(
            spec.container_security_context, "V1SecurityContext", "container_security_context"
        ),
    )


def _explicit_pod(spec: WorkloadSpec) -> Json:
    return _given(
        volumes=plain(spec.volumes, "list[V1Volume]", "volumes"),
        initContainers=plain(spec.init_containers, "list[V1Container]", "init_containers"),
        nodeSelector=strings("node_selector", spec.node_selector),
        affinity=plain(spec.affinity, "V1Affinity", "affinity"),
        tolerations=plain(spec.tolerations, "list[V1Toleration]", "tolerations"),
        serviceAccountName=spec.service_account_name,
        automountServiceAccountToken=plain(
            spec.automount_service_account_token, "bool", "automount_service_account_token"
        ),
        imagePullSecrets=spec.pull_secrets(),
        priorityClassName=spec.priority_class_name,
        runtimeClassName=spec.runtime_class_name,
        schedulerName=spec.schedulername,
        securityContext=plain(spec.security_context, "V1PodSecurityContext", "security_context"),
        terminationGracePeriodSeconds=spec.termination_grace_period,
        hostNetwork=True if spec.hostnetwork else None,
        hostAliases=plain(spec.host_aliases, "list[V1HostAlias]", "host_aliases"),
        hostname=spec.hostname,
        subdomain=spec.subdomain,
        dnsPolicy=spec.dnspolicy,
        dnsConfig=plain(spec.dns_config, "V1PodDNSConfig", "dns_config"),
    )


def _given(**fields: Any) -> Json:
    return {name: value for name, value in fields.items() if value is not None and value not in ([], {})}


def _named_first(containers: list[Json], name: str | None) -> list[Json]:
    """The container that the parameters describe is the first: who reads a Job relies on that."""
    named = [container for container in containers if name is not None and container.get("name") == name]
    return [*named, *(container for container in containers if container not in named)]


def _template(spec: WorkloadSpec) -> Json:
    if spec.pod_template_dict is None:
        return _template_file(spec.pod_template_file)
    if spec.pod_template_file is not None:
        raise ConfigurationError(
            "pod_template_file", spec.pod_template_file, "give this or pod_template_dict, not both"
        )
    return _template_pod("pod_template_dict", spec.pod_template_dict, spec.pod_template_dict)


def _template_file(path: str | None) -> Json:
    if path is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError("pod_template_file", path, f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError("pod_template_file", path, f"is not YAML: {error}") from error
    return _template_pod("pod_template_file", path, content)


def _template_pod(field: str, given: object, content: object) -> Json:
    if not isinstance(content, Mapping) or content.get("kind", "Pod") != "Pod":
        raise ConfigurationError(field, given, "must hold one object of kind Pod")
    pod: Json = plain(content, "V1Pod", field)
    return pod


def _full_pod_spec(given: Any) -> Json:
    if given is None:
        return {}
    names = getattr(given, "attribute_map", None) or given
    is_pod = isinstance(names, Mapping) and "spec" in names
    if is_pod:
        pod: Json = plain(given, "V1Pod", "full_pod_spec")
        return pod
    return {"spec": plain(given, "V1PodSpec", "full_pod_spec")}


def _merge(lower: Json, upper: Json) -> Json:
    """Two pods: containers by position, as KubernetesPodOperator does; the rest field by field."""
    lower_spec, upper_spec = dict(lower.get("spec") or {}), dict(upper.get("spec") or {})
    lower_containers, upper_containers = lower_spec.pop("containers", []), upper_spec.pop("containers", [])
    merged = [_overlay(*pair) for pair in zip(lower_containers, upper_containers, strict=False)]
    longer = max(lower_containers, upper_containers, key=len)
    pod_spec = _overlay(lower_spec, upper_spec)
    pod_spec["containers"] = [*merged, *copy.deepcopy(longer[len(merged) :])]
    metadata = _overlay(lower.get("metadata") or {}, upper.get("metadata") or {})
    return {"metadata": metadata, "spec": pod_spec}


# Lists of named things join, the upper one's winning; any other list is replaced whole.
_JOINED: dict[str, Callable[[Json], Any]] = {
    "env": lambda item: item.get("name"),
    "envFrom": lambda item: json.dumps(item, sort_keys=True),
    "ports": lambda item: (item.get("containerPort"), item.get("protocol")),
    "volumes": lambda item: item.get("name"),
    "volumeMounts": lambda item: item.get("mountPath"),
    "initContainers": lambda item: item.get("name"),
    "tolerations": lambda item: json.dumps(item, sort_keys=True),
    "imagePullSecrets": lambda item: item.get("name"),
}


def _overlay(lower: Json, upper: Json) -> Json:
    result = copy.deepcopy(lower)
    for key, value in upper.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _overlay(result[key], value)
        elif key in _JOINED and result.get(key):
            joined = {_JOINED[key](item): item for item in [*result[key], *value]}
            result[key] = list(joined.values())
        else:
            result[key] = copy.deepcopy(value)
    return result


def _attach_secrets(spec: WorkloadSpec, pod_spec: Json) -> None:
    container = pod_spec["containers"][0]
    variables: list[Json] = []
    for number, secret in enumerate(spec.secrets or ()):
        kind = getattr(secret, "deploy_type", None)
        name, target = getattr(secret, "secret", None), getattr(secret, "deploy_target", None)
        if kind not in ("env", "volume") or not isinstance(name, str):
            raise ConfigurationError(
                f"secrets[{number}]",
                type(secret).__name__,
                "write Secret('env' or 'volume', target, secret, key)",
            )
        check_object_name(f"secrets[{number}].secret", name)
        if kind == "volume":
            # Named by its place and not at random: the same spec must build the same Job.
            volume = {
                "name": f"secret-{number}",
                "secret": _given(secretName=name, items=_secret_items(secret)),
            }
            pod_spec.setdefault("volumes", []).append(volume)
            mount = {"name": volume["name"], "mountPath": target, "readOnly": True}
            container.setdefault("volumeMounts", []).append(mount)
        elif getattr(secret, "key", None) is None:
            container.setdefault("envFrom", []).append({"secretRef": {"name": name}})
        else:
            reference = {"secretKeyRef": {"name": name, "key": secret.key}}
            variables.append({"name": target, "valueFrom": reference})
    if variables:
        names = {variable["name"] for variable in variables}
        given = [each for each in container.get("env") or [] if each.get("name") not in names]
        container["env"] = [*variables, *given]


def _secret_items(secret: Any) -> Any:
    return plain(getattr(secret, "items", None) or None, "list[V1KeyToPath]", "secrets.items")


def _check_containers(pod_spec: Json) -> None:
    if not pod_spec["containers"][0].get("image"):
        raise ConfigurationError(
            "image", None, "give an image, or a pod template whose first container has one"
        )
    names: set[str] = set()
    for container in containers_of(pod_spec):
        name = str(container.get("name") or "")
        check_dns_label("container name", name)
        if name in names:
            raise ConfigurationError("container name", name, "two containers have this name")
        names.add(name)
    volumes = [str(volume.get("name")) for volume in pod_spec.get("volumes") or []]
    for container in containers_of(pod_spec):
        for mount in container.get("volumeMounts") or []:
            if mount.get("name") not in volumes:
                raise ConfigurationError(
                    "volume_mounts",
                    mount.get("name"),
                    f"no such volume; there are: {', '.join(volumes) or 'none'}",
                )


def _check_dns(pod_spec: Json) -> None:
    if pod_spec.get("dnsPolicy") == "None" and not (pod_spec.get("dnsConfig") or {}).get("nameservers"):
        raise ConfigurationError("dnspolicy", "None", "needs dns_config with at least one nameserver")


def containers_of(pod_spec: Json) -> list[Json]:
    """The init containers, then the containers."""
    return [*(pod_spec.get("initContainers") or []), *(pod_spec.get("containers") or [])]


def strings(field: str, given: Mapping[str, Any] | None) -> dict[str, str]:
    """A mapping of texts, checked; empty if none was given."""
    return plain(given or {}, "dict(str, str)", field) or {}
