"""The interpreters of this machine that stand for container images.

An image of the embedded cluster is a Python environment that is already installed: nothing is pulled. The
table maps image names to environments; what it does not know cannot be pulled, as on a cluster without a
registry.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# An image reference: optional registry, lower-case path, optional tag, optional digest.
_REFERENCE = re.compile(
    r"""(?P<name>
          (?:(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9.-]+(?=:\d+/)) (?::\d+)? /)?
          [a-z0-9]+ (?:(?:[._]|__|-+)[a-z0-9]+)* (?:/[a-z0-9]+ (?:(?:[._]|__|-+)[a-z0-9]+)*)*
        )
        (?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?
        (?:@(?P<digest>sha256:[0-9a-f]{64}))?""",
    re.VERBOSE,
)


class ImageError(ValueError):
    """An entry of the image table cannot be used; the message names it and says what to write instead."""


class InvalidImageNameError(ValueError):
    """The text is not an image reference: the container waits with ``InvalidImageName``."""


@dataclass(frozen=True)
class ImageEnvironment:
    """The environment that stands for an image on this machine.

    :param python: the interpreter; its folder comes first in the containers' PATH
    :param pythonpath: folders for PYTHONPATH, in order
    :param env: variables that the image sets; a container's own variables win
    """

    python: Path
    pythonpath: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def bin(self) -> Path:
        # Not resolved: a virtual environment's python is a link, and its scripts are beside the link.
        return self.python.parent

    @property
    def digest(self) -> str:
        """The image's identity: changes with the interpreter, its installed packages and the search path."""
        paths = tuple(str(path) for path in self.pythonpath)
        return "sha256:" + _digest(str(self.python), paths, tuple(sorted(self.env.items())))

    @classmethod
    def parse(cls, text: str, *, entry: str | None = None) -> ImageEnvironment:
        """Read ``PYTHON[:PYTHONPATH...]``; every path must exist. Raises :class:`ImageError`."""
        shown = entry if entry is not None else text
        first, *rest = [part for part in text.split(":") if part] or [""]
        return cls(Path(first).expanduser(), tuple(Path(part).expanduser() for part in rest))._checked(shown)

    def _checked(self, shown: str) -> ImageEnvironment:
        # Absolute, because every container has a working directory of its own.
        python = Path(os.path.abspath(self.python))
        if not python.is_file() or not os.access(python, os.X_OK):
            raise ImageError(f"image {shown!r}: {python} is not an interpreter that can be run")
        folders = tuple(Path(os.path.abspath(path)) for path in self.pythonpath)
        for folder in folders:
            if not folder.exists():
                raise ImageError(f"image {shown!r}: the PYTHONPATH entry {folder} does not exist")
        return ImageEnvironment(python, folders, dict(self.env))


@cache
def _digest(python: str, pythonpath: tuple[str, ...], env: tuple[tuple[str, str], ...]) -> str:
    sha = hashlib.sha256()
    prefix = Path(python).parent.parent
    installed = sorted(path.name for path in prefix.glob("lib/python*/site-packages/*.dist-info"))
    for part in (os.path.realpath(python), *pythonpath, *(f"{k}={v}" for k, v in env), *installed):
        sha.update(part.encode() + b"\0")
    return sha.hexdigest()


class ImageTable:
    """Image names and the environments that stand for them.

    A name without a tag matches every tag of it; a name with a tag matches only that one and comes first.

    :param images: name -> :class:`ImageEnvironment`, or the interpreter's path, or ``PYTHON[:PYTHONPATH...]``
    :raises ImageError: a name is not an image reference, or an interpreter or folder does not exist
    """

    def __init__(self, images: Mapping[str, ImageEnvironment | Path | str] | None = None) -> None:
        self._images: dict[str, ImageEnvironment] = {}
        for name, value in (images or {}).items():
            self.add(name, value)

    def add(self, name: str, value: ImageEnvironment | Path | str) -> None:
        try:
            parse_reference(name)
        except InvalidImageNameError as error:
            raise ImageError(f"image {name!r}: the name is not an image reference: {error}") from error
        if isinstance(value, ImageEnvironment):
            environment = value._checked(name)
        elif isinstance(value, Path):
            environment = ImageEnvironment(value)._checked(name)
        else:
            environment = ImageEnvironment.parse(value, entry=name)
        self._images[name] = environment

    def find(self, name: str) -> ImageEnvironment | None:
        """The environment of an image, or None. Raises :class:`InvalidImageNameError`."""
        base, tag = parse_reference(name)
        return self._images.get(f"{base}:{tag}") or self._images.get(base)

    def names(self) -> list[str]:
        return sorted(self._images)


def parse_reference(name: str) -> tuple[str, str]:
    """Split an image reference into name and tag ("latest" if it has none)."""
    match = _REFERENCE.fullmatch(name)
    if match is None:
        raise InvalidImageNameError("invalid reference format")
    return match["name"], match["tag"] or "latest"
