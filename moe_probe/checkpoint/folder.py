"""The folder of a published checkpoint: which weight files it has, where each key is, and nothing outside of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `CheckpointError` when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_hook=_special_float)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); download the file again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected a JSON object.")
    return value


def _special_float(fields: dict[str, Any]) -> Any:
    """transformers writes infinity as `{"__float__": "Infinity"}`, because JSON has no such number."""
    return float(fields["__float__"]) if fields.keys() == {"__float__"} else fields


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`, refused when it lies elsewhere (absolute, `..`, or a link that leads out).

    The links that huggingface_hub's cache makes (`snapshots/<revision>/file` -> `blobs/<hash>`) are allowed.
    """
    path = folder / name
    home = folder.resolve()
    roots = [home]
    if home.parent.name == "snapshots":
        roots.append(home.parent.parent / "blobs")
    try:
        target = path.resolve()
        target.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder} names the weight file {name!r}, which cannot be a file ({error}).") from error
    lexical_escape = Path(name).is_absolute() or ".." in Path(name).parts
    if lexical_escape or not any(target.is_relative_to(root) for root in roots):
        raise CheckpointError(
            f"{folder} names the weight file {name!r}, which lies outside the folder; this is refused because a "
            "checkpoint may read only its own files."
        )
    return path


@dataclass(frozen=True)
class Opened:
    """What a folder's files of one format say: options that describe the model, named unread tensors, the files."""

    config: dict[str, Any]
    tensors: dict[str, LazyTensor]
    files: list[Path]


class ContainerFile(Protocol):
    """One weight file of some format, with the names that the format uses in a folder."""

    SINGLE: ClassVar[str]
    INDEX: ClassVar[str]

    def __init__(self, path: Path): ...

    def tensors(self) -> dict[str, LazyTensor]:
        """Every tensor of the file, unread."""
        ...


def open_files(folder: Path, container: type[ContainerFile]) -> Opened | None:
    """A folder with `config.json` and files of one format; None when it has none of them.

    Where a folder has both a single file and an index, the single file counts, as for transformers.

    Raises:
        CheckpointError: a shard is missing, damaged, outside the folder, or disagrees with the index.
    """
    if (folder / container.SINGLE).exists():
        path = inside(folder, container.SINGLE)
        return Opened(_config(folder), container(path).tensors(), [path])
    if not (folder / container.INDEX).exists():
        return None
    shards = _indexed_shards(folder, container.INDEX)
    tensors: dict[str, LazyTensor] = {}
    for path, promised in shards.items():
        found = container(path).tensors()
        _check_shard(container.INDEX, path, promised, set(found))
        tensors.update(found)
    return Opened(_config(folder), tensors, list(shards))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} has no config.json, so the model cannot be recognised; download it too.")
    return read_json(path)


def _indexed_shards(folder: Path, index_name: str) -> dict[Path, set[str]]:
    index = inside(folder, index_name)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no 'weight_map' from keys to file names; download the file again.")
    promised: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        promised.setdefault(name, set()).add(key)
    shards: dict[Path, set[str]] = {}
    for name, keys in promised.items():
        shards.setdefault(inside(folder, name), set()).update(keys)
    for path in shards:
        if not path.exists():
            raise CheckpointError(
                f"{index_name} names the shard {path.name}, which is missing from {folder}; download it again "
                f"({len(shards)} shards are expected)."
            )
    return shards


def _check_shard(index_name: str, path: Path, promised: set[str], found: set[str]) -> None:
    for keys, fault in ((promised - found, "is not in"), (found - promised, "is not listed for")):
        if keys:
            raise CheckpointError(
                f"{index_name} and the header of {path} disagree: {min(keys)!r} {fault} that file "
                f"({len(keys)} such keys); the shards and the index come from different downloads."
            )
