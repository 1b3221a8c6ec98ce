"""The identity of stored weights: a hash of a small part of the bytes.

A file in huggingface_hub's cache is identified by the hash that is its name. Other small checkpoints are read
completely. Of larger ones, the routers are read completely, and sample blocks of every other matrix (each expert of a
fused tensor counts as a matrix). Sizes and modification times of the files reveal changes outside of these blocks.
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

READ_WHOLE = 2**24  # bytes; checkpoints up to this size are read completely
WHOLE_ROUTER = 2**25  # bytes; a larger tensor is not a router
ROUTER = re.compile(r"(^|[._])(gate|router|wg|wg_reduction)([._]|$)(?!proj)")
BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
BLOCK, SHARE = 512, 128  # most bytes per block; about one byte in SHARE is read at most
SPACING = 400 * 1024  # bytes between blocks of a matrix, so that their memory pages, too, are 1 % of it
BLOCKS = 100_000  # blocks in total, if possible; 1 to 4 per matrix
PART = 2**21  # values summed at a time


def digest(facts: Any) -> str:
    """Returns a hash of anything that JSON can hold, as 16 hexadecimal digits; other values count by their `repr`."""
    text = json.dumps(facts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def identity_of_files(files: Iterable[Path], tensors: Mapping[str, LazyTensor]) -> str:
    """Returns the identity of stored tensors, as 16 hexadecimal digits.

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
    """Returns the SHA-256 of the keys, shapes and dtypes of tensors."""
    hasher = hashlib.sha256()
    for key in sorted(tensors):
        hasher.update(
            f"{key}\0torch.Size({list(tensors[key].shape)})torch.{tensors[key].kind}\n".encode(errors="surrogatepass")
        )
    return hasher.hexdigest()


def blob_name(path: Path) -> str | None:
    """Returns the content hash by which huggingface_hub's cache names a file, or None for a file outside the cache."""
    target = path.resolve()
    return target.name if target.parent.name == BLOBS and BLOB.fullmatch(target.name) else None


def hash_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_samples(tensors: Mapping[str, LazyTensor]) -> str:
    """Returns the SHA-256 of whole routers and of sample blocks of every other stored tensor."""
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
    """The files that hold the stored tensors, each opened once."""

    def __init__(self, stack: ExitStack):
        self.stack = stack
        self.opened: dict[Path, BinaryIO] = {}

    def reader(self, source: TensorSource) -> tuple[int, Callable[[int, int], bytes]]:
        """Returns the number of bytes that a source stores, and a function that reads `size` bytes from `start`."""
        span: tuple[Path, int, int] | None = getattr(source, "span", None)  # bytes stored contiguously in a file
        if span is not None:
            path, first, length = span
            file = self.file(path)
            return length, lambda start, size: read_at(file, first + start, size)
        raw: Callable[[], torch.Tensor] | None = getattr(source, "raw", None)  # returns the bytes, mapped if possible
        stored = source.read(_everything(source.shape)) if raw is None else raw()
        values = stored.contiguous().flatten().view(torch.uint8).numpy()
        return len(values), lambda start, size: values[start : start + size].tobytes()

    def file(self, path: Path) -> BinaryIO:
        """Returns a file, opened once and without read-ahead."""
        if path not in self.opened:
            file = self.stack.enter_context(cast(BinaryIO, path.open("rb", buffering=0)))
            self.opened[path] = file
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        return self.opened[path]


def read_at(file: BinaryIO, start: int, size: int) -> bytes:
    """Returns `size` bytes of a file, from `start`."""
    file.seek(start)
    return file.read(size)


def _everything(shape: Sequence[int]) -> Index:
    return tuple(slice(0, size) for size in shape)


def blocks(length: int, shape: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yields start and size of up to `most` evenly spread blocks per matrix of a tensor of `length` bytes."""
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
    """Returns numbers that identify the values: sums of all 64-bit words with random odd weights, modulo 2**64."""
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
