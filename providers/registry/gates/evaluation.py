"""Measurements of an evaluation by model, and the tags that keep the verdict on them with the version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.tracking.measured import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.registry.gates.verdicts import Verdict

# What the scoring code finds in its environment; both are pinned: models:/name/version.
CANDIDATE_VARIABLE = "CANDIDATE_MODEL_URI"
CHAMPION_VARIABLE = "CHAMPION_MODEL_URI"


def group_measurements(metrics: Mapping[str, object]) -> dict[str, dict[str, float | str]]:
    """Split ``candidate.mae``, ``champion.mae``, ``baseline.mae`` ... into a group for each prefix.

    Metrics without a prefix are not about anybody and are left out. What is no number is a word ("NaN",
    "Infinity"), so that the groups can be an XCom; gates read it.
    """
    groups: dict[str, dict[str, float | str]] = {}
    for name, value in metrics.items():
        who, dot, metric = name.partition(".")
        if dot and who and metric:
            groups.setdefault(who, {})[metric] = to_json(value)
    return groups


def verdict_tags(verdict: Verdict, *, evaluation_run: str, actor: str) -> dict[str, str]:
    """The tags that a judged version carries."""
    return {
        "nighttrain.gate.verdict": verdict.kind.value,
        "nighttrain.gate.summary": verdict.summary(),
        "nighttrain.gate.evaluation_run": evaluation_run,
        "nighttrain.gate.by": actor,
    }
