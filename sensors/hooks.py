"""The hook's former place: connections and DAGs of earlier versions name it."""

from __future__ import annotations

from nighttrain.sensors.common.hooks import MLflowHook

__all__ = ["MLflowHook"]
