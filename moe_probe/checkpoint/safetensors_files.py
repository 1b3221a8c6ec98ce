"""Checkpoints in safetensors files, memory-mapped: one file, or shards with `model.safetensors.index.json`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import _TYPES as TORCH_DTYPES

from moe_probe.checkpoint.lazy import Index, LazyTensor, Stored
from moe_probe.errors import CheckpointError


class SafetensorsFile:
    """One file; opened on first use, and again after being sent to another process."""

    SINGLE = "model.safetensors"
    INDEX = "model.safetensors.index.json"

    def __init__(self, path: Path):
        self.path = path

    def __getstate__(self) -> dict:
        return {"path": self.path}

    @cached_property
    def handle(self) -> safe_open:
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path} is truncated or damaged ({error}); download the file again."
            ) from error

    def tensors(self) -> dict[str, LazyTensor]:
        """Every entry of the header, unread."""
        return {key: Stored(SafetensorsEntry(self, key)) for key in self.handle.keys()}  # noqa: SIM118 - no mapping


class SafetensorsEntry:
    """One tensor of a file."""

    def __init__(self, file: SafetensorsFile, key: str):
        self.file, self.key = file, key
        header = file.handle.get_slice(key)
        self.shape = torch.Size(header.get_shape())
        stored = header.get_dtype()
        if stored not in TORCH_DTYPES:
            raise CheckpointError(f"{file.path} stores {key!r} as {stored}, a type that this version of torch lacks.")
        self.dtype = TORCH_DTYPES[stored]

    def read(self, index: Index) -> torch.Tensor:
        return self.file.handle.get_tensor(self.key)[index]
