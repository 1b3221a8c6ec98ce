"""Mean ablation: experts' outputs replaced by their means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from moe_probe.errors import NotFitting
from moe_probe.families import Layer
from moe_probe.forward.reference import MAKING, LayerReference, Reference
from moe_probe.intervene.choosing import OnExperts
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Changes, Need


@dataclass(frozen=True, repr=False)
class Mean(OnExperts):
    """Replaces the unweighted output of the named experts by its mean over the tokens that chose them; weights stay.

    An expert that no token chose in that run has no mean, and stays as it is.

    Args:
        layer: index of the MoE layer.
        experts: numbers of the experts whose outputs are replaced; `"S"` is the shared block, with its mean over all
            tokens.
        of: the run that gives the means (`intervene.reference`); by default the run of the unedited model on all texts
            of the current run.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Mean(layer=0, experts=[3])
        Mean(layer=0, experts=(3,))
    """

    of: Reference | None = None

    takes_shared = True
    apart = True
    of_chosen = True
    stage = 2

    def claims(self, layer: int) -> frozenset[str]:
        return frozenset(f"the output of expert {each}" for each in self.named)

    def check(self, model: MoEModel) -> None:
        super().check(model)
        if self.of is not None and (self.layer not in self.of.layers or self.of.layers[self.layer].means is None):
            raise NotFitting(f"The recorded run has no mean outputs of layer {self.layer}; {MAKING}.")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.SELECTED, Need.SHARED}) if self.of is None else frozenset()

    def told(self, reference: Reference) -> Self:
        return replace(self, of=reference) if self.of is None else self

    def _seen(self, layer: int) -> LayerReference:
        if self.of is None:
            raise NotFitting(
                f"{self!r} needs the unedited run on the same texts, which this call does not have; {MAKING}."
            )
        return self.of.layers[layer]

    def change(self, call: Call, changes: Changes) -> None:
        experts = self.routed(call.layer)
        if not experts:
            return
        means = self._seen(call.layer.index).means
        assert means is not None
        known = [each for each in experts if not bool(means[each].isnan().any())]
        choices = changes.of_experts(known, call.rows_of(self))
        changes.replace(choices, means.to(call.rows.device)[call.index[choices]])

    def shared(self, layer: Layer, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        if not self.on_shared:
            return output
        mean = self._seen(layer.index).shared
        if mean is None:
            raise NotFitting(
                f"The shared experts of layer {layer.index} are outside the MoE block, where their outputs are not "
                "recorded and have no mean; zero or scale them instead."
            )
        return torch.where(places[:, None], mean.to(output), output)
