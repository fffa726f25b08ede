"""No secret in a manifest: one rule for trainings and for serving, and for every text in them.

Whoever may read a Job, a pod or a ConfigMap reads what stands in it. A plain value is refused where its name
says that it is a credential (a variable, an entry of a mapping, a header, ``NAME=value`` or ``--name value``
in a text), where it looks like one, or where it is one of those that nighttrain itself was given. References
such as ``$(NAME)`` are let through; so is what may be code rather than a value.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.redaction import (
    Assignment,
    assignments,
    is_secret,
    looks_made_up,
    names_a_secret,
)

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json

FIX = (
    "whoever may read the Job would read it: keep it in a Kubernetes Secret, name that in secrets, as "
    "secrets=[Secret('env', 'NAME', 'the Secret', 'its key')], or in env_from, and write $(NAME) or read the "
    "variable (for MLflow's credentials: mlflow_secret, a parameter and a field of the connection)"
)

MIN_CONTAINED = 8
"""Shorter credentials are looked for as a whole: "mlflow" is a password, and part of many addresses."""

# What Kubernetes, a shell or a program puts in when it runs: $(NAME), ${NAME}, $NAME, {name}, %s, <name>, ***
_PLACEHOLDER = re.compile(
    r"\$\([^)]{0,256}\)|\$\{[^}]{0,256}\}|\$\w+|\{(?![^{}]*[\"']\s*:)[^{}]*\}|%s|<[^<>]*>|\*{3,}"
)
_IN_PLACE = "$"

# Not a value but what gives one: a call, an index, a template, a variable's name.
_CODE = re.compile(r"[()\[\]{}<>`|]")
_IDENTIFIER = re.compile(r"[A-Za-z_][\w.]*")
_LOGIN = re.compile(
    r"\b(?:curl|wget|http|https)\b.{0,256}?\s(?:-u|--user)[\s=]+['\"]?[^\s:'\"$]+:[^\s'\"$]", re.DOTALL
)

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
    "user and password for curl": _LOGIN,
    "a password of ODBC": re.compile(r"\b(?:uid|user id|user)=[^;]{0,256};\s{0,8}pwd=[^;\s]", re.IGNORECASE),
    "a storage account's key": re.compile(r"\bAccountKey=[A-Za-z0-9+/]{20,}", re.IGNORECASE),
}


def looks_like_a_secret(value: str) -> str | None:
    """The kind of credential that ``value`` holds, by its form; ``None`` if it holds none."""
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
            _check_command(container, where, ("cmds", "arguments") if main else ("command", "args"), known)
    check_texts(pod_spec, "pod", known)


def check_texts(given: object, field: str, known: Iterable[str] = ()) -> None:
    """As :func:`check_no_secret`, for texts that stand elsewhere: labels, annotations, files.

    :param given: mappings, lists and texts in each other
    """
    for where, name, text in _places(given, field):
        if name and is_secret(name, text):
            raise ConfigurationError(where, None, f"its name says that it is a secret; {FIX}")
        _check_form(text, where)
    check_no_known_secret(given, field, known)


def check_no_known_secret(given: object, field: str, known: Iterable[str]) -> None:
    """
    :raises ConfigurationError: a text, or a name in a mapping, holds a credential that nighttrain was given
    """
    _check_known(given, field, tuple(known))


def _check_environment(container: Json, field: str, known: tuple[str, ...]) -> None:
    for variable in container.get("env") or []:
        name, value = str(variable.get("name")), variable.get("value")
        if not isinstance(value, str):
            continue
        if is_secret(name, value):
            raise ConfigurationError(f"{field}[{name!r}]", None, f"its name says that it is a secret; {FIX}")
        if value in known:
            raise ConfigurationError(f"{field}[{name!r}]", None, f"it is the connection's credential; {FIX}")
        _check_text(value, f"{field}[{name!r}]", known)


def _check_command(container: Json, where: str, names: tuple[str, str], known: tuple[str, ...]) -> None:
    words = [[str(word) for word in container.get(part) or []] for part in ("command", "args")]
    for name, part in zip(names, words, strict=True):
        for word in part:
            _check_text(word, f"{where}{name}", known)
        # A flag and its value are two words.
        _check_form(" ".join(part), f"{where}{name}")
    _check_form(" ".join([*words[0], *words[1]]), f"{where}{names[1]}")


def _check_text(text: str, field: str, known: tuple[str, ...]) -> None:
    _check_form(text, field)
    if _holds(text, known):
        raise ConfigurationError(field, None, f"it holds the connection's credential; {FIX}")


def _check_form(text: str, field: str) -> None:
    if what := looks_like_a_secret(text):
        raise ConfigurationError(field, None, f"it holds {what}; {FIX}")
    for found in assignments(_PLACEHOLDER.sub(_IN_PLACE, text)):
        if _is_plain(found) and is_secret(found.name, found.value):
            raise ConfigurationError(
                field, None, f"it gives {found.name} a value, which by its name is a secret; {FIX}"
            )


def _is_plain(found: Assignment) -> bool:
    """True if the value is a value, rather than code that gets one."""
    value = found.value.replace("\\", "")
    inside = value.strip("\"'")
    if _IN_PLACE in value or (
        _IDENTIFIER.fullmatch(inside) and any(map(names_a_secret, _beginnings(inside)))
    ):
        return False
    if value[:1] in ("'", '"'):
        return value == f"{value[0]}{inside}{value[0]}"
    return not _CODE.search(value) and (found.sign in ("", "=") or looks_made_up(value))


def _beginnings(name: str) -> list[str]:
    """Of ``db_password_env``: ``db``, ``db_password``, and itself."""
    return [name[: found.start()] for found in re.finditer(r"_|\.|$", name)]


def _places(given: object, field: str) -> Iterator[tuple[str, str, str]]:
    """Every text with where it stands and what it is called, if it is called anything."""
    if isinstance(given, str):
        yield field, "", given
    elif isinstance(given, Mapping):
        name, value = given.get("name"), given.get("value")
        if isinstance(name, str) and isinstance(value, str):
            yield field, name, value
        for key, each in given.items():
            where = f"{field}.{key}" if str(key).isidentifier() else f"{field}[{key!r}]"
            if isinstance(each, str):
                yield where, str(key), each
            else:
                yield from _places(each, where)
    elif isinstance(given, list | tuple):
        for number, each in enumerate(given):
            named = isinstance(each, Mapping) and isinstance(each.get("name"), str)
            yield from _places(each, f"{field}[{each['name']!r}]" if named else f"{field}[{number}]")


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
