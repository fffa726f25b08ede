"""From spec to Job: names, defaults, what KubernetesPodOperator users write, and what is refused."""

from __future__ import annotations

import datetime as dt
import math
import re
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import models as k8s

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job, spec_hash
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.names import LABEL_VALUE, parse_quantity

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY = WorkloadIdentity(
    orchestrator="airflow", dag_id="nightly_retraining", run_id="scheduled__2013-06-01", task_id="train"
)


def job_of(**fields: Any) -> dict[str, Any]:
    return build_job(check_workload(WorkloadSpec(**({"image": "train:1"} | fields))), IDENTITY, 1)


def pod_of(**fields: Any) -> dict[str, Any]:
    pod: dict[str, Any] = job_of(**fields)["spec"]["template"]["spec"]
    return pod


def main_of(**fields: Any) -> dict[str, Any]:
    main: dict[str, Any] = pod_of(**fields)["containers"][0]
    return main


# identity


@given(
    dag=st.text(min_size=1), task=st.text(min_size=1), run=st.text(min_size=1), attempt=st.integers(1, 9999)
)
def test_any_identity_makes_a_valid_name_and_valid_labels(
    dag: str, task: str, run: str, attempt: int
) -> None:
    identity = WorkloadIdentity(orchestrator="airflow", dag_id=dag, run_id=run, task_id=task)
    name = identity.name(attempt)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 52
    assert name == identity.name(attempt) != identity.name(attempt + 1)
    for value in identity.labels(attempt).values():
        assert LABEL_VALUE.fullmatch(value)
    assert list(identity.annotations().values()) == ["airflow", dag, run, task, "-1"]


def test_the_name_can_be_read() -> None:
    assert IDENTITY.name(2) == f"nightly-retraining-train-{IDENTITY.key}-2"


def test_different_identities_have_different_keys() -> None:
    fields = {"orchestrator": "airflow", "dag_id": "a", "run_id": "b", "task_id": "c"}
    keys = {WorkloadIdentity(**fields).key}  # type: ignore[arg-type]
    for change in (
        {"dag_id": "x"},
        {"run_id": "x"},
        {"task_id": "x"},
        {"orchestrator": "dagster"},
        {"map_index": 0},
        {"region": "a:0"},
        {"region": "a:1"},
        {"region": "b:1"},
        {"region": "a:0", "map_index": 0},
    ):
        keys.add(WorkloadIdentity(**(fields | change)).key)  # type: ignore[arg-type]
    assert len(keys) == 10


@pytest.mark.parametrize(("map_index", "key"), [(-1, "0cd2c6dd61"), (3, "9dd6852770")])
def test_keys_and_names_stay_what_they_were(map_index: int, key: str) -> None:
    """Those of 0.1.0: the Jobs of a running installation are adopted over an upgrade."""
    identity = WorkloadIdentity(
        orchestrator="airflow",
        dag_id="nightly_retraining",
        run_id="scheduled__2026-11-26T02:00:00+00:00",
        task_id="train",
        map_index=map_index,
    )
    assert (identity.key, identity.name(1)) == (key, f"nightly-retraining-train-{key}-1")
    assert set(identity.annotations()) == {
        f"nighttrain.dev/{name}" for name in ("orchestrator", "dag-id", "run-id", "task-id", "map-index")
    }


# defaults


def test_the_job_leaves_retries_to_the_orchestrator_and_disruptions_to_the_cluster() -> None:
    job = job_of(active_deadline_seconds=60, queue_name="gpu")
    spec = job["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["podReplacementPolicy"] == "Failed"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onPodConditions"][0]["type"]) == ("FailJob", "DisruptionTarget")
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] == 60
    assert spec["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert main_of()["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_pod_is_as_safe_as_any_image_allows() -> None:
    pod = pod_of(init_containers=[{"name": "fetch", "image": "i"}])
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod["containers"][0]["securityContext"] == safe
    assert pod["initContainers"][0]["securityContext"] == safe
    assert pod_of(pod_security="restricted")["securityContext"]["runAsNonRoot"] is True
    assert "automountServiceAccountToken" not in pod_of(service_account_name="trainer")


def test_given_contexts_are_laid_over_the_defaults() -> None:
    context = main_of(
        container_security_context={"runAsUser": 7, "capabilities": {"add": ["NET_BIND_SERVICE"]}}
    )
    assert context["securityContext"] == {
        "runAsUser": 7,
        "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
        "allowPrivilegeEscalation": False,
    }
    privileged = main_of(container_security_context=k8s.V1SecurityContext(privileged=True))
    assert privileged["securityContext"] == {"privileged": True}


@pytest.mark.parametrize(
    "fields",
    [
        {"security_context": {"runAsUser": 0}},
        {"security_context": {"runAsNonRoot": False}},
        {"security_context": {"seccompProfile": {"type": "Unconfined"}}},
        {"container_security_context": {"privileged": True}},
        {"container_security_context": {"allowPrivilegeEscalation": True}},
        {"container_security_context": {"capabilities": {"add": ["SYS_PTRACE"]}}},
        {"container_security_context": {"capabilities": {"drop": ["KILL"]}}},
        {"hostnetwork": True},
        {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
        {"ports": [{"containerPort": 80, "hostPort": 80}]},
    ],
)
def test_restricted_refuses_what_contradicts_it(fields: dict[str, Any]) -> None:
    job_of(**fields)
    with pytest.raises(ConfigurationError, match='contradicts pod_security="restricted"'):
        job_of(pod_security="restricted", **fields)


# what users write


def test_model_objects_and_both_spellings_mean_the_same() -> None:
    camel = {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}}
            ]
        }
    }
    snake = {
        "node_affinity": {
            "preferred_during_scheduling_ignored_during_execution": [
                {"weight": 1, "preference": {"match_expressions": [{"key": "gpu", "operator": "Exists"}]}}
            ]
        }
    }
    term = k8s.V1PreferredSchedulingTerm(
        weight=1,
        preference=k8s.V1NodeSelectorTerm(
            match_expressions=[k8s.V1NodeSelectorRequirement(key="gpu", operator="Exists")]
        ),
    )
    model = k8s.V1Affinity(
        node_affinity=k8s.V1NodeAffinity(preferred_during_scheduling_ignored_during_execution=[term])
    )
    assert pod_of(affinity=camel)["affinity"] == pod_of(affinity=snake)["affinity"] == camel
    assert pod_of(affinity=model)["affinity"] == camel


def test_what_kubernetes_pod_operator_users_write() -> None:
    pod = pod_of(
        cmds=["python"],
        arguments=["-m", "train"],
        env_vars=[k8s.V1EnvVar(name="A", value="1")],
        env_from=[k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name="creds"))],
        volumes=[k8s.V1Volume(name="data", empty_dir=k8s.V1EmptyDirVolumeSource(size_limit="1Gi"))],
        volume_mounts=[k8s.V1VolumeMount(name="data", mount_path="/data")],
        container_resources=k8s.V1ResourceRequirements(
            requests={"cpu": "1"}, limits={"cpu": "2", "memory": "1Gi"}
        ),
        tolerations=[k8s.V1Toleration(key="gpu", operator="Exists")],
        image_pull_secrets="one, two",
        ports=[k8s.V1ContainerPort(container_port=8080)],
        node_selector={"disk": "ssd"},
        termination_grace_period=5,
        dns_config=k8s.V1PodDNSConfig(nameservers=["10.0.0.1"]),
        priority_class_name="low",
        secrets=[
            SimpleNamespace(deploy_type="env", deploy_target="TOKEN", secret="s", key="k"),
            SimpleNamespace(deploy_type="env", deploy_target=None, secret="all", key=None),
            SimpleNamespace(deploy_type="volume", deploy_target="/etc/s", secret="files", key=None, items=[]),
        ],
    )
    main = pod["containers"][0]
    assert (main["command"], main["args"]) == (["python"], ["-m", "train"])
    assert main["env"] == [
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "A", "value": "1"},
    ]
    assert main["envFrom"] == [{"secretRef": {"name": "creds"}}, {"secretRef": {"name": "all"}}]
    assert main["resources"] == {"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Gi"}}
    assert main["ports"] == [{"containerPort": 8080}]
    assert pod["volumes"] == [
        {"name": "data", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "secret-2", "secret": {"secretName": "files"}},
    ]
    assert main["volumeMounts"][1] == {"name": "secret-2", "mountPath": "/etc/s", "readOnly": True}
    assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    assert pod["terminationGracePeriodSeconds"] == 5
    assert pod["priorityClassName"] == "low"


def test_airflows_own_secret_is_accepted() -> None:
    secret = pytest.importorskip("airflow.providers.cncf.kubernetes.secret").Secret
    main = main_of(secrets=[secret("env", "token", "s", "k")])
    assert main["env"] == [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]


def test_env_as_a_mapping_and_a_single_argument_as_a_string() -> None:
    main = main_of(env_vars={"A": "x", "N": 3, "R": 0.5}, arguments="--help")
    assert main["env"] == [
        {"name": "A", "value": "x"},
        {"name": "N", "value": "3"},
        {"name": "R", "value": "0.5"},
    ]
    assert main["args"] == ["--help"]


def test_numbers_are_quantities() -> None:
    resources = main_of(container_resources={"limits": {"cpu": 2, "memory": "1Gi"}})["resources"]
    assert resources == {"limits": {"cpu": "2", "memory": "1Gi"}}


def test_bases_lie_beneath_explicit_parameters(tmp_path: Path) -> None:
    template = tmp_path / "pod.yaml"
    template.write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {labels: {team: ml}}\n"
        "spec:\n  restartPolicy: Always\n  serviceAccountName: trainer\n  nodeSelector: {zone: a}\n"
        "  containers:\n  - {name: base, image: old:1, env: [{name: A, value: old}, {name: B, value: b}]}\n"
        "  - {name: side, image: side:1}\n"
    )
    full = k8s.V1Pod(
        spec=k8s.V1PodSpec(containers=[k8s.V1Container(name="base", image="mid:1")], node_name="n1")
    )
    spec = WorkloadSpec(
        image="new:1",
        env_vars={"A": "new"},
        node_selector={"disk": "ssd"},
        pod_template_file=str(template),
        full_pod_spec=full,
        labels={"mine": "yes"},
    )
    job = build_job(check_workload(spec), IDENTITY, 1)
    template_metadata = job["spec"]["template"]["metadata"]
    pod = job["spec"]["template"]["spec"]
    assert [container["image"] for container in pod["containers"]] == ["new:1", "side:1"]
    assert pod["containers"][0]["env"] == [{"name": "A", "value": "new"}, {"name": "B", "value": "b"}]
    assert (pod["nodeSelector"], pod["nodeName"]) == ({"zone": "a", "disk": "ssd"}, "n1")
    assert pod["restartPolicy"] == "Never"
    assert template_metadata["labels"]["team"] == "ml"
    assert template_metadata["labels"]["mine"] == job["metadata"]["labels"]["mine"] == "yes"
    assert template_metadata["annotations"]["kubectl.kubernetes.io/default-container"] == "base"
    assert "automountServiceAccountToken" not in pod
    alone = check_workload(WorkloadSpec(pod_template_file=str(template))).pod["spec"]["containers"]
    assert [container["image"] for container in alone] == ["old:1", "side:1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(20130105, "20130105"), (True, "true"), (False, "false"), (0.1, "0.1"), (1e-05, "1e-05"), (0, "0")],
)
def test_what_a_template_made_a_number_is_the_text_it_was(value: Any, text: str) -> None:
    """As people write numbers in YAML and in Python."""
    spec = WorkloadSpec(
        image="train:1",
        cmds=value,
        arguments=["--as-of", value],
        env_vars={"AS_OF": value},
        env_from=[{"prefix": value, "secretRef": {"name": "s"}}],
        labels={"as-of": value},
        annotations={"as-of": value},
        node_selector={"as-of": value},
        working_dir=value,
    )
    job = build_job(check_workload(spec), IDENTITY, 1)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == [text]
    assert container["args"] == ["--as-of", text]
    assert container["env"] == [{"name": "AS_OF", "value": text}]
    assert container["envFrom"][0]["prefix"] == container["workingDir"] == text
    assert job["spec"]["template"]["spec"]["nodeSelector"] == {"as-of": text}
    for meta in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert meta["labels"]["as-of"] == meta["annotations"]["as-of"] == text
    assert spec_hash(job) == spec_hash(
        build_job(
            check_workload(
                WorkloadSpec(
                    image="train:1",
                    cmds=[text],
                    arguments=["--as-of", text],
                    env_vars={"AS_OF": text},
                    env_from=[{"prefix": text, "secretRef": {"name": "s"}}],
                    labels={"as-of": text},
                    annotations={"as-of": text},
                    node_selector={"as-of": text},
                    working_dir=text,
                )
            ),
            IDENTITY,
            1,
        )
    ), "a task whose templates become native adopts what it submitted before"


def test_names_that_a_template_made_numbers_are_text() -> None:
    names = ("namespace", "hostname", "subdomain", "queue_name", "service_account_name", "image")
    spec = WorkloadSpec(**dict.fromkeys(names, 20130105), configmaps=[20130105], arguments=20130105)  # type: ignore[arg-type]
    job = build_job(check_workload(spec), IDENTITY, 1)
    pod = job["spec"]["template"]["spec"]
    assert (
        job["metadata"]["namespace"] == job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "20130105"
    )
    assert pod["hostname"] == pod["subdomain"] == pod["serviceAccountName"] == "20130105"
    assert pod["containers"][0]["image"] == "20130105"
    assert pod["containers"][0]["args"] == ["20130105"]
    assert pod["containers"][0]["envFrom"] == [{"configMapRef": {"name": "20130105"}}]


# what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"container_resources": {"limit": {"cpu": "1"}}},
            r"container_resources\.limit = .*did you mean 'limits'",
        ),
        ({"volumes": [{"name": "v", "emptydir": {}}]}, r"volumes\[0\]\.emptydir = .*did you mean 'emptyDir'"),
        ({"affinity": {"node_afinity": {}}}, r"did you mean 'nodeAffinity'"),
        ({"container_resources": {"limits": {"memory": "1 GB"}}}, r"limits\.memory = '1 GB'.*'1Gi'.*or '1G'"),
        ({"container_resources": {"limits": {"memory": "lots"}}}, r"not a quantity; write a number"),
        ({"container_resources": {"limits": {"memory": "-1Gi"}}}, "cannot be negative"),
        ({"container_resources": {"limits": {"cpu": True}}}, "not a quantity"),
        (
            {"container_resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1500m"}}},
            "above the limit '1'",
        ),
        ({"container_resources": "big"}, "write a mapping"),
        ({"tolerations": {"key": "gpu"}}, "write a list"),
        ({"ports": [{"containerPort": "80"}]}, "must be a whole number"),
        ({"env_vars": {"FLAGS": ["a"]}}, r"env_vars\['FLAGS'\] = \['a'\]: must be a string, not list"),
        ({"env_vars": {"1A": "x"}}, "variable's name"),
        ({"env_vars": [{"name": "A", "value": {}}]}, r"env_vars\[0\]\.value = \{\}: must be a string"),
        ({"arguments": ["--as-of", None]}, r"arguments\[1\] = None: must be a string; leave the entry out"),
        ({"arguments": ["--as-of", dt.date(2013, 1, 5)]}, r"arguments\[1\] = .*must be a string, not date"),
        ({"arguments": [math.nan]}, r"arguments\[0\] = nan: must be a string"),
        ({"labels": {"day": None}}, r"labels\['day'\] = None: must be a string"),
        ({"labels": {"day": dt.date(2013, 1, 5)}}, r"labels\['day'\] = .*not date"),
        ({"annotations": {"day": {"a": 1}}}, r"annotations\['day'\] = .*not dict"),
        ({"hostname": [1]}, r"hostname = \[1\]: must be a string, not list"),
        ({"namespace": {}}, r"namespace = \{\}: must be a string, not dict"),
        ({"queue_name": ("a",)}, r"queue_name = .*not tuple"),
        ({"image": ["a"]}, r"image = \['a'\]"),
        ({"labels": {"team": "data science!"}}, r"labels\['team'\] = 'data science!'.*'data-science'"),
        ({"labels": {"bad key": "v"}}, "labels key = 'bad key'"),
        ({"labels": {"nighttrain.dev/attempt": "9"}}, "is reserved"),
        ({"annotations": {"x/y/z": "v"}}, "annotations key"),
        ({"namespace": "Team_A"}, r"namespace = 'Team_A'.*'team-a'"),
        ({"service_account_name": "My Account"}, "service_account_name"),
        ({"image_pull_policy": "Sometimes"}, "must be one of 'Always'"),
        ({"pod_security": "open"}, "must be one of 'baseline', 'restricted'"),
        ({"active_deadline_seconds": 0}, "must be a whole number, 1 or more"),
        ({"backoff_limit": -1}, "must be a whole number"),
        ({"image": None}, "give an image"),
        ({"image": " "}, "write an image name"),
        ({"volume_mounts": [{"name": "data", "mountPath": "/d"}]}, "no such volume"),
        ({"init_containers": [{"name": "main", "image": "i"}]}, "two containers have this name"),
        ({"secrets": ["creds"]}, r"secrets\[0\]"),
        ({"pod_template_file": "/no/such.yaml"}, "cannot be read"),
        ({"full_pod_spec": {"spec": {"contaners": []}}}, "did you mean 'containers'"),
    ],
)
def test_bad_input_is_named_with_its_value_and_the_fix(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        job_of(**fields)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        ("1", "1"),
        ("1.5", "1.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("+2", "2"),
        ("500m", "0.5"),
        ("1k", "1000"),
        ("1Ki", "1024"),
        ("1.5Gi", "1610612736"),
        ("2e3", "2000"),
        ("2E3", "2000"),
        ("1E", "1e18"),
        ("1Ei", "1152921504606846976"),
        ("3u", "0.000003"),
        ("4n", "4e-9"),
        ("12e-1", "1.2"),
    ],
)
def test_quantities_follow_the_kubernetes_grammar(text: str, value: str) -> None:
    assert parse_quantity("q", text) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "Gi", "1gi", "1K", "1GB", "1 Gi", "1e", "1e3Ki", "0x1", "1,5", "e3", "١", None, 3]
)
def test_what_is_no_quantity_is_refused(text: Any) -> None:
    with pytest.raises(ConfigurationError, match="quantity"):
        parse_quantity("q", text)


@pytest.mark.parametrize(("text", "meant"), [("500 m", "'500m'"), ("1gi", "'1Gi'"), ("2GB", "'2G'")])
def test_a_misspelt_quantity_is_told_what_was_meant(text: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=meant):
        parse_quantity("q", text)


# the spec hash


def test_the_hash_says_what_runs_and_not_whose_it_is() -> None:
    other = WorkloadIdentity(orchestrator="dagster", dag_id="x", run_id="y", task_id="z")
    spec = WorkloadSpec(image="train:1", labels={"team": "ml"}, container_resources={"limits": {"cpu": "1"}})
    job = build_job(check_workload(spec), IDENTITY, 1)
    annotation = job["metadata"]["annotations"]["nighttrain.dev/spec-hash"]
    assert annotation == spec_hash(job) == spec_hash(build_job(check_workload(spec), IDENTITY, 7))
    assert annotation == spec_hash(build_job(check_workload(spec), other, 1))
    for changed in (
        {"image": "train:2"},
        {"labels": {"team": "x"}},
        {"arguments": ["a"]},
        {"env_vars": {"A": "b"}},
    ):
        assert spec_hash(job_of(**changed)) != annotation


def test_volatile_variables_do_not_count() -> None:
    def hashed(value: str, **fields: Any) -> str:
        job = job_of(env_vars={"RUN": value}, **fields)
        return str(job["metadata"]["annotations"]["nighttrain.dev/spec-hash"])

    assert hashed("a") != hashed("b")
    assert hashed("a", volatile_env=["RUN"]) == hashed("b", volatile_env=["RUN"])


def test_the_same_spec_builds_the_same_job() -> None:
    secret = SimpleNamespace(deploy_type="volume", deploy_target="/s", secret="files", key=None)
    assert job_of(secrets=[secret]) == job_of(secrets=[secret])
