"""A running task's identity, epoch and lineage, read from Airflow's context."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk.log import redact  # type: ignore[attr-defined]

from nighttrain.providers.airflow_regions import region_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from airflow.sdk import Context

    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
    from nighttrain.providers.tracking.runs import Lineage


def workload_identity(context: Context) -> WorkloadIdentity:
    """The identity that every attempt of this task shares."""
    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity

    ti = context["ti"]
    return WorkloadIdentity(
        orchestrator="airflow",
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=_map_index(ti),
        region=_region(context),
    )


def epoch(context: Context) -> str:
    """Changes when somebody clears the task or makes its DAG run anew, stays over automatic retries.

    Airflow raises a task instance's ``max_tries`` when it is cleared, and gives a DAG run that was cleared
    after its end, or deleted and made again, another start. So a retry after a crash (same epoch) takes over
    what is there, and whoever asks anew (a later epoch) starts anew. Later epochs compare greater.
    """
    start = context["dag_run"].start_date
    begun = start.astimezone(UTC).isoformat(timespec="microseconds") if start is not None else ""
    return f"{begun}/{context['ti'].max_tries:06d}"


def lineage(context: Context, **known: Any) -> Lineage:
    """The lineage tags' values; ``known`` adds what only the caller knows (image, attempt, Job, pod)."""
    from nighttrain.providers.tracking.runs import Lineage

    dag_run = context["dag_run"]
    return Lineage(
        **asdict(workload_identity(context)),
        try_number=context["ti"].try_number,
        commit=commit(context),
        data_interval_start=_iso(dag_run.data_interval_start),
        data_interval_end=_iso(dag_run.data_interval_end),
        **known,
    )


def commit(context: Context) -> str | None:
    """The commit of the DAG's code: the bundle's version where it has one, else the environment's."""
    from nighttrain.providers.tracking.runs import commit_of_environment

    version = getattr(context["ti"], "bundle_instance", None)
    if version is not None and getattr(version, "version", None):
        return str(version.version)
    return commit_of_environment()


def asked_at(context: Context) -> str | None:
    """The moment from which the DAG run may run, which also one without a date has; ISO 8601."""
    return _iso(getattr(context["dag_run"], "run_after", None))


def actor(context: Context) -> str:
    """The running task, by name, for ledgers and tags."""
    ti = context["ti"]
    return f"airflow:{ti.dag_id}/{ti.task_id}/{ti.run_id}"


def dag_run(context: Context) -> str:
    """The DAG and its run, by name, for ledgers and tags."""
    ti = context["ti"]
    return f"{ti.dag_id}/{ti.run_id}"


def dag_run_url(context: Context) -> str | None:
    """The DAG run's page, where Airflow's address is configured (``[api] base_url``)."""
    from airflow.sdk.configuration import conf

    base = conf.get("api", "base_url", fallback="") or ""
    if not base.startswith(("http://", "https://")):
        return None
    ti = context["ti"]
    return f"{base.rstrip('/')}/dags/{quote(ti.dag_id, safe='')}/runs/{quote(ti.run_id, safe='')}"


def without_secrets(params: Mapping[str, str]) -> dict[str, str]:
    """``params`` without the secrets that Airflow knows: of connections, variables and ``mask_secret``.

    Names decide nothing here: Airflow's own rule goes by letters in them.
    """
    return {name: str(redact(value)) for name, value in params.items()}


def _map_index(ti: Any) -> int:
    return -1 if ti.map_index is None else int(ti.map_index)


def _region(context: Context) -> str:
    """The iteration of a loop.

    Since Airflow 3.4 a mapped task outside of loops has one too: its map index says the same, and did before.
    """
    ti = context["ti"]
    if _map_index(ti) >= 0 and context.get("loop") is None:
        return ""
    return region_of(ti)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
