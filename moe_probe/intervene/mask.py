"""Experts that cannot be chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moe_probe.errors import NotFitting
from moe_probe.intervene.choosing import OnExperts, bias_of
from moe_probe.model import MoEModel
from moe_probe.routing import Call


@dataclass(frozen=True)
class Mask(OnExperts):
    """Makes the router choose as if the named experts were deleted from the checkpoint.

    They are never chosen, are absent from a softmax's sum and from their group's score; the others' weights follow by
    the family's own rule.

    Args:
        layer: index of the MoE layer.
        experts: who cannot be chosen.

    Raises:
        NotFitting: fewer experts than top-k are left.

    Examples:
        >>> Mask(layer=0, experts=[3])
        Mask(layer=0, experts=(3,))
    """

    def check(self, model: MoEModel) -> None:
        super().check(model)
        layer = model.layer(self.layer)
        left = layer.num_experts - len(set(self.experts))
        if left < layer.top_k:
            raise NotFitting(
                f"Layer {self.layer} of {model.name} chooses {layer.top_k} experts per token; masking "
                f"{len(set(self.experts))} of {layer.num_experts} leaves {left}."
            )

    def route(self, call: Call) -> Call:
        return call.reselect(bias_of(call.layer.num_experts, self.experts, -torch.inf, call.logits))
