"""Equal weights of the chosen experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moe_probe.intervene.choosing import OnTokens
from moe_probe.routing import Call


@dataclass(frozen=True, repr=False)
class Uniform(OnTokens):
    """Gives the chosen experts of a token equal weights with the same sum as before.

    A choice of weight 0 (MoE++'s zero expert, or a choice beyond an expert's capacity) keeps it.

    Args:
        layer: index of the MoE layer.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Uniform(layer=0)
        Uniform(layer=0)
    """

    stage = 1

    def route(self, call: Call) -> Call:
        used = call.weights != 0
        mean = call.weights.sum(1, keepdim=True) / used.sum(1, keepdim=True).clamp(min=1)
        changed = used & call.rows_of(self)[:, None]
        return call.chosen(call.index, torch.where(changed, mean, call.weights))
