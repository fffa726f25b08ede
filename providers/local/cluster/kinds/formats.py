"""The forms of texts and numbers, by the name of the format in a schema.

Each function returns what is wrong with a value, empty if it is as it must be.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

Format = Callable[[Any], str]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
# An exponent has at most as many digits as Go reads into 64 bits.
_QUANTITY = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(|[numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]{1,18})")
_POD_FIELD = re.compile(
    r"metadata\.(name|namespace|uid|labels|annotations)|metadata\.(labels|annotations)\['[^']+'\]"
    r"|spec\.(nodeName|serviceAccountName)|status\.(hostIPs?|podIPs?)"
)


def _matching(pattern: str, longest: int) -> Format:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        # Not `match` and `$`, which would let a newline at the end pass.
        fine = len(text.encode()) <= longest and compiled.fullmatch(text)
        return "" if fine else f"must have no more than {longest} bytes and match the expression '{pattern}'"

    return check


_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_PART = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
dns_label = _matching(_LABEL, 63)
dns_subdomain = _matching(rf"{_LABEL}(\.{_LABEL})*", 253)
service_name = _matching(r"[a-z]([-a-z0-9]*[a-z0-9])?", 63)
label_value = _matching(f"({_PART})?", 63)
config_key = _matching(r"[-._a-zA-Z0-9]+", 253)
_qualified_part = _matching(_PART, 63)


def qualified_name(text: str) -> str:
    """A key of labels, annotations, taints: a name, perhaps with a domain before it."""
    prefix, slash, name = text.rpartition("/")
    wrong = dns_subdomain(prefix) if slash else ""
    return f"its domain {wrong}" if wrong else _qualified_part(name)


def _domain_path(text: str) -> str:
    prefix, slash, path = text.partition("/")
    fine = slash and path and not dns_subdomain(prefix)
    return "" if fine else 'must be a domain-prefixed path (such as "acme.io/foo")'


def _port_name(text: str) -> str:
    fine = len(text) <= 15 and re.fullmatch(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]*[a-z0-9])?", text)
    return "" if fine else "must be up to 15 of a-z, 0-9 and single hyphens inside, with a letter among them"


def _port(value: int | str) -> str:
    """By number, or by the name that a container gives it."""
    if isinstance(value, str):
        return _port_name(value)
    return "" if 1 <= value <= 65535 else "must be between 1 and 65535, inclusive"


def ip(text: str) -> str:
    try:
        # Go's "sloppy" parser, which reads 010.1.1.1 as ten.
        ipaddress.ip_address(text if ":" in text else re.sub(r"\b0+(?=[0-9])", "", text))
    except ValueError:
        return "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
    return ""


def _count_or_percent(value: int | str) -> str:
    if isinstance(value, str):
        return "" if re.fullmatch(r"[0-9]+%", value) else "must be a number or a percentage such as '25%'"
    return "" if value >= 0 else "must be greater than or equal to 0"


def _share(value: int | str) -> str:
    over = isinstance(value, str) and re.fullmatch(r"[0-9]+%", value) and int(value[:-1]) > 100
    return "must not be greater than 100%" if over else _count_or_percent(value)


def relative_path(text: str) -> str:
    """A path that leads nowhere out of the folder it is put in, nor to what the kubelet keeps there."""
    if text.startswith("/"):
        return "must be a relative path"
    if ".." in text.split("/"):
        return "must not contain '..'"
    return "must not start with '..'" if text.startswith("..") else ""


def _variable_name(text: str) -> str:
    rule = "must consist only of printable ASCII characters other than '='"
    return "" if re.fullmatch(r"[ -<>-~]+", text) else f"a valid environment variable name {rule}"


def _header_name(text: str) -> str:
    return "" if re.fullmatch(r"[-A-Za-z0-9]+", text) else "must consist of alphanumeric characters or '-'"


def _pod_field(text: str) -> str:
    return "" if _POD_FIELD.fullmatch(text) else f"field label not supported: {text}"


def _selector_operator(text: str) -> str:
    return "" if text in ("In", "NotIn", "Exists", "DoesNotExist") else "not a valid selector operator"


def _time(text: Any) -> str:
    if isinstance(text, str) and _TIME.fullmatch(text):
        try:
            datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            return "is no time: a part is out of range"
        return ""
    return "must be a time such as 2006-01-02T15:04:05Z"


def _base64(text: Any) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        return "illegal base64 data"
    return ""


def quantity(text: Any) -> str:
    """An amount, such as ``1500m`` or ``2Gi``."""
    fine = isinstance(text, str) and _QUANTITY.fullmatch(text)
    return "" if fine else f"quantities must match the regular expression '{_QUANTITY.pattern}'"


def _within(bits: int) -> Format:
    def check(number: Any) -> str:
        fine = not isinstance(number, int) or -(2 ** (bits - 1)) <= number < 2 ** (bits - 1)
        return "" if fine else f"must fit into {bits} bits"

    return check


# Without these a value is not of its field's type at all: a bad request.
OF_TYPES: dict[str, Format] = {
    "byte": _base64,
    "date-time": _time,
    "int32": _within(32),
    "int64": _within(64),
    "quantity": quantity,
}
FORMATS: dict[str, Format] = {
    "config-key": config_key,
    "count-or-percent": _count_or_percent,
    "count-or-share": _share,
    "dns-label": dns_label,
    "dns-subdomain": dns_subdomain,
    "domain-path": _domain_path,
    "header-name": _header_name,
    "ip": ip,
    "pod-field": _pod_field,
    "port": _port,
    "port-name": _port_name,
    "qualified-name": qualified_name,
    "relative-path": relative_path,
    "selector-operator": _selector_operator,
    "variable-name": _variable_name,
}
