"""A parameter that KubernetesPodOperator has too ends in the same place of the pod: both are asked."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s

from nighttrain.operators.training import TrainingJobOperator
from nighttrain.operators.workload import WorkloadOperator
from nighttrain.operators.workload_parameters import DEFAULT_TTL_SECONDS_AFTER_FINISHED
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.api.connection import ClusterConfig
from nighttrain.providers.kubernetes.job import spec as spec_module
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.outcome.outcome import (
    Outcome,
    OutcomeKind,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.tracking.client import TrackingConfig
from nighttrain.sensors.common.connections import ClusterConnection, MLflowConnection

if TYPE_CHECKING:
    from pathlib import Path

pod = pytest.importorskip("airflow.providers.cncf.kubernetes.operators.pod")
Secret = pytest.importorskip("airflow.providers.cncf.kubernetes.secret").Secret

Json = dict[str, Any]
WHO = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id="r", task_id="train")
VOLUME = k8s.V1Volume(
    name="data", persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(claim_name="flights")
)
RESOURCES = k8s.V1ResourceRequirements(requests={"cpu": "1"}, limits={"memory": "1Gi"})
TEMPLATE = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"labels": {"team": "ml"}},
    "spec": {"nodeName": "n1", "containers": [{"name": "base", "image": "template:1"}]},
}

# What users write, and where it stands in the pod's spec.
SAME: list[tuple[Json, str]] = [
    ({"image": "other:2"}, "containers.0.image"),
    ({"cmds": ["python"]}, "containers.0.command"),
    ({"arguments": ["-m", "train"]}, "containers.0.args"),
    ({"ports": [k8s.V1ContainerPort(container_port=80, name="http")]}, "containers.0.ports"),
    ({"volumes": [VOLUME]}, "volumes"),
    (
        {"volumes": [VOLUME], "volume_mounts": [k8s.V1VolumeMount(name="data", mount_path="/data")]},
        "containers.0.volumeMounts",
    ),
    ({"env_vars": {"A": "1"}}, "containers.0.env"),
    ({"env_vars": [k8s.V1EnvVar(name="A", value="1")]}, "containers.0.env"),
    (
        {"env_from": [k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name="s"))]},
        "containers.0.envFrom",
    ),
    ({"configmaps": ["one", "two"]}, "containers.0.envFrom"),
    ({"secrets": [Secret("env", "TOKEN", "s", "k")]}, "containers.0.env"),
    ({"image_pull_policy": "Always"}, "containers.0.imagePullPolicy"),
    ({"container_resources": RESOURCES}, "containers.0.resources"),
    ({"affinity": {"nodeAffinity": {}}}, "affinity"),
    ({"runtime_class_name": "nvidia"}, "runtimeClassName"),
    ({"node_selector": {"pool": "gpu"}}, "nodeSelector"),
    ({"image_pull_secrets": [k8s.V1LocalObjectReference(name="s")]}, "imagePullSecrets"),
    ({"image_pull_secrets": "one,two"}, "imagePullSecrets"),
    ({"service_account_name": "trainer"}, "serviceAccountName"),
    ({"automount_service_account_token": True}, "automountServiceAccountToken"),
    (
        {"service_account_name": "trainer", "automount_service_account_token": False},
        "automountServiceAccountToken",
    ),
    ({"hostnetwork": True}, "hostNetwork"),
    ({"host_aliases": [k8s.V1HostAlias(ip="10.0.0.1", hostnames=["db"])]}, "hostAliases"),
    ({"tolerations": [k8s.V1Toleration(key="gpu", operator="Exists")]}, "tolerations"),
    ({"security_context": {"runAsUser": 7}}, "securityContext"),
    (
        {"container_security_context": k8s.V1SecurityContext(run_as_user=7)},
        "containers.0.securityContext",
    ),
    ({"dnspolicy": "Default"}, "dnsPolicy"),
    ({"dns_config": k8s.V1PodDNSConfig(nameservers=["10.0.0.1"])}, "dnsConfig"),
    ({"hostname": "trainer"}, "hostname"),
    ({"subdomain": "trainers"}, "subdomain"),
    ({"schedulername": "volcano"}, "schedulerName"),
    (
        {"full_pod_spec": k8s.V1Pod(spec=k8s.V1PodSpec(node_name="n1", containers=[]))},
        "nodeName",
    ),
    ({"init_containers": [k8s.V1Container(name="fetch", image="f:1")]}, "initContainers"),
    ({"pod_template_dict": TEMPLATE}, "nodeName"),
    ({"pod_template_dict": TEMPLATE, "image": None, "base_container_name": "base"}, "containers.0.image"),
    ({"priority_class_name": "low"}, "priorityClassName"),
    ({"termination_grace_period": 5}, "terminationGracePeriodSeconds"),
    ({"termination_message_policy": "File"}, "containers.0.terminationMessagePolicy"),
    ({"base_container_name": "train"}, "containers.0.name"),
]
# Those that are no part of the pod, are somewhere else by design, or have a test of their own.
NOT_IN_THE_POD = {
    *("kubernetes_conn_id", "namespace", "labels", "annotations", "active_deadline_seconds"),
    *("startup_timeout_seconds", "schedule_timeout_seconds", "get_logs", "deferrable", "skip_on_exit_code"),
    "pod_template_file",
}


def operator(**given: Any) -> TrainingJobOperator:
    return TrainingJobOperator(task_id="train", **({"image": "train:1"} | given))


def job_of(task: TrainingJobOperator) -> Json:
    mlflow = MLflowConnection(TrackingConfig("http://mlflow"), "http://mlflow", "http://mlflow")
    spec = task._spec({}, ClusterConnection(ClusterConfig()), mlflow)
    check_workload(spec)
    return build_job(check_workload(spec), WHO, 1)


def ours(**given: Any) -> Json:
    found: Json = job_of(operator(**given))["spec"]["template"]["spec"]
    return found


def theirs(**given: Any) -> Json:
    made = {"image": "train:1", "namespace": "ml", "name": "train"} | given
    task = pod.KubernetesPodOperator(task_id="train", **made)
    built: Json = ApiClient().sanitize_for_serialization(task.build_pod_request_obj(dry_run=True))
    return dict(built["spec"])


def at(value: Any, path: str) -> Any:
    for step in path.split("."):
        value = value[int(step)] if step.isdigit() else value[step]
    return value


def holds(more: Any, less: Any) -> bool:
    """Whether everything in ``less`` is in ``more``: safe defaults may come on top."""
    if isinstance(less, dict):
        return isinstance(more, dict) and all(holds(more.get(key), value) for key, value in less.items())
    if isinstance(less, list):
        return len(more) == len(less) and all(map(holds, more, less))
    return bool(more == less)


@pytest.mark.parametrize(("given", "path"), SAME, ids=["+".join(given) for given, _ in SAME])
def test_a_parameter_stands_where_kubernetes_pod_operator_puts_it(given: Json, path: str) -> None:
    wanted = at(theirs(**given), path)
    assert wanted is not None
    assert holds(at(ours(**given), path), wanted)


def test_each_parameter_that_both_have_is_compared() -> None:
    shared = set(inspect.signature(WorkloadOperator.__init__).parameters) & set(
        inspect.signature(pod.KubernetesPodOperator.__init__).parameters
    ) - {"self", "kwargs"}
    assert {name for given, _ in SAME for name in given} == shared - NOT_IN_THE_POD


def test_the_template_file_is_the_same_base(tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text("kind: Pod\nspec: {nodeName: n1, containers: [{name: base, image: 'template:1'}]}\n")
    made = ours(image=None, pod_template_file=str(file))
    assert (made["nodeName"], made["containers"][0]["image"]) == ("n1", "template:1")
    with pytest.raises(ConfigurationError, match="not both"):
        ours(pod_template_file=str(file), pod_template_dict=TEMPLATE)
    with pytest.raises(ConfigurationError, match="kind Pod"):
        ours(pod_template_dict={"kind": "Job"})


def test_what_is_the_jobs_and_not_the_pods() -> None:
    job = job_of(operator(active_deadline_seconds=60, ttl_seconds_after_finished=None, labels={"a": "b"}))
    assert job["spec"]["activeDeadlineSeconds"] == 60
    assert "ttlSecondsAfterFinished" not in job["spec"]
    assert job["metadata"]["labels"]["a"] == job["spec"]["template"]["metadata"]["labels"]["a"] == "b"
    assert job_of(operator())["spec"]["ttlSecondsAfterFinished"] == DEFAULT_TTL_SECONDS_AFTER_FINISHED
    assert spec_module.TTL_SECONDS_AFTER_FINISHED == DEFAULT_TTL_SECONDS_AFTER_FINISHED


def test_the_working_directory() -> None:
    assert ours(working_dir="/src")["containers"][0]["workingDir"] == "/src"


def test_the_base_container_is_the_one_that_decides_wherever_the_template_has_it() -> None:
    containers = [{"name": "side", "image": "side:1"}, {"name": "train", "image": "old:1"}]
    task = operator(pod_template_dict={"spec": {"containers": containers}}, base_container_name="train")
    template = job_of(task)["spec"]["template"]
    made = {container["name"]: container["image"] for container in template["spec"]["containers"]}
    assert made == {"train": "train:1", "side": "side:1"}
    assert template["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "train"


def test_what_kubernetes_pod_operator_renders_is_rendered() -> None:
    task = operator(
        env_vars=[k8s.V1EnvVar(name="NIGHT", value="{{ ds }}")],
        volumes=[
            k8s.V1Volume(
                name="data",
                persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(claim_name="at-{{ ds }}"),
            )
        ],
        volume_mounts=[k8s.V1VolumeMount(name="data", mount_path="/data", sub_path="{{ ds }}")],
        env_from=[k8s.V1EnvFromSource(config_map_ref=k8s.V1ConfigMapEnvSource(name="of-{{ ds }}"))],
        container_resources=k8s.V1ResourceRequirements(limits={"memory": "{{ memory }}"}),
        configmaps=["settings-{{ ds }}"],
        hostname="train-{{ ds }}",
        node_selector={"pool": "{{ memory }}"},
        pod_template_dict={"spec": {"nodeName": "{{ ds }}", "containers": []}},
    )
    task.render_template_fields({"ds": "2013-01-01", "memory": "1Gi"})
    made = job_of(task)["spec"]["template"]["spec"]
    main = made["containers"][0]
    assert main["env"][0]["value"] == made["nodeName"] == main["volumeMounts"][0]["subPath"] == "2013-01-01"
    assert [next(iter(each.values()))["name"] for each in main["envFrom"]] == [
        "of-2013-01-01",
        "settings-2013-01-01",
    ]
    assert made["volumes"][0]["persistentVolumeClaim"]["claimName"] == "at-2013-01-01"
    assert made["hostname"] == "train-2013-01-01"
    assert main["resources"]["limits"]["memory"] == made["nodeSelector"]["pool"] == "1Gi"


def test_whatever_kubernetes_pod_operator_templates_is_templated_here() -> None:
    shared = set(pod.KubernetesPodOperator.template_fields) & set(
        inspect.signature(WorkloadOperator.__init__).parameters
    )
    assert shared <= set(WorkloadOperator.template_fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runtime_class_name": "N V"}, "runtime_class_name"),
        ({"schedulername": [3]}, "must be a string"),
        ({"hostname": "a.b"}, "hostname"),
        ({"subdomain": "A"}, "subdomain"),
        ({"dnspolicy": "clusterfirst"}, "one of 'ClusterFirst'"),
        ({"dnspolicy": "None"}, "nameserver"),
        ({"termination_message_policy": "Logs"}, "one of 'File'"),
        ({"automount_service_account_token": "yes"}, "True or False"),
        ({"host_aliases": [{"ip": "10.0.0.1", "hosts": []}]}, "did you mean 'hostnames'"),
        ({"configmaps": "settings"}, "write a list"),
        ({"configmaps": ["Settings"]}, r"configmaps\[0\]"),
        ({"base_container_name": "Base"}, "base_container_name"),
        ({"working_dir": [3]}, "working_dir"),
        ({"ttl_seconds_after_finished": -1}, "ttl_seconds_after_finished"),
        ({"skip_on_exit_code": "99"}, "an exit code, or a list"),
        ({"image": None}, "give an image"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused_with_the_parameters_name(given: Json, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ours(**given)


@pytest.mark.parametrize("skip", [99, [3, 99], {99}, range(90, 100)])
def test_an_exit_code_to_skip_on_is_one_or_several(skip: Any) -> None:
    task = operator(skip_on_exit_code=skip)
    with pytest.raises(AirflowSkipException):
        task._skip_if_asked(Outcome(OutcomeKind.APPLICATION_ERROR, exit_code=99))
    task._skip_if_asked(Outcome(OutcomeKind.APPLICATION_ERROR, exit_code=1))
    task._skip_if_asked(Outcome(OutcomeKind.APPLICATION_ERROR))
    for kind in (OutcomeKind.OUT_OF_MEMORY, OutcomeKind.EVICTED, OutcomeKind.NODE_LOST):
        task._skip_if_asked(Outcome(kind, exit_code=99))


def test_without_an_exit_code_to_skip_on_nothing_is_skipped() -> None:
    operator()._skip_if_asked(Outcome(OutcomeKind.APPLICATION_ERROR, exit_code=0))
