"""An API server without a network: Services have addresses, as those of every API server."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import httpx

from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from pathlib import Path


def expose(cluster: EmbeddedCluster, name: str, **spec: Any) -> httpx.Response:
    body = {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}
    headers = {"Authorization": f"Bearer {cluster.token}"}
    return httpx.post(
        f"{cluster.url}/api/v1/namespaces/default/services", json=body, headers=headers, trust_env=False
    )


def address(answer: httpx.Response) -> str:
    assert answer.status_code == 201, answer.text
    spec = answer.json()["spec"]
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    return str(spec["clusterIP"])


def test_services_have_addresses_of_one_range(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with EmbeddedCluster(containers=False, state=state) as cluster:
        first, second = address(expose(cluster, "a")), address(expose(cluster, "b"))
        assert first != second
        assert {ip_address(each) in ip_network("10.96.0.0/16") for each in (first, second)} == {True}
        assert "already allocated" in expose(cluster, "c", clusterIP=first).text
        assert expose(cluster, "d", clusterIP="127.64.200.1").status_code == 422
    # They are still taken after a restart.
    with EmbeddedCluster(containers=False, state=state) as cluster:
        assert "already allocated" in expose(cluster, "c", clusterIP=second).text
        assert address(expose(cluster, "c")) not in (first, second)
