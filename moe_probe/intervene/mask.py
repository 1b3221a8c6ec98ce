"""Experts that cannot be chosen."""

from __future__ import annotations

from dataclasses import dataclass

from moe_probe.families import Layer
from moe_probe.intervene.choosing import OnExperts
from moe_probe.routing import Call, Request


@dataclass(frozen=True, repr=False)
class Mask(OnExperts):
    """Makes the router choose as if the named experts were deleted from the checkpoint.

    They are never chosen, are absent from a softmax's sum and from their group's score; the others' weights follow by
    the family's own rule. Where router logits are carried to the next layer (MoE++), theirs are not.

    Args:
        layer: index of the MoE layer.
        experts: who cannot be chosen.
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
