"""The exceptions a person sees.

Every message is one sentence that says what was given, what there is, and what to do. The command line prints the
message alone; scripts catch `MoEProbeError`, one of its five kinds, or a class below those. The docstring of each class
says its cause and its remedy; the documentation lists the sentences by class.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Self


class MoEProbeError(Exception):
    """Base of every error that moe_probe raises on purpose."""


class CheckpointError(MoEProbeError):
    """Files that cannot be opened: missing, truncated, inconsistent or unsafe."""


class MissingFiles(CheckpointError):
    """Files are not where they should be. Download the checkpoint again, or correct the path."""


class DamagedFile(CheckpointError):
    """A file is cut off or inconsistent, often by an interrupted download. Download it again."""


class UnsafeFile(CheckpointError):
    """A file would run code or leads out of its folder. Use the checkpoint of a publisher whom you trust."""


class WeightError(MoEProbeError):
    """A tensor that is missing, has the wrong shape for its configuration, or holds NaN or infinity."""


class MissingWeight(WeightError):
    """The files lack a tensor that the configuration asks for. The configuration or the files are of another model."""


class WrongShape(WeightError):
    """A tensor has another shape than the configuration says. The configuration or the files are of another model."""


class NotFinite(WeightError):
    """Values are NaN or infinite. The weights are damaged, or overflow in the dtype that the model computes in."""


class FamilyError(MoEProbeError):
    """A model whose type is unknown, or that has no experts where experts are needed."""


class UnknownModel(FamilyError):
    """The model type, or the way its layers are named, is not known. Use a supported family or add one."""


class DenseModel(FamilyError):
    """The model has no experts. Pass a Mixture-of-Experts model; a dense one can be the baseline."""


class CannotWatch(FamilyError):
    """The model's MoE layers do something that hooks cannot follow to the digit, so nothing is recorded."""


class InputError(MoEProbeError):
    """An argument that does not fit the model or the analysis."""


class NoSuchName(InputError):
    """A name that does not exist, often misspelt. The message lists the names that do.

    Examples:
        >>> str(NoSuchName.among("analysis", "expert_lod", ["expert_load", "record"]))
        "There is no analysis 'expert_lod'; did you mean 'expert_load'? There are expert_load, record."
    """

    @classmethod
    def among(cls, kind: str, given: object, known: Iterable[str]) -> Self:
        """The error for a name `given` of some `kind`, with the nearest of the `known` names and all of them."""
        names = [str(name) for name in known]
        close = get_close_matches(str(given), names, n=1)
        hint = f"did you mean {close[0]!r}? There are" if close else "there are"
        return cls(f"There is no {kind} {given!r}; {hint} {', '.join(names) or 'none'}.")


class OutOfRange(InputError):
    """A number outside its range. The message gives the range."""


class WrongType(InputError):
    """A value of a type that is not accepted. The message lists the types that are."""


class NotFitting(InputError):
    """The request does not fit this model, these texts or these layers. The message says what would."""


class NotComparable(InputError):
    """Checkpoints, traces or results that differ where a comparison needs them to agree."""


class NothingToRead(InputError):
    """Texts, labels or token ids that are missing, empty or cannot be read."""


class Damaged(InputError):
    """A result, trace or saved progress that is cut off, edited or of another format. Compute it again."""


class AlreadyThere(InputError):
    """The output exists and belongs to something else. Choose another place, or ask to overwrite it."""


class MissingPackage(InputError):
    """An optional package is not installed. The message gives the command that installs it."""


class MachineError(MoEProbeError):
    """The machine failed: no space on the disk, no memory, a worker that died. Free some, and run again."""
