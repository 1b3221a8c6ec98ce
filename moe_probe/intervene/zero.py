"""Experts' outputs taken away."""

from __future__ import annotations

from dataclasses import dataclass

from moe_probe.intervene.choosing import OnExperts, among
from moe_probe.routing import Call


@dataclass(frozen=True)
class Zero(OnExperts):
    """Multiplies the applied weight of the named experts by 0: ablation of their outputs.

    Nothing is normalized again, and nothing is chosen anew.

    Args:
        layer: index of the MoE layer.
        experts: whose outputs are taken away.

    Examples:
        >>> Zero(layer=0, experts=[3])
        Zero(layer=0, experts=(3,))
    """

    def route(self, call: Call) -> Call:
        return call.chosen(call.index, call.weights.masked_fill(among(call.index, self.experts), 0))
