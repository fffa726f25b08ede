"""Rules of custom resources in the Common Expression Language (``x-kubernetes-validations``).

A library evaluates them. Of the functions that Kubernetes adds to the language, those on strings and lists
are here; a rule that needs another one (quantities, URLs, addresses, semantic versions) is not enforced, and
every write that it should have checked answers with a warning that says so.
"""

from __future__ import annotations

import functools
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.crd_schema import Schema, identify
from nighttrain.providers.local.errors import Cause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RESERVED = frozenset(
    (
        *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if"),
        *("import", "let", "loop", "package", "namespace", "return", "var", "void", "while"),
    )
)
_ESCAPES = (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__"))
_STRINGS = re.compile(r'r?("""|\'\'\').*?\1|r?"(?:\\.|[^"\\])*"|r?\'(?:\\.|[^\'\\])*\'', re.DOTALL)
_CALLS = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_LANGUAGE = frozenset(
    (
        *("has", "size", "all", "exists", "exists_one", "filter", "map", "contains", "matches", "startsWith"),
        *("endsWith", "duration", "timestamp", "int", "uint", "double", "string", "bytes", "in"),
        *("getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours"),
        *("getMilliseconds", "getMinutes", "getMonth", "getSeconds"),
    )
)
_BLOCKING = frozenset(
    (
        "FieldValueNotSupported",
        "FieldValueRequired",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueTypeInvalid",
    )
)
_UNCHECKED = Cause(
    "FieldValueInvalid",
    "Invalid value: null: some validation rules were not checked because the object was invalid; correct the "
    "existing errors to complete validation",
    "<nil>",
)


class CannotEvaluateError(Exception):
    """The library does not know how: not the object's fault."""


def has_rules(schema: Schema) -> bool:
    return next(_rules(schema, ""), None) is not None


def not_enforced(schema: Schema) -> list[str]:
    """A sentence for each rule that this cluster cannot evaluate."""
    sentences = []
    for path, rule in _rules(schema, ""):
        why = _obstacle(rule["rule"])
        if why:
            sentences.append(f"{path or 'the object'}: rule not enforced by the embedded cluster: {why}")
    return list(dict.fromkeys(sentences))


def _rules(schema: Schema, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for rule in schema.get("x-kubernetes-validations") or ():
        yield path, rule
    for name, below in (schema.get("properties") or {}).items():
        yield from _rules(below, f"{path}.{name}" if path else name)
    for key, suffix in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(schema.get(key), dict):
            yield from _rules(schema[key], path + suffix)


def blocked(schema: Schema, causes: list[Cause]) -> list[Cause]:
    """What is to be added when an object is too wrong for its rules to be looked at."""
    blocking = any(cause.reason in _BLOCKING for cause in causes)
    return [_UNCHECKED] if blocking and has_rules(schema) else []


def check(schema: Schema, value: Any, old: Any, warnings: list[str], path: str = "") -> list[Cause]:
    """The rules that the object breaks.

    :param old: the same place in the object before the write, or None: then rules about a transition hold
    :param warnings: gets a sentence for each rule that could not be evaluated
    """
    if value is None:
        return []
    causes = []
    rules = schema.get("x-kubernetes-validations") or ()
    if rules:
        own, before = _to_cel(schema, value), None if old is None else _to_cel(schema, old)
        for rule in rules:
            try:
                causes += _broken(rule, own, before, path)
            except CannotEvaluateError as error:
                warnings.append(f'{path or "the object"}: rule "{rule["rule"][:60]}" not enforced: {error}')
    for below, item, item_old, here in _children(schema, value, old, path):
        causes += check(below, item, item_old, warnings, here)
    return causes


def _children(schema: Schema, value: Any, old: Any, path: str) -> Iterator[tuple[Schema, Any, Any, str]]:
    if isinstance(value, dict):
        properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
        was = old if isinstance(old, dict) else {}
        for name, item in value.items():
            below = properties.get(name, additional)
            if isinstance(below, dict):
                yield below, item, was.get(name), f"{path}.{name}" if path else name
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        pairs = [(identify(schema, each), each) for each in old] if isinstance(old, list) else []
        for index, item in enumerate(value):
            own = identify(schema, item)
            match = None if own is None else next((each for key, each in pairs if key == own), None)
            yield schema["items"], item, match, f"{path}[{index}]"


def _broken(rule: dict[str, Any], own: Any, old: Any, path: str) -> list[Cause]:
    text = rule["rule"]
    if re.search(r"\boldSelf\b", text):
        if rule.get("optionalOldSelf"):
            raise CannotEvaluateError("optionalOldSelf is not supported")
        if old is None:
            return []
    field = path + (rule.get("fieldPath") or "") if path else (rule.get("fieldPath") or "").lstrip(".")
    reason = rule.get("reason") or "FieldValueInvalid"
    try:
        if _evaluate(text, own, old) is True:
            return []
        message = _message(rule, own, old)
    except KeyError as error:
        reason, message = "FieldValueInvalid", f"rule evaluation error: no such key: {error.args[0]}"
    prefix = {"FieldValueRequired": "Required value", "FieldValueForbidden": "Forbidden"}.get(reason)
    return [Cause(reason, f"{prefix or 'Invalid value'}: {message}", field or "<nil>")]


def _message(rule: dict[str, Any], own: Any, old: Any) -> str:
    if rule.get("messageExpression"):
        try:
            said = _evaluate(rule["messageExpression"], own, old)
        except (KeyError, CannotEvaluateError):
            said = None
        if isinstance(said, str) and said.strip():
            return said.strip()
    return str(rule.get("message") or f"failed rule: {rule['rule'].strip()}").strip()


def _evaluate(text: str, own: Any, old: Any) -> Any:
    import cel

    obstacle = _obstacle(text)
    if obstacle:
        raise CannotEvaluateError(obstacle)
    context = cel.Context()
    context.add_variable("self", own)
    if old is not None:
        context.add_variable("oldSelf", old)
    for name, function in _FUNCTIONS.items():
        context.add_function(name, function)
    try:
        return _program(text).execute(context)
    except (KeyError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise CannotEvaluateError(str(error).partition("\n")[0][:200]) from error


@functools.lru_cache(maxsize=4096)
def _program(text: str) -> Any:
    import cel

    try:
        return cel.compile(text)
    except BaseException as error:
        # The parser's own panics are no Exception, and an unusual rule must not take the server along.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(str(error).partition("\n")[0][:200]) from error


@functools.lru_cache(maxsize=4096)
def _obstacle(text: str) -> str:
    """Why the rule cannot be evaluated; empty if it can."""
    try:
        _program(text)
    except ImportError:
        return "the library for the Common Expression Language is not installed"
    except ValueError as error:
        return str(error)
    calls = set(_CALLS.findall(_STRINGS.sub('""', text)))
    unknown = sorted(calls - _LANGUAGE - set(_FUNCTIONS))
    return f"unknown function {', '.join(unknown)}" if unknown else ""


def _to_cel(schema: Schema, value: Any) -> Any:
    """The value with the types and the names that rules see."""
    if isinstance(value, dict):
        properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
        converted = {}
        for name, item in value.items():
            below = properties.get(name, additional)
            shown = name if name not in properties and isinstance(additional, dict) else _escaped(name)
            converted[shown] = _to_cel(below if isinstance(below, dict) else {}, item)
        return converted
    if isinstance(value, list):
        items = schema.get("items")
        return [_to_cel(items if isinstance(items, dict) else {}, item) for item in value]
    if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if schema.get("format") == "date-time" and isinstance(value, str):
        return datetime.fromisoformat(value)
    return value


def _escaped(name: str) -> str:
    if name in _RESERVED:
        return f"__{name}__"
    for plain, escape in _ESCAPES:
        name = name.replace(plain, escape)
    return name


def _index_of(where: Any, what: Any) -> int:
    if isinstance(where, str):
        return where.find(what)
    return where.index(what) if what in where else -1


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    return text.replace(old, new, count)


def _substring(text: str, start: int, end: int | None = None) -> str:
    return text[start:end]


def _find(text: str, expression: str) -> str:
    found = re.search(expression, text)
    return found.group(0) if found else ""


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "split": lambda text, separator: text.split(separator),
    "join": lambda texts, separator="": separator.join(texts),
    "lowerAscii": lambda text: text.lower(),
    "upperAscii": lambda text: text.upper(),
    "trim": lambda text: text.strip(),
    "replace": _replace,
    "substring": _substring,
    "find": _find,
    "findAll": lambda text, expression: [each.group(0) for each in re.finditer(expression, text)],
    "indexOf": _index_of,
    "isSorted": lambda values: list(values) == sorted(values),
    "sum": sum,
    "min": lambda *values: min(values[0] if len(values) == 1 else values),
    "max": lambda *values: max(values[0] if len(values) == 1 else values),
}
