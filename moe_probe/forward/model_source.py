"""The base class of sources that run a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from moe_probe.errors import NotFitting
from moe_probe.families import Layer
from moe_probe.forward.reference import MAKING
from moe_probe.model import MoEModel
from moe_probe.routing import Intervention, Source


def require_told(interventions: Sequence[Intervention]) -> None:
    """Raises an error if interventions need another run and there is none.

    Raises:
        NotFitting: one does; the message names the first.
    """
    waiting = next((each for each in interventions if each.needs), None)
    if waiting is not None:
        raise NotFitting(f"{waiting!r} needs the unedited run of these tokens, and there is none; {MAKING}.")


class ModelSource(Source):
    """A model that runs or generates.

    Attributes:
        model: the model.
        layers: the requested MoE layers.
    """

    model: MoEModel
    layers: Mapping[int, Layer]

    @property
    def name(self) -> str:
        """Of the model."""
        return self.model.name

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """All of the model."""
        return self.model.moe_layers

    @property
    def family(self) -> str:
        """Of the model."""
        return self.model.family

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        return self.model.fingerprint

    @property
    def interventions(self) -> list[Intervention]:
        """The model's interventions that act in its layers."""
        edits = (edit for edit in self.model.interventions if isinstance(edit, Intervention))
        return [edit for edit in edits if edit.acts_in(self.model.moe_layers)]

    def watched(self, stop: int) -> list[int]:
        """Layers below `stop` to watch: those asked for, the MoE layers before them, and those that are changed."""
        before = {before for before, layer in pairwise(self.model.moe_layers) if layer in self.layers}
        changed = {layer for edit in self.interventions for layer in edit.acts_in(self.model.moe_layers)}
        return sorted(layer for layer in {*self.layers, *before, *changed} if layer < stop)
