"""``python -m nighttrain.providers.local cluster``: the embedded cluster in the foreground."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run the command; the exit status."""
    options = _parser().parse_args(arguments)
    return run_cluster(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nighttrain.providers.local",
        description="Servers of one machine, for trying and testing.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    cluster = commands.add_parser(
        "cluster",
        help="run an embedded Kubernetes cluster until SIGTERM or SIGINT",
        description="Run an embedded Kubernetes cluster until SIGTERM or SIGINT. Containers are processes of "
        "this machine. One line is printed when it is ready.",
    )
    cluster.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="where logs, volumes and the kubeconfig go (default: a temporary folder, removed at the end)",
    )
    cluster.add_argument(
        "--port",
        type=_port,
        default=0,
        metavar="PORT",
        help="port of the API on 127.0.0.1 (default: a free one)",
    )
    cluster.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="NAME=PYTHON[:PATH...]",
        help="an image: the interpreter that runs it, and folders for its PYTHONPATH; may be repeated",
    )
    cluster.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="where to write the kubeconfig (default: DIR/kubeconfig)",
    )
    cluster.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="keep every object, the token and the port in this file, and go on from it at the next start",
    )
    cluster.add_argument(
        "--forbidden-namespace",
        action="append",
        default=[],
        metavar="NAME",
        help="answer 403 to everything in this namespace, to see what a user without rights sees",
    )
    cluster.add_argument(
        "--gateway-port",
        type=_port,
        metavar="PORT",
        help="serve the Gateway API and KServe too, with the Gateway default/nighttrain at this port",
    )
    cluster.add_argument(
        "--real-pace",
        action="store_true",
        help="let the Job controller work no faster than a real one: 20 writes a second, and a second of "
        "gathering before it looks at a Job again; for measurements",
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 0 to 65535")
    return int(text)


def run_cluster(options: argparse.Namespace) -> int:
    from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
    from nighttrain.providers.local.cluster.controllers.pace import REAL_PACE
    from nighttrain.providers.local.cluster.server import ClusterStartError, EmbeddedCluster

    images = {}
    for entry in options.image:
        name, equals, environment = entry.partition("=")
        if not (name and equals and environment):
            return _fail(
                f"--image {entry}: write NAME=PYTHON, for example --image trainer={sys.executable}", 2
            )
        images[name] = environment
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    cluster = EmbeddedCluster(
        images,
        options.directory,
        options.port,
        kubeconfig=options.kubeconfig,
        forbidden_namespaces=options.forbidden_namespace,
        state=options.state,
        job_pace=REAL_PACE if options.real_pace else None,
        serving=Serving(options.gateway_port) if options.gateway_port is not None else None,
    )
    try:
        cluster.start()
    except (ClusterStartError, OSError, ValueError) as error:
        return _fail(str(error), 1)
    try:
        print(f"cluster ready: {cluster.url} KUBECONFIG={cluster.kubeconfig} (pid {os.getpid()})", flush=True)
        ended.wait()
    finally:
        cluster.stop()
    return 0


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
