"""What a container is told to reach MLflow, as it stands in the manifest."""

from __future__ import annotations

from typing import Any

import pytest

from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.pod_access import PodAccess, with_access

ACCESS = PodAccess(uri="http://mlflow", workspace="team-a", auth="kubernetes", secret="mlflow")


def pod(access: PodAccess = ACCESS, **given: Any) -> dict[str, Any]:
    template = check_workload(with_access(WorkloadSpec(image="train:1", **given), access)).pod_template()
    spec: dict[str, Any] = template["spec"]
    return spec


def environment(spec: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in spec["containers"][0].get("env", [])}


def test_workspace_and_service_account_reach_the_container() -> None:
    spec = pod()
    assert environment(spec) == {"MLFLOW_WORKSPACE": "team-a", "MLFLOW_TRACKING_AUTH": "kubernetes"}
    assert spec["automountServiceAccountToken"] is True
    assert spec["containers"][0]["envFrom"] == [{"secretRef": {"name": "mlflow"}}]


def test_what_the_user_says_stays() -> None:
    spec = pod(env_vars={"MLFLOW_WORKSPACE": "mine"}, automount_service_account_token=False)
    assert environment(spec)["MLFLOW_WORKSPACE"] == "mine"
    assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize("access", [PodAccess(uri="http://mlflow"), PodAccess(uri="https://mlflow")])
def test_without_any_of_it_nothing_is_added(access: PodAccess) -> None:
    spec = pod(access)
    assert environment(spec) == {}
    assert spec["automountServiceAccountToken"] is False
    assert "volumes" not in spec


def test_no_certificate_where_the_user_brings_one() -> None:
    access = PodAccess(uri="https://mlflow", certificates="a certificate")
    spec = with_access(WorkloadSpec(env_vars={"MLFLOW_TRACKING_SERVER_CERT_PATH": "/own.pem"}), access)
    assert spec.files is None
    assert with_access(WorkloadSpec(files={"train.py": "1"}), access).files == {
        "train.py": "1",
        "mlflow-ca.pem": "a certificate",
    }
