"""Keep secrets out of whatever is logged or stored: one rule of what a secret is.

It is one where it has a credential's form (``user:password@`` in an address, ``Bearer ...``, ``AKIA...``,
a private key), where it equals a secret that the caller knows, or where the last word of its name says so.
Words are told apart at ``_``, ``-``, ``.``, blanks and capitals: ``db_password``, ``apiKey`` and ``hf_token``
are names of secrets; ``use_secretary_features``, ``password_length``, ``max_tokens``, ``n_pass`` and
``pad_token`` are not. Of names that may mean either, such as ``target_token`` and ``access_key``, the value
decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HIDDEN = "***"

SHORTEST_KNOWN = 5
"""Shorter secrets are not looked for inside other text: "1" or "abc" would blot out half of it. It is
Airflow's own number."""

SHORTEST_TOKEN = 6
"""Nobody gives out shorter ones: what is called "token" and is shorter is a word or a sign of a text."""

_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]")


class _Says(Enum):
    """The kinds of value that a name announces."""

    PASSWORD = 1
    SECRET = 2
    PERHAPS = 3


_PASSWORDS = ("password", "passwd", "passphrase")
_KEYS = frozenset({"api", "private", "secret"})
# Before "key" also words of other things: a master key, a storage key.
_PERHAPS_KEYS = frozenset(
    {"access", "account", "auth", "encryption", "fernet", "master", "sas", "service", "signing", "ssh"}
    | {"storage", "subscription", "anthropic", "aws", "azure", "comet", "gcp", "github", "gitlab", "google"}
    | {"hf", "huggingface", "kaggle", "neptune", "openai", "wandb"}
)
_PASSES = frozenset(
    {"admin", "database", "db", "ftp", "ldap", "login", "mail", "mongo", "mysql", "pg", "postgres", "proxy"}
    | {"redis", "root", "sftp", "smtp", "user"}
)
_STEPS = frozenset(
    {"all", "backward", "band", "each", "first", "forward", "full", "high", "last", "low", "max", "min"}
    | {"multi", "n", "no", "num", "one", "per", "second", "single", "two"}
)
_DOORS = frozenset(
    {"access", "api", "auth", "bearer", "bot", "github", "gitlab", "hf", "huggingface", "oauth", "personal"}
    | {"refresh", "registry", "session", "slack", "tracking", "vault"}
)
# The tokens that texts are made of, not those that open doors.
_OF_TEXT = frozenset(
    {"additional", "audio", "begin", "blank", "bos", "byte", "char", "class", "cls", "decoder", "each", "end"}
    | {"eos", "first", "image", "last", "mask", "max", "min", "n", "next", "num", "oov", "pad", "padding"}
    | {"per", "prefix", "prompt", "sep", "separator", "sos", "special", "start", "stop", "text", "unk"}
    | {"video", "word"}
)
_APPS = frozenset({"api", "app", "application", "client", "consumer", "jwt", "oauth", "shared", "webhook"})
_PERHAPS = ("passwords", "secret", "secrets", "token", "credential", "credentials", "pass", "pw")
_JOINED = ("apikey", "accesskey", "secretkey", "privatekey", "authtoken", "authorization")
# Words after the one that says what it is; numbers do not count: B64, BASE64, PASSWORD_2.
_AFTERTHOUGHTS = frozenset({"b", "base", "new", "old", "plain", "str", "string", "text", "value"})

_NO_SECRET = re.compile(r"(?:true|false|yes|no|on|off|none|null)?", re.IGNORECASE)
# Every part is taken from elsewhere, or masked: $(NAME), ${NAME}, $NAME, ***
_REFERENCES = re.compile(r"(?:\$\([A-Za-z_.\-][\w.\-]*\)|\$\{[^{}]*\}|\$[A-Z_][A-Z\d_]*)+|\*{3,}")
_PATH = re.compile(r"(?:~|\.{1,2}|[A-Za-z]:)?(?:[/\\][\w.\-]+)+[/\\]?")
_PLACE = re.compile(r"[a-z][a-z\d.\-]*(?:/[a-z\d_.\-]+)+")
# No token, secret or key is so short a number; "max_token=512" is a setting.
_SMALL_NUMBER = re.compile(r"[+-]?[\d.]{1,9}(?:e[+-]?\d{1,3})?", re.IGNORECASE | re.ASCII)
_NAME_OF_SOMETHING = re.compile(r"[A-Za-z]+(?:[-_. ](?:[A-Za-z]+|v?\d{1,2}))*")
_LONG = re.compile(r"[A-Za-z\d]{24,}")
_MADE_UP = re.compile(r"(?=.*[A-Za-z])(?=.*\d).{6,}", re.DOTALL)
_RANDOM = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*\d).{16,}", re.DOTALL)

_USERINFO = re.compile(r"(?<![A-Za-z0-9+.\-])(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]{0,30}://)[^\s/@'\"]{1,512}@")
_BEARER = re.compile(
    r"\b(?P<word>(?i:authorization\W{1,8}(?:basic|bearer))"
    r"|(?i:basic|bearer)(?=\s+\S{0,512}?(?:[a-z][A-Z]|\d|=)))"
    r"\s+[A-Za-z0-9._~+/\-]{8,}=*"
)
# Starting at a word's beginning and bounded: a tag may be long, and searching must not take quadratic time.
_ASSIGNMENT = re.compile(
    r"(?<![\w\-./])(?:(?P<name>[\w\-.]{1,128})\\?[\"']?(?P<sign>\s{0,8}[=:]\s{0,8})"
    r"|(?P<flag>--[\w\-]{1,128})\s{1,8}(?!-))"
)
_VALUE = re.compile(r"\\?\"[^\"\n]*\"?|\\?'[^'\n]*'?|[^\s,;&\"']+")
_PROSE = re.compile(r"[a-z]+ [a-z]")
_WELL_KNOWN = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}\b"
    r"|\bgithub_pat_\w{20,}\b|\bglpat-[\w\-]{20,}|\bhf_[A-Za-z0-9]{30,}\b|\bxox[abposr]-[\w\-]{10,}"
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)


def redact(text: str, known: Iterable[str | None] = ()) -> str:
    """``text`` with ``***`` for what is a credential by its form or its name, or is ``known`` to be one."""
    for secret in known:
        if secret and len(secret) >= SHORTEST_KNOWN:
            text = text.replace(secret, HIDDEN)
    text = _USERINFO.sub(lambda found: f"{found['scheme']}{HIDDEN}@", text)
    text = _BEARER.sub(lambda found: f"{found['word']} {HIDDEN}", text)
    return _WELL_KNOWN.sub(HIDDEN, _without_values(text))


@dataclass(frozen=True)
class Assignment:
    """A ``NAME=value``, ``name: value`` or ``--name value`` in a text.

    :param sign: what stands between name and value; empty after a flag
    :param start: where the value begins
    :param end: where it ends
    """

    name: str
    sign: str
    value: str
    start: int
    end: int


def is_secret(name: str, value: object) -> bool:
    """True if the name says that the value is a secret. A flag, a path and a reference are none."""
    text = "" if value is None else str(value).strip().strip("\"'\\")
    says = _says([word.lower() for word in _WORDS.findall(name)])
    if says is None or _NO_SECRET.fullmatch(text) or _REFERENCES.fullmatch(text) or _is_path(text):
        return False
    if says is _Says.PASSWORD:
        return True
    if _SMALL_NUMBER.fullmatch(text) or text[:1] in ("<", "["):
        return False
    a_token_itself = name.strip("-").lower() == "token" and len(text) >= SHORTEST_TOKEN
    return says is _Says.SECRET or a_token_itself or looks_made_up(text)


def names_a_secret(name: str) -> bool:
    """True if a value of this name may be a secret."""
    return _says([word.lower() for word in _WORDS.findall(name)]) is not None


def looks_made_up(text: str) -> bool:
    """True if it is no word, name or place that a person would give to something."""
    if _LONG.fullmatch(text):
        return True
    return bool(_MADE_UP.match(text)) and not (_NAME_OF_SOMETHING.fullmatch(text) or _PLACE.fullmatch(text))


def assignments(text: str) -> Iterator[Assignment]:
    """The assignments in ``text`` that may be of secrets, from left to right."""
    position = 0
    while found := _ASSIGNMENT.search(text, position):
        position = found.end()
        name = found["flag"] or found["name"]
        value = _VALUE.match(text, position) if names_a_secret(name) else None
        if value is None or value[0].lower() in ("bearer", "basic") or _ends_a_text(found, value):
            continue
        position = value.end()
        yield Assignment(name, found["sign"] or "", value[0], value.start(), value.end())


def _ends_a_text(found: re.Match[str], value: re.Match[str]) -> bool:
    """As in ``getpass("Password: ")``, whose last quotation mark does not begin a value."""
    before = found.string[max(found.start() - 1, 0) : found.start()]
    quoted = before in ("'", '"') and not found.string.startswith(
        before, found.start() + len(found["name"] or "")
    )
    return quoted and value[0].startswith(before)


def _says(words: list[str]) -> _Says | None:
    if words[-2:] == ["connection", "string"] or words[-3:] == ["access", "key", "id"]:
        return _Says.SECRET
    while words and (words[-1].isdigit() or words[-1] in _AFTERTHOUGHTS):
        words = words[:-1]
    if not words:
        return None
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last.endswith(_PASSWORDS) or (last == "pass" and before in _PASSES):
        return _Says.PASSWORD
    if last == "pwd":
        return _Says.PASSWORD if before not in ("", "old") else None
    if last == "key" and (before in _KEYS or words[-3:-1] in (["secret", "access"], ["aws", "access"])):
        return _Says.SECRET
    if last.endswith(_JOINED) or (before, last) in _SURE:
        return _Says.SECRET
    return _Says.PERHAPS if _may_be(last, before) else None


_SURE = {(door, "token") for door in _DOORS} | {(app, "secret") for app in _APPS}


def _may_be(last: str, before: str) -> bool:
    if last in ("key", "keys"):
        return before in _KEYS | _PERHAPS_KEYS
    if (last == "token" and before in _OF_TEXT) or (last == "pass" and before in _STEPS):
        return False
    return last in _PERHAPS or last.endswith(("secret", "token"))


def _is_path(text: str) -> bool:
    return bool(_PATH.fullmatch(text)) and not _RANDOM.match(text)


def _without_values(text: str) -> str:
    """``text`` without what stands behind the names of secrets."""
    kept: list[str] = []
    done = 0
    for found in assignments(text):
        prose = ":" in found.sign and _PROSE.match(text, found.start)
        if not prose and is_secret(found.name, found.value):
            kept += [text[done : found.start], HIDDEN]
            done = found.end
    return "".join([*kept, text[done:]])
