"""Gates: rules over recorded measurements, and the verdict they give."""

from nighttrain.providers.registry.gates.rules import (
    NO_CHAMPION,
    AtLeast,
    AtMost,
    BetterThanChampion,
    MinimumSamples,
    NoChampion,
    NotWorseThanChampion,
    Rule,
    judge,
    parse_rule,
    parse_rules,
)

__all__ = [
    "NO_CHAMPION",
    "AtLeast",
    "AtMost",
    "BetterThanChampion",
    "MinimumSamples",
    "NoChampion",
    "NotWorseThanChampion",
    "Rule",
    "judge",
    "parse_rule",
    "parse_rules",
]
