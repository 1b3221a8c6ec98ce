"""Experts that cannot be chosen."""

from __future__ import annotations

from dataclasses import dataclass

from moe_probe.families import Layer
from moe_probe.intervene.choosing import OnExperts
from moe_probe.routing import Call, Request


@dataclass(frozen=True, repr=False)
class Mask(OnExperts):
    """Makes the router choose as if the named experts were deleted from the checkpoint.

    The router never chooses them, and omits them from the sum of a softmax and from their group's score; the family's
    own rule gives the weights of the others. If the router passes its logits to the next layer (MoE++), it omits
    theirs.

    Args:
        layer: index of the MoE layer.
        experts: numbers of the experts that cannot be chosen.
        where: only in these tokens (`Where`); in all by default.

    Raises:
        NotFitting: fewer experts than top-k are left.

    Examples:
        >>> Mask(layer=0, experts=[3])
        Mask(layer=0, experts=(3,))
    """

    decides = True

    def masked(self, layer: Layer) -> frozenset[int]:
        return frozenset(self.routed(layer))

    def decide(self, call: Call, request: Request) -> None:
        request.mask(self.flags(call.layer), call.rows_of(self))
