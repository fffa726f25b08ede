"""``nighttrain webhooks``: have MLflow tell Airflow to look now."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from nighttrain.providers.commands.environment import add_mlflow_uri, required_tracking, warn
from nighttrain.providers.registry.feed.webhooks import (
    KEY_HINT,
    SECRET_VARIABLE,
    WEBHOOK_EVENTS,
    receiver_url,
    register,
    remove,
)
from nighttrain.providers.texts import one_line
from nighttrain.providers.tracking.client import MLflowClient
from nighttrain.providers.tracking.names import check_text

if TYPE_CHECKING:
    import argparse

DEFAULT_NAME = "nighttrain"

MAX_NAME = 256
"""MLflow's column."""


def add_to(commands: Any) -> None:
    """Make it one of the commands."""
    webhooks = commands.add_parser("webhooks", help="have MLflow's registry tell Airflow to look now")
    actions = webhooks.add_subparsers(required=True, metavar="ACTION", dest="action")
    adding = actions.add_parser(
        "register",
        help="register Airflow's receiver at MLflow, and try it",
        description="Register Airflow's receiver at MLflow, or change the one of that name, and have MLflow "
        f"send one delivery. The secret comes from {SECRET_VARIABLE}, which Airflow's API server needs too.",
    )
    adding.add_argument(
        "--airflow-url", required=True, help="as MLflow reaches it, e.g. https://airflow.example.com"
    )
    adding.add_argument(
        "--events", nargs="+", default=[*WEBHOOK_EVENTS], metavar="EVENT", help="all, if left out"
    )
    removing = actions.add_parser("remove", help="remove it from MLflow")
    for each in (adding, removing):
        add_mlflow_uri(each)
        each.set_defaults(run=_run)
        each.add_argument(
            "--name", default=DEFAULT_NAME, help=f"the webhook's name in MLflow ({DEFAULT_NAME})"
        )


def _run(options: argparse.Namespace) -> bool:
    return asyncio.run(_register_or_remove(options))


async def _register_or_remove(options: argparse.Namespace) -> bool:
    name = check_text("--name", options.name, MAX_NAME)
    async with MLflowClient(required_tracking(options.mlflow_uri)) as client:
        if options.action == "remove":
            removed = await remove(client, name)
            print(one_line(f"Removed {name}." if removed else f"MLflow has no webhook {name}."))
            return True
        found = await register(
            client,
            name=name,
            url=receiver_url(options.airflow_url),
            secret=os.environ.get(SECRET_VARIABLE, ""),
            events=options.events,
        )
    print(one_line(f"{'Registered' if found.made else 'Changed'} {name}: MLflow sends to {found.url}"))
    if found.problem:
        warn(f"a delivery did not arrive: {found.problem}")
        return False
    print(f"A delivery arrived. {KEY_HINT}.")
    return True
