"""Measurements of an evaluation by model, and the tags that keep the verdict on them with the version."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError, ModelNotFoundError, ModelVersionNotFoundError
from nighttrain.providers.measured import to_json
from nighttrain.providers.registry.gates.recorded import NAMED_ALIAS, NAMED_VERSION
from nighttrain.providers.registry.gates.rules.requirements import check_dotted_path
from nighttrain.providers.registry.versions import check_alias, check_version
from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nighttrain.providers.registry.gates.verdicts import Verdict
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion

VERDICT_TAG = f"{PREFIX}gate.verdict"
SUMMARY_TAG = f"{PREFIX}gate.summary"
EVALUATION_RUN_TAG = f"{PREFIX}gate.evaluation_run"

# What the scoring code finds in its environment; models are pinned: models:/name/version.
CANDIDATE_VARIABLE = "CANDIDATE_MODEL_URI"
CHAMPION_VARIABLE = "CHAMPION_MODEL_URI"
COMPARED_VARIABLE = "COMPARED_MODEL_URIS"
CHECKS_VARIABLE = "GATE_CHECKS"

PLOT_FILE = "nighttrain/evaluation.png"
"""Where a page shows a picture of the evaluation, if the scoring code drew one."""


@dataclass(frozen=True)
class Contestants:
    """The versions that an evaluation scores, each pinned.

    :param compared: further ones by group: ``version:12``, ``alias:last-good``
    """

    candidate: ModelVersion
    champion: ModelVersion | None = None
    compared: Mapping[str, ModelVersion] = field(default_factory=dict)

    def environment(self, checks: Iterable[str] = ()) -> dict[str, str]:
        """The variables of the scoring container."""
        variables = {CANDIDATE_VARIABLE: self.candidate.uri}
        if self.champion is not None:
            variables[CHAMPION_VARIABLE] = self.champion.uri
        if self.compared:
            variables[COMPARED_VARIABLE] = json.dumps({k: v.uri for k, v in self.compared.items()})
        if paths := list(checks):
            variables[CHECKS_VARIABLE] = json.dumps(paths)
        return variables

    def params(self) -> dict[str, str]:
        """The parameters of the evaluation's run."""
        params = {"candidate_version": self.candidate.version}
        if self.champion is not None:
            params["champion_version"] = self.champion.version
        return params | {f"compared.{group}": each.version for group, each in self.compared.items()}

    def facts(self) -> dict[str, Any]:
        """What the gate needs to know: plain values."""
        return {
            "version": self.candidate.version,
            "champion_version": self.champion.version if self.champion else None,
            "compared_versions": {group: each.version for group, each in self.compared.items()},
        }


async def find_contestants(
    registry: ModelRegistry,
    model_name: str,
    version: str,
    *,
    champion_alias: str,
    compare_with: Iterable[str] = (),
) -> Contestants:
    """Look up whom an evaluation scores. An alias that is not set, or is on the candidate, gives nobody.

    :raises ModelVersionNotFoundError: no such candidate, or no version of a number that is compared with
    :raises ConfigurationError: what is compared with is neither a version nor an alias
    """
    candidate = await registry.get_version(model_name, version)

    async def by_alias(alias: str) -> ModelVersion | None:
        try:
            found = await registry.version_by_alias(model_name, alias)
        except (ModelNotFoundError, ModelVersionNotFoundError):
            return None
        return None if found.version == candidate.version else found

    compared = {}
    for group in check_compared(compare_with):
        kind, _, name = group.partition(":")
        other = (
            await by_alias(name)
            if f"{kind}:" == NAMED_ALIAS
            else await registry.get_version(model_name, name)
        )
        if other is not None:
            compared[group] = other
    return Contestants(candidate, await by_alias(champion_alias), compared)


def check_compared(groups: object) -> list[str]:
    """Groups such as ``version:12`` and ``alias:last-good``. :raises ConfigurationError: another form"""
    fix = "give a list of versions and aliases: ['version:12', 'alias:last-good']"
    if isinstance(groups, str) or not isinstance(groups, Collection):
        raise ConfigurationError("compare_with", groups, fix)
    checked = []
    for group in groups:
        kind, colon, name = str(group).partition(":")
        if f"{kind}{colon}" == NAMED_VERSION:
            checked.append(f"{NAMED_VERSION}{check_version(name)}")
        elif f"{kind}{colon}" == NAMED_ALIAS:
            checked.append(f"{NAMED_ALIAS}{check_alias(name)}")
        else:
            raise ConfigurationError("compare_with", group, fix)
    return checked


def check_checks(paths: object) -> list[str]:
    """Dotted paths of functions. :raises ConfigurationError: another form"""
    if isinstance(paths, str) or not isinstance(paths, Collection):
        raise ConfigurationError("checks", paths, "give a list of dotted paths: ['my_pkg.checks.no_drift']")
    return [check_dotted_path(path) for path in paths]


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
        VERDICT_TAG: verdict.kind.value,
        SUMMARY_TAG: verdict.summary(),
        EVALUATION_RUN_TAG: evaluation_run,
        "nighttrain.gate.by": actor,
    }
