"""The states of tasks, asked of Airflow's REST API (v2): for whoever is not a task of Airflow itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

import httpx

from nighttrain.providers.airflow_regions import as_parameters
from nighttrain.providers.attempts.reaper import TaskState
from nighttrain.providers.errors import AirflowError, ConfigurationError

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity

TOKEN_VARIABLE = "NIGHTTRAIN_AIRFLOW_TOKEN"  # noqa: S105
USERNAME_VARIABLE = "NIGHTTRAIN_AIRFLOW_USERNAME"
PASSWORD_VARIABLE = "NIGHTTRAIN_AIRFLOW_PASSWORD"  # noqa: S105

# What Airflow calls a task instance that will do nothing more unless a person asks for it.
OVER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})

# An API server answers in milliseconds; one that takes half a minute is in need of less, not of more.
TIMEOUT_SECONDS = 30.0


def task_state(state: str | None) -> TaskState:
    """Translate a task instance's state into its workload's; one that nobody knows yet counts as alive."""
    return TaskState.OVER if state in OVER else TaskState.ALIVE


class AirflowAPI:
    """Asks for the states of tasks; use it as ``async with AirflowAPI(url) as states``.

    Credentials come from the environment, never from arguments, which every process of a machine can read:
    ``NIGHTTRAIN_AIRFLOW_TOKEN``, or ``NIGHTTRAIN_AIRFLOW_USERNAME`` and ``NIGHTTRAIN_AIRFLOW_PASSWORD``.

    :param url: Airflow's address, such as ``https://airflow.example.com``
    :raises ConfigurationError: the address is none
    :raises AirflowError: it does not answer, refuses the credentials, or is not Airflow
    """

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ConfigurationError("airflow-url", url, "write it as https://airflow.example.com")
        self._url = url.rstrip("/")
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._http = httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT_SECONDS)
        try:
            answer = await self._ask("GET", "/api/v2/version")
            if answer.status_code != 200 or "version" not in _json(answer):
                raise AirflowError(
                    f"{self._url} is not Airflow 3: GET /api/v2/version says {answer.status_code}"
                )
            token = os.environ.get(TOKEN_VARIABLE) or await self._log_in()
            if token:
                self._http.headers["Authorization"] = f"Bearer {token}"
        except BaseException:
            await self._http.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def state(self, identity: WorkloadIdentity) -> TaskState:
        """The state of one task instance.

        :raises AirflowError: no answer, or the credentials are refused
        """
        parts = [identity.dag_id, "dagRuns", identity.run_id, "taskInstances", identity.task_id]
        if identity.map_index >= 0:
            parts.append(str(identity.map_index))
        path = "/".join(quote(part, safe="") for part in parts)
        answer = await self._ask("GET", f"/api/v2/dags/{path}", params=as_parameters(identity.region))
        if answer.status_code in (401, 403):
            raise AirflowError(
                f"{self._url} refuses the credentials ({answer.status_code}): set {TOKEN_VARIABLE}, or "
                f"{USERNAME_VARIABLE} and {PASSWORD_VARIABLE}, of a user who may read task instances"
            )
        body = _json(answer)
        if answer.status_code == 200 and "state" in body:
            return task_state(body["state"])
        # A path that the server does not know is answered "Not Found"; an object that is gone is named.
        detail = body.get("detail")
        gone = answer.status_code == 404 and detail not in (None, "Not Found")
        return TaskState.GONE if gone and "not found" in str(detail) else TaskState.UNKNOWN

    @property
    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            raise RuntimeError("use AirflowAPI in `async with`")
        return self._http

    async def _log_in(self) -> str | None:
        username, password = os.environ.get(USERNAME_VARIABLE), os.environ.get(PASSWORD_VARIABLE)
        if not username:
            return None
        answer = await self._ask("POST", "/auth/token", json={"username": username, "password": password})
        if answer.status_code not in (200, 201):
            raise AirflowError(f"{self._url} refuses {USERNAME_VARIABLE} {username!r}: {answer.status_code}")
        return str(_json(answer).get("access_token"))

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise AirflowError(f"no answer from {self._url}: {error or type(error).__name__}") from error


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
