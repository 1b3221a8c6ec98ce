"""Experts' outputs taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_probe.intervene.choosing import among, check_experts
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Intervention


@dataclass(frozen=True)
class Zero(Intervention):
    """Multiplies the applied weight of the named experts by 0: ablation of their outputs.

    Nothing is normalized again, and nothing is chosen anew.

    Args:
        layer: index of the MoE layer.
        experts: whose outputs are taken away.

    Examples:
        >>> Zero(layer=0, experts=[3])
        Zero(layer=0, experts=(3,))
    """

    layer: int
    experts: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", tuple(self.experts))

    def check(self, model: MoEModel) -> None:
        check_experts(model, self.layer, self.experts)

    def route(self, call: Call) -> Call:
        return call.chosen(call.index, call.weights.masked_fill(among(call.index, self.experts), 0))
