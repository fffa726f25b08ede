"""No secret in a manifest: one rule for trainings and for serving.

Whoever may read a Job, a pod or a ConfigMap reads what stands in it. A plain value is refused where its
variable's name says that it is a credential, where it looks like one, or where it is one of those that
nighttrain itself was given.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from nighttrain.providers.errors import ConfigurationError

Json = dict[str, Any]

FIX = (
    "whoever may read the Job would read it: keep it in a Kubernetes Secret and name that in secrets or "
    "env_from (for MLflow's credentials: mlflow_secret, or kubernetes_secret of the connection)"
)

MIN_CONTAINED = 8
"""Shorter credentials are looked for as a whole: "mlflow" is a password, and part of many addresses."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_WORDS = frozenset(
    {"PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "SECRETS", "TOKEN", "CREDENTIAL", "CREDENTIALS"}
)
# Two words in a row.
_PAIRS = frozenset(
    {("CONNECTION", "STRING"), ("SAS", "KEY")}
    | {(word, "KEY") for word in ("API", "ACCESS", "PRIVATE", "SECRET", "ACCOUNT", "STORAGE", "AUTH")}
    | {(word, "KEY") for word in ("ENCRYPTION", "SIGNING", "MASTER", "FERNET")}
    | {(word, "PASS") for word in ("DB", "DATABASE", "SMTP", "MAIL", "USER", "ADMIN", "ROOT", "POSTGRES")}
    | {(word, "PASS") for word in ("PG", "MYSQL", "REDIS", "MONGO", "FTP", "SFTP", "PROXY", "LDAP")}
)
_ENDINGS = ("PASSWORD", "PASSWD", "APIKEY", "ACCESSKEY", "SECRETKEY", "PRIVATEKEY", "AUTHTOKEN")
# Where a secret is, or what it is like, is none.
_ABOUT = frozenset(
    {"FILE", "PATH", "DIR", "FOLDER", "NAME", "REF", "URL", "URI", "ENDPOINT", "HOST", "ARN", "INDEX"}
    | {"TYPE", "TTL", "SECONDS", "EXPIRY", "EXPIRATION", "VERSION", "POLICY", "HEADER", "PROVIDER"}
    | {"LENGTH", "LEN", "COUNT", "LIMIT", "SIZE", "BUDGET", "ENABLED", "REQUIRED", "BACKEND", "MANAGER"}
    | {"DIM", "WEIGHT", "LOSS", "ACCURACY", "RATE", "DROPOUT", "POSITION", "STORE"}
)
# Before "token", a word of language models: a piece of text.
_OF_TEXT = frozenset(
    {"PAD", "EOS", "BOS", "UNK", "CLS", "SEP", "MASK", "SPECIAL", "STOP", "START", "END", "IMAGE"}
    | {"MAX", "MIN", "NUM", "N", "PER", "FIRST", "LAST", "NEXT", "EACH", "TEXT", "PROMPT"}
)
_PLAIN_VALUES = frozenset({"", "true", "false", "yes", "no", "on", "off", "none", "null"})
# Every part is taken from other variables, whose own values are looked at where they stand.
_REFERENCES = re.compile(r"(?:\$\([A-Za-z_.\-][\w.\-]*\))+")

# What Kubernetes, a shell or a program puts in when it runs: $(NAME), ${NAME}, $NAME, {name}, %s, <name>, ***
_PLACEHOLDER = re.compile(r"\$\([^)]*\)|\$\{[^}]*\}|\$\w+|\{[^{}]*\}|%s|<[^<>]*>|\*{3,}")

_FORMS = {
    "user and password in an address": re.compile(
        r"[A-Za-z][A-Za-z0-9+.\-]{0,30}://[^\s/:@'\"]*:[^\s/@'\"]+@"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----"),
    "a key of AWS": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a token of GitHub": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
    "a token of GitLab": re.compile(r"\bglpat-[\w\-]{20,}"),
    "a token of Slack": re.compile(r"\bxox[abeprs]-[\w\-]{10,}"),
    "a token of Hugging Face": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "a key of Google": re.compile(r"\bAIza[\w\-]{35}"),
    "a JSON Web Token": re.compile(r"\beyJ[\w\-]{8,}\.eyJ[\w\-]{8,}\.[\w\-]*"),
    "an Authorization header": re.compile(
        r"^\s*(?:bearer|basic)\s+[A-Za-z0-9._~+/\-]{8,}=*\s*$", re.IGNORECASE
    ),
    "a storage account's key": re.compile(r"\bAccountKey=[A-Za-z0-9+/]{20,}", re.IGNORECASE),
}


def names_a_secret(name: str) -> bool:
    """Whether a variable of this name carries a credential: by whole words, and not one that is about it."""
    words = [word.upper() for word in _WORD.findall(name)]
    if not words or words[-1] in _ABOUT:
        return False
    if words[-1] == "PWD":
        return len(words) > 1 and words[0] != "OLD"
    for at, word in enumerate(words):
        if word == "TOKEN" and at and words[at - 1] in _OF_TEXT:
            continue
        if word in _WORDS or word.endswith(_ENDINGS) or (word, *words[at + 1 : at + 2]) in _PAIRS:
            return True
    return False


def looks_like_a_secret(value: str) -> str | None:
    """What credential ``value`` holds, by its form."""
    filled_in_later = _PLACEHOLDER.sub("", value)
    return next((what for what, form in _FORMS.items() if form.search(filled_in_later)), None)


def known_forms(secrets: Iterable[str | None], user: str | None = None) -> tuple[str, ...]:
    """Credentials as they may stand in a text: as they are, in an address, in a header.

    :param user: whose password the credentials may be
    """
    given = [secret for secret in secrets if secret]
    forms = [*given, *(quote(secret, safe="") for secret in given)]
    if user:
        forms += [base64.b64encode(f"{user}:{secret}".encode()).decode() for secret in given]
    return tuple(dict.fromkeys(forms))


def check_no_secret(pod_spec: Json, known: Iterable[str] = ()) -> None:
    """
    :param known: credentials that nighttrain was given; see :func:`known_forms`
    :raises ConfigurationError: a plain value is a credential; it is not shown
    """
    known = tuple(known)
    for kind, field in (("initContainers", "init_containers"), ("containers", "containers")):
        for number, container in enumerate(pod_spec.get(kind) or []):
            main = kind == "containers" and number == 0
            where = "" if main else f"{field}[{container.get('name')!r}]."
            _check_environment(container, f"{where}{'env_vars' if main else 'env'}", known)
            for part, name in (("command", "cmds"), ("args", "arguments")):
                for argument in container.get(part) or []:
                    _check_text(str(argument), f"{where}{name if main else part}", known)
    _check_known(pod_spec, "the pod", known)


def check_no_known_secret(texts: Mapping[str, str], field: str, known: Iterable[str]) -> None:
    """As :func:`check_no_secret`, for texts that stand elsewhere: labels, annotations, files."""
    _check_known(dict(texts), field, tuple(known))


def _check_environment(container: Json, field: str, known: tuple[str, ...]) -> None:
    for variable in container.get("env") or []:
        name, value = str(variable.get("name")), variable.get("value")
        if not isinstance(value, str) or _REFERENCES.fullmatch(value):
            continue
        if names_a_secret(name) and value.strip().lower() not in _PLAIN_VALUES:
            raise ConfigurationError(f"{field}[{name!r}]", None, f"its name says that it is a secret; {FIX}")
        if value in known:
            raise ConfigurationError(f"{field}[{name!r}]", None, f"it is the connection's credential; {FIX}")
        _check_text(value, f"{field}[{name!r}]", known)


def _check_text(text: str, field: str, known: tuple[str, ...]) -> None:
    if what := looks_like_a_secret(text):
        raise ConfigurationError(field, None, f"it holds {what}; {FIX}")
    if _holds(text, known):
        raise ConfigurationError(field, None, f"it holds the connection's credential; {FIX}")


def _check_known(value: object, field: str, known: tuple[str, ...]) -> None:
    for text in _texts(value):
        if any(len(secret) >= MIN_CONTAINED and secret in text for secret in known):
            raise ConfigurationError(field, None, f"it holds the connection's credential; {FIX}")


def _holds(text: str, known: tuple[str, ...]) -> bool:
    for secret in known:
        if len(secret) >= MIN_CONTAINED and secret in text:
            return True
        if secret == text or text.endswith(f"={secret}"):
            return True
    return False


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield str(name)
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
