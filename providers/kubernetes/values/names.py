"""Names, labels and quantities as Kubernetes accepts them."""

from __future__ import annotations

import re
from decimal import Decimal

from nighttrain.providers.errors import ConfigurationError

LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))(?P<suffix>Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?\d+)?",
    re.ASCII,
)
_MULTIPLIERS = {
    name: Decimal(1024) ** power for power, name in enumerate(["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"], 1)
}
_MULTIPLIERS |= {name: Decimal(1000) ** power for power, name in enumerate(["k", "M", "G", "T", "P", "E"], 1)}
_MULTIPLIERS |= {"": Decimal(1), "m": Decimal("1e-3"), "u": Decimal("1e-6"), "n": Decimal("1e-9")}
_MISSPELT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgtpe])i?b?", re.IGNORECASE)


def slug(text: str) -> str:
    """Lower-case letters, digits and single hyphens; may be empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def label_value(text: str) -> str:
    """The closest valid label value; the full text belongs into an annotation."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("-._")


def check_labels(field: str, labels: dict[str, str]) -> None:
    """Check that these can be labels.

    :param field: the parameter's name, for messages
    :raises ConfigurationError: a key or value is not a label
    """
    for key, value in labels.items():
        _check_key(f"{field} key", key)
        if not LABEL_VALUE.fullmatch(value):
            raise ConfigurationError(
                f"{field}[{key!r}]",
                value,
                "a label value has at most 63 letters, digits, '-', '_' or '.', and starts and ends with a "
                f"letter or digit; for example {label_value(value) or 'a'!r}",
            )


def check_annotations(field: str, annotations: dict[str, str]) -> None:
    """Check that these can be annotations.

    :param field: the parameter's name, for messages
    :raises ConfigurationError: a key is not an annotation key
    """
    for key in annotations:
        _check_key(f"{field} key", key)


def _check_key(field: str, key: str) -> None:
    prefix, slash, name = key.rpartition("/")
    if not LABEL_NAME.fullmatch(name) or (slash and not (SUBDOMAIN.fullmatch(prefix) and len(prefix) <= 253)):
        raise ConfigurationError(
            field,
            key,
            "write an optional DNS prefix and '/', then at most 63 letters, digits, '-', '_' or '.'",
        )


def check_dns_label(field: str, name: str) -> None:
    """Check that a name is a DNS label.

    :param field: the parameter's name, for messages
    :raises ConfigurationError: ``name`` cannot name a namespace, container or volume
    """
    if not DNS_LABEL.fullmatch(name):
        raise ConfigurationError(
            field,
            name,
            f"use at most 63 lower-case letters, digits and '-'; for example {slug(name)[:63] or 'a'!r}",
        )


def check_object_name(field: str, name: str) -> None:
    """Check that a name is one for an object.

    :param field: the parameter's name, for messages
    :raises ConfigurationError: ``name`` cannot name an object such as a Secret
    """
    if len(name) > 253 or not SUBDOMAIN.fullmatch(name):
        raise ConfigurationError(field, name, "an object's name has lower-case letters, digits, '-' and '.'")


def parse_quantity(field: str, text: object) -> Decimal:
    """The number behind ``500m``, ``1.5Gi``, ``2e3``.

    :param field: the parameter's name, for messages
    :raises ConfigurationError: the text is not a quantity, or negative
    """
    match = QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigurationError(field, text, f"not a quantity; {_suggestion(text)}")
    suffix = match["suffix"] or ""
    multiplier = _MULTIPLIERS.get(suffix)
    if multiplier is None:
        if len(suffix) > 4:
            raise ConfigurationError(field, text, "not a quantity: the exponent is out of range")
        multiplier = Decimal(10) ** int(suffix[1:])
    value = Decimal(match["number"]) * multiplier
    if value < 0:
        raise ConfigurationError(field, text, "a quantity cannot be negative")
    return value


def _suggestion(text: object) -> str:
    match = _MISSPELT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        return "write a number with an optional suffix, for example '500m', '2', '512Mi' or '4Gi'"
    if match["unit"] == "m":
        return f"write '{match['number']}m' (thousandths)"
    unit = match["unit"].upper()
    decimal = "k" if unit == "K" else unit
    return f"write '{match['number']}{unit}i' (powers of 1024) or '{match['number']}{decimal}' (of 1000)"
