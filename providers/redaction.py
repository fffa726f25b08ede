"""Keep secrets out of whatever is logged or stored.

A value is masked where it is known to be a secret: it has a credential's form (``user:password@`` in an
address, ``Bearer ...``, ``AKIA...``, a private key), it equals a secret that the caller knows, or its name
ends in a word that says so. Words are told apart at ``_``, ``-``, ``.``, blanks and capitals, so
``db_password``, ``apiKey`` and ``hf_token`` are names of secrets; ``use_secretary_features``,
``password_length``, ``max_tokens``, ``n_pass`` and ``pad_token`` are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "***"

SHORTEST_KNOWN = 5
"""Shorter secrets are not looked for inside other text: "1" or "abc" would blot out half of it. It is
Airflow's own number."""

_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]")
_PASSWORDS = ("password", "passwd", "passphrase")
_SECRETS = ("secret", "token", "credential", "credentials", "authorization", "apikey", "pwd")
_KEYS = frozenset({"api", "access", "private", "secret"})
_PASSES = frozenset({"admin", "db", "login", "root", "user"})
# The tokens that texts are made of, not those that open doors.
_OF_TEXT = frozenset(
    {"additional", "audio", "begin", "bos", "byte", "char", "class", "cls", "decoder", "end", "eos", "first"}
    | {"image", "last", "mask", "next", "pad", "per", "prefix", "prompt", "sep", "special", "start", "stop"}
    | {"text", "unk", "video", "word"}
)
# Words after the one that says what it is.
_AFTERTHOUGHTS = frozenset({"b64", "base64", "new", "old", "plain", "str", "string", "text", "value"})
_NO_SECRET = re.compile(r"(?:true|false|yes|no|none|null)?", re.IGNORECASE)
# No token, secret or key is so short a number; "max_token=512" is a setting.
_SMALL_NUMBER = re.compile(r"[+-]?[\d.]{1,9}(?:e[+-]?\d{1,3})?", re.IGNORECASE | re.ASCII)

_USERINFO = re.compile(r"(?<![A-Za-z0-9+.\-])(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]{0,30}://)[^\s/@'\"]{1,512}@")
_BEARER = re.compile(
    r"\b(?P<word>(?i:authorization\W{1,8}basic|bearer)|(?i:basic)(?=\s+\S{0,512}?(?:[a-z][A-Z]|\d|=)))"
    r"\s+[A-Za-z0-9._~+/\-]{8,}=*"
)
# Starting at a word's beginning and bounded: a tag may be long, and searching must not take quadratic time.
_ASSIGNMENT = re.compile(
    r"(?<![\w\-.])(?:(?P<name>[\w\-.]{1,128})\\?[\"']?\s{0,8}[=:]\s{0,8}|(?P<flag>--[\w\-]{1,128})\s{1,8}(?!-))"
)
_VALUE = re.compile(r"\\?\"[^\"\n]*\"?|\\?'[^'\n]*'?|[^\s,;&\"']+")
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


def is_secret(name: str, value: object) -> bool:
    """Whether the name says that the value is a secret. A flag is none, whatever it is called."""
    text = "" if value is None else str(value).strip().strip("\"'\\")
    words = [word.lower() for word in _WORDS.findall(name)]
    while words and (words[-1].isdigit() or words[-1] in _AFTERTHOUGHTS):
        words.pop()
    if not words or _NO_SECRET.fullmatch(text):
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last.endswith(_PASSWORDS) or (last == "pass" and before in _PASSES):
        return True
    if last == "token" and (before in _OF_TEXT or text[:1] in ("<", "[")):
        return False
    named = last in _SECRETS or last.endswith(("secret", "token")) or (last == "key" and before in _KEYS)
    return named and not _SMALL_NUMBER.fullmatch(text)


def _without_values(text: str) -> str:
    """``text`` without what stands behind the names of secrets."""
    kept: list[str] = []
    done = position = 0
    while assignment := _ASSIGNMENT.search(text, position):
        position = assignment.end()
        name = assignment["flag"] or assignment["name"]
        value = _VALUE.match(text, position) if is_secret(name, "anything") else None
        if value is None or value[0].lower() in ("bearer", "basic"):
            continue
        position = value.end()
        if is_secret(name, value[0]):
            kept += [text[done : value.start()], HIDDEN]
            done = position
    return "".join([*kept, text[done:]])
