"""Numbers that Prometheus' HTTP API answers."""

from __future__ import annotations

import json
import math
import os
from typing import Any
from urllib.parse import urlencode

from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell, Json, send


def query(task: Json) -> list[dict[str, float]]:
    """What Prometheus answers to each query: by the label ``le``, empty where there is none; finite numbers.

    :raises CannotTell: it does not answer, or refuses the query
    """
    headers = {"content-type": "application/x-www-form-urlencoded"}
    if task["token_env"]:
        if not (token := os.environ.get(task["token_env"])):
            raise CannotTell(f"the variable {task['token_env']}, which should hold the token, is not set")
        headers["authorization"] = f"Bearer {token}"
    return [_numbers(task, headers, text) for text in task["queries"]]


def _numbers(task: Json, headers: dict[str, str], text: str) -> dict[str, float]:
    url = task["url"].rstrip("/") + "/api/v1/query"
    body = urlencode({"query": text, "time": f"{task['at']:.3f}"}).encode()
    answer = send(url, timeout=float(task["timeout"]), headers=headers, body=body)
    try:
        said = json.loads(answer.body) if answer.body and not answer.failure else {}
    except (ValueError, RecursionError):
        said = {}
    said = said if isinstance(said, dict) else {}
    where = f"Prometheus at {task['url']}"
    if answer.why or said.get("status") != "success":
        why = said.get("error") or answer.why or "what answers there is no Prometheus"
        asked = f", asked for {text[:300]}" if said.get("errorType") in ("bad_data", "execution") else ""
        raise CannotTell(f"{where}: {why!s:.400}{asked}")
    try:
        return _read(said["data"], text)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CannotTell(f"{where}: what it answers is no number: {text[:300]}") from error


def _read(data: Any, text: str) -> dict[str, float]:
    if data["resultType"] == "scalar":
        rows = [("", data["result"])]
    elif data["resultType"] == "vector":
        rows = [(str(each["metric"].get("le", "")), each["value"]) for each in data["result"]]
    else:
        raise CannotTell(f"the query gives a {data['resultType']!s:.40}, a number is needed: {text[:300]}")
    if len({le for le, _ in rows}) < len(rows):
        raise CannotTell(f"the query gives {len(rows)} series, add them up with sum(): {text[:300]}")
    numbers = {le: float(value[1]) for le, value in rows}
    return {le: number for le, number in numbers.items() if math.isfinite(number)}
