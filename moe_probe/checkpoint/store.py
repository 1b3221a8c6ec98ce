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
# what trainers and compilers put before every key
WRAPPERS = ("_orig_mod.", "module.", "base_model.model.", "language_model.")

SPELLING = {"model_type", "architectures"}  # fields that say how the others are spelled


class Checkpoint(Mapping[str, LazyTensor]):
    """A folder of published files: a mapping from key to `LazyTensor`.

    Attributes:
        path: the folder.
        config: what the files say of the model (`config.json`), as a dict.
        files: the weight files.
        stored: the tensors as the files have them, where some are encoded.
        given: the fields of `config` that a person gave, in place of those in the files.

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
        """As of a dict; `Mapping`'s own waits for a KeyError, which is not what a missing tensor raises here."""
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
        """The same files under other names: fields and keys of another publisher's."""
        other = copy.copy(self)
        overrides = {name: value for name, value in self.given.items() if name not in SPELLING}
        other.config, other._tensors = {**config, **overrides}, dict(tensors)
        return other

    @property
    def address(self) -> dict[str, Any]:
        """What `load` opens it with again, in another process too."""
        return {"source": self.path}

    @cached_property
    def nbytes(self) -> int:
        """Size of the weight files on disk, in bytes."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def identity(self) -> str:
        """A hash of what the weight files hold; computed again when one of them was written to or replaced.

        Files changed since they were opened are not read by this handle any more: only the identity says so.
        """
        states = [FileState.of(path) for path in self.files]
        if self._identity is None or self._identity[0] != states:
            self._identity = states, identity_of_files(self.files, self.stored)
        return self._identity[1]


@contextmanager
def without_collection() -> Iterator[None]:
    """No search for garbage meanwhile: it takes most of the time where a hundred thousand tensors come to be."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_collection()
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
    """Whether a path is a file that is a checkpoint by itself, or part of one."""
    return path.is_file() and any(path.suffix in _suffixes(each) for each in FORMATS.values())


def _suffixes(each: Format) -> tuple[str, ...]:
    return getattr(each, "suffixes", ())


def unwrapped(tensors: dict[str, LazyTensor], config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """`tensors` without a prefix that a wrapper gave to every key when it was saved."""
    for prefix in WRAPPERS:
        nested = prefix == "language_model." and "text_config" in config
        if tensors and not nested and all(key.startswith(prefix) for key in tensors):
            return unwrapped({key.removeprefix(prefix): tensor for key, tensor in tensors.items()}, config)
    return tensors


def _hint(folder: Path) -> str:
    """What the folder holds instead, where that is known."""
    if (folder / "snapshots").is_dir():
        return f"the checkpoint is one of the folders in {folder / 'snapshots'}; "
    steps = sorted((path.name for path in folder.glob("checkpoint-*") if path.is_dir()), key=dot_natural)
    if steps:
        return f"the folder is a trainer's output: pass one of its checkpoints, such as {folder / steps[-1]}; "
    below = sorted(path.parent.name for path in folder.glob("*/config.json"))
    return f"pass one of its subfolders {', '.join(below[:5])}; " if below else ""


def dot_natural(name: str) -> tuple[int, str]:
    """A key to sort `checkpoint-500` before `checkpoint-1000`."""
    return len(name), name
