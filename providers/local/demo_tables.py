"""The tables of ``./run demo``, from what MLflow, Airflow and the cluster said."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Night:
    """One row of the table at the end."""

    night: str
    run: str
    candidate: str
    champion: str
    verdict: str
    version: str
    stage: str
    serves: str

    @classmethod
    def of(cls, version: Mapping[str, Any], metrics: Mapping[str, float | str], serving: str | None) -> Self:
        """The row of a version, by its evaluation's metrics and the version that serves."""
        tags = {tag["key"]: tag["value"] for tag in version.get("tags", [])}
        return cls(
            night=tags.get("nighttrain.night", "?"),
            run=version["run_id"][:8],
            candidate=_minutes(metrics.get("candidate.mae")),
            champion=_minutes(metrics.get("champion.mae")),
            verdict=tags.get("nighttrain.gate.verdict", "-"),
            version=str(version["version"]),
            stage=version["current_stage"],
            serves="now" if str(version["version"]) == serving else "",
        )


def nights_table(rows: Collection[Night]) -> Table:
    """What the nights brought."""
    table = Table(title="What the nights brought (error: mean absolute error in minutes)")
    for column in Night.__dataclass_fields__:
        table.add_column(column, justify="right" if column in {"candidate", "champion"} else "left")
    for row in rows:
        table.add_row(*vars(row).values())
    return table


def gate_table(verdict: Mapping[str, Any]) -> Table:
    """What each rule of a gate found."""
    table = Table("rule", "verdict", "what it found", title=f"The gate says: {verdict['kind']}")
    for found in verdict["evidence"]:
        table.add_row(*(escape(str(found[column])) for column in ("rule", "verdict", "sentence")))
    return table


def rollouts_table(states: Collection[Mapping[str, Any]]) -> Table:
    """How each rollout ended, by its state as the engine keeps it in the cluster."""
    table = Table("version", "beside", "shares", "end", "why", title="What the rollouts did")
    for state in states:
        target = state["target"]
        shares = dict.fromkeys(f"{point['percent']:g} %" for point in state["points"])
        cells = (target["candidate"], target["stable"] or "-", ", ".join(shares), state["phase"])
        table.add_row(*cells, escape(state["reason"] or "the analysis is successful"))
    return table


def _minutes(value: float | str | None) -> str:
    if isinstance(value, str):
        return value  # "NaN"
    return "-" if value is None else f"{value:.2f}"
