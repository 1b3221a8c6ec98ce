"""GGUF (llama.cpp): one file, or `NAME-00001-of-0000N.gguf`; memory-mapped and dequantized on read.

Keys are the tensor names of the file. `config` is the file's metadata except lists of strings (the tokenizer). The
`gguf` package dequantizes quantized tensors to float32.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.folder import Opened, inside
from moe_probe.checkpoint.lazy import Index, LazyTensor, Size, Stored, Typed, itemsize_of
from moe_probe.checkpoint.mapped import FileState, map_file
from moe_probe.checkpoint.slices import covering
from moe_probe.deferred import needed
from moe_probe.errors import CheckpointError, DamagedFile, MissingFiles, reason

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

NAME = "gguf"
SUFFIX = ".gguf"
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
BESIDE = re.compile(r"(mmproj|imatrix)", re.IGNORECASE)  # projectors of other modalities, and statistics
PIECE_ELEMENTS = 1 << 18  # dequantized at a time
PLAIN = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
DAMAGE = (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error, OSError, UnicodeDecodeError)


def package() -> Any:
    """Returns the `gguf` package.

    Raises:
        MissingPackage: the package is not installed.
    """
    with needed("gguf", "gguf", "GGUF files"):
        import gguf
    return gguf


def reader(path: Path) -> Any:
    """Returns the package's reader of a file; it skips the items of arrays, because those of a tokenizer take seconds.

    Raises:
        DamagedFile: the file is truncated, or not a GGUF file.
    """
    gguf = package()

    class Stepping(gguf.GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple:
            if gguf.GGUFValueType(raw_type) != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind, count = int(self._get(orig_offs, np.uint32)[0]), int(self._get(orig_offs + 4, np.uint64)[0])
            inner, start = gguf.GGUFValueType(kind), orig_offs + 12
            if inner == gguf.GGUFValueType.STRING:
                values = self._get(start, np.uint8, _length_of_strings(self.data, start, count))
            elif inner in self.gguf_scalar_to_np:
                values = self._get(start, self.gguf_scalar_to_np[inner], count)
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            types = [gguf.GGUFValueType.ARRAY, inner]
            return 12 + values.nbytes, [np.array([kind]), np.array([count]), values], [2], types

    try:
        opened = Stepping(path)
        if opened.byte_order != "I" or opened.endianess != gguf.GGUFEndian.LITTLE:
            raise CheckpointError(f"{path} is written for big-endian machines, which is not read; convert it again.")
        _require_filled(opened)
        return opened
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DamagedFile:
    return DamagedFile(f"{path} is truncated, damaged or not a GGUF file ({reason(error)}); download it again.")


def _require_filled(opened: Any) -> None:
    """Raises ValueError unless tensors fill the file from the header to the end, as llama.cpp writes them.

    Between tensors, and after the last one, only zeros up to the alignment are allowed.

    Raises:
        ValueError: the header does not match the data.
    """
    if not opened.tensors:
        return
    alignment, end, last = int(opened.alignment), int(opened.data_offset), opened.tensors[-1].field
    header = last.offset + sum(part.nbytes for part in last.parts)
    gaps = [(header, end)]
    for stored in opened.tensors:
        begin = int(stored.data_offset)
        if begin != end + -end % alignment:
            raise ValueError(f"{stored.name} begins at byte {begin}, expected {end + -end % alignment}")
        end = begin + int(stored.n_bytes)
    gaps.append((end, len(opened.data)))
    for start, stop in gaps:
        if stop - start >= alignment or opened.data[start:stop].any():
            raise ValueError(f"bytes {start} to {stop} belong to no tensor")


def _length_of_strings(data: np.ndarray, start: int, count: int) -> int:
    buffer, place = memoryview(cast(Any, data)), start
    for _ in range(count):
        place += 8 + struct.unpack_from("<Q", buffer, place)[0]
    if place > len(buffer):
        raise ValueError("a list of strings goes on behind the end")
    return place - start


def metadata(path: Path, opened: Any) -> dict[str, Any]:
    """Returns the metadata of a file by key, except lists of strings.

    Raises:
        DamagedFile: a value does not have its stated type.
    """
    try:
        return _values_of(opened)
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _values_of(opened: Any) -> dict[str, Any]:
    gguf = package()
    values: dict[str, Any] = {}
    for name, field in opened.fields.items():
        if field.types[:1] == [gguf.GGUFValueType.FLOAT32]:
            values[name] = float(str(field.parts[-1][0]))  # the shortest decimal: 1e-05
        elif field.types[:1] != [gguf.GGUFValueType.ARRAY]:
            values[name] = field.contents()
        elif field.types[1] != gguf.GGUFValueType.STRING:
            values[name] = field.parts[-1].tolist()
    return values


def strings(path: Path, name: str) -> list[str]:
    """Returns a list of strings from the metadata of a file; empty if the file has no such key."""
    field = reader(path).fields.get(name)
    if field is None:
        return []
    data, place, texts = memoryview(cast(Any, np.ascontiguousarray(field.parts[-1]))), 0, []
    while place < len(data):
        length = struct.unpack_from("<Q", data, place)[0]
        texts.append(bytes(data[place + 8 : place + 8 + length]).decode("utf-8", errors="replace"))
        place += 8 + length
    return texts


class GgufFile:
    """One weight file, memory-mapped on first use, and again after it is sent to another process."""

    def __init__(self, path: Path):
        self.path, self.opened = path, FileState.of(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "opened": self.opened}

    @cached_property
    def _mapped(self) -> torch.Tensor:
        return torch.frombuffer(map_file(self.path), dtype=torch.uint8)

    @property
    def data(self) -> torch.Tensor:
        """The memory-mapped bytes of the file.

        Raises:
            DamagedFile: the file was written to or replaced since it was opened.
        """
        self.opened.check(self.path)
        return self._mapped


class Entry(Typed):
    """A tensor of a file as stored; for a quantized tensor, its bytes row by row."""

    def __init__(self, file: GgufFile, start: int, shape: tuple[int, ...], kind: str):
        self.file, self.start, self.shape, self.kind = file, start, Size(shape), kind

    @property
    def span(self) -> tuple[Path, int, int]:
        """The file, and start and length of the tensor's bytes in it."""
        return self.file.path, self.start, self.shape.numel() * itemsize_of(self.kind)

    def read(self, index: Index) -> torch.Tensor:
        _, start, length = self.span
        return self.file.data[start : start + length].view(self.dtype).view(self.shape)[index]


class Blocks(PackedMatrix):
    """The source of a matrix whose rows are quantized blocks, which the package dequantizes to float32."""

    def __init__(self, entry: LazyTensor, kind: str, size: int, length: int):
        self.entry, self.blocks, self.length = entry, kind, length
        shape = (*entry.shape[:-1], entry.shape[-1] // length * size)
        super().__init__(f"{kind} (GGUF)", [entry], shape, "float32", (1, size))

    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        blocks = covering(columns, self.unit[1])
        place = (*lead, rows, slice(blocks.start * self.length, blocks.stop * self.length))
        stored = np.ascontiguousarray(self.entry[place].read().numpy())
        shape = (*stored.shape[:-1], stored.shape[-1] // self.length * self.unit[1])
        return torch.from_numpy(self._dequantized(stored.reshape(-1)).reshape(shape))

    def _dequantized(self, stored: np.ndarray) -> np.ndarray:
        """Returns the values of consecutive blocks, many per row: the package takes 16 rows a step, however short."""
        gguf = package()
        kind, size = gguf.GGMLQuantizationType[self.blocks], self.unit[1]
        values = np.empty((len(stored) // self.length, size), np.float32)
        step = max(1, PIECE_ELEMENTS // size)
        for start in range(0, len(values), step):
            piece = stored[None, start * self.length : (start + step) * self.length]
            values[start : start + step] = gguf.quants.dequantize(piece, kind).reshape(-1, size)
        return values


def _tensor(file: GgufFile, stored: Any) -> LazyTensor:
    """Returns the lazy tensor of a header entry.

    Raises:
        CheckpointError: the package does not dequantize the entry's type.
    """
    gguf, kind = package(), stored.tensor_type.name
    shape = tuple(reversed([int(size) for size in stored.shape]))
    if kind in PLAIN:
        return Stored(Entry(file, int(stored.data_offset), shape, PLAIN[kind]))
    if stored.tensor_type not in gguf.quants._type_traits or len(shape) < 2:
        raise CheckpointError(
            f"{file.path} stores {stored.name!r} as {kind} of shape {shape}, which the gguf package does not "
            "dequantize; use another file of the model."
        )
    size, length = gguf.GGML_QUANT_SIZES[stored.tensor_type]
    rows = Stored(Entry(file, int(stored.data_offset), (*shape[:-1], shape[-1] // size * length), "uint8"))
    return Stored(Blocks(rows, kind, size, length))


def open_gguf(path: Path) -> Opened | None:
    """Opens the model in a file, or the only model in a folder; returns None if the folder has no GGUF model.

    Raises:
        MissingFiles: a part is missing, or the folder holds several models.
        DamagedFile: a file is truncated, or two parts hold the same tensor.
        CheckpointError: a tensor's type is not supported, or the file holds no model.
    """
    names = _parts_of(path) if path.is_file() else _only_model(path)
    if not names:
        return None
    folder = path.parent if path.is_file() else path
    files = [inside(folder, name) for name in names]
    tensors: dict[str, LazyTensor] = {}
    fields: dict[str, Any] = {}
    for place in files:
        opened, file = reader(place), GgufFile(place)
        for stored in opened.tensors:
            if stored.name in tensors:
                raise DamagedFile(f"{place} holds {stored.name!r}, which another part holds too; download it again.")
            tensors[stored.name] = _tensor(file, stored)
        fields = fields or metadata(place, opened)
    _check(files, fields, tensors)
    return Opened({"format": NAME, **fields}, tensors, files)


def _check(files: list[Path], fields: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> None:
    kind = fields.get("general.type", "model")
    if kind != "model" or "general.architecture" not in fields:
        raise CheckpointError(f"{files[0]} holds no model (general.type is {kind!r}); pass the file of the model.")
    parts, stated = fields.get("split.count", 1) or 1, fields.get("split.tensors.count")
    if parts != len(files):
        raise MissingFiles(f"{files[0]} is one of {parts} parts, but there are {len(files)}; download the others too.")
    if stated is not None and stated != len(tensors):
        raise DamagedFile(f"The parts of {files[0]} hold {len(tensors)} tensors, not {stated}; download them again.")


def _parts_of(path: Path) -> list[str]:
    """Returns the names of a file and of the other parts of its model, in order."""
    match = PART.fullmatch(path.name)
    if match is None:
        return [path.name]
    stem, count = match[1], int(match[3])
    names = [f"{stem}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)]
    missing = next((name for name in names if not (path.parent / name).exists()), None)
    if missing is not None:
        raise MissingFiles(f"{path.parent / missing} is missing, one of {count} parts; download it too.")
    return names


def _only_model(folder: Path) -> list[str]:
    names = sorted(place.name for place in folder.iterdir() if place.suffix == SUFFIX and not BESIDE.search(place.name))
    models: dict[str, str] = {}
    for name in names:
        match = PART.fullmatch(name)
        models.setdefault(name if match is None else f"{match[1]} of {int(match[3])}", name)
    if len(models) > 1:
        listed = ", ".join(list(models.values())[:6])
        raise MissingFiles(f"{folder} holds {len(models)} GGUF models ({listed}); pass the file of one of them.")
    return _parts_of(folder / next(iter(models.values()))) if models else []


@dataclass(frozen=True)
class GgufFiles:
    """The format of GGUF files."""

    preference: int = 4
    expects: str = "one GGUF model"
    suffixes: tuple[str, ...] = (SUFFIX,)

    def open(self, folder: Path) -> Opened | None:
        """Opens a folder or file with `open_gguf`."""
        return open_gguf(folder)


FORMAT = GgufFiles()
