"""Gates: rules over what is on record, and the verdict they give."""

from nighttrain.providers.registry.gates.judging import judge, judge_recorded
from nighttrain.providers.registry.gates.parsing import parse_rule, parse_rules
from nighttrain.providers.registry.gates.recorded import Recorded
from nighttrain.providers.registry.gates.rules.base import NO_CHAMPION, NoChampion, Rule
from nighttrain.providers.registry.gates.rules.comparisons import BetterThan, NotWorseThan
from nighttrain.providers.registry.gates.rules.limits import AtLeast, AtMost, DataAge, MinimumSamples
from nighttrain.providers.registry.gates.rules.paired import PairedBootstrap
from nighttrain.providers.registry.gates.rules.requirements import (
    CustomCheck,
    RequiredTag,
    SignatureCompatible,
)
from nighttrain.providers.registry.gates.rules.slices import EverySlice

# The names from before there were other groups to compare with.
NotWorseThanChampion = NotWorseThan
BetterThanChampion = BetterThan

__all__ = [
    "NO_CHAMPION",
    "AtLeast",
    "AtMost",
    "BetterThan",
    "BetterThanChampion",
    "CustomCheck",
    "DataAge",
    "EverySlice",
    "MinimumSamples",
    "NoChampion",
    "NotWorseThan",
    "NotWorseThanChampion",
    "PairedBootstrap",
    "Recorded",
    "RequiredTag",
    "Rule",
    "SignatureCompatible",
    "judge",
    "judge_recorded",
    "parse_rule",
    "parse_rules",
]
