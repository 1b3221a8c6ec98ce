"""A checkpoint on disk: its configuration and its named, unread tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from moe_probe.checkpoint.folder import Opened, open_files
from moe_probe.checkpoint.formats.fairseq import open_fairseq
from moe_probe.checkpoint.formats.grok import open_grok
from moe_probe.checkpoint.formats.safetensors import SafetensorsFile
from moe_probe.checkpoint.formats.torch import TorchFile
from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.checkpoint.quantized import dequantized
from moe_probe.errors import CheckpointError, WeightError

# in order of preference: publishers often ship the same weights twice
FORMATS: tuple[Callable[[Path], Opened | None], ...] = (
    partial(open_files, container=SafetensorsFile),
    partial(open_files, container=TorchFile),
    open_grok,
    open_fairseq,
)
EXPECTED = (
    "config.json with model.safetensors or pytorch_model.bin (or their index and shards), the ckpt-0 of Grok-1, or "
    "fairseq's checkpoint*.pt"
)


class Checkpoint(Mapping[str, LazyTensor]):
    """A folder of published files: a mapping from key to `LazyTensor`.

    Attributes:
        path: the folder.
        config: what the files say of the model (`config.json`), as a dict.
        files: the weight files.

    Examples:
        >>> checkpoint = open_checkpoint("ckpt/tiny-mixtral")
        >>> checkpoint["lm_head.weight"].read().dtype
        torch.bfloat16
    """

    def __init__(self, path: Path, config: dict[str, Any], tensors: dict[str, LazyTensor], files: list[Path]):
        self.path, self.config, self.files = path, config, files
        self._tensors = tensors

    def __getitem__(self, key: str) -> LazyTensor:
        try:
            return self._tensors[key]
        except KeyError:
            raise WeightError(
                f"{self.path} has no tensor {key!r}, which its configuration calls for; the download is incomplete "
                "or the configuration belongs to another model."
            ) from None

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict; `Mapping`'s own waits for a KeyError, which is not what a missing tensor raises here."""
        return self._tensors.get(key, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    @cached_property
    def nbytes(self) -> int:
        """Size of the weight files on disk, in bytes."""
        return sum(path.stat().st_size for path in self.files)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of configuration, keys, shapes, dtypes and file sizes, made without reading any weight."""
        parts = {
            "config": self.config,
            "tensors": sorted((key, list(t.shape), str(t.dtype)) for key, t in self._tensors.items()),
            "sizes": [path.stat().st_size for path in self.files],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def open_checkpoint(path: str | Path, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """Open a checkpoint folder; reads its configuration, index and headers, and no weight.

    Args:
        path: a folder with `config.json` and safetensors or torch `.bin` weights, in one file or in shards.
        config: fields that are added to those in the files, or replace them.

    Raises:
        CheckpointError: the folder or its configuration is missing, or its files are damaged or inconsistent.

    Examples:
        >>> len(open_checkpoint("ckpt/tiny-mixtral")) > 0
        True
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds the checkpoint's files.")
    for open_format in FORMATS:
        opened = open_format(folder)
        if opened is not None:
            fields = {**opened.config, **(config or {})}
            return Checkpoint(folder, fields, dequantized(opened.tensors, fields), opened.files)
    raise CheckpointError(f"{folder} holds no checkpoint; expected {EXPECTED}.")
