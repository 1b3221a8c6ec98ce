"""Checkpoints in torch's `.bin` files: one file, or shards with `pytorch_model.bin.index.json`.

Files are memory-mapped and unpickled with `weights_only=True`: a pickle that names anything but tensors is refused
before any of it runs. Files in torch's format from before 1.6 cannot be mapped and are read whole. The headers of plain
files are read without torch (`torch_headers`); torch then reads the values.
"""

from __future__ import annotations

import pickle
import re
import struct
import tarfile
import zipfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

from moe_probe.checkpoint.folder import FilesOfOneKind
from moe_probe.checkpoint.lazy import Index, LazyTensor, Size, Stored, Typed, kind_of
from moe_probe.checkpoint.mapped import FileState
from moe_probe.checkpoint.torch_headers import TensorHeader, read_headers
from moe_probe.errors import DamagedFile, UnsafeFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

FOREIGN_GLOBAL = re.compile(r"GLOBAL (\S+)")  # in torch's message about a global that it refuses
# errors that torch's unpickler has been observed to raise on damaged files
UNPICKLING_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, AssertionError, TypeError,
    AttributeError, OverflowError, MemoryError, struct.error,
)  # fmt: skip


class TorchFile:
    """One weight file, opened on first use, and again after it is sent to another process."""

    SINGLE: ClassVar[str] = "pytorch_model.bin"
    INDEX: ClassVar[str] = "pytorch_model.bin.index.json"

    def __init__(self, path: Path):
        self.path = path
        self.opened = FileState.of(path)

    def __getstate__(self) -> dict:
        return {"path": self.path, "opened": self.opened}

    def unpickle(self) -> Any:
        """Returns the content of the file, with its tensors memory-mapped.

        Raises:
            DamagedFile: the file is damaged.
            UnsafeFile: the pickle names code to run.
        """
        if tarfile.is_tarfile(self.path):  # torch would unpack it on the disk
            raise DamagedFile(f"{self.path} is an archive of torch before 0.1.10, which is not read; save it again.")
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path))
        except UNPICKLING_ERRORS as error:
            named = FOREIGN_GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
            if named:
                raise UnsafeFile(
                    f"{self.path} is not a plain file of tensors: its pickle names {named[1]}, code that it wants to "
                    "run, which is refused; use a safetensors release of the model."
                ) from error
            raise DamagedFile(
                f"{self.path} is truncated or damaged, or torch.save did not write it; download it again."
            ) from error

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The state dict of the file, read by torch."""
        return self.as_state(self.named(self.unpickle()))

    @cached_property
    def headers(self) -> Any | None:
        """The content of the file, with headers in place of tensors; None if only torch can read it."""
        return read_headers(self.path)

    def named(self, content: Any) -> Any:
        """Returns the state dict within the content of the file."""
        return content

    def as_state(self, value: Any) -> dict[str, torch.Tensor]:
        """Returns `value` as a state dict of detached tensors.

        Raises:
            DamagedFile: `value` is not a mapping from names to plain tensors.
        """
        if not isinstance(value, dict) or not all(
            isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items()
        ):
            raise DamagedFile(f"{self.path} does not hold a state dict (names to tensors).")
        odd = next((key for key, tensor in value.items() if not is_plain(tensor)), None)
        if odd is not None:
            raise DamagedFile(
                f"{self.path} holds {odd!r} as a sparse, quantized, nested or meta tensor, expected a plain one; save "
                "the model dense and unquantized."
            )
        return {key: tensor.detach() for key, tensor in value.items()}

    def tensors(self) -> dict[str, LazyTensor]:
        """Returns every tensor of the state dict by key, unread."""
        told = None if self.headers is None else self.named(self.headers)
        headers = told if is_state(told) else {key: header_of(tensor) for key, tensor in self.state.items()}
        return {key: Stored(TorchEntry(self, key, header)) for key, header in headers.items()}


def header_of(tensor: torch.Tensor) -> TensorHeader:
    """Returns the shape and dtype of a tensor."""
    return TensorHeader(Size(tensor.shape), kind_of(tensor.dtype))


def is_state(headers: Any) -> TypeGuard[dict[str, TensorHeader]]:
    """Whether headers are those of a state dict: a mapping from names to tensor headers."""
    return isinstance(headers, dict) and all(
        isinstance(key, str) and isinstance(header, TensorHeader) for key, header in headers.items()
    )


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor lie in its storage directly: it is not sparse, nested, quantized or meta."""
    return not (tensor.is_nested or tensor.is_quantized or tensor.is_meta) and tensor.layout is torch.strided


class TorchEntry(Typed):
    """One tensor of a file."""

    def __init__(self, file: TorchFile, key: str, header: TensorHeader):
        self.file, self.key = file, key
        self.shape, self.kind = header.shape, header.kind

    def raw(self) -> torch.Tensor:
        """Returns the bytes of the storage that holds the tensor."""
        self.file.opened.check(self.file.path)
        return torch.empty(0, dtype=torch.uint8).set_(self.file.state[self.key].untyped_storage())

    def read(self, index: Index) -> torch.Tensor:
        self.file.opened.check(self.file.path)
        return self.file.state[self.key][index]


FORMAT = FilesOfOneKind(TorchFile, preference=1)
