"""A process that opens runs as a task does: one for each line of standard input, which names the DAG run.

The answer is a line of JSON: the parent's and the task's run, or what went wrong.
"""

from __future__ import annotations

import asyncio
import json
import sys

from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.runs import RunKey


async def open_and_close(uri: str, experiment: str, dag_run: str, task: str) -> dict[str, str]:
    """What a training task does to the run tree, from its start to its end."""
    key = RunKey(orchestrator="airflow", dag_id="nightly", run_id=dag_run, task_id=task)
    async with MLflowClient(TrackingConfig(uri)) as client:
        tree = RunTree(client)
        parent = await tree.open_parent(experiment, key, name=dag_run)
        run = await tree.open_attempt(experiment, key, name=task, parent_run_id=parent.run_id)
        await tree.reopen(parent.run_id)
        await tree.close(run.run_id, "FINISHED")
        await tree.settle_parent(parent.run_id)
    return {"parent": parent.run_id, "run": run.run_id}


def main() -> None:
    """Serve DAG runs until standard input ends."""
    uri, experiment, task = sys.argv[1:]
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            answer = asyncio.run(open_and_close(uri, experiment, line.strip(), task))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
