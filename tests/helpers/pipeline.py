"""What the pipeline's tests do to a whole stack, and ask it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import yaml

from nighttrain.providers.local.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENDED = {"success", "failed"}
USERS = ("admin", "ann", "bob", "eve")


class NamedUsers(Stack):
    """A stack whose Airflow tells people apart."""

    def sign_in(self, user: str) -> dict[str, str]:
        """The header of a signed-in user."""
        answer = httpx.post(
            f"{self.airflow_uri}/auth/token",
            json={"username": user, "password": f"{user}-password"},
            timeout=30,
        )
        assert answer.is_success, answer.text
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def api(self, method: str, path: str, *, user: str = "admin", **kwargs: Any) -> httpx.Response:
        """As a stack's, as somebody."""
        signed_in: dict[str, dict[str, str]] = self.__dict__.setdefault("_signed_in", {})
        if user not in signed_in:
            signed_in[user] = self.sign_in(user)
        url = f"{self.airflow_uri}/api/v2{path}"
        return httpx.request(method, url, headers=signed_in[user], timeout=60, **kwargs)


def named_users(directory: Path) -> dict[str, str]:
    """Airflow's settings for those users."""
    passwords = directory / "passwords.json"
    passwords.write_text(json.dumps({user: f"{user}-password" for user in USERS}))
    return {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:admin" for user in USERS),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
    }


class Pipeline:
    """What a test does to the stack, with clients that share no code with nighttrain's adapters."""

    def __init__(self, stack: NamedUsers) -> None:
        self.stack = stack

    # Airflow

    def unpause(self, dag_id: str) -> None:
        self.stack.unpause(dag_id)

    def trigger(self, dag_id: str, **conf: str) -> str:
        self.unpause(dag_id)
        body = {"logical_date": None, "conf": conf}
        answer = self.stack.api("POST", f"/dags/{dag_id}/dagRuns", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        return list(self.stack.api("GET", f"/dags/{dag_id}/dagRuns").json()["dag_runs"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return dict(self.stack.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}").json())

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        return dict(self.stack.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}").json())

    def links(self, dag_id: str, run_id: str, task_id: str) -> dict[str, str]:
        """The links on the task's page."""
        answer = self.stack.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links")
        return dict(answer.json()["extra_links"])

    def finished(self, dag_id: str, run_id: str, seconds: float = 180) -> str:
        """The state in which the DAG run ends."""
        self.until(lambda: self.run(dag_id, run_id)["state"] in ENDED, seconds, f"{dag_id} {run_id} to end")
        return str(self.run(dag_id, run_id)["state"])

    def log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Everything that was logged for the task, every try and the triggerer's lines."""
        folder = self.stack.directory / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"
        files = sorted((folder / f"task_id={task_id}").iterdir())
        return "\n".join(file.read_text(errors="replace") for file in files)

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Poll a condition: the servers are other processes."""
        deadline = time.monotonic() + seconds
        while True:
            self.stack.check_alive()
            found = condition()
            if found:
                return found
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
            # Airflow's API needs 50 ms for an answer, of the cores on which its tasks run.
            time.sleep(1.0)

    # The cluster

    def kubernetes(self, path: str) -> dict[str, Any]:
        config = yaml.safe_load(self.stack.kubeconfig.read_text())
        server, token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
        answer = httpx.get(f"{server}{path}", headers={"Authorization": f"Bearer {token}"})
        return dict(answer.json())

    def jobs(self, dag_id: str) -> list[dict[str, Any]]:
        label = f"nighttrain.dev/dag-id={dag_id}"
        path = f"/apis/batch/v1/namespaces/default/jobs?labelSelector={label}"
        return list(self.kubernetes(path)["items"])

    def evict(self, job: str) -> None:
        """What draining the node does to the Job's pod."""
        config = yaml.safe_load(self.stack.kubeconfig.read_text())
        server, token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
        label = f"batch.kubernetes.io/job-name={job}"
        (pod,) = self.kubernetes(f"/api/v1/namespaces/default/pods?labelSelector={label}")["items"]
        name = pod["metadata"]["name"]
        answer = httpx.post(
            f"{server}/api/v1/namespaces/default/pods/{name}/eviction",
            headers={"Authorization": f"Bearer {token}"},
            json={"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}},
        )
        assert answer.status_code == 201, answer.text

    # MLflow

    def mlflow(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        url = f"{self.stack.mlflow_uri}/api/2.0/mlflow/{path}"
        given = {"params": body} if method == "GET" else {"json": body}
        answer = httpx.request(method, url, timeout=30, **given)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def mlflow_runs(self, experiment: str) -> list[dict[str, Any]]:
        found = self.mlflow("GET", "experiments/get-by-name", experiment_name=experiment)["experiment"]
        body = {"experiment_ids": [found["experiment_id"]]}
        return list(self.mlflow("POST", "runs/search", **body).get("runs", []))

    def versions(self, model: str) -> list[dict[str, Any]]:
        return list(
            self.mlflow("GET", "model-versions/search", filter=f"name='{model}'").get("model_versions", [])
        )
