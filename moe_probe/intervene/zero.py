"""Zero ablation of experts' outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moe_probe.families import Layer
from moe_probe.intervene.choosing import OnExperts, among
from moe_probe.routing import Call


@dataclass(frozen=True, repr=False)
class Zero(OnExperts):
    """Multiplies the applied weight of the named experts by 0, which ablates their outputs.

    Choices and the weights of other experts stay as they are, without new normalization.

    Args:
        layer: index of the MoE layer.
        experts: numbers of the experts; `"S"` is the shared block, `"all"` all routed experts.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Zero(layer=0, experts=[3])
        Zero(layer=0, experts=(3,))
    """

    takes_shared = True
    of_chosen = True
    stage = 3

    def route(self, call: Call) -> Call:
        taken = among(call.index, self.routed(call.layer)) & call.rows_of(self)[:, None]
        return call.chosen(call.index, call.weights.masked_fill(taken, 0))

    def shared(self, layer: Layer, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return output.masked_fill(places[:, None], 0) if self.on_shared else output
