"""The progress of a pass, saved whole and read back checked."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import Damaged, NotFitting
from moe_probe.files import whole_file
from moe_probe.routing import Source

SECONDS = 30.0  # between two states of a pass
FORMAT = 2
FACTS = ("format", "key", "done", "digest")


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

    def load(self, source: Source, analyses: Sequence[Analysis]) -> int:
        """Give the analyses what they had seen; returns how many steps that was, 0 for a new pass.

        Raises:
            NotFitting: the folder holds the state of another pass.
            Damaged: the file is not what was saved.
        """
        if not self.path.exists():
            return 0
        state = self._read()
        done = int(state["done"])
        arrays = {name: value for name, value in state.items() if name not in FACTS}
        if str(state["digest"]) != digest(arrays, done):
            raise Damaged(f"{self.path} was changed after it was saved; delete it to begin anew.")
        for number, analysis in enumerate(analyses):
            analysis.restore(below(arrays, f"{number}/"))
        source.restore(below(arrays, "source/"))
        return done

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                state = dict(file)
        except (OSError, ValueError, EOFError, BadZipFile, NotImplementedError, MemoryError) as error:
            raise Damaged(f"{self.path} is damaged ({error}); delete it to begin anew.") from error
        lacking = [name for name in FACTS if name not in state or state[name].ndim]
        if lacking or str(state["format"]) != str(FORMAT):
            raise Damaged(f"{self.path} is of another version of moe_probe or damaged; delete it to begin anew.")
        if str(state["key"]) != self.key:
            raise NotFitting(
                f"{self.path} belongs to another model, corpus or set of analyses; choose another checkpoint_dir."
            )
        return state

    def save(self, source: Source, analyses: Sequence[Analysis], done: int) -> None:
        """Write the states after `done` steps."""
        arrays = {f"{n}/{k}": v for n, analysis in enumerate(analyses) for k, v in analysis.state().items()}
        arrays |= {f"source/{name}": value for name, value in source.state().items()}
        facts = {"format": FORMAT, "key": self.key, "done": done, "digest": digest(arrays, done)}
        with whole_file(self.path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **facts, **arrays)
        self.saved_at = time.monotonic()

    def save_if_due(self, source: Source, analyses: Sequence[Analysis], done: int, last: bool) -> None:
        """`save`, if the last time is a while ago."""
        if last or time.monotonic() - self.saved_at > SECONDS:
            self.save(source, analyses, done)


def below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def digest(arrays: Mapping[str, np.ndarray], done: int) -> str:
    """Identifies names, dtypes, shapes and values."""
    content = hashlib.blake2b(str(done).encode(), digest_size=16)
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        content.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
        content.update(value.tobytes())
    return content.hexdigest()
