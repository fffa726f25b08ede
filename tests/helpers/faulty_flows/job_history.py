"""Every Job from the first to the last: which there were, and which lived at the same time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from typing import Any

from helpers.faulty_flows.plain_client import NAMESPACE, is_live
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.values.identity import ATTEMPT_KEY_LABEL


class JobHistory:
    """Watches every Job.

    By attempt key: ``live`` are those that may run something now, ``ever`` the environment that each was
    started with, ``doubles`` those that lived at the same time.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self.live: dict[str, set[str]] = defaultdict(set)
        self.ever: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
        self.doubles: dict[str, set[str]] = defaultdict(set)
        self._versions: dict[str, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="job-history")

    def __enter__(self) -> JobHistory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(30)

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.create_task(self._watch())
            await asyncio.wait([self._task])

        asyncio.run(main())

    async def _watch(self) -> None:
        async with await ClusterClient.open(self._config) as client:
            version = (await client.list(JOBS, NAMESPACE))["metadata"]["resourceVersion"]
            while True:
                async for event in client.watch(JOBS, NAMESPACE, resource_version=version):
                    version = event.object["metadata"]["resourceVersion"]
                    if event.type != "BOOKMARK":
                        self._note(event.type, event.object)

    def _note(self, kind: str, job: dict[str, Any]) -> None:
        key = job["metadata"]["labels"].get(ATTEMPT_KEY_LABEL, "")
        uid = job["metadata"]["uid"]
        self._versions[uid] = "" if kind == "DELETED" else job["metadata"]["resourceVersion"]
        self.ever[key].setdefault(uid, _environment(job))
        if kind == "DELETED" or not is_live(job):
            self.live[key].discard(uid)
        else:
            self.live[key].add(uid)
        if len(self.live[key]) > 1:
            self.doubles[key] |= self.live[key]

    def settled(self, key: str, seconds: float = 20) -> list[dict[str, Any]]:
        """The identity's Jobs once this history has seen them as they are, and none is being deleted."""
        end = time.monotonic() + seconds
        while True:
            jobs = asyncio.run(self._list(key))
            same = all(
                self._versions.get(job["metadata"]["uid"]) == job["metadata"]["resourceVersion"]
                for job in jobs
            )
            going = any("deletionTimestamp" in job["metadata"] for job in jobs)
            if (same and not going) or time.monotonic() > end:
                return jobs
            time.sleep(0.05)

    async def _list(self, key: str) -> list[dict[str, Any]]:
        async with await ClusterClient.open(self._config) as client:
            found = await client.list(JOBS, NAMESPACE, label_selector=f"{ATTEMPT_KEY_LABEL}={key}")
            return list(found["items"])


def _environment(job: dict[str, Any]) -> dict[str, str]:
    container = job["spec"]["template"]["spec"]["containers"][0]
    return {each["name"]: each.get("value", "") for each in container.get("env", ())}
