"""The command ``nighttrain``: what an operator of Airflow runs by hand or from cron."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from nighttrain.providers import webhook_commands
from nighttrain.providers.airflow_api import AirflowAPI
from nighttrain.providers.attempts.reaper import Verdict, table
from nighttrain.providers.attempts.reaper_visit import Visit, visit
from nighttrain.providers.errors import ConfigurationError, NighttrainError
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

DONE, FAILED = 0, 1

# What MLflow's own client reads, by the field of a TrackingConfig.
MLFLOW_VARIABLES = {
    "token": "MLFLOW_TRACKING_TOKEN",
    "username": "MLFLOW_TRACKING_USERNAME",
    "password": "MLFLOW_TRACKING_PASSWORD",
    "workspace": "MLFLOW_WORKSPACE",
    "auth": "MLFLOW_TRACKING_AUTH",
    "ca_certificate": "MLFLOW_TRACKING_SERVER_CERT_PATH",
}
INSECURE_VARIABLE = "MLFLOW_TRACKING_INSECURE_TLS"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    :return: the exit code: 0 done, 1 failed; argparse itself exits with 2 when misused
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "webhooks":
            return asyncio.run(webhook_commands.run(options, tracking_from_environment(options.mlflow_uri)))
        found = asyncio.run(reap_workloads(options))
    except NighttrainError as error:
        _warn(str(error))
        return FAILED
    _show(found, options)
    return FAILED if found.tracking_error is not None else DONE


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
            warn=_warn,
        )


def tracking_from_environment(uri: str) -> TrackingConfig:
    """The way to MLflow at ``uri``, as MLflow's own client would read it from the environment.

    :raises ConfigurationError: a variable that cannot be used, by its name
    """
    given: dict[str, Any] = {field: os.environ.get(name) or None for field, name in MLFLOW_VARIABLES.items()}
    insecure = os.environ.get(INSECURE_VARIABLE, "").lower() in {"true", "1"}
    try:
        return TrackingConfig(uri=uri, verify_ssl=not insecure, **given)
    except ConfigurationError as error:
        name = MLFLOW_VARIABLES.get(error.field, "--mlflow-uri")
        raise ConfigurationError(name, error.value, error.fix) from error


def _warn(message: str) -> None:
    print(f"nighttrain: {message}", file=sys.stderr)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nighttrain", description="nighttrain's maintenance commands.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('nighttrain')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
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
    webhook_commands.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
