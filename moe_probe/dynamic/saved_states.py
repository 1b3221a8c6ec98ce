"""Saves the progress of a pass, and restores it after checking it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moe_probe.checked import load_arrays, save_arrays
from moe_probe.errors import NotFitting

SECONDS = 30.0  # between two states of a pass
KIND, SCHEMA = "saved progress", 2


class Remembering(Protocol):
    """Anything with a state: an analysis, or a source."""

    def state(self) -> Mapping[str, np.ndarray]:
        """Returns the state as arrays without objects."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restores what `state` returned."""
        ...


class SavedStates:
    """The state of a pass in a folder: one file, which is replaced as a whole.

    Args:
        folder: created if it is missing.
        identity: description of the pass; the state of a pass with another one is refused.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]):
        self.path = Path(folder) / "state.npz"
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        self.saved_at = time.monotonic()

    def load(self, source: Remembering, analyses: Sequence[Remembering]) -> int:
        """Restores the states of the source and the analyses; returns the number of steps done, 0 for a new pass.

        Raises:
            NotFitting: the folder holds the state of another pass.
            Damaged: the file was changed or cut off after it was saved.
        """
        if not self.path.exists():
            return 0
        saved = load_arrays(self.path, kind=KIND, schema=SCHEMA, remedy="delete it to start over")
        if saved.about.get("key") != self.key:
            raise NotFitting(
                f"{self.path} belongs to another model, corpus or set of analyses; choose another checkpoint_dir."
            )
        for number, analysis in enumerate(analyses):
            analysis.restore(below(saved.arrays, f"{number}/"))
        source.restore(below(saved.arrays, "source/"))
        return int(saved.about["done"])

    def save(self, source: Remembering, analyses: Sequence[Remembering], done: int) -> None:
        """Writes the states after `done` steps."""
        arrays = {f"{n}/{k}": v for n, analysis in enumerate(analyses) for k, v in analysis.state().items()}
        arrays |= {f"source/{name}": value for name, value in source.state().items()}
        save_arrays(self.path, arrays, kind=KIND, schema=SCHEMA, about={"key": self.key, "done": done})
        self.saved_at = time.monotonic()

    def save_if_due(self, source: Remembering, analyses: Sequence[Remembering], done: int) -> None:
        """Calls `save` if the last save is long enough ago."""
        if time.monotonic() - self.saved_at > SECONDS:
            self.save(source, analyses, done)


def below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
