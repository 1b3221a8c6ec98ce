"""Finds the weight files and keys in the folder of a published checkpoint, and refuses files outside of it."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from moe_probe.errors import DamagedFile, MissingFiles, UnsafeFile, reason

if TYPE_CHECKING:
    from moe_probe.checkpoint.lazy import LazyTensor

# files that hold the quantization settings if config.json does not, and the method that writes each file
QUANTIZED = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quantization_config.json": "auto-round",
}
SNAPSHOTS, BLOBS = "snapshots", "blobs"  # folders of huggingface_hub's cache


def read_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file whose path comes from `inside`.

    Raises:
        DamagedFile: the file is not readable JSON, or holds another type.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_special_float)
    except (OSError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DamagedFile(f"{path} is not readable JSON ({reason(error)}); download the file again.") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} holds a {type(value).__name__}, expected a JSON object; download the file again.")
    return value


def _special_float(fields: dict[str, Any]) -> Any:
    """Converts `{"__float__": "Infinity"}` to a float (transformers writes it because JSON has no infinity)."""
    return float(fields["__float__"]) if fields.keys() == {"__float__"} else fields


def inside(folder: Path, name: str) -> Path:
    """Returns the path of the file `name`, after checking that it lies in `folder`; it need not exist.

    The links that huggingface_hub's cache makes (`snapshots/<revision>/file` -> `blobs/<hash>`) are allowed.

    Raises:
        UnsafeFile: the file lies elsewhere (absolute, `..`, or a link that leads out), or is not a regular file.
    """
    path = folder / name
    try:
        target = path.resolve()
        mode = target.stat().st_mode if target.exists() else None
    except (OSError, RuntimeError, ValueError) as error:
        raise UnsafeFile(
            f"{folder} names the file {_shown(name)}, which cannot be a file ({reason(error)})."
        ) from error
    lexical_escape = Path(name).is_absolute() or ".." in Path(name).parts
    if lexical_escape or not any(target.is_relative_to(root) for root in _roots(folder)):
        raise UnsafeFile(
            f"{folder} names the file {_shown(name)}, which lies outside the folder; this is refused because a "
            "checkpoint may read only its own files. Copy the file into the folder."
        )
    if mode is not None and not stat.S_ISREG(mode):
        raise UnsafeFile(
            f"{path} is {_kind(mode)}, not a regular file, and is not read; download the file again."
            if path != folder
            else f"{folder} names itself as a file; download its index again."
        )
    return path


def _shown(name: str) -> str:
    return repr(name if len(name) <= 200 else name[:200] + "...")


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"


def _roots(folder: Path) -> list[Path]:
    """Returns the folders that may hold a folder's files: itself, and the hub cache's blobs if it is a snapshot."""
    home = folder.resolve()
    snapshot = next((place for place in (home, *home.parents) if place.parent.name == SNAPSHOTS), None)
    return [home] if snapshot is None else [home, snapshot.parent.parent / BLOBS]


@dataclass(frozen=True)
class Opened:
    """The content of a folder in one format: config fields, unread tensors by key, and the weight files."""

    config: dict[str, Any]
    tensors: dict[str, LazyTensor]
    files: list[Path]


class Format(Protocol):
    """A file format of checkpoints.

    Attributes:
        preference: formats are tried in ascending order, because publishers often ship the same weights twice.
        expects: the files that the format consists of, as errors list them.
    """

    @property
    def preference(self) -> int: ...

    @property
    def expects(self) -> str: ...

    @property
    def open(self) -> Callable[[Path], Opened | None]:
        """A function that opens a folder, and returns None if it has no files of this format."""
        ...


class ContainerFile(Protocol):
    """One weight file of a format, with the file names that the format uses in a folder."""

    SINGLE: ClassVar[str]
    INDEX: ClassVar[str]

    def __init__(self, path: Path): ...

    def tensors(self) -> dict[str, LazyTensor]:
        """Returns every tensor of the file by key, unread."""
        ...


@dataclass(frozen=True)
class FilesOfOneKind:
    """A format of `config.json` with one weight file, or with shards and their index."""

    container: type[ContainerFile]
    preference: int

    @property
    def expects(self) -> str:
        return f"config.json with {self.container.SINGLE} (or {self.container.INDEX} and its shards)"

    def open(self, folder: Path) -> Opened | None:
        """Opens the folder; returns None if it has neither the single file nor the index.

        If a folder has both, the single file is used, as in transformers.

        Raises:
            MissingFiles: a shard or config.json is missing.
            DamagedFile: a file is damaged, or disagrees with the index.
            UnsafeFile: a file lies outside the folder.
        """
        container = self.container
        if present(folder, container.SINGLE):
            path = inside(folder, container.SINGLE)
            return Opened(configuration(folder), container(path).tensors(), [path])
        if not present(folder, container.INDEX):
            return None
        return Opened(configuration(folder), *indexed(folder, container))


def indexed(folder: Path, container: type[ContainerFile]) -> tuple[dict[str, LazyTensor], list[Path]]:
    """Returns the tensors of all shards that the index names, and the paths of the shards.

    Raises:
        MissingFiles: a shard is missing.
        DamagedFile: a file is damaged, or disagrees with the index.
    """
    shards = _indexed_shards(folder, container.INDEX)
    tensors: dict[str, LazyTensor] = {}
    for path, promised in shards.items():
        stored = container(path).tensors()
        _check_shard(container.INDEX, path, promised, set(stored))
        tensors.update(stored)
    return tensors, list(shards)


def present(folder: Path, name: str) -> bool:
    """Whether the folder has an entry of that name; a broken link counts."""
    return (folder / name).is_symlink() or (folder / name).exists()


def configuration(folder: Path) -> dict[str, Any]:
    """Returns the fields of a folder's config.json, with quantization settings from another file if it has none.

    Raises:
        MissingFiles: the folder has no config.json.
        DamagedFile: config.json is not a JSON object.
    """
    path = inside(folder, "config.json")
    if not path.exists():
        raise MissingFiles(f"{folder} has no config.json, so the model cannot be recognized; download it too.")
    config = read_json(path)
    beside = next((name for name in QUANTIZED if present(folder, name)), None)
    if beside is not None and not config.get("quantization_config"):
        stated = read_json(inside(folder, beside))
        fields = stated.get("quantization", stated)
        known = {"quant_method": QUANTIZED[beside]}
        config["quantization_config"] = {**known, **fields} if isinstance(fields, dict) else known
    return config


def _indexed_shards(folder: Path, index_name: str) -> dict[Path, set[str]]:
    index = inside(folder, index_name)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise DamagedFile(f"{index} has no 'weight_map' from keys to file names; download the file again.")
    promised: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        promised.setdefault(name, set()).add(key)
    shards: dict[Path, set[str]] = {}
    for name, keys in promised.items():
        shards.setdefault(inside(folder, name), set()).update(keys)
    for path in shards:
        if not path.exists():
            raise MissingFiles(
                f"{index_name} names the shard {_shown(path.name)}, which is missing from {folder}; download it again "
                f"({len(shards)} shards are expected)."
            )
    return shards


def _check_shard(index_name: str, path: Path, promised: set[str], stored: set[str]) -> None:
    for keys, fault in ((promised - stored, "is not in"), (stored - promised, "is not listed for")):
        if keys:
            raise DamagedFile(
                f"{index_name} and the header of {path} disagree: {_shown(min(keys))} {fault} that file "
                f"({len(keys)} such keys); the shards and the index come from different downloads."
            )
