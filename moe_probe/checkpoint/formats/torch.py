"""Checkpoints in torch's `.bin` files: one file, or shards with `pytorch_model.bin.index.json`.

Files are memory-mapped and unpickled with `weights_only=True`: a pickle that names anything but tensors is refused
before any of it runs. Files in torch's format of before 1.6 cannot be mapped and are read whole. What plain files hold
is told without torch (`torch_headers`), which reads the values then.
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

FOREIGN_GLOBAL = re.compile(r"GLOBAL (\S+)")  # how torch names it
# what torch's unpickler was seen to raise on damaged files
UNPICKLING_ERRORS = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, AssertionError, TypeError,
    AttributeError, OverflowError, MemoryError, struct.error,
)  # fmt: skip


class TorchFile:
    """One file; opened on first use, and again after being sent to another process."""

    SINGLE: ClassVar[str] = "pytorch_model.bin"
    INDEX: ClassVar[str] = "pytorch_model.bin.index.json"

    def __init__(self, path: Path):
        self.path = path
        self.opened = FileState.of(path)

    def __getstate__(self) -> dict:
        return {"path": self.path, "opened": self.opened}

    def unpickle(self) -> Any:
        """What the file holds, tensors mapped.

        Raises:
            DamagedFile: the file is damaged.
            UnsafeFile: the file names code to run.
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
        """The state dict."""
        return self.as_state(self.named(self.unpickle()))

    @cached_property
    def headers(self) -> Any | None:
        """What the file holds, with headers in the place of tensors; None where only torch can tell."""
        return read_headers(self.path)

    def named(self, content: Any) -> Any:
        """The state dict in what the file holds."""
        return content

    def as_state(self, value: Any) -> dict[str, torch.Tensor]:
        """`value`, if it is names to tensors.

        Raises:
            DamagedFile: it is something else.
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
        """Every entry of the state dict, unread."""
        told = None if self.headers is None else self.named(self.headers)
        headers = told if is_state(told) else {key: header_of(tensor) for key, tensor in self.state.items()}
        return {key: Stored(TorchEntry(self, key, header)) for key, header in headers.items()}


def header_of(tensor: torch.Tensor) -> TensorHeader:
    """Shape and type of a tensor."""
    return TensorHeader(Size(tensor.shape), kind_of(tensor.dtype))


def is_state(headers: Any) -> TypeGuard[dict[str, TensorHeader]]:
    """Whether headers are those of a state dict: names to tensors."""
    return isinstance(headers, dict) and all(
        isinstance(key, str) and isinstance(header, TensorHeader) for key, header in headers.items()
    )


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor lie in its storage as they are."""
    return not (tensor.is_nested or tensor.is_quantized or tensor.is_meta) and tensor.layout is torch.strided


class TorchEntry(Typed):
    """One tensor of a file."""

    def __init__(self, file: TorchFile, key: str, header: TensorHeader):
        self.file, self.key = file, key
        self.shape, self.kind = header.shape, header.kind

    def raw(self) -> torch.Tensor:
        """The bytes of the storage that the tensor lies in."""
        self.file.opened.check(self.file.path)
        return torch.empty(0, dtype=torch.uint8).set_(self.file.state[self.key].untyped_storage())

    def read(self, index: Index) -> torch.Tensor:
        self.file.opened.check(self.file.path)
        return self.file.state[self.key][index]


FORMAT = FilesOfOneKind(TorchFile, preference=1)
