"""Reads the headers of a file of `torch.save` without torch, and without reading values.

Since torch 1.6 such a file is a ZIP archive of uncompressed entries: `NAME/data.pkl` describes the content, and each
storage is an entry `NAME/data/KEY`. Python's unpickler reads the description, with stand-ins for the few names that
plain tensors need. A file that uses any other name is left to torch. Source: torch 2.13, `serialization.py` and
`_utils.py`.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_probe.checkpoint.formats.safetensors import KINDS
from moe_probe.checkpoint.lazy import Size, itemsize_of

PROTOCOL = b"\x80\x02"  # first bytes of the pickles that torch writes by default
UNTYPED = "bytes"
STORAGES = {
    "torch.DoubleStorage": "float64", "torch.FloatStorage": "float32", "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16", "torch.LongStorage": "int64", "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16", "torch.CharStorage": "int8", "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool", "torch.storage.UntypedStorage": UNTYPED,
}  # fmt: skip
# errors that Python's unpickler and ZIP reader raise on damaged files and on files of another format
UNTOLD = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, EOFError, OSError, ValueError, LookupError,
    TypeError, AttributeError, OverflowError, MemoryError, StopIteration,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """The dtype of a storage, and its length in bytes."""

    kind: str
    length: int


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Shape and dtype of a tensor."""

    shape: Size
    kind: str


def read_headers(path: Path) -> Any | None:
    """Returns the content of a file with a `TensorHeader` for each tensor, or None if only torch can read it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return HeaderUnpickler(archive).load()
    except UNTOLD:
        return None


class HeaderUnpickler(pickle.Unpickler):
    """Python's unpickler, restricted to the names in `NAMES`, storages and dtypes."""

    def __init__(self, archive: zipfile.ZipFile):
        self.entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in self.entries.values()):
            raise zipfile.BadZipFile("compressed entries")
        (name,) = (name for name in self.entries if name.count("/") == 1 and name.endswith("/data.pkl"))
        self.root, program = name.removesuffix(".pkl"), archive.read(name)
        if not program.startswith(PROTOCOL):
            raise pickle.UnpicklingError("a protocol that torch does not load")
        super().__init__(io.BytesIO(program))

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in KINDS.values():
            return name
        full = f"{module}.{name}"
        return STORAGES[full] if full in STORAGES else NAMES[full]

    def persistent_load(self, pid: Any) -> Storage:
        tag, kind, key, _, count = pid
        length = count * (1 if kind == UNTYPED else itemsize_of(kind))
        if tag != "storage" or self.entries[f"{self.root}/{key}"].file_size != length:
            raise pickle.UnpicklingError("a storage of another size")
        return Storage(kind, length)


def _tensor(storage: Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: object) -> TensorHeader:
    return _inside(storage, storage.kind, offset, shape, strides)


def _typed(
    storage: Storage, offset: int, shape: Sequence[int], strides: Sequence[int], _: bool, hooks: object, kind: str,
    *_metadata: object,
) -> TensorHeader:  # fmt: skip
    return _inside(storage, kind, offset, shape, strides)


def _inside(storage: Storage, kind: str, offset: int, shape: Sequence[int], strides: Sequence[int]) -> TensorHeader:
    """Returns the header of a tensor; raises UnpicklingError if values lie outside of its storage."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    whole = min([offset, *shape, *strides], default=0) >= 0 and kind in KINDS.values()
    if not whole or (math.prod(shape) and (last + 1) * itemsize_of(kind) > storage.length):
        raise pickle.UnpicklingError("a tensor outside of its storage")
    return TensorHeader(Size(shape), kind)


def _parameter(tensor: TensorHeader, *_: object) -> TensorHeader:
    return tensor


NAMES: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed,
    "torch._utils._rebuild_parameter": _parameter,
}
