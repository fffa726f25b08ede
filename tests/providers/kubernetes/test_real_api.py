"""Manifests against the rules of a real API server that the embedded one need not enforce."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.pod_security import baseline, restricted
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.api_models import plain
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.names import DNS_LABEL, LABEL_VALUE
from nighttrain.providers.serving.backends.manifests import build_deployment, build_service
from nighttrain.providers.serving.spec import ServingSpec

Json = dict[str, Any]
LONG = "x" * 200

# Everything a user can say that the restricted level allows.
EVERYTHING: Json = {
    "image": "registry.example.com/team/train@sha256:" + "a" * 64,
    "cmds": ["python", "-m", "train"],
    "arguments": ["--rows", "10"],
    "env_vars": {"A": "1", "B": "$(A)"},
    "env_from": [{"secretRef": {"name": "mlflow-credentials"}}],
    "secrets": [
        SimpleNamespace(deploy_type="volume", deploy_target="/keys", secret="keys", key=None),
        SimpleNamespace(deploy_type="env", deploy_target="TOKEN", secret="token", key="t"),
    ],
    "volumes": [
        {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "weights", "image": {"reference": "registry.example.com/weights:1"}},
    ],
    "volume_mounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": "data", "mountPath": "/data"}],
    "container_resources": {"requests": {"cpu": 0.5, "memory": "1Gi"}, "limits": {"nvidia.com/gpu": 1}},
    "node_selector": {"pool": "night"},
    "affinity": {"nodeAffinity": {}},
    "tolerations": [{"key": "night", "operator": "Exists", "effect": "NoSchedule"}],
    "service_account_name": "trainer",
    "image_pull_secrets": "registry",
    "image_pull_policy": "IfNotPresent",
    "labels": {"team": "flights"},
    "annotations": {"note": LONG},
    "priority_class_name": "night",
    "active_deadline_seconds": 3600,
    "termination_grace_period": 30,
    "dns_config": {"options": [{"name": "ndots", "value": "1"}]},
    "init_containers": [{"name": "fetch", "image": "busybox:1", "command": ["true"]}],
    "ports": [{"containerPort": 9090, "name": "metrics"}],
    "queue_name": "night",
    "working_dir": "/scratch",
}
IDENTITY = WorkloadIdentity(
    orchestrator="airflow", dag_id="Ä" + LONG, run_id=LONG, task_id="group." + LONG, map_index=12
)


def job(**fields: Any) -> Json:
    return build_job(check_workload(WorkloadSpec(**(EVERYTHING | fields))), IDENTITY, 123)


def serving(**fields: Any) -> ServingSpec:
    given: Json = {
        "endpoint": "e" * 40,
        "namespace": "ml",
        "image": "airline-delay:1",
        "model_name": "main.team." + LONG,
        "version": "1" * 18,
        "artifact_digest": "0" * 64,
        "tracking_uri": "http://mlflow.mlflow.svc:5000",
        "env_from": [{"secretRef": {"name": "mlflow-credentials"}}],
        "container_resources": {"requests": {"cpu": "1"}},
        "labels": {"team": "flights"},
        "startup_timeout_seconds": 90.5,
    }
    return ServingSpec(**(given | fields))


def pod_of(manifest: Json) -> Json:
    pod: Json = manifest["spec"]["template"]["spec"]
    return pod


def check_metadata(metadata: Json) -> None:
    for value in (metadata.get("labels") or {}).values():
        assert LABEL_VALUE.fullmatch(value)
    annotations = metadata.get("annotations") or {}
    assert all(isinstance(value, str) for value in annotations.values())
    assert sum(len(key) + len(value.encode()) for key, value in annotations.items()) < 256 * 1024


def check_pod(pod: Json) -> None:
    volumes = [volume["name"] for volume in pod.get("volumes") or []]
    assert len(volumes) == len(set(volumes))
    for container in [*(pod.get("initContainers") or []), *pod["containers"]]:
        assert DNS_LABEL.fullmatch(container["name"])
        assert {mount["name"] for mount in container.get("volumeMounts") or []} <= set(volumes)
        mounts = [mount["mountPath"] for mount in container.get("volumeMounts") or []]
        assert len(mounts) == len(set(mounts))
        for variable in container.get("env") or []:
            assert not (variable.get("value") and variable.get("valueFrom"))
        names = [variable["name"] for variable in container.get("env") or []]
        assert len(names) == len(set(names))
        for port in container.get("ports") or []:
            assert len(port.get("name", "")) <= 15
        for quantities in (container.get("resources") or {}).values():
            assert all(isinstance(value, str) for value in quantities.values())
        # execve takes no longer argument.
        parts = [*(container.get("command") or []), *(container.get("args") or [])]
        assert all(len(part.encode()) < 128 * 1024 for part in parts)


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_a_job_with_everything(level: str) -> None:
    made = job(pod_security=level)
    assert plain(made, "V1Job", "job") == made  # no field or type that the API does not know
    spec, template = made["spec"], made["spec"]["template"]
    for metadata in (made["metadata"], template["metadata"]):
        check_metadata(metadata)
    check_pod(template["spec"])
    # The name is the value of a label on the pods, and pods add six characters to it for their host name.
    assert len(made["metadata"]["name"]) + 6 <= 63
    # podFailurePolicy demands both.
    assert template["spec"]["restartPolicy"] == "Never"
    assert spec["podReplacementPolicy"] == "Failed"
    # What the Job's controller sets itself is not ours to set.
    assert not {"selector", "manualSelector", "completionMode", "parallelism"} & spec.keys()
    # Kueue resumes; whatever else the server would add, suspended is not the default.
    assert spec["suspend"] is True
    assert "suspend" not in job(queue_name=None)["spec"]
    assert "ttlSecondsAfterFinished" not in job(ttl_seconds_after_finished=None)["spec"]
    env = template["spec"]["containers"][0]["env"]
    # Each may refer to those before it.
    assert [variable["name"] for variable in env] == ["TOKEN", "A", "B"]


def test_a_deployment_and_its_service() -> None:
    made = build_deployment(serving())
    service = build_service(made)
    assert plain(made, "V1Deployment", "deployment") == made
    assert plain(service, "V1Service", "service") == service
    spec, template = made["spec"], made["spec"]["template"]
    for metadata in (made["metadata"], template["metadata"], service["metadata"]):
        check_metadata(metadata)
    check_pod(template["spec"])
    # A pod's name: the Deployment's, a dash, ten characters, a dash, five.
    assert len(made["metadata"]["name"]) + 17 <= 63
    assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert service["spec"]["selector"] == spec["selector"]["matchLabels"]
    assert spec["progressDeadlineSeconds"] > spec.get("minReadySeconds", 0)
    assert (spec["progressDeadlineSeconds"], template["spec"]["restartPolicy"]) == (91, "Always")
    # A Service's name is a DNS-1035 label: it begins with a letter.
    assert service["metadata"]["name"][0].isalpha()
    # A whole old form is kept in an annotation of the new one.
    assert len(json.dumps(made)) < 128 * 1024


def test_what_cannot_be_changed_stays_the_same_in_every_form_of_a_version() -> None:
    forms = [{}, {"image": "other:2"}, {"labels": {"team": "other"}}, {"port": 9000}, {"replicas": 3}]
    selectors = [build_deployment(serving(**form))["spec"]["selector"] for form in forms]
    assert all(selector == selectors[0] for selector in selectors)


def test_the_pods_grace_period_covers_drain_and_requests_under_way() -> None:
    pod = pod_of(build_deployment(serving()))
    (drain,) = (part for part in pod["containers"][0]["args"] if part.startswith("--drain-seconds="))
    assert pod["terminationGracePeriodSeconds"] >= float(drain.partition("=")[2]) + 20
    # The launcher listens on the pod's address, which it has from the node: IPv4 or IPv6.
    fields = {
        item["name"]: item["valueFrom"]["fieldRef"]["fieldPath"]
        for item in pod["containers"][0]["env"]
        if "valueFrom" in item
    }
    assert fields == {"POD_IP": "status.podIP"}
    assert pod["containers"][0]["readinessProbe"]["httpGet"] == {"path": "/ping", "port": "http"}
    # Models are downloaded to the temporary folder of the image.
    assert "readOnlyRootFilesystem" not in json.dumps(pod)


def test_pod_security_levels() -> None:
    assert baseline(pod_of(job())) == []
    assert baseline(pod_of(build_deployment(serving()))) == []
    for manifest in (job(pod_security="restricted"), build_deployment(serving(pod_security="restricted"))):
        assert restricted(pod_of(manifest)) == []
        # Admission does not ask for a number; the image names its user.
        assert "runAsUser" not in json.dumps(manifest)


@pytest.mark.parametrize(
    "fields",
    [
        {"hostnetwork": True},
        {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
        {"volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]},
        {"volumes": [{"name": "v", "gitRepo": {"repository": "r"}}]},
        {"ports": [{"containerPort": 80, "hostPort": 80}]},
        {"security_context": {"runAsUser": 0}},
        {"security_context": {"appArmorProfile": {"type": "Unconfined"}}},
        {"security_context": {"windowsOptions": {"hostProcess": True}}},
        {"container_security_context": {"procMount": "Unmasked"}},
        {"container_security_context": {"privileged": True}},
        {"container_security_context": {"capabilities": {"add": ["NET_RAW"]}}},
        {"init_containers": [{"name": "i", "image": "i", "securityContext": {"runAsNonRoot": False}}]},
        {
            "full_pod_spec": {
                "containers": [
                    {
                        "name": "main",
                        "livenessProbe": {"httpGet": {"host": "10.0.0.1", "port": 80}},
                    }
                ]
            }
        },
    ],
)
def test_what_the_level_refuses_is_refused_before_the_cluster_sees_it(fields: Json) -> None:
    assert restricted(
        pod_of(build_job(check_workload(WorkloadSpec(**({"image": "i"} | fields))), IDENTITY, 1))
    )
    with pytest.raises(ConfigurationError, match='contradicts pod_security="restricted"'):
        build_job(
            check_workload(WorkloadSpec(pod_security="restricted", **({"image": "i"} | fields))), IDENTITY, 1
        )


def test_an_unsafe_sysctl_is_refused() -> None:
    def built(name: str) -> Json:
        context = {"sysctls": [{"name": name, "value": "1"}]}
        return job(pod_security="restricted", security_context=context)

    built("net.ipv4.tcp_syncookies")
    with pytest.raises(ConfigurationError, match="sysctls"):
        built("kernel.msgmax")
