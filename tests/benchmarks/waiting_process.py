"""A triggerer without the rest of Airflow: many triggers in one event loop, and what they cost its process.

``python waiting_process.py FILE``: the file says which side's triggers wait, and for what. Each line on
standard input asks for a sample; each line on standard output is a sample or a trigger's event, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Often enough to see a gap of 20 ms; it costs about one per cent of a core, which both sides pay.
HEARTBEAT_SECONDS = 0.01


class Meter:
    """Counts what the process does."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.longest_gap = 0.0
        self.lines = 0
        self.base_memory = 0.0

    def count_requests(self) -> None:
        """Both sides speak HTTP through aiohttp: count there, alike for both and for any API server."""
        import aiohttp

        request = aiohttp.ClientSession._request

        async def counted(session: Any, method: str, url: Any, **options: Any) -> Any:
            watches = "watch=" in str(url) or "watch" in str(options.get("params") or "")
            self.requests["WATCH" if watches else method] += 1
            return await request(session, method, url, **options)

        aiohttp.ClientSession._request = counted  # type: ignore[method-assign,assignment]

    async def beat(self) -> None:
        """Notice how long the loop did not come round."""
        while True:
            began = time.perf_counter()
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self.longest_gap = max(self.longest_gap, time.perf_counter() - began - HEARTBEAT_SECONDS)

    def sample(self) -> dict[str, Any]:
        """Totals since the start; the gap since the last sample."""
        gap, self.longest_gap = self.longest_gap, 0.0
        return {
            "at": time.time(),
            "cpu": time.process_time(),
            "requests": dict(self.requests),
            "gap": gap,
            "lines": self.lines,
            "peak": memory("VmHWM") - self.base_memory,
        }


def memory(field: str) -> float:
    """MiB of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def forget_peak() -> None:
    """Let the process's peak begin anew, where Linux permits it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class Lines(logging.Handler):
    """Takes what triggers log, and counts it: a triggerer writes it to files, at the same cost for both."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()
        self._meter.lines += 1


def make_trigger(side: str, item: dict[str, Any], get_logs: bool) -> Any:
    """A trigger as a deferred task makes it, with its operator's defaults."""
    if side == "nighttrain":
        from nighttrain.sensors.triggers import WorkloadTrigger

        return WorkloadTrigger(
            kubernetes_conn_id="kubernetes_default",
            workload=item["workload"],
            timeouts={"startup": 600},
            get_logs=get_logs,
        )
    from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger

    return KubernetesPodTrigger(
        pod_name=item["pod"],
        pod_namespace=item["workload"]["namespace"],
        trigger_start_time=datetime.now(UTC),
        base_container_name=item["container"],
        kubernetes_conn_id="kubernetes_default",
        get_logs=get_logs,
        # Without it this trigger reads no log at all while it waits; 2 s is as live as its polling.
        logging_interval=2 if get_logs else None,
    )


async def until_event(number: int, trigger: Any) -> None:
    async for event in trigger.run():
        say({"event": number, "at": time.time(), "payload": event.payload})
        return


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message, default=str), flush=True)


async def answer_samples(meter: Meter) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.readline():
        say(meter.sample())


async def main(given: dict[str, Any]) -> None:
    meter = Meter()
    logging.getLogger().handlers = [Lines(meter)]
    meter.count_requests()
    side, logs = given["side"], bool(given["get_logs"])
    if side != "nobody":
        make_trigger(side, given["items"][0], logs)  # the imports are not a trigger's cost
    gc.collect()
    forget_peak()
    meter.base_memory = memory("VmRSS")
    extra = [asyncio.create_task(meter.beat()), asyncio.create_task(answer_samples(meter))]
    items = given["items"] if side != "nobody" else []
    waits = [
        asyncio.create_task(until_event(number, make_trigger(side, item, logs)))
        for number, item in enumerate(items)
    ]
    if waits:
        await asyncio.gather(*waits)
    await extra[1]  # the last sample; the other side then closes the pipe
    extra[0].cancel()


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    os.environ["AIRFLOW_CONN_KUBERNETES_DEFAULT"] = json.dumps(
        {"conn_type": "kubernetes", "extra": {"kube_config_path": settings["kubeconfig"]}}
    )
    asyncio.run(main(settings))
