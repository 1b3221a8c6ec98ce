"""Merged states on disk, so that an interrupted pass goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import InputError
from moe_probe.files import whole_file

SECONDS = 30.0  # between two states of a pass batch by batch


class Progressed:
    """The state of a pass in a folder: one file, replaced whole.

    Args:
        folder: made if need be.
        identity: what the pass is of; a state of another pass is refused.
    """

    def __init__(self, folder: str | Path, identity: dict):
        self.path = Path(folder) / "state.npz"
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        self.saved_at = time.monotonic()

    def load(self, analyses: Sequence[Analysis]) -> int:
        """Give the analyses what they had seen; returns how many batches or layers that was, 0 for a new pass.

        Raises:
            InputError: the folder holds the state of another pass, or a damaged one.
        """
        if not self.path.exists():
            return 0
        try:
            with np.load(self.path, allow_pickle=False) as file:
                state = dict(file)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self.path} is damaged ({error}); delete it to begin anew.") from error
        if str(state["key"]) != self.key:
            raise InputError(
                f"{self.path} belongs to another model, corpus or set of analyses; choose another checkpoint_dir."
            )
        for number, analysis in enumerate(analyses):
            prefix = f"{number}/"
            analysis.restore({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        return int(state["done"])

    def save(self, analyses: Sequence[Analysis], done: int) -> None:
        """Write the states after `done` batches or layers."""
        arrays = {f"{n}/{k}": v for n, analysis in enumerate(analyses) for k, v in analysis.state().items()}
        with whole_file(self.path) as partial, partial.open("wb") as file:
            np.savez(file, key=self.key, done=done, **arrays)
        self.saved_at = time.monotonic()

    def save_sometimes(self, analyses: Sequence[Analysis], done: int, last: bool) -> None:
        """`save`, if the last time is a while ago."""
        if last or time.monotonic() - self.saved_at > SECONDS:
            self.save(analyses, done)
