"""The progress of a pass, saved whole and read back checked."""

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
    """What has a state: an analysis, or a source."""

    def state(self) -> Mapping[str, np.ndarray]:
        """Its state, as arrays without objects."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take back what `state` gave."""
        ...


class SavedStates:
    """The state of a pass in a folder: one file, replaced whole.

    Args:
        folder: made if need be.
        identity: what the pass is of; the state of another pass is refused.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]):
        self.path = Path(folder) / "state.npz"
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        self.saved_at = time.monotonic()

    def load(self, source: Remembering, analyses: Sequence[Remembering]) -> int:
        """Give the analyses what they had seen; returns how many steps that was, 0 for a new pass.

        Raises:
            NotFitting: the folder holds the state of another pass.
            Damaged: the file is not what was saved.
        """
        if not self.path.exists():
            return 0
        saved = load_arrays(self.path, kind=KIND, schema=SCHEMA, remedy="delete it to begin anew")
        if saved.about.get("key") != self.key:
            raise NotFitting(
                f"{self.path} belongs to another model, corpus or set of analyses; choose another checkpoint_dir."
            )
        for number, analysis in enumerate(analyses):
            analysis.restore(below(saved.arrays, f"{number}/"))
        source.restore(below(saved.arrays, "source/"))
        return int(saved.about["done"])

    def save(self, source: Remembering, analyses: Sequence[Remembering], done: int) -> None:
        """Write the states after `done` steps."""
        arrays = {f"{n}/{k}": v for n, analysis in enumerate(analyses) for k, v in analysis.state().items()}
        arrays |= {f"source/{name}": value for name, value in source.state().items()}
        save_arrays(self.path, arrays, kind=KIND, schema=SCHEMA, about={"key": self.key, "done": done})
        self.saved_at = time.monotonic()

    def save_if_due(self, source: Remembering, analyses: Sequence[Remembering], done: int) -> None:
        """`save`, if the last time is a while ago."""
        if time.monotonic() - self.saved_at > SECONDS:
            self.save(source, analyses, done)


def below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
