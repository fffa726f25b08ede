"""Airflow connections become configurations: every field, every form, and what cannot be one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import Connection

from nighttrain.providers.errors import ConfigurationError
from nighttrain.sensors.common.connections import (
    aget_cluster_config,
    aget_mlflow,
    cluster_config,
    get_cluster_config,
    get_mlflow,
    mlflow_connection,
)

if TYPE_CHECKING:
    from pathlib import Path

KUBECONFIG = {"apiVersion": "v1", "users": [{"name": "me", "user": {"token": "cluster-secret"}}]}


def kubernetes(**extra: Any) -> Connection:
    return Connection(conn_id="k8s", conn_type="kubernetes", extra=json.dumps(extra))


def mlflow(host: str | None = "http://mlflow:5000", extra: Any = None, **fields: Any) -> Connection:
    return Connection(
        conn_id="ml", conn_type="mlflow", host=host, extra=json.dumps(extra) if extra else None, **fields
    )


# Clusters


def test_a_kubernetes_connection_without_fields_uses_the_usual_places() -> None:
    config = cluster_config(Connection(conn_id="k8s", conn_type="kubernetes"))
    assert (config.kubeconfig, config.kubeconfig_content, config.in_cluster) == (None, None, False)
    assert config.namespace is None
    assert config.verify_ssl


def test_every_kubernetes_field() -> None:
    config = cluster_config(
        kubernetes(
            kube_config_path="/etc/kube/config",
            cluster_context="prod",
            namespace="training",
            disable_verify_ssl=True,
            in_cluster=False,
        )
    )
    assert config.kubeconfig == "/etc/kube/config"
    assert config.context == "prod"
    assert config.namespace == "training"
    assert not config.verify_ssl


def test_the_long_names_that_airflows_form_once_wrote() -> None:
    config = cluster_config(
        kubernetes(extra__kubernetes__kube_config_path="/a", extra__kubernetes__namespace="old")
    )
    assert (config.kubeconfig, config.namespace) == ("/a", "old")


def test_the_short_name_wins_over_the_long_one() -> None:
    config = cluster_config(kubernetes(namespace="new", extra__kubernetes__namespace="old"))
    assert config.namespace == "new"


@pytest.mark.parametrize("content", [KUBECONFIG, json.dumps(KUBECONFIG)])
def test_a_kubeconfig_inside_the_connection(content: Any) -> None:
    assert cluster_config(kubernetes(kube_config=content)).kubeconfig_content == KUBECONFIG


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("True", True), ("1", True), (False, False), ("False", False), ("", False)],
)
def test_flags_as_booleans_and_as_text(value: object, expected: bool) -> None:
    config = cluster_config(kubernetes(in_cluster=value, disable_verify_ssl=value))
    assert config.in_cluster is expected
    assert config.verify_ssl is not expected


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"in_cluster": True, "kube_config_path": "/a"}, "in_cluster + kube_config_path"),
        ({"kube_config_path": "/a", "kube_config": KUBECONFIG}, "kube_config_path + kube_config"),
        ({"in_cluster": "True", "kube_config": "{}"}, "in_cluster + kube_config"),
    ],
)
def test_two_ways_at_once(extra: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match="set one way to reach the cluster") as caught:
        cluster_config(kubernetes(**extra))
    message = str(caught.value)
    assert "k8s" in message
    assert named in message
    assert "cluster-secret" not in message


def test_a_false_in_cluster_is_not_a_second_way() -> None:
    config = cluster_config(kubernetes(in_cluster="False", kube_config_path="/a"))
    assert config.kubeconfig == "/a"


def test_a_kubeconfig_that_is_not_json() -> None:
    with pytest.raises(ConfigurationError, match="must be a kubeconfig as JSON") as caught:
        cluster_config(kubernetes(kube_config="token: cluster-secret"))
    assert "k8s" in str(caught.value)
    assert "cluster-secret" not in str(caught.value)


def test_an_unreadable_extra_is_as_none() -> None:
    """Airflow's own reading of it: logged, and empty."""
    broken = Connection(conn_id="k8s", conn_type="kubernetes", extra="{not json")
    assert cluster_config(broken).kubeconfig is None


def test_a_stored_kubeconfig_is_not_in_the_repr() -> None:
    config = cluster_config(kubernetes(kube_config=KUBECONFIG))
    assert "cluster-secret" not in repr(config)
    assert "cluster-secret" not in config.key


# MLflow


@pytest.mark.parametrize(
    ("host", "fields", "uri"),
    [
        ("mlflow", {}, "http://mlflow"),
        ("mlflow", {"port": 5000}, "http://mlflow:5000"),
        ("mlflow", {"schema": "https"}, "https://mlflow"),
        ("mlflow", {"schema": "https", "port": 8443}, "https://mlflow:8443"),
        ("http://mlflow", {"port": 5000}, "http://mlflow:5000"),
        ("http://mlflow:5000", {}, "http://mlflow:5000"),
        ("http://mlflow:5000", {"port": 6000}, "http://mlflow:5000"),
        ("http://mlflow:5000/", {}, "http://mlflow:5000"),
        ("https://example.com/mlflow/", {}, "https://example.com/mlflow"),
        ("https://example.com/mlflow", {"port": 8443}, "https://example.com:8443/mlflow"),
        ("https://mlflow", {"schema": "http"}, "https://mlflow"),
        ("127.0.0.1", {"port": 5000}, "http://127.0.0.1:5000"),
        ("http://[::1]:5000", {}, "http://[::1]:5000"),
    ],
)
def test_host_forms(host: str, fields: dict[str, Any], uri: str) -> None:
    found = mlflow_connection(mlflow(host, **fields))
    assert found.config.uri == uri
    assert found.cluster_uri == uri
    assert found.ui_uri == uri


@pytest.mark.parametrize(
    ("host", "uri"),
    [("http://[::1]", "http://[::1]:5000"), ("http://me:mlflow-secret@mlflow", "http://mlflow:5000")],
)
def test_a_colon_in_the_host_is_no_port(host: str, uri: str) -> None:
    assert mlflow_connection(mlflow(host, port=5000)).config.uri == uri


def test_every_mlflow_field(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.write_text("")
    extra = {
        "registry_uri": "https://registry.example.com",
        "workspace": "team-a",
        "auth": "kubernetes",
        "ca_certificate": str(certificate),
        "cluster_uri": "http://mlflow.tracking.svc:5000/",
        "ui_uri": "https://mlflow.example.com/",
        "disable_verify_ssl": "true",
    }
    found = mlflow_connection(mlflow("https://mlflow", extra, login="me", password="mlflow-secret"))
    assert (found.config.username, found.config.password) == ("me", "mlflow-secret")
    assert found.config.token is None
    assert found.config.registry_uri == "https://registry.example.com"
    assert found.config.ca_certificate == str(certificate)
    assert not found.config.verify_ssl
    assert (found.config.workspace, found.config.auth) == ("team-a", "kubernetes")
    assert found.run_url("1", "abc").endswith("/#/experiments/1/runs/abc?workspace=team-a")
    assert found.cluster_uri == "http://mlflow.tracking.svc:5000"
    assert found.ui_uri == "https://mlflow.example.com"


def test_a_token() -> None:
    config = mlflow_connection(mlflow(extra={"token": "mlflow-secret"})).config
    assert config.token == "mlflow-secret"
    assert (config.username, config.password) == (None, None)


def test_empty_fields_of_airflows_form_are_none() -> None:
    """The form stores what was left empty as an empty text, or as null."""
    extra = {"token": "", "registry_uri": None, "ca_certificate": "", "cluster_uri": "", "ui_uri": None}
    found = mlflow_connection(mlflow(extra=extra, login="", password=""))
    config = found.config
    given = (config.token, config.username, config.password, config.registry_uri, config.ca_certificate)
    assert given == (None,) * 5
    assert found.cluster_uri == found.ui_uri == "http://mlflow:5000"


@pytest.mark.parametrize("host", [None, ""])
def test_no_host(host: str | None) -> None:
    with pytest.raises(ConfigurationError, match="must be MLflow's tracking URI") as caught:
        mlflow_connection(mlflow(host, password="mlflow-secret"))
    assert "connection ml: host" in str(caught.value)
    assert "mlflow-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("sqlite:///mlflow.db", "http:// or https://"),
        ("databricks://profile", "http:// or https://"),
        ("http://mlflow:port", "not an address"),
        ("http://mlflow?workspace=a", r"remove everything from '\?'"),
    ],
)
def test_a_host_that_is_no_address(host: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        mlflow_connection(mlflow(host))


@pytest.mark.parametrize("uri", ["mlflow.ml.svc:5000", "file:///mlruns", "http://me:mlflow-secret@mlflow"])
def test_an_address_for_pods_that_is_none(uri: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^cluster_uri") as caught:
        mlflow_connection(mlflow(extra={"cluster_uri": uri}))
    assert "mlflow-secret" not in str(caught.value)


def test_a_certificate_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        mlflow_connection(mlflow(extra={"ca_certificate": "/no/such/ca.pem"}))


@pytest.mark.parametrize(
    "fields", [{"login": "me", "password": "mlflow-secret"}, {"extra": {"token": "mlflow-secret"}}]
)
def test_secrets_are_not_in_the_repr(fields: dict[str, Any]) -> None:
    assert "mlflow-secret" not in repr(mlflow_connection(mlflow(**fields)))


def test_a_password_in_the_host_is_taken_out_of_it() -> None:
    config = mlflow_connection(mlflow("http://me:mlflow-secret@mlflow:5000")).config
    assert config.uri == "http://mlflow:5000"
    assert (config.username, config.password) == ("me", "mlflow-secret")


def test_a_password_in_the_host_reaches_neither_pods_nor_links() -> None:
    found = mlflow_connection(mlflow("http://me:mlflow-secret@mlflow:5000"))
    addresses = (found.cluster_uri, found.ui_uri, found.run_url("1", "2"), repr(found))
    assert not [address for address in addresses if "mlflow-secret" in address]


def test_addresses_of_pages() -> None:
    found = mlflow_connection(mlflow(extra={"ui_uri": "https://mlflow.example.com/"}))
    assert found.run_url("7", "abc") == "https://mlflow.example.com/#/experiments/7/runs/abc"
    assert found.version_url("a b/c", "3") == "https://mlflow.example.com/#/models/a%20b%2Fc/versions/3"


# By id, as Airflow finds them


def test_connections_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_K8S", json.dumps({"conn_type": "kubernetes", "extra": {"namespace": "n"}})
    )
    monkeypatch.setenv("AIRFLOW_CONN_ML", "mlflow://me:mlflow-secret@mlflow:5000/https")
    assert get_cluster_config("k8s").namespace == "n"
    config = get_mlflow("ml").config
    assert (config.uri, config.username, config.password) == ("https://mlflow:5000", "me", "mlflow-secret")


async def test_connections_by_id_in_a_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_K8S", json.dumps({"conn_type": "kubernetes", "extra": {"namespace": "n"}})
    )
    monkeypatch.setenv("AIRFLOW_CONN_ML", json.dumps({"conn_type": "mlflow", "host": "http://mlflow"}))
    assert (await aget_cluster_config("k8s")).namespace == "n"
    assert (await aget_mlflow("ml")).config.uri == "http://mlflow"


@pytest.mark.parametrize(
    ("find", "parameter", "kind"),
    [(get_cluster_config, "kubernetes_conn_id", "kubernetes"), (get_mlflow, "mlflow_conn_id", "mlflow")],
)
def test_no_such_connection(find: Any, parameter: str, kind: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find("nobody_made_this")
    assert parameter in str(caught.value)
    assert f"airflow connections add nobody_made_this --conn-type {kind}" in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "secret"),
    [
        ({"mlflow_secret": "credentials"}, "credentials"),
        ({"mlflow_secret": "new", "kubernetes_secret": "old"}, "new"),
        ({}, None),
    ],
)
def test_the_secret_for_pods(extra: dict[str, str], secret: str | None) -> None:
    assert mlflow_connection(mlflow(extra=extra)).pods().secret == secret


def test_a_secret_for_pods_by_the_name_it_had_before() -> None:
    with pytest.warns(
        DeprecationWarning, match="connection ml: .* kubernetes_secret is called mlflow_secret"
    ):
        connection = mlflow_connection(mlflow(extra={"kubernetes_secret": "credentials"}))
    assert connection.pods().sources() == [{"secretRef": {"name": "credentials"}}]
