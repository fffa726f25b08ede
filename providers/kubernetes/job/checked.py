"""The one place where a workload's spec is checked; everything after takes what comes out of it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.api_models import plain
from nighttrain.providers.kubernetes.job.memory_growth import check_growth
from nighttrain.providers.kubernetes.job.plain_secrets import check_no_secret, check_texts
from nighttrain.providers.kubernetes.job.pod_template import build_pod_template, put_own_variables
from nighttrain.providers.kubernetes.job.shipped_files import check_files, check_place
from nighttrain.providers.kubernetes.job.spec import RUN_VARIABLES, WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import PREFIX
from nighttrain.providers.kubernetes.values.names import (
    check_annotations,
    check_dns_label,
    check_labels,
    check_object_name,
)

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json

POD_SECURITY_LEVELS = ("baseline", "restricted")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
TERMINATION_MESSAGE_POLICIES = ("File", "FallbackToLogsOnError")


@dataclass(frozen=True)
class CheckedWorkload:
    """A spec that holds no mistake which can be seen without a cluster, and the pod that it becomes.

    Made by :func:`check_workload`.

    :param spec: as it was given
    :param pod: the pod's template without nighttrain's own variables; shared, so never changed
    """

    spec: WorkloadSpec
    pod: Json

    def pod_template(self) -> Json:
        """A template of the caller's own, to add to."""
        template = copy.deepcopy(self.pod)
        put_own_variables(template["spec"], self.spec.own_env)
        return template

    def with_own_env(self, variables: Mapping[str, str]) -> CheckedWorkload:
        """The same pod with further variables of nighttrain's own, such as its run's id.

        :raises ConfigurationError: one holds a credential
        """
        _check_own_env(variables, self.spec.known_secrets)
        return replace(self, spec=self.spec.with_own_env(variables))

    def refers_to_the_run(self) -> str | None:
        """The first variable of the run, such as MLFLOW_RUN_ID, that a text of the pod has as ``$(NAME)``."""
        pod = json.dumps(self.pod_template())
        return next((name for name in RUN_VARIABLES if re.search(rf"(?<!\$)\$\({name}\)", pod)), None)


def check_workload(spec: WorkloadSpec) -> CheckedWorkload:
    """Check everything that can be checked without a cluster.

    It imports the Kubernetes client's models: call it when the task runs, not while a DAG is parsed.

    :raises ConfigurationError: names the field, its value and what to write instead
    """
    _check_scalars(spec)
    _check_metadata(spec)
    check_growth(spec)
    check_files(spec.files or {})
    for name in ("labels", "annotations", "files"):
        check_texts(getattr(spec, name) or {}, name, spec.known_secrets)
    pod = build_pod_template(spec)
    _check_own_env(spec.own_env, spec.known_secrets)
    if spec.files:
        check_place(pod["spec"])
    return CheckedWorkload(spec, pod)


def _check_scalars(spec: WorkloadSpec) -> None:
    for name, least in (
        ("active_deadline_seconds", 1),
        ("termination_grace_period", 0),
        ("backoff_limit", 0),
        ("ttl_seconds_after_finished", 0),
    ):
        value = getattr(spec, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ConfigurationError(name, value, f"must be a whole number, {least} or more")
    _one_of("pod_security", spec.pod_security, POD_SECURITY_LEVELS)
    for name, allowed in (
        ("image_pull_policy", PULL_POLICIES),
        ("dnspolicy", DNS_POLICIES),
        ("termination_message_policy", TERMINATION_MESSAGE_POLICIES),
    ):
        if getattr(spec, name) is not None:
            _one_of(name, getattr(spec, name), allowed)
    if spec.image is not None and (not isinstance(spec.image, str) or not spec.image.strip()):
        raise ConfigurationError("image", spec.image, "write an image name, for example 'registry/train:1.4'")
    for name, check in _NAMES.items():
        if getattr(spec, name) is not None:
            check(name, plain(getattr(spec, name), "str", name))


def _check_metadata(spec: WorkloadSpec) -> None:
    labels = plain(spec.labels or {}, "dict(str, str)", "labels")
    annotations = plain(spec.annotations or {}, "dict(str, str)", "annotations")
    check_labels("labels", labels)
    check_annotations("annotations", annotations)
    check_labels("node_selector", plain(spec.node_selector or {}, "dict(str, str)", "node_selector"))
    for name, given in (("labels", labels), ("annotations", annotations)):
        for key in given:
            if key.startswith(PREFIX):
                raise ConfigurationError(f"{name}[{key!r}]", given[key], f"{PREFIX} is reserved")


def _check_own_env(variables: Mapping[str, str], known_secrets: Sequence[str]) -> None:
    env = [{"name": name, "value": value} for name, value in variables.items()]
    check_no_secret({"containers": [{"env": env}]}, known_secrets)


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigurationError(name, value, f"must be one of {', '.join(map(repr, allowed))}")


_NAMES: dict[str, Callable[[str, str], None]] = {
    "namespace": check_dns_label,
    "hostname": check_dns_label,
    "subdomain": check_dns_label,
    "base_container_name": check_dns_label,
    "service_account_name": check_object_name,
    "priority_class_name": check_object_name,
    "runtime_class_name": check_object_name,
    "schedulername": check_object_name,
    "queue_name": check_object_name,
}
