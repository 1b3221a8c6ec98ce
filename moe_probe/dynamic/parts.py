"""An analysis made of others that look on side by side."""

from __future__ import annotations

from typing import Self

import numpy as np

from moe_probe.dynamic.analysis import Analysis
from moe_probe.routing import LayerBatch


class Parts(Analysis):
    """Hands every batch to each of its parts; `result` is up to the subclass."""

    def __init__(self, **parts: Analysis):
        self._parts = parts

    def update(self, batch: LayerBatch) -> None:
        for part in self._parts.values():
            part.update(batch)

    def merge(self, other: Self) -> None:
        for name, part in self._parts.items():
            part.merge(other._parts[name])

    def state(self) -> dict[str, np.ndarray]:
        return {f"{name}:{key}": v for name, part in self._parts.items() for key, v in part.state().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        for name, part in self._parts.items():
            prefix = f"{name}:"
            part.restore({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})
