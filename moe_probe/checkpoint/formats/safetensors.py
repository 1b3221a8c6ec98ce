"""Checkpoints in safetensors files: one file, or shards with `model.safetensors.index.json`.

Files are memory-mapped, so that a file larger than the machine's memory opens too.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from safetensors import SafetensorError, safe_open

from moe_probe.checkpoint.folder import FilesOfOneKind
from moe_probe.checkpoint.lazy import Index, LazyTensor, Size, Stored, Typed
from moe_probe.checkpoint.mapped import FileState, map_file
from moe_probe.errors import CheckpointError, DamagedFile, reason

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

# torch's names of dtypes, by their names in headers
KINDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip


class SafetensorsFile:
    """One weight file, opened on first use, and again after it is sent to another process."""

    SINGLE: ClassVar[str] = "model.safetensors"
    INDEX: ClassVar[str] = "model.safetensors.index.json"

    def __init__(self, path: Path):
        self.path = path
        self.opened = FileState.of(path)

    def __getstate__(self) -> dict:
        return {"path": self.path, "opened": self.opened}

    @property
    def data(self) -> torch.Tensor:
        """The memory-mapped bytes of all tensors (uint8): everything after the header.

        Raises:
            DamagedFile: the file was written to or replaced since it was opened.
        """
        self.opened.check(self.path)
        return self._mapped

    @cached_property
    def data_start(self) -> int:
        """Offset in the file at which the tensors' bytes begin."""
        with open(self.path, "rb") as file:
            return 8 + int.from_bytes(file.read(8), "little")

    @cached_property
    def _mapped(self) -> torch.Tensor:
        mapped = map_file(self.path)
        return (
            torch.frombuffer(mapped, dtype=torch.uint8, offset=self.data_start)
            if len(mapped) > self.data_start
            else torch.empty(0, dtype=torch.uint8)
        )

    def tensors(self) -> dict[str, LazyTensor]:
        """Returns every tensor of the header by key, unread."""
        try:
            with safe_open(self.path, framework="np"):
                pass  # checks that the header is valid and covers the file
        except (SafetensorError, OSError, MemoryError) as error:
            raise DamagedFile(
                f"{self.path} is truncated or damaged ({reason(error)}); download the file again."
            ) from error
        with open(self.path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        return {key: Stored(SafetensorsEntry(self, key, entry)) for key, entry in header.items()}


class SafetensorsEntry(Typed):
    """One tensor of a file."""

    def __init__(self, file: SafetensorsFile, key: str, entry: dict):
        if entry["dtype"] not in KINDS:
            raise CheckpointError(f"{file.path} stores {key!r} as {entry['dtype']}, a type that is not read.")
        self.file = file
        self.start, self.stop = entry["data_offsets"]
        self.shape, self.kind = Size(entry["shape"]), KINDS[entry["dtype"]]

    def array(self, index: Index) -> np.ndarray:
        """Returns the integers at `index`, read without torch."""
        self.file.opened.check(self.file.path)
        start, count = self.file.data_start + self.start, self.stop - self.start
        stored = np.fromfile(self.file.path, np.uint8, count, offset=start)
        return stored.view(self.kind).reshape(self.shape)[index]

    @property
    def span(self) -> tuple[Path, int, int]:
        """The file, and start and length of the tensor's bytes in it."""
        return self.file.path, self.file.data_start + self.start, self.stop - self.start

    def read(self, index: Index) -> torch.Tensor:
        values = self.file.data[self.start : self.stop]
        if values.data_ptr() % self.dtype.itemsize:  # values are not aligned to the item size
            each = values.view(*self.shape, self.dtype.itemsize)[index]
            return each.clone(memory_format=torch.contiguous_format).view(self.dtype).squeeze(-1)
        return values.view(self.dtype).view(self.shape)[index]


FORMAT = FilesOfOneKind(SafetensorsFile, preference=0)
