"""A plain client of the cluster: it shares no code with nighttrain's adapters and meets no faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import yaml

from nighttrain.providers.kubernetes.values.identity import ATTEMPT_KEY_LABEL

Json = dict[str, Any]
NAMESPACE = "default"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class Cluster:
    """What people and checks do to the cluster."""

    def __init__(self, kubeconfig: str) -> None:
        self.kubeconfig = kubeconfig
        config = yaml.safe_load(Path(kubeconfig).read_text())
        self._http = httpx.Client(
            base_url=config["clusters"][0]["cluster"]["server"],
            headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}"},
            timeout=30,
            trust_env=False,
            # The server closes a connection that idles as long as a flow takes: none is kept.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def find(self, path: str, selector: str = "") -> list[Json]:
        """The objects of a collection."""
        answer = self._http.get(path, params={"labelSelector": selector})
        answer.raise_for_status()
        return list(answer.json()["items"])

    def read(self, path: str, name: str) -> Json | None:
        """One object, if it is there."""
        answer = self._http.get(f"{path}/{name}")
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return dict(answer.json())

    def jobs(self, key: str) -> list[Json]:
        """The attempts of one task."""
        return self.find(JOBS, f"{ATTEMPT_KEY_LABEL}={key}")

    def remove(self, path: str, name: str) -> None:
        """Delete it and what belongs to it, if it is there."""
        answer = self._http.delete(f"{path}/{name}", params={"propagationPolicy": "Background"})
        assert answer.is_success or answer.status_code == 404, answer.text

    def evict(self, key: str) -> None:
        """What draining a node does to the task's pods."""
        for pod in self.find(PODS, f"{ATTEMPT_KEY_LABEL}={key}"):
            name = pod["metadata"]["name"]
            body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            answer = self._http.post(f"{PODS}/{name}/eviction", json=body)
            assert answer.is_success or answer.status_code == 404, answer.text


def is_live(job: Json) -> bool:
    """Whether the Job may still run something."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return not any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)
