"""A checkpoint on disk: its configuration and its named, unread tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from moe_probe.checkpoint.folder import open_container, read_json
from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.checkpoint.quantized import dequantized
from moe_probe.checkpoint.safetensors_files import SafetensorsFile
from moe_probe.checkpoint.torch_files import TorchFile
from moe_probe.errors import CheckpointError, WeightError

# in order of preference: publishers often ship the same weights twice
CONTAINERS = (SafetensorsFile, TorchFile)


class Checkpoint(Mapping[str, LazyTensor]):
    """A folder of published files: a mapping from key to `LazyTensor`.

    Attributes:
        path: the folder.
        config: its `config.json`, as a dict.
        files: the weight files.

    Example:
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


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder; reads its configuration, index and headers, and no weight.

    Args:
        path: a folder with `config.json` and safetensors or torch `.bin` weights, in one file or in shards.

    Raises:
        CheckpointError: the folder or its configuration is missing, or its files are damaged or inconsistent.

    Example:
        >>> len(open_checkpoint("ckpt/tiny-mixtral")) > 0
        True
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds the checkpoint's config.json.")
    config_path = folder / "config.json"
    if not config_path.exists():
        raise CheckpointError(f"{folder} has no config.json, so the model cannot be recognised; download it too.")
    config = read_json(config_path)
    for container in CONTAINERS:
        opened = open_container(folder, container)
        if opened is not None:
            tensors, files = opened
            return Checkpoint(folder, config, dequantized(tensors, config), files)
    expected = " or ".join(name for c in CONTAINERS for name in (c.SINGLE, c.INDEX))
    raise CheckpointError(f"{folder} has a config.json but no weights ({expected}).")
