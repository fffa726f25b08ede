"""Names that a package offers without importing their modules beforehand, and the extras they need."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def require(*modules: str, extra: str) -> None:
    """Check that each of the modules can be imported, without importing any.

    :param extra: the extra of nighttrain that brings them
    :raises MissingExtraError: one is not installed; the message is the command that brings it
    """
    for module in modules:
        if module not in sys.modules and not _is_there(module):
            raise MissingExtraError(module.partition(".")[0], extra)


def _is_there(module: str) -> bool:
    """A folder of the same name, such as Airflow's home below the current one, is no package's module."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None


def public_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``: a name's module is imported once somebody uses the name.

    :param modules: public name to the module that has it
    """

    def look_up(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, found)
        return found

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return look_up, list_names
