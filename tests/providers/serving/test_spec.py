"""Every mistake that can be found without a cluster has its own message."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from helpers.certificates import Authority
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.pod_access import pod_access
from nighttrain.providers.serving.backends.manifests import build_deployment, build_service, deployment_name
from nighttrain.providers.serving.spec import ServingSpec
from nighttrain.providers.tracking.client import TrackingConfig

if TYPE_CHECKING:
    from pathlib import Path

Make = Callable[..., ServingSpec]


def test_the_example_is_valid(serving_spec: Make) -> None:
    serving_spec().validate()
    serving_spec(pod_security="restricted", workers=2, replicas=3).validate()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("endpoint", "Delay_Model", "endpoint"),
        ("endpoint", "1delay", "beginning with a letter"),
        ("endpoint", "x" * 41, "at most 40"),
        ("namespace", "No Such", "namespace"),
        ("version", "champion", "pin a version number"),
        ("artifact_digest", "abc", "artifact_digest"),
        ("image", "", "image"),
        ("tracking_uri", "http://me:hunter2@mlflow:5000", "Secret"),
        ("tracking_uri", "sqlite:///mlflow.db", "tracking_uri"),
        ("replicas", 0, "replicas"),
        ("workers", True, "workers"),
        ("port", 80, "port"),
        ("termination_grace_period", 0, "termination_grace_period"),
        ("pod_security", "privileged", "pod_security"),
        ("labels", {"team": "not a label"}, "labels"),
        ("labels", {"nighttrain.dev/version": "2"}, "nighttrain.dev/version"),
        ("container_resources", {"limits": {"memory": "2 GB"}}, "memory"),
        ("container_resources", {"limit": {"memory": "2Gi"}}, "limits"),
        ("tolerations", [{"keey": "gpu"}], "keey"),
        ("env_vars", {"MLFLOW_TRACKING_PASSWORD": "hunter2"}, "Secret"),
        ("env_vars", [{"name": "MLFLOW_TRACKING_TOKEN", "value": "hunter2"}], "Secret"),
        ("env_vars", {"SETTING": "AKIAHUNTER2HUNTER2XX"}, "a key of AWS"),
        ("env_vars", {"SETTING": "host=h password=hunter2"}, "Secret"),
        ("env_vars", {"SETTING": "the connection's hunter2-own"}, "the connection's credential"),
        ("annotations", {"note": "https://me:hunter2@h"}, "Secret"),
        ("annotations", {"note": "the connection's hunter2-own"}, "the connection's credential"),
    ],
)
def test_a_mistake_names_its_field_and_tells_no_secret(
    serving_spec: Make, field: str, value: Any, said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        serving_spec(**{field: value, "known_secrets": ("hunter2-own",)}).validate()
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_pod_is_as_safe_as_its_image_allows(serving_spec: Make) -> None:
    pod = build_deployment(serving_spec(pod_security="restricted"))["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}, "runAsNonRoot": True}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}} in container["env"]


def test_the_hash_is_about_what_runs_and_not_about_who_asked_or_how_many(serving_spec: Make) -> None:
    def marked(**given: Any) -> str:
        return str(
            build_deployment(serving_spec(**given))["metadata"]["annotations"]["nighttrain.dev/spec-hash"]
        )

    assert marked() == marked(annotations={"nighttrain.dev/run-id": "scheduled__2013-01-02"})
    assert marked() == marked(replicas=2)
    assert len({marked(), marked(image="model-server:2"), marked(artifact_digest="1" * 64)}) == 3


def test_arguments_are_taken_literally(serving_spec: Make) -> None:
    arguments = build_deployment(serving_spec(model_name="costs $(HOME)"))["spec"]["template"]["spec"]
    assert arguments["containers"][0]["args"][0] == "--model=costs $$(HOME)"


def test_names_stay_within_a_host_name_and_apart() -> None:
    assert deployment_name("delay", "12") == "delay-v12"
    long = [deployment_name("x" * 40, str(10**17 + number)) for number in range(3)]
    assert len(set(long)) == 3
    assert max(map(len, long)) <= 46


def test_the_service_selects_one_version(serving_spec: Make) -> None:
    service = build_service(build_deployment(serving_spec("3")))
    assert service["spec"]["selector"] == {"nighttrain.dev/endpoint": "delay", "nighttrain.dev/version": "3"}
    assert service["metadata"]["annotations"]["nighttrain.dev/stable-version"] == "3"


def test_a_serving_pod_brings_the_certificate_for_mlflow(serving_spec: Make, tmp_path: Path) -> None:
    """As text: nothing stands beside its Deployment that could be lost or changed."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Authority("company").pem)
    config = TrackingConfig("https://mlflow", ca_certificate=str(ca))
    access = pod_access(config, uri="https://mlflow.ml.svc", secret="mlflow")
    spec = serving_spec(tracking_uri=access.uri, mlflow_env=access.serving_environment())
    spec.validate()
    (container,) = build_deployment(spec)["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert environment["NIGHTTRAIN_MLFLOW_CA"] == ca.read_text()


@pytest.mark.parametrize(
    "content", ["", "hello", "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----"]
)
def test_a_file_without_a_certificate_does_not_reach_pods(tmp_path: Path, content: str) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(content)
    config = TrackingConfig("https://mlflow", ca_certificate=str(ca))
    with pytest.raises(ConfigurationError, match="holds no certificate") as caught:
        pod_access(config, uri="https://mlflow")
    assert "abc" not in str(caught.value)


def test_certificates_that_are_too_much_for_pods(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Authority("company").pem * 400)
    config = TrackingConfig("https://mlflow", ca_certificate=str(ca))
    with pytest.raises(ConfigurationError, match="its 400 certificates are too much"):
        pod_access(config, uri="https://mlflow")
