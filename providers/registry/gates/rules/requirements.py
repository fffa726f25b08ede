"""Rules about the version rather than its errors: its signature, its tags, and checks of the user's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from nighttrain.providers.errors import ConfigurationError, clip
from nighttrain.providers.redaction import is_secret, redact
from nighttrain.providers.registry.gates.recorded import CANDIDATE, CHAMPION, Recorded, Source
from nighttrain.providers.registry.gates.rules.base import NoChampion, Rule, check_group, named
from nighttrain.providers.registry.gates.signatures import incompatibilities, listed
from nighttrain.providers.registry.gates.verdicts import Evidence, VerdictKind
from nighttrain.providers.tracking.names import MAX_KEY

_DOTTED_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)
_TAG = re.compile(r"[/\w.\-:]+")
_TAG_VALUE = re.compile(r"[^\s=](?:[^\x00-\x1f\x7f]{0,498}[^\s])?")
MAX_PATH = 200
MAX_NOTE = 120


@dataclass(frozen=True)
class SignatureCompatible(Rule):
    """Whoever calls the other version may call the candidate in the same way."""

    against: str = CHAMPION
    kind: ClassVar[str] = "signature_compatible"

    def __post_init__(self) -> None:
        check_group(self.against)
        if self.against != CHAMPION and ":" not in self.against:
            raise ConfigurationError(
                "against", self.against, "give champion, version:12 or alias:NAME: a group has no signature"
            )

    def text(self) -> str:
        return "signature compatible" + ("" if self.against == CHAMPION else f" with {self.against}")

    def sources(self) -> frozenset[Source]:
        return frozenset({Source.SIGNATURES})

    def judge(self, recorded: Recorded, no_champion: NoChampion) -> Evidence:
        if self.needs_champion and not recorded.has_champion:
            return self.without_champion(no_champion, shown="signature")
        for group in (CANDIDATE, self.against):
            if group not in recorded.signatures:
                why = recorded.why_missing(Source.SIGNATURES)
                return self.inconclusive(f"no signature of {named(group)} was found{why}")
        problems = incompatibilities(recorded.signatures[CANDIDATE], recorded.signatures[self.against])
        whose = named(self.against)
        if problems:
            sentence = f"the signature does not fit {whose}'s: {listed(problems)}"
            return _found(self, VerdictKind.REJECTED, sentence, listed(problems))
        count = len(recorded.signatures[CANDIDATE].inputs)
        return _found(
            self, VerdictKind.ACCEPTED, f"the signature fits {whose}'s: {count} inputs, the same outputs"
        )


@dataclass(frozen=True)
class RequiredTag(Rule):
    """The candidate's version has a tag, with that value where one is given."""

    key: str
    value: str | None = None
    kind: ClassVar[str] = "required_tag"

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not _TAG.fullmatch(self.key) or len(self.key) > MAX_KEY:
            raise ConfigurationError("key", self.key, "give a tag's name: letters, digits and / _ . - :")
        given = self.value
        if given is not None and (
            not isinstance(given, str) or not _TAG_VALUE.fullmatch(given) or not given.isprintable()
        ):
            raise ConfigurationError("value", given, "give 1 to 500 printable characters")

    def text(self) -> str:
        return f"tag:{self.key}" + ("" if self.value is None else f" = {self.value}")

    def sources(self) -> frozenset[Source]:
        return frozenset({Source.TAGS})

    def judge(self, recorded: Recorded, no_champion: NoChampion) -> Evidence:
        if Source.TAGS in recorded.missing:
            return self.inconclusive(f"the tags were not read{recorded.why_missing(Source.TAGS)}")
        found = recorded.tags.get(self.key)
        if found is None:
            return _found(self, VerdictKind.REJECTED, f"the version has no tag {self.key}")
        if self.value is not None and found != self.value:
            shown = "another value" if is_secret(self.key, found) else ascii(clip(redact(found), 60))
            return _found(
                self, VerdictKind.REJECTED, f"tag {self.key} is {shown}, and has to be {self.value!r}"
            )
        return _found(self, VerdictKind.ACCEPTED, f"tag {self.key} is there")


@dataclass(frozen=True)
class CustomCheck(Rule):
    """The word of a function of the user's own, which ran in the scoring Job and nowhere else."""

    path: str
    kind: ClassVar[str] = "custom_check"

    def __post_init__(self) -> None:
        check_dotted_path(self.path)

    def text(self) -> str:
        return f"custom:{self.path}"

    def sources(self) -> frozenset[Source]:
        return frozenset({Source.CHECKS})

    def judge(self, recorded: Recorded, no_champion: NoChampion) -> Evidence:
        result = recorded.checks.get(self.path)
        if result is None:
            why = recorded.why_missing(Source.CHECKS)
            known = ", ".join(sorted(recorded.checks)[:8]) or "none"
            return self.inconclusive(
                f"{self.path} left no result in the evaluation's run (found: {known}){why}"
            )
        said = f": {result.sentence}" if result.sentence else ""
        sentence = f"{self.path} says {result.verdict.value}{said}"
        return _found(self, result.verdict, sentence, result.sentence)


def _found(rule: Rule, verdict: VerdictKind, sentence: str, note: str = "") -> Evidence:
    return Evidence(rule.text(), None, None, None, verdict, sentence, note=clip(note, MAX_NOTE))


def check_dotted_path(path: object) -> str:
    """A function's dotted path. :raises ConfigurationError: it is none"""
    if not isinstance(path, str) or len(path) > MAX_PATH or not _DOTTED_PATH.fullmatch(path):
        raise ConfigurationError("check", path, "give the dotted path of a function: my_pkg.checks.no_drift")
    return path
