"""Restriction of the choice to some experts."""

from __future__ import annotations

from dataclasses import dataclass

from moe_probe.families import Layer
from moe_probe.intervene.choosing import OnExperts
from moe_probe.routing import Call, Request


@dataclass(frozen=True, repr=False)
class Only(OnExperts):
    """Masks every expert of a layer except the named ones, as `Mask` does.

    Args:
        layer: index of the MoE layer.
        experts: numbers of the experts that can be chosen.
        where: only in these tokens (`Where`); in all by default.

    Raises:
        NotFitting: fewer experts than top-k are left.

    Examples:
        >>> Only(layer=0, experts=[0, 1, 3])
        Only(layer=0, experts=(0, 1, 3))
    """

    decides = True

    def masked(self, layer: Layer) -> frozenset[int]:
        return frozenset(range(layer.num_experts)) - set(self.routed(layer))

    def decide(self, call: Call, request: Request) -> None:
        request.mask(~self.flags(call.layer), call.rows_of(self))
