"""Carrying orders out: in a thread of this process, or in a Job inside the cluster's network.

What several metrics want of one interval goes into one order, so that the same golden requests are sent once
and one Job is enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from nighttrain.providers.errors import (
    ClusterError,
    ConfigurationError,
    ObjectConflictError,
    ObjectNotFoundError,
    clip,
)
from nighttrain.providers.kubernetes.api.resources import JOBS
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.objects import main_container, uid_of
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.serving.analysis.sources.asking.performing import perform
from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell, Json

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.outcome.outcome import Outcome
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload

# A small image is pulled within a minute; a Job that waits longer says why, and the next one tries again.
STARTUP_SECONDS = 60.0

# Golden requests take three quarters of a minute at the very most, with their default time-out.
RUNNING_SECONDS = 180

# Whoever took over from a process that died still finds what its Job measured.
KEPT_SECONDS = 300

# Asking takes a thread for each request and little else; a large page of metrics has a few megabytes.
RESOURCES = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}

# Of no account in any image, so that images made to run as root can be used.
USER = 65534

_PACKAGE = "nighttrain.providers.serving.analysis.sources.asking"
_FOLDER, _ORDER, _MESSAGE = "/nighttrain", "order.json", "/dev/termination-log"
_PROGRAM = f"""\
import sys, types
package = sys.modules["{_PACKAGE}"] = types.ModuleType("{_PACKAGE}")
package.__path__ = ["{_FOLDER}"]
from {_PACKAGE}.performing import main
sys.exit(main("{_FOLDER}/{_ORDER}", "{_MESSAGE}"))
"""


class Interval(NamedTuple):
    """What an order belongs to.

    :param key: the same for whoever takes over from a process that died
    """

    endpoint: str
    key: str


Order = list[dict[str, Any]]
CarryOut = Callable[[Interval, Order], Awaitable[list[list[Json]]]]


@dataclass(kw_only=True)
class _Batch:
    order: Order = field(default_factory=list)
    results: asyncio.Task[list[list[Json]]] | None = None

    def place(self, task: Json, want: Json) -> tuple[int, int]:
        """Where the result of a want will stand; what is there already is not asked twice."""
        row = next((n for n, part in enumerate(self.order) if part["task"] == task), len(self.order))
        if row == len(self.order):
            self.order.append({"task": task, "wants": []})
        wants = self.order[row]["wants"]
        if want not in wants:
            wants.append(want)
        return row, wants.index(want)


class Asker:
    """Gathers what is wanted at one moment, has it carried out, and hands out the results.

    :param carry_out: :func:`here`, or a :class:`JobForEachOrder`
    """

    def __init__(self, carry_out: CarryOut) -> None:
        self._carry_out = carry_out
        self._batches: dict[Interval, _Batch] = {}

    async def __call__(self, interval: Interval, task: Json, want: Json) -> Any:
        """The result of one want.

        :raises CannotTell: it could not be measured
        """
        batch = self._batches.setdefault(interval, _Batch())
        row, column = batch.place(task, want)
        if batch.results is None:
            batch.results = asyncio.create_task(self._carried_out(interval, batch))
        result = (await batch.results)[row][column]
        if "error" in result:
            raise CannotTell(result["error"])
        return result["is"]

    async def _carried_out(self, interval: Interval, batch: _Batch) -> list[list[Json]]:
        # By now everybody who was woken together with the first has said what he wants.
        del self._batches[interval]
        return await self._carry_out(interval, batch.order)


async def here(_: Interval, order: Order) -> list[list[Json]]:
    """Carry an order out in a thread of its own: the event loop's own few threads are for short work."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[list[Json]]] = loop.create_future()

    def finish(set_it: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_it(value)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = (done.set_result, perform(order))
        except Exception as error:
            outcome = (done.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(finish, *outcome)

    threading.Thread(target=run, daemon=True, name="nighttrain asks").start()
    return await done


@dataclass(frozen=True, kw_only=True)
class JobForEachOrder:
    """Carries each order out in a Job, in the namespace of the cluster's connection.

    The Job's name derives from interval and order, so that another process which is asked the same adopts it.

    :param image: any image with Python 3.10 or newer
    :param secrets: names of Secrets whose keys become variables, e.g. with a token
    :param running_seconds: a Job that runs longer has failed
    """

    client: ClusterClient
    image: str
    secrets: tuple[str, ...] = ()
    running_seconds: int = RUNNING_SECONDS

    async def __call__(self, interval: Interval, order: Order) -> list[list[Json]]:
        """Run the Job to its end.

        :raises CannotTell: it failed; the text is its own explanation
        """
        # Heavy: only where Jobs are made.
        from nighttrain.providers.attempts.lifecycle import submit
        from nighttrain.providers.attempts.wait_for_end import wait
        from nighttrain.providers.kubernetes.job.checked import check_workload
        from nighttrain.providers.kubernetes.job.spec import WorkloadSpec

        text = json.dumps(order, sort_keys=True)
        spec = WorkloadSpec(
            image=self.image,
            cmds=["python", "-c", _PROGRAM],
            files={**programs(), _ORDER: text},
            env_from=[{"secretRef": {"name": name}} for name in self.secrets],
            container_resources=RESOURCES,
            security_context={"runAsUser": USER},
            pod_security="restricted",
            active_deadline_seconds=self.running_seconds,
            ttl_seconds_after_finished=KEPT_SECONDS,
        )
        # Two orders of one interval are two Jobs: each would take the other for an earlier wish of its own.
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        identity = WorkloadIdentity(
            orchestrator="nighttrain",
            dag_id=interval.endpoint,
            run_id=f"{interval.key}, order {digest}",
            task_id="measure",
        )
        try:
            workload = await submit(
                self.client, check_workload(spec), identity, namespace=self.client.namespace
            )
            outcome = await wait(
                self.client, workload, timeouts=Timeouts(startup=STARTUP_SECONDS), narrow=True
            )
            message = await self._message(workload, outcome)
            with contextlib.suppress(ObjectNotFoundError, ObjectConflictError):
                await self.client.delete(
                    JOBS, workload.namespace, workload.name, uid=workload.uid, propagation="Background"
                )
        except (ClusterError, ConfigurationError) as error:
            raise CannotTell(f"no Job could measure: {clip(str(error), 400)}") from error
        if not outcome.succeeded:
            said = " ".join(filter(None, [_headline(outcome), outcome.message, *outcome.last_lines[-1:]]))
            raise CannotTell(f"Job {workload.name}: {clip(said, 500)}")
        return _result(workload, message, order)

    async def _message(self, workload: Workload, outcome: Outcome) -> str:
        from nighttrain.providers.attempts.workload_objects import list_pods

        pods = await list_pods(self.client, workload)
        main = main_container(next((pod for pod in pods if uid_of(pod) == outcome.pod_uid), None))
        return main.message if main is not None else ""


def _headline(outcome: Outcome) -> str:
    return outcome.explain().splitlines()[0]


def _result(workload: Workload, message: str, order: Order) -> list[list[Json]]:
    """The result in a Job's message; a check of the user's own may have written anything there."""
    try:
        result: Any = json.loads(message)
        rows = [len(row) for row in result if all("is" in each or "error" in each for each in row)]
    except (ValueError, TypeError, RecursionError):
        rows = []
    if rows != [len(part["wants"]) for part in order]:
        raise CannotTell(
            f"Job {workload.name} ended well and left no result: is its pod gone, or its message "
            f"{clip(message, 100)!r}?"
        )
    found: list[list[Json]] = result
    return found


@cache
def programs() -> Mapping[str, str]:
    """The files that a Job runs."""
    return {
        file.name: file.read_text("utf-8") for file in files(_PACKAGE).iterdir() if file.name.endswith(".py")
    }
