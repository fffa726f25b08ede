"""The command ``nighttrain``: what a person runs by hand or from cron."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import TYPE_CHECKING

from nighttrain.providers.commands import history, reap, rollout, webhooks
from nighttrain.providers.commands.environment import warn
from nighttrain.providers.errors import NighttrainError

if TYPE_CHECKING:
    from collections.abc import Sequence

DONE, FAILED = 0, 1

COMMANDS = (history, reap, rollout, webhooks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    :returns: the exit code: 0 done, 1 failed; argparse itself exits with 2 when misused
    """
    parser = argparse.ArgumentParser(
        prog="nighttrain", description="Look after models and workloads by hand or from cron."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('nighttrain')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        return DONE if options.run(options) else FAILED
    except NighttrainError as error:
        warn(str(error))
        return FAILED
