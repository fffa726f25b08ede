"""``nighttrain reap``: workloads whose task is over, and runs that nobody will close."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from nighttrain.providers.airflow_api import AirflowAPI
from nighttrain.providers.attempts.reaper import Verdict, table
from nighttrain.providers.attempts.reaper_visit import Visit, visit
from nighttrain.providers.commands.environment import (
    INSECURE_VARIABLE,
    MLFLOW_VARIABLES,
    tracking_from_environment,
    warn,
)
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.tracking.client import MLflowClient

if TYPE_CHECKING:
    import argparse


def add_to(commands: Any) -> None:
    """Make it one of the commands."""
    reap = commands.add_parser(
        "reap",
        help="remove workloads whose Airflow task is over or gone",
        description="Show the running workloads whose Airflow task is over or gone; with --yes, remove them. "
        "Airflow's credentials come from NIGHTTRAIN_AIRFLOW_TOKEN, or NIGHTTRAIN_AIRFLOW_USERNAME and "
        "NIGHTTRAIN_AIRFLOW_PASSWORD.",
    )
    reap.add_argument("--airflow-url", required=True, help="such as https://airflow.example.com")
    reap.add_argument("-n", "--namespace", help="the workloads' namespace; the kubeconfig's, if left out")
    reap.add_argument("--kubeconfig", help="path of a kubeconfig file; KUBECONFIG or ~/.kube/config")
    reap.add_argument("--context", help="the kubeconfig's context")
    reap.add_argument(
        "--mlflow-uri",
        help="also close the runs that nobody will come back for. Credentials, workspace and certificate "
        f"come from the variables of MLflow's own client: {', '.join(MLFLOW_VARIABLES.values())}, "
        f"{INSECURE_VARIABLE}",
    )
    reap.add_argument(
        "--minimum-age", type=float, default=300.0, metavar="SECONDS", help="younger ones are kept (300)"
    )
    reap.add_argument("-o", "--output", choices=("table", "json"), default="table")
    reap.add_argument("--yes", action="store_true", help="remove them; without it nothing is deleted")
    reap.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> bool:
    found = asyncio.run(reap_workloads(options))
    _show(found, options)
    return found.tracking_error is None


async def reap_workloads(options: argparse.Namespace) -> Visit:
    """Find, and with ``--yes`` remove, the workloads whose task is over; close the runs nobody will close."""
    config = ClusterConfig(
        kubeconfig=options.kubeconfig, context=options.context, namespace=options.namespace
    )
    async with AsyncExitStack() as stack:
        states = await stack.enter_async_context(AirflowAPI(options.airflow_url))
        client = await stack.enter_async_context(await ClusterClient.open(config))
        mlflow = None
        if options.mlflow_uri:
            tracking = tracking_from_environment(options.mlflow_uri)
            mlflow = await stack.enter_async_context(MLflowClient(tracking))
        return await visit(
            client,
            options.namespace or client.namespace,
            states,
            mlflow=mlflow,
            minimum_age_seconds=options.minimum_age,
            now=time.time(),
            only_show=not options.yes,
            warn=warn,
        )


def _show(found: Visit, options: argparse.Namespace) -> None:
    if options.output == "json":
        print(json.dumps(found.to_list()))
        return
    print(table(found.findings) if found.findings else "No workload is running.")
    for each in found.forgotten:
        print(f"{'Closed' if options.yes else 'To close:'} {each.described}")
    waiting = sum(finding.verdict in (Verdict.REAP, Verdict.CLOSE) for finding in found.findings)
    waiting += len(found.forgotten)
    if waiting and not options.yes:
        print(f"\nDry run: nothing was deleted. {waiting} to reap: run it again with --yes.")
