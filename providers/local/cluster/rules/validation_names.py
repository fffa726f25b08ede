"""What names, keys, ports and the like must look like, and what the API says of those that do not.

Each function returns the API's sentences about a value: none if it is as it must be.
"""

from __future__ import annotations

import ipaddress
import re

_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_SERVICE_NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_QUALIFIED_NAME = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
_LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_CONFIG_KEY = re.compile(r"^[-._a-zA-Z0-9]+$")
_HEADER = re.compile(r"^[-A-Za-z0-9]+$")

_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
    "and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SERVICE_RULE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
    "character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for "
    "validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_QUALIFIED_NAME_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_LABEL_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used "
    "for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_CONFIG_KEY_RULE = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
    "'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
_HEADER_RULE = (
    "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used "
    "for validation is '[-A-Za-z0-9]+')"
)
_PERCENT_RULE = (
    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex "
    "used for validation is '[0-9]+%')"
)
_PATH_RULE = 'must be a domain-prefixed path (such as "acme.io/foo")'


def _too_long(text: str, limit: int) -> list[str]:
    return [f"must be no more than {limit} bytes"] if len(text.encode()) > limit else []


def _matching(text: str, pattern: re.Pattern[str], rule: str, limit: int) -> list[str]:
    # `$` would let a newline at the end pass.
    return _too_long(text, limit) + ([] if pattern.fullmatch(text) else [rule])


def subdomain(text: str) -> list[str]:
    return _matching(text, _SUBDOMAIN, _SUBDOMAIN_RULE, 253)


def label(text: str) -> list[str]:
    dotted = _LABEL.fullmatch(text) is None and _SUBDOMAIN.fullmatch(text) is not None
    return _matching(text, _LABEL, "must not contain dots" if dotted else _LABEL_RULE, 63)


def service_name(text: str) -> list[str]:
    return _matching(text, _SERVICE_NAME, _SERVICE_RULE, 63)


def label_value(text: str) -> list[str]:
    return _matching(text, _LABEL_VALUE, _LABEL_VALUE_RULE, 63)


def config_key(text: str) -> list[str]:
    return _matching(text, _CONFIG_KEY, _CONFIG_KEY_RULE, 253)


def header_name(text: str) -> list[str]:
    return _matching(text, _HEADER, _HEADER_RULE, len(text.encode()))


def qualified_name(text: str) -> list[str]:
    """A key of labels, annotations, taints: a name, perhaps with a domain before it."""
    prefix, slash, name = text.rpartition("/")
    found = [f"prefix part {each}" for each in subdomain(prefix)] if slash else []
    found += [f"name part {each}" for each in _too_long(name, 63)]
    return found + ([] if _QUALIFIED_NAME.fullmatch(name) else [_QUALIFIED_NAME_RULE])


def domain_path(text: str) -> list[str]:
    """``example.com/controller``"""
    prefix, slash, path = text.partition("/")
    return subdomain(prefix) if slash and path and prefix else [_PATH_RULE]


def port_name(text: str) -> list[str]:
    found = _too_long(text, 15)
    if not re.fullmatch(r"[-a-z0-9]+", text):
        found.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search(r"[a-z]", text):
        found.append("must contain at least one letter (a-z)")
    if "--" in text:
        found.append("must not contain consecutive hyphens")
    if text.startswith("-") or text.endswith("-"):
        found.append("must not begin or end with a hyphen")
    return found


def port_number(number: int) -> list[str]:
    return [] if 1 <= number <= 65535 else ["must be between 1 and 65535, inclusive"]


def port(value: int | str) -> list[str]:
    """By number, or by the name that a container gives it."""
    return port_name(value) if isinstance(value, str) else port_number(value)


def address(text: str) -> list[str]:
    try:
        # Go's "sloppy" parser, which reads 010.1.1.1 as ten.
        ipaddress.ip_address(text if ":" in text else re.sub(r"\b0+(?=[0-9])", "", text))
    except ValueError:
        return ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]
    return []


def count_or_percent(value: int | str) -> list[str]:
    if isinstance(value, str):
        return [] if re.fullmatch(r"[0-9]+%", value) else [_PERCENT_RULE]
    return at_least_zero(value)


def at_least_zero(number: int) -> list[str]:
    return ["must be greater than or equal to 0"] if number < 0 else []


def positive(number: int) -> list[str]:
    return ["must be greater than zero"] if number <= 0 else []


def user_id(number: int) -> list[str]:
    return [] if 0 <= number <= 2**31 - 1 else ["must be between 0 and 2147483647, inclusive"]


def file_mode(number: int) -> list[str]:
    rule = "must be a number between 0 and 0777 (octal), both inclusive"
    return [] if 0 <= number <= 0o777 else [rule]


def without_backsteps(path: str) -> list[str]:
    return ["must not contain '..'"] if ".." in path.split("/") else []


def inside(path: str) -> list[str]:
    """A path that leads nowhere out of the folder it is put in."""
    found = ["must be a relative path"] if path.startswith("/") else []
    return found + without_backsteps(path)


def inside_and_free(path: str) -> list[str]:
    """The same, and a name that the kubelet does not need: it keeps ``..data`` and the like for itself."""
    reserved = path.startswith("..") and not path.startswith("../")
    return inside(path) + (["must not start with '..'"] if reserved else [])
