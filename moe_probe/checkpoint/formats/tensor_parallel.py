"""Grok-2's files by tensor-parallel rank: `NAME-KKKKK-TP-common.safetensors` and `NAME-KKKKK-TP-RRR.safetensors`.

There is no index. The files of all ranks have the same keys: each holds its part of every matrix, split along the
outputs of `w1` and `w3` and along the inputs of `w2`. The parts appear as one matrix, which is concatenated on read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_probe.checkpoint.folder import Opened, configuration, inside
from moe_probe.checkpoint.formats.safetensors import SafetensorsFile
from moe_probe.checkpoint.lazy import Concatenated, LazyTensor
from moe_probe.errors import DamagedFile, MissingFiles

FILE_NAME = re.compile(r"(.+)-(\d{5})-TP-(common|\d{3})\.safetensors")
COMMON = "common"  # in place of a rank, for tensors that are not split
BY_INPUTS = re.compile(r"\.(w2|down_proj|o_proj)\.weight")  # split along inputs; others along outputs


def joined(parts: Mapping[str, Mapping[str, LazyTensor]]) -> dict[str, LazyTensor]:
    """Returns the tensors of all files as one mapping, with the parts of each matrix concatenated.

    Args:
        parts: the tensors of each file, by the file's name.

    Raises:
        MissingFiles: a file, or the file of a rank, is missing.
        DamagedFile: a key is in files other than one set of ranks, or its parts differ in shape.
    """
    ranks = _complete(parts)
    pieces: dict[str, list[tuple[str, LazyTensor]]] = {}
    for name in sorted(parts):
        for key, tensor in parts[name].items():
            pieces.setdefault(key, []).append((name, tensor))
    return {key: _matrix(key, of_key, ranks) for key, of_key in pieces.items()}


def _complete(names: Iterable[str]) -> int:
    """Returns the number of ranks; raises MissingFiles if a file or a rank is missing."""
    ranks: dict[int, set[str]] = {}
    stem = ""
    for name in names:
        stem, number, rank = _parts(name)
        ranks.setdefault(number, set()).add(rank)
    count = 1 + max((int(rank) for those in ranks.values() for rank in those if rank != COMMON), default=0)
    for number in range(max(ranks) + 1):
        those = ranks.get(number, set())
        wanted = [f"{rank:03}" for rank in range(count)] if those - {COMMON} else [COMMON]
        missing = next((rank for rank in wanted if rank not in those), None)
        if missing is not None:
            raise MissingFiles(f"{stem}-{number:05}-TP-{missing}.safetensors is missing; download it too.")
    return count


def _parts(name: str) -> tuple[str, int, str]:
    """Returns the stem, number and rank in the name of a file."""
    match = FILE_NAME.fullmatch(name)
    assert match is not None
    return match[1], int(match[2]), match[3]


def _matrix(key: str, pieces: list[tuple[str, LazyTensor]], ranks: int) -> LazyTensor:
    names = [name for name, _ in pieces]
    numbers = {_parts(name)[1] for name in names}
    if len(pieces) == 1 and _parts(names[0])[2] == COMMON:
        return pieces[0][1]
    shapes = {tuple(tensor.shape) for _, tensor in pieces}
    if len(pieces) != ranks or len(numbers) != 1 or len(shapes) != 1:
        raise DamagedFile(
            f"{key!r} is in {', '.join(names[:3])} with the shapes {sorted(shapes)}, expected one part of each of "
            f"{ranks} ranks; download the files again."
        )
    return Concatenated([tensor for _, tensor in pieces], 1 if BY_INPUTS.search(key) else 0)


@dataclass(frozen=True)
class TensorParallel:
    """The format of one file per tensor-parallel rank."""

    preference: int = 3
    expects: str = "Grok-2's files by rank (*-TP-*.safetensors)"

    def open(self, folder: Path) -> Opened | None:
        """Opens a folder; returns None if no file has such a name.

        Raises:
            MissingFiles: config.json or a file is missing.
            DamagedFile: a file is damaged, or the ranks do not fit.
        """
        names = sorted(path.name for path in folder.iterdir() if FILE_NAME.fullmatch(path.name))
        if not names:
            return None
        files = [inside(folder, name) for name in names]
        parts = {path.name: SafetensorsFile(path).tensors() for path in files}
        return Opened(configuration(folder), joined(parts), files)


FORMAT = TensorParallel()
