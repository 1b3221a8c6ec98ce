"""Experts that are preferred or avoided."""

from __future__ import annotations

from dataclasses import dataclass

from moe_probe.intervene.choosing import OnExperts, bias_of
from moe_probe.model import MoEModel
from moe_probe.routing import Call
from moe_probe.signatures import check_number


@dataclass(frozen=True)
class Bias(OnExperts):
    """Adds `delta` to the router logits of the named experts; everything after them follows.

    Args:
        layer: index of the MoE layer.
        experts: whose logits change.
        delta: what is added, in logits.

    Examples:
        >>> Bias(layer=0, experts=[3], delta=1.0)
        Bias(layer=0, experts=(3,), delta=1.0)
    """

    delta: float

    def check(self, model: MoEModel) -> None:
        super().check(model)
        check_number("delta", self.delta, -1e30, 1e30, whole=False)

    def route(self, call: Call) -> Call:
        return call.reselect(bias_of(call.layer.num_experts, self.experts, self.delta, call.logits))
