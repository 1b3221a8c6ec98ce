"""Experts that are preferred or avoided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from moe_probe.intervene.choosing import OnExperts
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Request
from moe_probe.signatures import check_number


@dataclass(frozen=True, repr=False)
class Bias(OnExperts):
    """Adds `delta` to the router logits of the named experts; scores, choices and weights follow from them.

    Several biases on one expert add up.

    Args:
        layer: index of the MoE layer.
        experts: numbers of the experts whose logits change.
        delta: the added value, in units of the logits.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Bias(layer=0, experts=[3], delta=1.0)
        Bias(layer=0, experts=(3,), delta=1.0)
    """

    delta: float

    decides = True

    @classmethod
    def example(cls) -> Self:
        return cls(layer=0, experts=[1], delta=1.0)

    def check(self, model: MoEModel) -> None:
        super().check(model)
        check_number("delta", self.delta, -1e30, 1e30, whole=False)

    def decide(self, call: Call, request: Request) -> None:
        request.add_bias(self.flags(call.layer).float() * float(self.delta), call.rows_of(self))
