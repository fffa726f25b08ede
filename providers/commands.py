"""The command ``nighttrain``: what an operator of Airflow runs by hand or from cron."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING

from nighttrain.providers.errors import NighttrainError

if TYPE_CHECKING:
    from nighttrain.providers.attempts.reaper import Finding
    from nighttrain.providers.attempts.reaping import ForgottenRun

DONE, FAILED, MISUSED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 misused."""
    options = _parser().parse_args(arguments)
    try:
        findings, forgotten = asyncio.run(reap_workloads(options))
    except NighttrainError as error:
        _warn(str(error))
        return FAILED
    _show(findings, forgotten, options)
    return DONE


async def reap_workloads(options: argparse.Namespace) -> tuple[list[Finding], list[ForgottenRun]]:
    """Find, and with ``--yes`` remove, the workloads whose task is over; close the runs nobody will close."""
    from nighttrain.providers.airflow_api import AirflowAPI
    from nighttrain.providers.attempts.reaper import find
    from nighttrain.providers.attempts.reaping import (
        close_forgotten,
        find_forgotten,
        reap_all,
        settle_parents,
    )
    from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
    from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

    config = ClusterConfig(
        kubeconfig=options.kubeconfig, context=options.context, namespace=options.namespace
    )
    async with AsyncExitStack() as stack:
        states = await stack.enter_async_context(AirflowAPI(options.airflow_url))
        client = await stack.enter_async_context(await ClusterClient.open(config))
        namespace = options.namespace or client.namespace
        findings = await find(client, namespace, states, minimum_age_seconds=options.minimum_age)
        mlflow = None
        forgotten: list[ForgottenRun] = []
        if options.mlflow_uri:
            mlflow = await stack.enter_async_context(MLflowClient(TrackingConfig(uri=options.mlflow_uri)))
            forgotten = await find_forgotten(
                client, mlflow, namespace, states, minimum_age_seconds=options.minimum_age, now=time.time()
            )
        if options.yes:
            findings = await reap_all(client, findings, states, mlflow=mlflow, warn=_warn)
        if options.yes and mlflow is not None:
            await close_forgotten(mlflow, forgotten, warn=_warn)
            await settle_parents(mlflow, minimum_age_seconds=options.minimum_age, now=time.time(), warn=_warn)
        return findings, forgotten


def _warn(message: str) -> None:
    print(f"nighttrain: {message}", file=sys.stderr)


def _show(findings: list[Finding], forgotten: list[ForgottenRun], options: argparse.Namespace) -> None:
    from nighttrain.providers.attempts.reaper import Verdict, table

    if options.output == "json":
        print(json.dumps([*(each.to_dict() for each in findings), *(each.to_dict() for each in forgotten)]))
        return
    print(table(findings) if findings else "No workload is running.")
    for each in forgotten:
        print(f"{'Closed' if options.yes else 'To close:'} {each.described}")
    waiting = sum(finding.verdict in (Verdict.REAP, Verdict.CLOSE) for finding in findings) + len(forgotten)
    if waiting and not options.yes:
        print(f"\nDry run: nothing was deleted. {waiting} to reap: run it again with --yes.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nighttrain", description="nighttrain's maintenance commands.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('nighttrain')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
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
    reap.add_argument("--mlflow-uri", help="also close the runs that nobody will come back for")
    reap.add_argument(
        "--minimum-age", type=float, default=300.0, metavar="SECONDS", help="younger ones are kept (300)"
    )
    reap.add_argument("-o", "--output", choices=("table", "json"), default="table")
    reap.add_argument("--yes", action="store_true", help="remove them; without it nothing is deleted")
    return parser


if __name__ == "__main__":
    sys.exit(main())
