"""Permutation of a layer's experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from moe_probe.intervene.chance import check_seed
from moe_probe.intervene.choosing import OnTokens
from moe_probe.model import MoEModel
from moe_probe.routing import Call


@dataclass(frozen=True, repr=False)
class Permute(OnTokens):
    """Permutes the experts of a layer: instead of the chosen expert another one runs, with the same weight.

    The permutation is one random cycle through all experts, so that none stays in its place.

    Args:
        layer: index of the MoE layer.
        seed: of the permutation.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Permute(layer=0, seed=1)
        Permute(layer=0, seed=1)
    """

    seed: int = 0

    stage = 2

    def claims(self, layer: int) -> frozenset[str]:
        return frozenset(f"who runs in the place of expert {each}" for each in range(1 << 12))

    def check(self, model: MoEModel) -> None:
        super().check(model)
        check_seed(self.seed)

    def exchange(self, count: int) -> torch.Tensor:
        """The expert that runs in the place of each expert, (E,) int64."""
        order = torch.from_numpy(np.random.default_rng(self.seed).permutation(count))
        return torch.empty_like(order).index_copy_(0, order, order.roll(-1))

    def route(self, call: Call) -> Call:
        exchanged = self.exchange(call.layer.num_experts).to(call.index.device)[call.index]
        return call.chosen(torch.where(call.rows_of(self)[:, None], exchanged, call.index), call.weights)
