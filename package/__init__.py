"""Train on Kubernetes, track in MLflow, gate on the model registry, roll out to serving."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """The version as it is installed, looked up when somebody asks: every DAG file imports this."""
        if name == "__version__":
            from importlib.metadata import version

            return version("nighttrain")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
