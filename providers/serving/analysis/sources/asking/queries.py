"""Numbers that Prometheus' HTTP API answers."""

from __future__ import annotations

import json
import math
import os
from urllib.parse import urlencode

from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell, Json, send


def query(task: Json) -> list[float | None]:
    """What Prometheus answers to each query; ``None`` is no data.

    :raises CannotTell: it does not answer, or refuses the query
    """
    headers = {"content-type": "application/x-www-form-urlencoded"}
    if task["token_env"]:
        if not (token := os.environ.get(task["token_env"])):
            raise CannotTell(f"the variable {task['token_env']}, which should hold the token, is not set")
        headers["authorization"] = f"Bearer {token}"
    return [_number(task, headers, text) for text in task["queries"]]


def _number(task: Json, headers: dict[str, str], text: str) -> float | None:
    url = task["url"].rstrip("/") + "/api/v1/query"
    body = urlencode({"query": text, "time": f"{task['at']:.3f}"}).encode()
    answer = send(url, timeout=float(task["timeout"]), headers=headers, body=body)
    try:
        said = json.loads(answer.body) if answer.body and not answer.failure else {}
    except (ValueError, RecursionError):
        said = {}
    said = said if isinstance(said, dict) else {}
    if answer.why or said.get("status") != "success":
        why = said.get("error") or answer.why or "what answers is no Prometheus"
        asked = f": {text[:300]}" if said.get("errorType") == "bad_data" else ""
        raise CannotTell(f"Prometheus at {task['url']}: {why!s:.400}{asked}")
    try:
        data = said["data"]
        found = [data["value" if "value" in data else "result"]] if data["resultType"] == "scalar" else [
            each["value"] for each in data["result"]
        ]  # fmt: skip
        if len(found) > 1:
            raise CannotTell(f"the query gives {len(found)} series, add them up with sum(): {text[:300]}")
        value = float(found[0][1]) if found else math.nan
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CannotTell(
            f"Prometheus at {task['url']}: what it answers is no number: {text[:300]}"
        ) from error
    return value if math.isfinite(value) else None
