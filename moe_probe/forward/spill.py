"""Stores hidden states on disk between two layers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch


class Spill:
    """Copies a batch's hidden states into one of two memory-mapped files in turn; the system frees their pages.

    Args:
        folder: where the temporary files go; they are unlinked at once, so that nothing stays behind after a crash.
    """

    def __init__(self, folder: str | None = None):
        self.folder = folder
        self.maps: list[torch.Tensor] = []
        self.turn = 0

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The same values, in a mapped file; tensors that are not on the CPU are left where they are."""
        if hidden_states.device.type != "cpu":
            return hidden_states
        if len(self.maps) < 2:
            self.maps.append(self._map(hidden_states))
        self.turn = (self.turn + 1) % 2 if len(self.maps) == 2 else 0
        return self.maps[self.turn].copy_(hidden_states)

    def _map(self, like: torch.Tensor) -> torch.Tensor:
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="moe-probe-", delete=False) as file:
            path = Path(file.name)
        try:
            flat = torch.from_file(str(path), shared=True, size=like.numel(), dtype=like.dtype)
        finally:
            path.unlink()
        return flat.view(like.shape)

    def close(self) -> None:
        """Let go of the files."""
        self.maps.clear()
