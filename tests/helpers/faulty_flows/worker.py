"""A worker that can be killed: started once, it forks a process for each order, so that kills are cheap.

An order is a line of JSON on standard input; the answer, when the process has ended, is a line with its exit
code. The flow's end is written to a file: a killed process leaves none. It is killed while it makes a call of
which the number is given: a moment counted in seconds comes too late on a fast machine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helpers.faulty_flows.call_faults import Schedule


def die_at(schedule: Schedule, call: int) -> None:
    """Kill this process at once while it makes a call."""
    while len(schedule.calls) < call:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def serve() -> None:
    """Serve orders until standard input ends."""
    import httpx

    from helpers.faulty_flows.call_faults import TASK, injecting
    from helpers.faulty_flows.flow import Flow, Place, Plan
    from helpers.faulty_flows.plain_client import Cluster
    from helpers.mlflow_server import MLflowServer

    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            directory = Path(order["directory"])
            with httpx.Client(base_url=order["mlflow"]) as http, injecting():
                mlflow = MLflowServer(order["mlflow"], directory, directory, http)
                place = Place(directory, Cluster(order["kubeconfig"]), mlflow)
                flow = Flow(Plan(deferrable=order["deferrable"]), place, run_id=order["run_id"])
                if order["kill_at"] is not None:
                    arguments = (flow.schedules[TASK], order["kill_at"])
                    threading.Thread(target=die_at, args=arguments, daemon=True).start()
                flow.run()
            end = directory / f"{flow.run_id}.end"
            partial = end.with_suffix(".part")
            partial.write_text(json.dumps([flow.states, flow.results]))
            partial.rename(end)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"exit {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    serve()
