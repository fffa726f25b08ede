"""Gates: rules over what is on record, and the verdict they give."""

from typing import TYPE_CHECKING

from nighttrain.providers.public_names import public_names

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

if TYPE_CHECKING:
    from nighttrain.providers.registry.gates.judging import judge, judge_recorded
    from nighttrain.providers.registry.gates.parsing import parse_rule, parse_rules
    from nighttrain.providers.registry.gates.recorded import Recorded
    from nighttrain.providers.registry.gates.rules.base import NO_CHAMPION, NoChampion, Rule
    from nighttrain.providers.registry.gates.rules.comparisons import (
        BetterThan,
        BetterThanChampion,
        NotWorseThan,
        NotWorseThanChampion,
    )
    from nighttrain.providers.registry.gates.rules.limits import AtLeast, AtMost, DataAge, MinimumSamples
    from nighttrain.providers.registry.gates.rules.paired import PairedBootstrap
    from nighttrain.providers.registry.gates.rules.requirements import (
        CustomCheck,
        RequiredTag,
        SignatureCompatible,
    )
    from nighttrain.providers.registry.gates.rules.slices import EverySlice
else:
    # Lazily: a DAG file that names a gate needs the rules only where it gives some.
    __getattr__, __dir__ = public_names(
        __name__,
        {
            "AtLeast": "nighttrain.providers.registry.gates.rules.limits",
            "AtMost": "nighttrain.providers.registry.gates.rules.limits",
            "BetterThan": "nighttrain.providers.registry.gates.rules.comparisons",
            "BetterThanChampion": "nighttrain.providers.registry.gates.rules.comparisons",
            "CustomCheck": "nighttrain.providers.registry.gates.rules.requirements",
            "DataAge": "nighttrain.providers.registry.gates.rules.limits",
            "EverySlice": "nighttrain.providers.registry.gates.rules.slices",
            "MinimumSamples": "nighttrain.providers.registry.gates.rules.limits",
            "NO_CHAMPION": "nighttrain.providers.registry.gates.rules.base",
            "NoChampion": "nighttrain.providers.registry.gates.rules.base",
            "NotWorseThan": "nighttrain.providers.registry.gates.rules.comparisons",
            "NotWorseThanChampion": "nighttrain.providers.registry.gates.rules.comparisons",
            "PairedBootstrap": "nighttrain.providers.registry.gates.rules.paired",
            "Recorded": "nighttrain.providers.registry.gates.recorded",
            "RequiredTag": "nighttrain.providers.registry.gates.rules.requirements",
            "Rule": "nighttrain.providers.registry.gates.rules.base",
            "SignatureCompatible": "nighttrain.providers.registry.gates.rules.requirements",
            "judge": "nighttrain.providers.registry.gates.judging",
            "judge_recorded": "nighttrain.providers.registry.gates.judging",
            "parse_rule": "nighttrain.providers.registry.gates.parsing",
            "parse_rules": "nighttrain.providers.registry.gates.parsing",
        },
    )
