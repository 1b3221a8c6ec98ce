"""Grok-1's original release: a folder `ckpt-0` with one pickle per tensor, `tensor00000_000`, `tensor00001_000`, ...

The files are numbered, not named, and there is no configuration. A user may add a `model_config.json` with the numbers
that the release's own `run.py` hard-codes. Matrices are int8 with bfloat16 scales, and are dequantized on read. The
pickles are not run, and a slice of a tensor reads only its bytes (see `array_pickle`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.checkpoint.array_pickle import Array, Payload, read_pickle
from moe_probe.checkpoint.encodings.grouped_int8 import GroupScaled
from moe_probe.checkpoint.folder import Opened, inside, present, read_json
from moe_probe.checkpoint.lazy import Index, LazyTensor, Permuted, Size, Stored, Typed
from moe_probe.checkpoint.mapped import FileState, map_file
from moe_probe.errors import CheckpointError, DamagedFile, MissingFiles, UnsafeFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

NAME = "grok-1 release"
FOLDER = "ckpt-0"
CONFIG = "model_config.json"
FILE_NAME = re.compile(r"tensor[0-9]{5,20}_[0-9]{3,9}")


def open_grok(folder: Path) -> Opened | None:
    """Opens the release in `folder` (or `folder/ckpt-0`); returns None if no file has such a name.

    Keys are the positions of the tensors, `tensor00000`, ...; a quantized tensor appears as its product with the
    scales. `config` is `{"format": "grok-1 release"}` and the fields of a `model_config.json` in the folder of the
    tensors or in one of the two folders above it.

    Raises:
        CheckpointError: a number is missing, or a file is truncated, unsafe, outside the folder or not an array.
    """
    tensors = _tensor_folder(folder)
    names = sorted(path.name for path in tensors.iterdir() if FILE_NAME.fullmatch(path.name))
    if not names:
        return None
    _check_sequence(tensors, names)
    files = [inside(tensors, name) for name in names]
    return Opened(
        {"format": NAME, **_model_config(tensors)},
        {path.name.partition("_")[0]: _open_tensor(path) for path in files},
        files,
    )


def _tensor_folder(folder: Path) -> Path:
    if not (folder / FOLDER).is_dir():
        return folder
    if not (folder / FOLDER).resolve().is_relative_to(folder.resolve()):
        raise UnsafeFile(
            f"{folder / FOLDER} is a link that leads out of the folder, which is refused; pass that folder."
        )
    return folder / FOLDER


def _check_sequence(folder: Path, names: list[str]) -> None:
    for position, name in enumerate(names):
        number, _, shard = name.removeprefix("tensor").partition("_")
        if int(shard):
            raise CheckpointError(f"{folder / name} is a part of a tensor that is split over hosts, which is not read.")
        if int(number) != position:
            raise MissingFiles(
                f"tensor{position:05d}_000 is missing from {folder}, which goes on to {names[-1]}; download it again."
            )


def _model_config(tensors: Path) -> dict:
    absolute = tensors.absolute()
    for place in (absolute, absolute.parent, absolute.parent.parent):
        if present(place, CONFIG):
            return read_json(inside(place, CONFIG))
    return {}


def _open_tensor(path: Path) -> LazyTensor:
    content = read_pickle(path)
    if isinstance(content, Array):
        return _stored(path, None, content)
    weight, scales = (_stored(path, part, content[part]) for part in ("weight", "scales"))
    rows = weight.shape[-2] if weight.ndim > 1 else 0
    groups = scales.shape[-2] if scales.ndim > 1 else 0
    fits = (*weight.shape[:-2], groups, *weight.shape[-1:]) == scales.shape and groups and rows % groups == 0
    if weight.kind != "int8" or scales.kind == "int8" or not fits:
        raise DamagedFile(
            f"{path} holds {weight.kind} weights of shape {tuple(weight.shape)} with {scales.kind} scales of shape "
            f"{tuple(scales.shape)}, expected int8 (..., K, N) and bfloat16 (..., G, N) with G a divisor of K."
        )
    return Stored(GroupScaled(weight, scales))


def _stored(path: Path, part: str | None, array: Array) -> LazyTensor:
    if not array.fortran:
        return Stored(ArraySource(path, part, array))
    transposed = Array(array.shape[::-1], array.kind, False, array.data)
    return Permuted(Stored(ArraySource(path, part, transposed)), tuple(reversed(range(len(array.shape)))))


class ArraySource(Typed):
    """One array of a pickle, mapped on each read; read whole if the pickle escapes its bytes (protocols 0 to 2)."""

    def __init__(self, path: Path, part: str | None, array: Array):
        self.path, self.part, self.opened = path, part, FileState.of(path)
        assert array.kind is not None  # `Array.check` ensures this
        self.shape, self.kind = Size(array.shape), array.kind
        self.payload = array.data if isinstance(array.data, Payload) else None

    def read(self, index: Index) -> torch.Tensor:
        values = self.raw()
        if values.data_ptr() % self.dtype.itemsize:  # a pickle does not align values
            each = values.view(*self.shape, self.dtype.itemsize)[index]
            return each.clone(memory_format=torch.contiguous_format).view(self.dtype).squeeze(-1)
        return values.view(self.dtype).view(self.shape)[index]

    def raw(self) -> torch.Tensor:
        """Returns the bytes of the values, memory-mapped unless the pickle escapes them."""
        self.opened.check(self.path)
        if self.payload is None:
            content = read_pickle(self.path)
            array = content if isinstance(content, Array) else content[self.part]
            return torch.frombuffer(bytearray(array.data), dtype=torch.uint8)
        start, length = self.payload.start, self.payload.length
        return torch.frombuffer(map_file(self.path), dtype=torch.uint8, offset=start, count=length)


@dataclass(frozen=True)
class GrokRelease:
    """The format of Grok-1: a folder `ckpt-0` of pickles."""

    preference: int = 2
    expects: str = "the ckpt-0 of Grok-1"

    def open(self, folder: Path) -> Opened | None:
        """Opens a folder with `open_grok`."""
        return open_grok(folder)


FORMAT = GrokRelease()
