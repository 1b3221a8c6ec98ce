"""Activation patching: experts' outputs from another run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from moe_probe.errors import NotFitting
from moe_probe.forward.reference import Reference
from moe_probe.intervene.choosing import OnExperts
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Changes, Need

MAKING = "pass source=intervene.reference(model, texts, inputs=True)"


@dataclass(frozen=True, repr=False)
class Patch(OnExperts):
    """Replaces the unweighted output of the named experts by that of another run at the same token; weights stay.

    Tokens are aligned by document number and position; those that the other run lacks stay as they are. If the other
    run did not choose an expert, the expert's output is computed from that run's input.

    Args:
        layer: index of the MoE layer.
        experts: numbers of the experts whose outputs are replaced.
        source: the other run, `intervene.reference(model, texts, inputs=True)`; by default the run of the unedited
            model on the same texts.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Patch(layer=0, experts=[3])
        Patch(layer=0, experts=(3,))
    """

    source: Reference | None = None

    apart = True
    of_chosen = True

    def claims(self, layer: int) -> frozenset[str]:
        return frozenset(f"the output of expert {each}" for each in self.named)

    def check(self, model: MoEModel) -> None:
        super().check(model)
        if self.source is None:
            return
        seen = self.source.layers.get(self.layer)
        if seen is None or seen.inputs is None:
            raise NotFitting(f"The recorded run has no inputs of the experts of layer {self.layer}; {MAKING}.")
        if seen.inputs.shape[1] != model.layer(self.layer).expert_hidden_size:
            raise NotFitting(f"The recorded run is of a model of another width than {model.name}; {MAKING}.")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.INPUT}) if self.source is None else frozenset()

    def told(self, reference: Reference) -> Self:
        return replace(self, source=reference) if self.source is None else self

    def change(self, call: Call, changes: Changes) -> None:
        if self.source is None:
            raise NotFitting(f"{self!r} needs another run, which this call does not have; {MAKING}.")
        inputs = self.source.layers[call.layer.index].inputs
        assert inputs is not None
        at = self.source.rows(call.tokens, call.layer.subtokens).to(call.index.device)
        choices = changes.of_experts(self.routed(call.layer), call.rows_of(self) & (at >= 0))
        rows = inputs.to(call.rows)[at[choices.nonzero()[:, 0]]]
        if len(rows):
            changes.replace(choices, call.run_experts(rows, call.index[choices]))
