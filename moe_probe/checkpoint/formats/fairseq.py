"""fairseq's checkpoints: `NAME-shared.pt` with a file of experts per rank, `NAME-rank-N.pt`, or one file `NAME.pt`.

Each rank file numbers its experts from 0; keys here have the expert numbers of the whole model. Options come from the
files (`cfg["model"]`, or `args` in older versions), whose classes are never imported: an instance of a class that torch
does not allow becomes an object that only holds its fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.checkpoint.folder import Opened, inside, read_json
from moe_probe.checkpoint.formats.torch import UNPICKLING_ERRORS, TorchFile
from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.errors import CheckpointError, DamagedFile, MissingFiles, UnsafeFile, reason

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

NAME = "fairseq"
FILE_NAME = re.compile(r"(checkpoint.*?)(?:-(shared)|-rank-([0-9]{1,9}))?\.pt")
PREFERRED = ("checkpoint_last", "checkpoint_best")
EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")
OPTION_FILES = re.compile(r"(?!tokenizer|special_tokens|generation|vocab).*\.json")
# names that an options pickle may contain; any other name is refused, although it would not be run
KNOWN_GLOBALS = re.compile(
    r"(argparse\.Namespace|omegaconf\..+|fairseq\..+|typing\.Any|collections\.defaultdict|builtins\.(dict|list|int))"
)


class Inert:
    """A stand-in for a foreign class: it holds the fields that a pickle gives it, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state if isinstance(state, dict) else {})


class FairseqFile(TorchFile):
    """One file of fairseq; its optimizer state is memory-mapped and never read."""

    def unpickle(self) -> dict[str, Any]:
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(self.path)
        except UNPICKLING_ERRORS as error:
            raise DamagedFile(f"{self.path} is truncated or damaged ({reason(error)}); download it again.") from error
        foreign = [name for name in names if not KNOWN_GLOBALS.fullmatch(name)]
        if foreign:
            raise UnsafeFile(
                f"{self.path} is not from fairseq: its pickle names {foreign[0]}, code that it wants to run, "
                "which is refused."
            )
        with torch.serialization.safe_globals([(Inert, name) for name in names]):
            value = super().unpickle()
        if not isinstance(value, dict) or not isinstance(value.get("model"), Mapping):
            raise DamagedFile(f"{self.path} has no entry 'model', which every checkpoint of fairseq has.")
        return value

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        return self.as_state(dict(self.unpickle()["model"]))

    def options(self) -> dict[str, Any]:
        """Returns `cfg["model"]`, or else the fields of `args`; empty if the file has neither."""
        value = self.unpickle()
        cfg = plain(value.get("cfg")) or {}
        options = (cfg.get("model") if isinstance(cfg, dict) else None) or plain(value.get("args")) or {}
        return options if isinstance(options, dict) else {}


def plain(value: Any) -> Any:
    """Replaces inert objects by what they hold: a Namespace's fields, a DictConfig's content, a node's value."""
    if isinstance(value, Inert):
        fields = vars(value)
        return plain(fields["_content"] if "_content" in fields else fields.get("_val", dict(fields)))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def open_fairseq(folder: Path) -> Opened | None:
    """Opens a checkpoint of fairseq; returns None if no file of the folder has such a name.

    Of several checkpoints, `checkpoint_last` is preferred, then `checkpoint_best`. A JSON file of options in the folder
    (`config.json`, or the only JSON file; its options may be under "model") overrides the options in the files.

    Raises:
        CheckpointError: a rank is missing or present twice, ranks disagree, or a file is damaged or unsafe.
    """
    matches = [match for path in sorted(folder.iterdir()) if (match := FILE_NAME.fullmatch(path.name))]
    if not matches:
        return None
    name = _choose(folder, sorted({match[1] for match in matches}))
    files = [match for match in matches if match[1] == name]
    ranks: dict[int, FairseqFile] = {}
    shared: list[FairseqFile] = []
    for match in files:
        file = FairseqFile(inside(folder, match[0]))
        if match[3] is None:
            shared.append(file)
        elif int(match[3]) in ranks:
            raise CheckpointError(f"{folder} has two files of rank {int(match[3])}; delete the wrong one.")
        else:
            ranks[int(match[3])] = file
    if len(shared) != 1:
        raise CheckpointError(
            f"{folder} has {len(shared)} files with the shared parameters of {name}, expected one: {name}-shared.pt "
            f"beside {name}-rank-N.pt, or {name}.pt alone."
        )
    tensors = dict(shared[0].tensors())
    tensors |= _experts(folder, name, [ranks[rank] for rank in sorted(ranks)], sorted(ranks))
    options = shared[0].options() or {}
    return Opened(
        {"format": NAME, **options, **_options_beside(folder)}, tensors, [folder / match[0] for match in files]
    )


def _choose(folder: Path, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    chosen = next((name for name in PREFERRED if name in names), None)
    if chosen is None:
        raise CheckpointError(f"{folder} holds several checkpoints ({', '.join(names)}); keep one of them there.")
    return chosen


def _experts(folder: Path, name: str, files: list[FairseqFile], ranks: list[int]) -> dict[str, LazyTensor]:
    """Returns the tensors of the rank files under global expert numbers."""
    missing = next((rank for rank in range(len(ranks)) if rank not in ranks), None)
    if missing is not None:
        raise MissingFiles(f"{folder / f'{name}-rank-{missing}.pt'} is missing; download it again.")
    tensors: dict[str, LazyTensor] = {}
    keys = [set(file.state) for file in files]
    for rank, file in enumerate(files):
        if keys[rank] != keys[0]:
            odd = min(keys[rank] ^ keys[0])
            raise DamagedFile(f"{file.path} and {files[0].path} disagree: only one of them has {odd!r}.")
        twin = next((other for other in files[:rank] if _same(file, other)), None)
        if twin is not None:
            raise DamagedFile(f"{file.path} and {twin.path} hold the same experts; one is a copy of the other.")
        local = 1 + max((int(numbered[0]) for key in keys[rank] if (numbered := EXPERT.search(key))), default=-1)
        for key, tensor in file.tensors().items():
            number = EXPERT.search(key)
            tensors[EXPERT.sub(str(int(number[0]) + rank * local), key) if number else key] = tensor
    return tensors


def _same(file: FairseqFile, other: FairseqFile) -> bool:
    key = next(iter(sorted(file.state)), None)
    return key is not None and torch.equal(file.state[key], other.state[key])


def _options_beside(folder: Path) -> dict[str, Any]:
    candidates = [path for path in folder.iterdir() if OPTION_FILES.fullmatch(path.name)]
    chosen = next(
        (path for path in candidates if path.name == "config.json"), candidates[0] if len(candidates) == 1 else None
    )
    if chosen is None:
        return {}
    options = read_json(inside(folder, chosen.name))
    return options["model"] if isinstance(options.get("model"), dict) else options


@dataclass(frozen=True)
class FairseqFiles:
    """The format of fairseq's files: shared parameters and one file per rank, or a single file."""

    preference: int = 3
    expects: str = "fairseq's checkpoint*.pt"

    def open(self, folder: Path) -> Opened | None:
        """Opens a folder with `open_fairseq`."""
        return open_fairseq(folder)


FORMAT = FairseqFiles()
