"""The identity of stored weights: a hash of a small part of the bytes.

The hash in the name of a file of huggingface_hub's cache identifies it. Small checkpoints are read completely. Of
larger ones, all of the routers and blocks of every matrix are read (each expert of a fused tensor counts as a matrix);
sizes and modification times of the files reveal changes outside of the blocks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from moe_probe.checkpoint.folder import BLOBS
from moe_probe.checkpoint.lazy import Index, LazyTensor, TensorSource
from moe_probe.checkpoint.mapped import FileState

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

READ_WHOLE = 2**24  # checkpoints of at most so many bytes
WHOLE_ROUTER = 2**25  # bytes; what is larger is no router
ROUTER = re.compile(r"(^|[._])(gate|router|wg|wg_reduction)([._]|$)(?!proj)")
BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
BLOCK, SHARE = 512, 128  # bytes of a block; one byte in so many is read
SPACING = 400 * 1024  # bytes between blocks of a matrix, so that their pages too are 1 % of it
BLOCKS = 100_000  # in all, at most 4 of a matrix and at least one
PART = 2**21  # values that are summed at a time


def digest(facts: Any) -> str:
    """Sixteen hexadecimal digits for anything that JSON holds; other values by their `repr`."""
    text = json.dumps(facts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def identity_of_files(files: Iterable[Path], tensors: Mapping[str, LazyTensor]) -> str:
    """The identity of stored tensors.

    Args:
        files: the weight files.
        tensors: every tensor by its key, as stored.
    """
    states = {path: FileState.of(path) for path in files}
    blobs = {path: name for path in states if (name := blob_name(path))}
    local = {path: state for path, state in states.items() if path not in blobs}
    facts: list[Any] = [hash_of_names(tensors), *sorted(blobs.values())]
    if sum(state.size for state in local.values()) <= READ_WHOLE:
        facts += [hash_of_file(path) for path in local]
    else:
        facts += [[path.name, state.size, state.modified] for path, state in local.items()]
        facts.append(hash_of_samples(tensors))
    return digest(facts)


def hash_of_names(tensors: Mapping[str, LazyTensor]) -> str:
    """The SHA-256 of keys, shapes and dtypes."""
    hasher = hashlib.sha256()
    for key in sorted(tensors):
        hasher.update(
            f"{key}\0torch.Size({list(tensors[key].shape)})torch.{tensors[key].kind}\n".encode(errors="surrogatepass")
        )
    return hasher.hexdigest()


def blob_name(path: Path) -> str | None:
    """The hash of a file's content that huggingface_hub's cache keeps as its name; None for other files."""
    target = path.resolve()
    return target.name if target.parent.name == BLOBS and BLOB.fullmatch(target.name) else None


def hash_of_file(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_samples(tensors: Mapping[str, LazyTensor]) -> str:
    """The SHA-256 of blocks of every stored tensor, and of the routers."""
    hasher, most = hashlib.sha256(), max(1, min(4, BLOCKS // max(1, len(tensors))))
    with ExitStack() as stack:
        files = OpenFiles(stack)
        for key, tensor in tensors.items():
            whole = ROUTER.search(key) is not None
            for source in tensor.sources():
                length, read = files.reader(source)
                places = [(0, length)] if whole and length <= WHOLE_ROUTER else blocks(length, source.shape, most)
                for start, size in places:
                    hasher.update(read(start, size))
    return hasher.hexdigest()


class OpenFiles:
    """The files that stored tensors lie in, each opened once."""

    def __init__(self, stack: ExitStack):
        self.stack = stack
        self.opened: dict[Path, BinaryIO] = {}

    def reader(self, source: TensorSource) -> tuple[int, Callable[[int, int], bytes]]:
        """How many bytes a source has as stored, and a function that reads some: from a start, so many."""
        span: tuple[Path, int, int] | None = getattr(source, "span", None)  # bytes that lie in a file as they are
        if span is not None:
            path, first, length = span
            file = self.file(path)
            return length, lambda start, size: read_at(file, first + start, size)
        raw: Callable[[], torch.Tensor] | None = getattr(source, "raw", None)  # bytes, mapped where possible
        stored = source.read(_everything(source.shape)) if raw is None else raw()
        values = stored.contiguous().flatten().view(torch.uint8).numpy()
        return len(values), lambda start, size: values[start : start + size].tobytes()

    def file(self, path: Path) -> BinaryIO:
        """The file, opened without reading ahead."""
        if path not in self.opened:
            file = self.stack.enter_context(cast(BinaryIO, path.open("rb", buffering=0)))
            self.opened[path] = file
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        return self.opened[path]


def read_at(file: BinaryIO, start: int, size: int) -> bytes:
    """So many bytes of a file, from a place on."""
    file.seek(start)
    return file.read(size)


def _everything(shape: Sequence[int]) -> Index:
    return tuple(slice(0, size) for size in shape)


def blocks(length: int, shape: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Start and size of at most so many blocks of each matrix in a tensor of `length` bytes, spread evenly."""
    matrices = max(1, math.prod(shape[:-2])) if len(shape) > 2 else 1
    matrix = length // matrices
    if not matrix:
        return
    count = min(most, max(1, matrix // SPACING))
    size = min(matrix, max(8, min(BLOCK, matrix // SHARE // count)))
    for first in range(0, matrices * matrix, matrix):
        for number in range(count):
            middle = (2 * number + 1) * matrix // (2 * count) - size // 2
            yield first + max(0, middle), size


def hash_of_values(tensor: torch.Tensor) -> list[int]:
    """Numbers that differ for tensors of different values: sums of all bits with random odd weights, modulo 2**64."""
    flat = tensor.detach().reshape(-1)
    flat = flat.contiguous().view(torch.uint8)
    whole = len(flat) - len(flat) % 8
    tail = int.from_bytes(bytes(flat[whole:].cpu().tolist()), "little")
    words = flat[:whole].clone() if flat.storage_offset() % 8 else flat[:whole]
    weights = _weights(tensor.device)
    sums = [(part * weights[: len(part)]).sum() for part in words.view(torch.int64).split(PART)]
    return [tail, *(torch.stack(sums).tolist() if sums else [])]


@cache
def _weights(device: torch.device) -> torch.Tensor:
    generator = np.random.Generator(np.random.PCG64(0))
    return torch.from_numpy(generator.integers(-(2**62), 2**62, PART) * 2 + 1).to(device)
