"""Where the data of PersistentVolumeClaims are."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class ClaimFolders:
    """Where the claims' data are: a folder for each, named by the claim's uid."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def make(self, uid: str) -> None:
        """Have the folder, which every user in a container may write to, and nobody else may reach."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self.folder(uid)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)

    def folder(self, uid: str) -> Path:
        return self._root / uid

    def remove(self, uid: str) -> None:
        """The claim is gone, and its data with it."""
        shutil.rmtree(self.folder(uid), ignore_errors=True)
