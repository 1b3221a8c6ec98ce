"""One module per MoE family; found by scanning this folder for a `FAMILY`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Protocol

from moe_probe.checkpoint import Checkpoint
from moe_probe.errors import FamilyError
from moe_probe.families.architecture import DENSE, PROJECTIONS, SHARED, Architecture, Layer

__all__ = ["DENSE", "PROJECTIONS", "SHARED", "Architecture", "Family", "Layer", "families", "find_family"]


class Family(Protocol):
    """A description of models: which it is for, and how it applies to a checkpoint."""

    name: str

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is of this family."""
        ...

    def open(self, checkpoint: Checkpoint) -> Architecture:
        """The family's description applied to the checkpoint."""
        ...


@cache
def families() -> tuple[Family, ...]:
    """All families: those written by hand first, the one derived from transformers last."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return tuple(sorted(found, key=lambda family: family.name == "transformers"))


def find_family(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint.

    Raises:
        FamilyError: no family recognises it; the message lists those written by hand.
    """
    for family in families():
        if family.recognises(checkpoint):
            return family
    model_type = checkpoint.config.get("model_type")
    known = ", ".join(family.name for family in families()[:-1])
    raise FamilyError(
        f"The model type {model_type!r} in config.json is not known; moe_probe reads {known}, and every model type of "
        "transformers."
    )
