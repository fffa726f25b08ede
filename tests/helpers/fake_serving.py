"""A folder of fake model versions, an image that serves them, and specs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nighttrain.providers.registry.artifacts import manifest_of_directory
from nighttrain.providers.serving.spec import ServingSpec

FAKE_IMAGE = Path(__file__).parents[1] / "providers" / "serving" / "fake_image"
IMAGE = f"{sys.executable}:{FAKE_IMAGE}"
"""For the embedded cluster's image table."""

MODEL = "airline-delay"


@dataclass(frozen=True)
class FakeStore:
    """Model versions as folders."""

    path: Path

    def add(self, version: str, text: str | None = None) -> str:
        """Write a version whose server answers ``text``; the digest of its files."""
        folder = self.path / MODEL / version
        (folder / "code").mkdir(parents=True)
        (folder / "MLmodel").write_text("flavors: {}\n")
        (folder / "model.txt").write_text(text or f"version {version}")
        (folder / "code" / "änder.py").write_text(f"VERSION = {version}\n")
        return manifest_of_directory(folder).digest


def fake_spec(store: FakeStore, version: str = "1", **given: Any) -> ServingSpec:
    """A valid spec; any field may be given."""
    fields: dict[str, Any] = {
        "endpoint": "delay",
        "namespace": "default",
        "image": "model-server:1",
        "model_name": MODEL,
        "version": version,
        "artifact_digest": "0" * 64,
        "tracking_uri": "http://mlflow.mlops.svc:5000",
        "env_vars": {"FAKE_STORE": str(store.path)},
        # Tests wait for the end of pods: nobody needs a moment to stop sending.
        "drain_seconds": 0.2,
        "termination_grace_period": 5,
        "startup_timeout_seconds": 60,
    }
    return ServingSpec(**(fields | given))
