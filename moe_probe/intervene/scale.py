"""Scaling of experts' outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from moe_probe.families import Layer
from moe_probe.intervene.choosing import OnExperts, among
from moe_probe.model import MoEModel
from moe_probe.routing import Call
from moe_probe.signatures import check_number


@dataclass(frozen=True, repr=False)
class Scale(OnExperts):
    """Multiplies the applied weight of the named experts by `factor`, without new choices or normalization.

    Args:
        layer: index of the MoE layer.
        experts: numbers of the experts; `"S"` is the shared block, `"all"` all routed experts.
        factor: 0 removes their outputs, 1 changes nothing.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Scale(layer=0, experts=[3], factor=2.5)
        Scale(layer=0, experts=(3,), factor=2.5)
    """

    factor: float

    takes_shared = True
    of_chosen = True
    stage = 3

    @classmethod
    def example(cls) -> Self:
        return cls(layer=0, experts=[1], factor=0.5)

    def check(self, model: MoEModel) -> None:
        super().check(model)
        check_number("factor", self.factor, -1e30, 1e30, whole=False)

    def route(self, call: Call) -> Call:
        named = among(call.index, self.routed(call.layer)) & call.rows_of(self)[:, None]
        return call.chosen(call.index, torch.where(named, call.weights * float(self.factor), call.weights))

    def shared(self, layer: Layer, output: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return torch.where(places[:, None], output * float(self.factor), output) if self.on_shared else output
