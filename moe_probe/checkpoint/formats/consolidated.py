"""Mistral's own format: `params.json` with `consolidated.safetensors`, its index and shards, or `consolidated.NN.pt`.

Each key is in one file only. The `.pt` files share out whole tensors; no tensor is split.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moe_probe.checkpoint.folder import Opened, indexed, inside, present, read_json
from moe_probe.checkpoint.formats.safetensors import SafetensorsFile
from moe_probe.checkpoint.formats.torch import TorchFile
from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.errors import DamagedFile, MissingFiles

NAME = "mistral"
PARAMS = "params.json"
PICKLED = re.compile(r"consolidated\.(\d\d)\.pt")


class ConsolidatedFile(SafetensorsFile):
    """A safetensors file with Mistral's file names."""

    SINGLE: ClassVar[str] = "consolidated.safetensors"
    INDEX: ClassVar[str] = "consolidated.safetensors.index.json"


def open_consolidated(folder: Path) -> Opened | None:
    """Opens the model in a folder; returns None if the folder has no such files.

    Raises:
        MissingFiles: params.json or a weight file is missing.
        DamagedFile: a file is damaged, or two files hold the same key.
    """
    pickled = sorted(path.name for path in folder.iterdir() if PICKLED.fullmatch(path.name))
    safe = present(folder, ConsolidatedFile.SINGLE) or present(folder, ConsolidatedFile.INDEX)
    if not safe and not pickled:
        return None
    if not present(folder, PARAMS):
        raise MissingFiles(f"{folder} has no {PARAMS}, so the model cannot be recognized; download it too.")
    fields = {"format": NAME, **read_json(inside(folder, PARAMS))}
    if present(folder, ConsolidatedFile.SINGLE):
        path = inside(folder, ConsolidatedFile.SINGLE)
        return Opened(fields, ConsolidatedFile(path).tensors(), [path])
    if safe:
        tensors, files = indexed(folder, ConsolidatedFile)
        return Opened(fields, tensors, files)
    return Opened(fields, *_spread(folder, pickled))


def _spread(folder: Path, names: list[str]) -> tuple[dict[str, LazyTensor], list[Path]]:
    missing = next((number for number in range(len(names)) if f"consolidated.{number:02}.pt" not in names), None)
    if missing is not None:
        raise MissingFiles(f"{folder / f'consolidated.{missing:02}.pt'} is missing; download it too.")
    tensors: dict[str, LazyTensor] = {}
    files = [inside(folder, name) for name in names]
    for path in files:
        stored = TorchFile(path).tensors()
        twice = next((key for key in stored if key in tensors), None)
        if twice is not None:
            raise DamagedFile(
                f"{path} holds {twice!r}, which another file holds too: the weights are split, which is not read."
            )
        tensors |= stored
    return tensors, files


@dataclass(frozen=True)
class Consolidated:
    """Mistral's format: `params.json` with consolidated weight files."""

    preference: int = 5
    expects: str = f"{PARAMS} with {ConsolidatedFile.SINGLE}"

    def open(self, folder: Path) -> Opened | None:
        """Opens a folder with `open_consolidated`."""
        return open_consolidated(folder)


FORMAT = Consolidated()
