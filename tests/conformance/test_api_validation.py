"""What an object must be like, and what cannot be changed about it later."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import causes, config_map, refusal

if TYPE_CHECKING:
    from helpers.conformance_client import Space

pytestmark = pytest.mark.api

Object = dict[str, Any]


def pod(container: Object | None = None, **spec: Any) -> Object:
    """One that no node is good for: nothing has to run."""
    main = {"name": "main", "image": "example", **(container or {})}
    placed = {"nodeSelector": {"conformance": "no-such-node"}, "containers": [main]}
    return {"metadata": {"name": "one"}, "spec": {**placed, **spec}}


def job(template: Object | None = None, **spec: Any) -> Object:
    containers = [{"name": "main", "image": "example"}]
    pod_spec = {"restartPolicy": "Never", "containers": containers, **(template or {})}
    return {"metadata": {"name": "one"}, "spec": {"suspend": True, "template": {"spec": pod_spec}, **spec}}


def deployment(**spec: Any) -> Object:
    template = {
        "metadata": {"labels": {"app": "one"}},
        "spec": {"containers": [{"name": "main", "image": "example"}]},
    }
    selector = {"matchLabels": {"app": "one"}}
    return {
        "metadata": {"name": "one"},
        "spec": {"replicas": 0, "selector": selector, "template": template, **spec},
    }


def refused(space: Space, kind: str, obj: Object) -> set[str]:
    """The fields that are wrong."""
    return {field for field, _ in causes(space.try_create(kind, obj))}


def unchangeable(space: Space, kind: str, patch: Any) -> set[str]:
    return {field for field, _ in causes(space.try_patch(kind, "one", patch))}


def test_names_are_dns_names(space: Space) -> None:
    """Object Names and IDs, DNS Subdomain Names."""
    assert refused(space, "configmaps", config_map("Not_A_Name")) == {"metadata.name"}
    assert refused(space, "configmaps", config_map("a" * 254)) == {"metadata.name"}


def test_service_names_are_dns_labels(space: Space) -> None:
    """Object Names and IDs, RFC 1035 Label Names."""
    body = {"metadata": {"name": "with.dots"}, "spec": {"ports": [{"port": 80}]}}
    assert refused(space, "services", body) == {"metadata.name"}


def test_labels_have_a_syntax(space: Space) -> None:
    """Labels and Selectors, Syntax and character set."""
    for labels in ({"not a key": "x"}, {"a": "not a value!"}, {"a": "x" * 64}, {"_/b/c": "x"}):
        assert refused(space, "configmaps", config_map("one", labels=labels)) == {"metadata.labels"}


def test_annotations_have_a_size(space: Space) -> None:
    """Annotations: all of an object together at most 256 KiB."""
    body = config_map("one", annotations={"a": "x" * (256 * 1024)})
    assert refused(space, "configmaps", body) == {"metadata.annotations"}


def test_an_owner_is_named_completely(space: Space) -> None:
    """OwnerReference: apiVersion, kind, name and uid are required."""
    body = config_map("one", ownerReferences=[{"apiVersion": "v1", "kind": "ConfigMap"}])
    found = causes(space.try_create("configmaps", body))
    fields = {"metadata.ownerReferences.name", "metadata.ownerReferences.uid"}
    assert found == {(field, "FieldValueInvalid") for field in fields}


def test_an_object_has_one_controller(space: Space) -> None:
    """Owners and Dependents: one owner reference at most says controller."""
    uids = ("11111111-2222-3333-4444-555555555555", "22222222-2222-3333-4444-555555555555")
    owners = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": uid, "controller": True} for uid in uids
    ]
    assert refused(space, "configmaps", config_map("one", ownerReferences=owners)) == {
        "metadata.ownerReferences"
    }


def test_everything_wrong_is_told_at_once(space: Space) -> None:
    """API Conventions, Validation: all errors, with their fields."""
    body = pod({"name": "Not A Name", "image": ""}, restartPolicy="Sometimes")
    found = refused(space, "pods", body)
    assert {"spec.containers[0].name", "spec.containers[0].image", "spec.restartPolicy"} <= found


def test_a_pod_needs_containers(space: Space) -> None:
    """PodSpec, containers: there must be at least one."""
    answer = space.try_create("pods", pod(containers=[]))
    assert causes(answer) == {("spec.containers", "FieldValueRequired")}


def test_containers_have_names_of_their_own(space: Space) -> None:
    """Container, name: unique in the pod."""
    answer = space.try_create("pods", pod(initContainers=[{"name": "main", "image": "example"}]))
    assert ("spec.containers[0].name", "FieldValueDuplicate") in causes(answer) or (
        "spec.initContainers[0].name",
        "FieldValueDuplicate",
    ) in causes(answer)


def test_a_mount_needs_its_volume(space: Space) -> None:
    """VolumeMount, name: must match the name of a volume."""
    answer = space.try_create("pods", pod({"volumeMounts": [{"name": "none", "mountPath": "/x"}]}))
    assert causes(answer) == {("spec.containers[0].volumeMounts[0].name", "FieldValueNotFound")}


def test_a_volume_has_one_source(space: Space) -> None:
    """Volumes: exactly one type."""
    two = {"name": "a", "emptyDir": {}, "configMap": {"name": "x"}}
    answer = space.try_create("pods", pod(volumes=[two]))
    assert {reason for _, reason in causes(answer)} == {"FieldValueForbidden"}


def test_a_request_is_at_most_the_limit(space: Space) -> None:
    """Resource Management, Requests and limits."""
    resources = {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}
    assert refused(space, "pods", pod({"resources": resources})) == {"spec.containers[0].resources.requests"}


def test_a_quantity_that_is_none_is_a_bad_request(space: Space) -> None:
    """Quantity: a number with a suffix of a fixed set."""
    answer = space.try_create("pods", pod({"resources": {"limits": {"memory": "lots"}}}))
    refusal(answer, 400, "BadRequest")


def test_a_limit_is_the_request_where_none_is_given(space: Space) -> None:
    """Resource Management, Requests and limits: the limit is used as the request."""
    made = space.create("pods", pod({"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}))
    assert made["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "1", "memory": "1Gi"}


def test_a_pod_gets_defaults(space: Space) -> None:
    """PodSpec: the defaults that its fields name."""
    spec = space.create("pods", pod())["spec"]
    assert (spec["restartPolicy"], spec["terminationGracePeriodSeconds"]) == ("Always", 30)
    assert spec["dnsPolicy"] == "ClusterFirst"
    container = spec["containers"][0]
    assert container["imagePullPolicy"] == "Always"
    assert container["terminationMessagePath"] == "/dev/termination-log"
    assert container["terminationMessagePolicy"] == "File"


def test_the_pull_policy_depends_on_the_tag(space: Space) -> None:
    """Images, Default image pull policy: IfNotPresent for a tag other than latest."""
    spec = space.create("pods", pod({"image": "example:1"}))["spec"]
    assert spec["containers"][0]["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize(
    ("resources", "quality"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "100m"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
    ],
    ids=["besteffort", "burstable", "guaranteed"],
)
def test_a_pod_has_a_quality_of_service(space: Space, resources: Object, quality: str) -> None:
    """Pod Quality of Service Classes."""
    assert space.create("pods", pod({"resources": resources}))["status"]["qosClass"] == quality


def test_a_new_pod_is_pending(space: Space) -> None:
    """Pod Lifecycle, Pod phase: accepted by the cluster, not yet set up."""
    assert space.create("pods", pod())["status"]["phase"] == "Pending"


def test_a_probe_has_one_way_to_probe(space: Space) -> None:
    """Probe: exactly one handler."""
    probe = {"tcpSocket": {"port": 80}, "exec": {"command": ["true"]}}
    answer = space.try_create("pods", pod({"readinessProbe": probe}))
    assert {reason for _, reason in causes(answer)} == {"FieldValueForbidden"}


def test_a_liveness_probe_succeeds_with_one_success(space: Space) -> None:
    """Configure Probes: successThreshold must be 1 for liveness and startup."""
    probe = {"tcpSocket": {"port": 80}, "successThreshold": 2}
    found = refused(space, "pods", pod({"livenessProbe": probe}))
    assert found == {"spec.containers[0].livenessProbe.successThreshold"}


def test_ports_are_numbers_of_ports(space: Space) -> None:
    """ContainerPort, containerPort: 0 < x < 65536."""
    found = refused(space, "pods", pod({"ports": [{"containerPort": 70000}]}))
    assert found == {"spec.containers[0].ports[0].containerPort"}


def test_a_pods_image_may_be_changed(space: Space) -> None:
    """Pods, Pod update and replacement: spec.containers[*].image."""
    space.create("pods", pod())
    patch = [{"op": "replace", "path": "/spec/containers/0/image", "value": "other"}]
    answer = space.try_patch("pods", "one", patch, "application/json-patch+json")
    assert answer.status_code == 200, answer.text


def test_the_rest_of_a_pods_spec_may_not(space: Space) -> None:
    """Pods, Pod update and replacement: most of the spec is immutable."""
    space.create("pods", pod())
    assert unchangeable(space, "pods", {"spec": {"restartPolicy": "Never"}}) == {"spec"}


def test_a_pods_deadline_may_be_set_and_shortened(space: Space) -> None:
    """Pods, Pod update and replacement: activeDeadlineSeconds can be set or decreased."""
    space.create("pods", pod())
    space.patch("pods", "one", {"spec": {"activeDeadlineSeconds": 50}})
    space.patch("pods", "one", {"spec": {"activeDeadlineSeconds": 40}})
    assert unchangeable(space, "pods", {"spec": {"activeDeadlineSeconds": 60}}) == {
        "spec.activeDeadlineSeconds"
    }


def test_a_job_gets_defaults(space: Space) -> None:
    """JobSpec: backoffLimit 6, one completion, one pod at a time, NonIndexed."""
    spec = space.create("jobs", job())["spec"]
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (6, 1, 1)
    assert (spec["completionMode"], spec["podReplacementPolicy"]) == ("NonIndexed", "TerminatingOrFailed")


def test_a_job_selects_its_pods_itself(space: Space) -> None:
    """Jobs, Pod selector: generated, and unique."""
    made = space.create("jobs", job())
    uid = made["metadata"]["uid"]
    assert made["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert labels["batch.kubernetes.io/job-name"] == "one"
    assert labels["batch.kubernetes.io/controller-uid"] == uid


def test_a_jobs_pods_do_not_restart_forever(space: Space) -> None:
    """Jobs, Pod template: only Never or OnFailure."""
    found = refused(space, "jobs", job({"restartPolicy": "Always"}))
    assert found == {"spec.template.spec.restartPolicy"}


def test_an_indexed_job_needs_completions(space: Space) -> None:
    """Jobs, Completion mode: Indexed needs .spec.completions."""
    found = refused(space, "jobs", job(completionMode="Indexed", parallelism=1))
    assert found == {"spec.completions"}


def test_a_jobs_numbers_are_not_negative(space: Space) -> None:
    """JobSpec: backoffLimit, parallelism and ttlSecondsAfterFinished are not negative."""
    body = job(backoffLimit=-1, parallelism=-1, ttlSecondsAfterFinished=-1)
    fields = {"spec.backoffLimit", "spec.parallelism", "spec.ttlSecondsAfterFinished"}
    assert refused(space, "jobs", body) == fields


def test_a_pod_failure_policy_needs_pods_that_never_restart(space: Space) -> None:
    """Jobs, Pod failure policy: restartPolicy must be Never."""
    rules = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}}]
    body = job({"restartPolicy": "OnFailure"}, podFailurePolicy={"rules": rules})
    assert "spec.template.spec.restartPolicy" in refused(space, "jobs", body)


def test_a_pod_failure_policy_has_known_actions(space: Space) -> None:
    """PodFailurePolicyRule, action: FailJob, FailIndex, Ignore or Count."""
    rules = [{"action": "Panic", "onExitCodes": {"operator": "In", "values": [3]}}]
    found = refused(space, "jobs", job(podFailurePolicy={"rules": rules}))
    assert found == {"spec.podFailurePolicy.rules[0].action"}


def test_a_pod_failure_policy_does_not_speak_of_success(space: Space) -> None:
    """PodFailurePolicyOnExitCodesRequirement, values: 0 cannot be used with In."""
    rules = [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [0]}}]
    found = refused(space, "jobs", job(podFailurePolicy={"rules": rules}))
    assert found == {"spec.podFailurePolicy.rules[0].onExitCodes.values[0]"}


def test_a_jobs_completions_and_selector_are_immutable(space: Space) -> None:
    """JobSpec: completions and selector."""
    space.create("jobs", job(completions=2))
    assert unchangeable(space, "jobs", {"spec": {"completions": 3}}) == {"spec.completions"}


def test_a_jobs_parallelism_and_limit_can_be_changed(space: Space) -> None:
    """Jobs, Controlling parallelism: parallelism may change at any time."""
    space.create("jobs", job(completions=2))
    patched = space.patch("jobs", "one", {"spec": {"parallelism": 2, "backoffLimit": 1}})
    assert (patched["spec"]["parallelism"], patched["spec"]["backoffLimit"]) == (2, 1)


def test_a_deployment_gets_defaults(space: Space) -> None:
    """DeploymentSpec: rolling update by a quarter, ten revisions, ten minutes to progress."""
    body = deployment()
    del body["spec"]["replicas"]
    spec = space.create("deployments", body, dryRun="All")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
    }
    assert (spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (10, 600)
    assert spec["template"]["spec"]["restartPolicy"] == "Always"


def test_a_deployment_selects_its_own_template(space: Space) -> None:
    """Deployments, Selector: must match .spec.template.metadata.labels."""
    found = refused(space, "deployments", deployment(selector={"matchLabels": {"app": "two"}}))
    assert found == {"spec.template.metadata.labels"}


def test_a_deployments_selector_is_immutable(space: Space) -> None:
    """Deployments, Selector: immutable after creation."""
    space.create("deployments", deployment())
    patch = {
        "spec": {
            "selector": {"matchLabels": {"app": "two"}},
            "template": {"metadata": {"labels": {"app": "two"}}},
        }
    }
    assert unchangeable(space, "deployments", patch) == {"spec.selector"}


def test_a_rolling_update_must_be_able_to_move(space: Space) -> None:
    """Deployments, Max Unavailable and Max Surge: not both 0."""
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}
    found = refused(space, "deployments", deployment(strategy=strategy))
    assert found == {"spec.strategy.rollingUpdate.maxUnavailable"}


@pytest.mark.not_embedded("minReadySeconds")
def test_a_progress_deadline_is_longer_than_getting_ready(space: Space) -> None:
    """Deployments, Progress Deadline Seconds: must be greater than minReadySeconds."""
    found = refused(space, "deployments", deployment(minReadySeconds=10, progressDeadlineSeconds=10))
    assert found == {"spec.progressDeadlineSeconds"}


def test_an_immutable_config_map_stays_as_it_is(space: Space) -> None:
    """ConfigMaps, Immutable ConfigMaps: neither the data nor the mark can be changed."""
    space.create("configmaps", {**config_map("one", {"a": "1"}), "immutable": True})
    assert unchangeable(space, "configmaps", {"data": {"a": "2"}}) == {"data"}
    assert unchangeable(space, "configmaps", {"immutable": False}) == {"immutable"}
    space.patch("configmaps", "one", {"metadata": {"labels": {"x": "y"}}})


def test_keys_of_a_config_map_have_a_syntax(space: Space) -> None:
    """ConfigMaps: alphanumeric characters, -, _ or ."""
    assert refused(space, "configmaps", config_map("one", {"not a key": "x"})) == {"data[not a key]"}


def test_a_config_map_has_a_size(space: Space) -> None:
    """ConfigMaps, Motivation: data cannot exceed 1 MiB."""
    refusal(space.try_create("configmaps", config_map("one", {"a": "x" * (1024 * 1024 + 1)})), 422, "Invalid")


def test_string_data_becomes_data_of_a_secret(space: Space) -> None:
    """Secret, stringData: write-only, merged into data, overwrites it."""
    encoded = base64.b64encode(b"old").decode()
    body = {"metadata": {"name": "one"}, "data": {"a": encoded, "b": encoded}, "stringData": {"a": "new"}}
    made = space.create("secrets", body)
    assert base64.b64decode(made["data"]["a"]) == b"new"
    assert made["data"]["b"] == encoded
    assert "stringData" not in made
    assert made["type"] == "Opaque"


def test_data_of_a_secret_is_base64(space: Space) -> None:
    """Secret, data: base64 encoded."""
    body = {"metadata": {"name": "one"}, "data": {"a": "*"}}
    refusal(space.try_create("secrets", body), 400, "BadRequest")


def test_the_type_of_a_secret_is_immutable(space: Space) -> None:
    """Secrets, Types of Secret."""
    space.create("secrets", {"metadata": {"name": "one"}})
    assert unchangeable(space, "secrets", {"type": "example.com/other"}) == {"type"}


def test_a_service_gets_defaults(space: Space) -> None:
    """ServiceSpec: ClusterIP, TCP, the target port is the port."""
    spec = space.create("services", service())["spec"]
    assert (spec["type"], spec["sessionAffinity"]) == ("ClusterIP", "None")
    assert spec["ports"] == [{"protocol": "TCP", "port": 80, "targetPort": 80}]
    assert spec["clusterIP"]


def service(**spec: Any) -> Object:
    return {"metadata": {"name": "one"}, "spec": {"ports": [{"port": 80}], **spec}}


def test_a_services_address_is_immutable(space: Space) -> None:
    """ServiceSpec, clusterIP: may not be changed."""
    space.create("services", service())
    found = unchangeable(space, "services", {"spec": {"clusterIP": "None", "clusterIPs": ["None"]}})
    assert "spec.clusterIPs[0]" in found


def test_several_ports_of_a_service_are_named(space: Space) -> None:
    """Services, Multi-port Services: names must be given."""
    found = refused(space, "services", service(ports=[{"port": 80}, {"port": 81}]))
    assert found == {"spec.ports[0].name", "spec.ports[1].name"}
