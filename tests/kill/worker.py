"""A worker that can be killed: started once, it forks a process for each order, so that kills are cheap.

An order is a line of JSON on standard input; the answer, when the process has ended, is a line with its exit
code. The flow's end is written to a file: a killed process leaves none.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def serve() -> None:
    """Serve orders until standard input ends."""
    import httpx
    from mlflow_server import MLflowServer

    from kill.cluster import Cluster
    from kill.flow import Flow, Place, Plan

    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            directory = Path(order["directory"])
            with httpx.Client(base_url=order["mlflow"]) as http:
                mlflow = MLflowServer(order["mlflow"], directory, directory, http)
                place = Place(directory, Cluster(order["kubeconfig"]), mlflow)
                flow = Flow(Plan(deferrable=order["deferrable"]), place, run_id=order["run_id"]).run()
            end = directory / f"{flow.run_id}.end"
            partial = end.with_suffix(".part")
            partial.write_text(json.dumps([flow.states, flow.results]))
            partial.rename(end)
            os._exit(0)
        if order["kill_after"] is not None:
            time.sleep(order["kill_after"])
            os.kill(child, signal.SIGKILL)  # it is not reaped yet: the id is its own
        _, status = os.waitpid(child, 0)
        print(f"exit {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    serve()
