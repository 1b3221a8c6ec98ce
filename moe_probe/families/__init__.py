"""MoE families: each module defines one `FAMILY`; other packages add theirs as entry points `moe_probe.families`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from moe_probe.deferred import Deferred
from moe_probe.errors import DamagedFile, UnknownModel
from moe_probe.families.architecture import DENSE, PROJECTIONS, SHARED, Architecture, Layer
from moe_probe.families.sizes import require_sizes
from moe_probe.registry import Registry

if TYPE_CHECKING:
    from moe_probe.checkpoint import Checkpoint

__all__ = ["DENSE", "PROJECTIONS", "SHARED", "Architecture", "Family", "Layer", "families", "find_family"]
__getattr__ = Deferred(__name__, __file__).attribute


class Family(Protocol):
    """A description of models: it recognizes its checkpoints and opens them as an `Architecture`."""

    @property
    def name(self) -> str: ...

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint belongs to this family."""
        ...

    def open(self, checkpoint: Checkpoint) -> Architecture:
        """Returns the checkpoint's architecture: its layers, and its tensors by role."""
        ...


FAMILIES: Registry[Family | None] = Registry(
    __name__, "families", "family", lambda module, _: getattr(module, "FAMILY", None)
)


def families() -> tuple[Family, ...]:
    """Returns all families; the one that covers all models of transformers comes last."""
    known = [family for family in map(_family, FAMILIES) if family is not None]
    return tuple(sorted(known, key=lambda family: family.name == "transformers"))


def _family(name: str) -> Family | None:
    """Returns a family by name; None if the module defines none, or needs a model that transformers lacks."""
    try:
        return FAMILIES[name]
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("transformers.models."):
            raise
        return None


def find_family(checkpoint: Checkpoint) -> Family:
    """Returns the family of a checkpoint.

    Raises:
        UnknownModel: no family recognizes it; the message lists all families except `transformers`.
        DamagedFile: config.json states sizes too large for the tensors, or names that are not strings.
    """
    require_sizes(checkpoint.config, checkpoint)
    require_names(checkpoint.config)
    for family in families():
        if family.recognises(checkpoint):
            return family
    raise UnknownModel(_unknown(checkpoint))


def require_names(config: Mapping[str, Any]) -> None:
    """Raises an error if the model type or the class names in a configuration are not strings.

    Raises:
        DamagedFile: `model_type` is not a string, or `architectures` is not a list of strings.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str | None):
        raise DamagedFile(f"config.json has model_type={model_type!r}, expected a name; use the published file.")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DamagedFile(f"config.json has architectures={names!r}, expected class names; use the published file.")


def _unknown(checkpoint: Checkpoint) -> str:
    """Returns the error message for an unknown model type, with a hint if `architectures` names a known class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = checkpoint.config.get("model_type")
    classes = set(checkpoint.config.get("architectures") or [])
    same = [kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name in classes]
    known = ", ".join(family.name for family in families()[:-1])
    hint = (
        f"its class {min(classes)!r} is that of {same[0]!r}: pass config={{'model_type': {same[0]!r}}} "
        f"(--config model_type={same[0]})"
        if same
        else "if it is a known model under another name, pass that: config={'model_type': 'mixtral'} "
        "(--config model_type=mixtral)"
    )
    return (
        f"The model type {model_type!r} in config.json is not known; moe_probe reads {known}, and every model type of "
        f"transformers; {hint}."
    )
