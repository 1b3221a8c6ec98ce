"""A checkpoint on disk: its configuration and its named, unread tensors."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from moe_probe.checkpoint.encodings import decoded
from moe_probe.checkpoint.folder import Format
from moe_probe.checkpoint.identity import identity_of_files
from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.checkpoint.mapped import FileState
from moe_probe.errors import MissingFiles, MissingWeight
from moe_probe.registry import Registry
from moe_probe.shown import html_table

FORMATS: Registry[Format] = Registry(
    "moe_probe.checkpoint.formats", "formats", "checkpoint format", lambda module, _: module.FORMAT
)
# prefixes that trainers and compilers add to every key
WRAPPERS = ("_orig_mod.", "module.", "base_model.model.", "language_model.")

SPELLING = {"model_type", "architectures"}  # fields that determine the names of the other fields


class Checkpoint(Mapping[str, LazyTensor]):
    """A folder of published files: a mapping from key to `LazyTensor`.

    Attributes:
        path: the folder, or the file that holds the whole model.
        config: the config fields of the model: those of the files (`config.json`), overridden by `given`.
        files: the weight files.
        stored: the tensors as stored in the files, some of them possibly encoded.
        given: the config fields that the caller passed, which replace those in the files.

    Examples:
        >>> checkpoint = open_checkpoint("ckpt/tiny-mixtral")
        >>> checkpoint["lm_head.weight"].read().dtype
        torch.bfloat16
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        tensors: dict[str, LazyTensor],
        files: list[Path],
        given: Mapping[str, Any] | None = None,
    ):
        self.path, self.config, self.files, self.given = path, config, files, dict(given or {})
        self.stored = tensors
        self._tensors = decoded(tensors, config)
        self._identity: tuple[list[FileState], str] | None = None

    def __getitem__(self, key: str) -> LazyTensor:
        try:
            return self._tensors[key]
        except KeyError:
            raise MissingWeight(
                f"{self.path} has no tensor {key!r}, which its configuration calls for; the download is incomplete "
                "or the configuration belongs to another model."
            ) from None

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the tensor of a key, or the default; `Mapping.get` relies on KeyError, which is not raised here."""
        return self._tensors.get(key, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def _repr_html_(self) -> str:
        rows = [("model type", self.config.get("model_type")), ("tensors", f"{len(self):,}")]
        rows += [("files", len(self.files)), ("on disk", decimal(self.nbytes)), ("folder", self.path)]
        return html_table(self.path.name, rows)

    def respelled(self, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Checkpoint:
        """Returns a copy of this checkpoint with the config fields and keys of another publisher's release."""
        other = copy.copy(self)
        overrides = {name: value for name, value in self.given.items() if name not in SPELLING}
        other.config, other._tensors = {**config, **overrides}, dict(tensors)
        return other

    @property
    def address(self) -> dict[str, Any]:
        """The arguments with which `load` opens this checkpoint again, in another process too."""
        return {"source": self.path}

    @cached_property
    def nbytes(self) -> int:
        """Size of the weight files on disk, in bytes."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def identity(self) -> str:
        """A hash of the content of the weight files; computed again after one of them was written to or replaced.

        This handle no longer reads files that changed after they were opened; only the identity follows the change.
        """
        states = [FileState.of(path) for path in self.files]
        if self._identity is None or self._identity[0] != states:
            self._identity = states, identity_of_files(self.files, self.stored)
        return self._identity[1]


@contextmanager
def without_collection() -> Iterator[None]:
    """A context without garbage collection, which would take most of the time to create a hundred thousand tensors."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_collection()
def open_checkpoint(path: str | Path, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """Opens a checkpoint: reads its configuration, index and headers, but no weights.

    Args:
        path: a folder, such as one with `config.json` and safetensors or torch `.bin` weights, in one file or in
            shards; or a file that holds a whole model (GGUF).
        config: config fields that are added to those in the files, or replace them.

    Raises:
        CheckpointError: the folder or its configuration is missing, or its files are damaged or inconsistent.

    Examples:
        >>> len(open_checkpoint("ckpt/tiny-mixtral")) > 0
        True
    """
    folder = Path(path).expanduser()
    if not folder.is_dir() and not opens_alone(folder):
        raise MissingFiles(f"{folder} is not a folder; pass the folder that holds the checkpoint's files.")
    formats = sorted(FORMATS.values(), key=lambda each: each.preference)
    for each in formats if folder.is_dir() else [each for each in formats if folder.suffix in _suffixes(each)]:
        opened = each.open(folder)
        if opened is not None:
            fields = {**opened.config, **(config or {})}
            tensors = unwrapped(opened.tensors, fields)
            return Checkpoint(folder, fields, tensors, opened.files, given=config or {})
    expected = ", ".join(each.expects for each in formats)
    raise MissingFiles(f"{folder} holds no checkpoint; {_hint(folder)}expected {expected}.")


def opens_alone(path: Path) -> bool:
    """Whether a path is a file that holds a whole checkpoint, or a part of one."""
    return path.is_file() and any(path.suffix in _suffixes(each) for each in FORMATS.values())


def _suffixes(each: Format) -> tuple[str, ...]:
    return getattr(each, "suffixes", ())


def unwrapped(tensors: dict[str, LazyTensor], config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Returns `tensors` without the prefixes that wrappers added to every key when the model was saved."""
    for prefix in WRAPPERS:
        nested = prefix == "language_model." and "text_config" in config
        if tensors and not nested and all(key.startswith(prefix) for key in tensors):
            return unwrapped({key.removeprefix(prefix): tensor for key, tensor in tensors.items()}, config)
    return tensors


def _hint(folder: Path) -> str:
    """Returns a hint at what a folder without weight files holds instead, or an empty string."""
    if (folder / "snapshots").is_dir():
        return f"the checkpoint is one of the folders in {folder / 'snapshots'}; "
    steps = sorted((path.name for path in folder.glob("checkpoint-*") if path.is_dir()), key=dot_natural)
    if steps:
        return f"the folder is a trainer's output: pass one of its checkpoints, such as {folder / steps[-1]}; "
    below = sorted(path.parent.name for path in folder.glob("*/config.json"))
    return f"pass one of its subfolders {', '.join(below[:5])}; " if below else ""


def dot_natural(name: str) -> tuple[int, str]:
    """Returns a sort key that puts `checkpoint-500` before `checkpoint-1000`."""
    return len(name), name
