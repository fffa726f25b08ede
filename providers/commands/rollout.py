"""``nighttrain rollout``: how a rollout stands, and what a person can make of it."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from nighttrain.providers.commands.environment import add_mlflow_uri, person, required_tracking, warn
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.serving.rollouts.opening import (
    go_back,
    goes_back_in_steps,
    make_engine,
    setting_of,
)
from nighttrain.providers.serving.rollouts.state import Names, Order, Phase
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.texts import columns, one_line
from nighttrain.providers.tracking.client import MLflowClient

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from nighttrain.providers.serving.rollouts.state import State

_WHAT = {
    Order.PROMOTE: "go on: past an approval, a stall, or the rest of a hold",
    Order.PAUSE: "hold the share; the analysis goes on, and may still undo the rollout",
    Order.RESUME: "end a pause",
    Order.ABORT: "undo it: traffic, alias and stage go back",
}


def add_to(commands: Any) -> None:
    """Make it one of the commands, with commands of its own."""
    rollout = commands.add_parser(
        "rollout",
        help="how a rollout stands; promote, pause, resume or abort it",
        description="Look at the rollout of an endpoint, or tell whoever drives it what to do.",
    )
    inner = rollout.add_subparsers(required=True, metavar="COMMAND")
    status = inner.add_parser("status", help="phase, share, verdicts and what happened. Changes nothing")
    _add_endpoint(status)
    status.add_argument("--json", action="store_true", help="the state whole")
    status.set_defaults(run=_status)
    for order, what in _WHAT.items():
        parser = inner.add_parser(order.value, help=what, description=f"{what[0].upper()}{what[1:]}.")
        _add_endpoint(parser)
        parser.add_argument("--reason", default="", help="why, for the history")
        parser.add_argument(
            "--drive",
            action="store_true",
            help="carry the rollout to its end from here, e.g. where the task that began it is dead",
        )
        add_mlflow_uri(parser)
        parser.set_defaults(run=_order, order=order)
    _add_back(inner)


def _add_back(inner: Any) -> None:
    back = inner.add_parser(
        "back",
        help="after a rollout that was promoted: the version before again, with alias and stage",
        description="Take an endpoint on KServe or Argo Rollouts back to the version before the last "
        "promoted rollout, all at once, and drive that to its end. Interrupted, the same command goes on.",
    )
    _add_endpoint(back)
    back.add_argument("--alias", help="goes back with it; what the last rollout moved, if neither is given")
    back.add_argument("--stage", help="the same for a stage")
    back.add_argument("--reason", default="rolled back by hand", help="why, for the history")
    add_mlflow_uri(back)
    back.set_defaults(run=_back)


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("endpoint", metavar="ENDPOINT")
    parser.add_argument("-n", "--namespace", help="the endpoint's namespace; the kubeconfig's, if left out")
    parser.add_argument("--kubeconfig", help="path of a kubeconfig file; KUBECONFIG or ~/.kube/config")
    parser.add_argument("--context", help="the kubeconfig's context")


@asynccontextmanager
async def _cluster(options: argparse.Namespace) -> AsyncIterator[tuple[ClusterClient, str]]:
    config = ClusterConfig(
        kubeconfig=options.kubeconfig, context=options.context, namespace=options.namespace
    )
    async with await ClusterClient.open(config) as client:
        yield client, options.namespace or client.namespace


def _status(options: argparse.Namespace) -> bool:
    state = asyncio.run(_read(options))
    if state is None:
        warn(f"there was no rollout in steps of {options.endpoint}")
        return False
    print(state.to_json() if options.json else status_text(state, time.time()))
    return True


async def _read(options: argparse.Namespace) -> State | None:
    async with _cluster(options) as (client, namespace):
        kept = await RolloutStore(client).read(options.endpoint, namespace)
        return kept.state if kept else None


def status_text(state: State, now: float) -> str:
    """How a rollout stands, for a person: a sentence, the verdicts, and what happened."""
    minutes = (now - state.since) / 60
    lines = [state.describe(), f"begun by {state.actor}; in this phase for {minutes:.0f} min"]
    if state.judgements:
        verdicts = [(each.metric, each.verdict.value, each.sentence) for each in state.judgements]
        lines += ["", columns([("METRIC", "VERDICT", "WHY"), *verdicts])]
    rows = [("WHEN", "WHAT")]
    rows += [(time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(each.at)), each.text) for each in state.events]
    return "\n".join([*map(one_line, lines[:2]), *lines[2:], "", columns(rows)])


def _order(options: argparse.Namespace) -> bool:
    state = asyncio.run(_drive(options) if options.drive else _leave(options))
    print(one_line(state.describe()))
    if not state.ended:
        print("Whoever drives it obeys within seconds; nobody does? Say it again with --drive.")
    return not state.ended or state.phase in (Phase.PROMOTED, Phase.UNDONE)


async def _leave(options: argparse.Namespace) -> State:
    async with _cluster(options) as (client, namespace):
        return await _give(RolloutStore(client), namespace, options)


async def _give(store: RolloutStore, namespace: str, options: argparse.Namespace) -> State:
    return await store.order(options.endpoint, namespace, options.order, by=person(), reason=options.reason)


async def _drive(options: argparse.Namespace) -> State:
    tracking = required_tracking(options.mlflow_uri)
    async with _cluster(options) as (client, namespace), MLflowClient(tracking) as mlflow:
        await _give(RolloutStore(client), namespace, options)
        engine = make_engine(client, mlflow, await setting_of(client, options.endpoint, namespace))
        return await engine.drive(options.endpoint, namespace, tell=lambda line: print(one_line(line)))


def _back(options: argparse.Namespace) -> bool:
    state = asyncio.run(_go_back(options))
    print(one_line(state.describe()))
    return state.phase is Phase.PROMOTED


async def _go_back(options: argparse.Namespace) -> State:
    tracking = required_tracking(options.mlflow_uri)
    names = Names(alias=options.alias, stage=options.stage)
    async with _cluster(options) as (client, namespace), MLflowClient(tracking) as mlflow:
        if not await goes_back_in_steps(client, options.endpoint, namespace):
            raise ConfigurationError(
                "ENDPOINT",
                options.endpoint,
                "no rollout of it on KServe or Argo Rollouts is on record. Plain Deployments keep the "
                "version before up: RollbackModelOperator switches to it",
            )
        state, _ = await go_back(
            client,
            mlflow,
            options.endpoint,
            namespace,
            rollout_id=f"{person()}@{uuid.uuid4()}",
            actor=person(),
            names=names or None,
            reason=options.reason,
            tell=lambda line: print(one_line(line)),
        )
        return state
