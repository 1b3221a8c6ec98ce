"""Random choice of experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from moe_probe.intervene.chance import check_seed, uniform
from moe_probe.intervene.choosing import OnTokens
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Request


@dataclass(frozen=True, repr=False)
class Random(OnTokens):
    """Chooses experts uniformly at random, ignoring groups; the family's own rule weights them.

    A token's choice depends only on the seed, the layer, its document's number and its position.

    Args:
        layer: index of the MoE layer.
        seed: of the choice.
        where: only in these tokens (`Where`); in all by default.

    Examples:
        >>> Random(layer=0, seed=1)
        Random(layer=0, seed=1)
    """

    seed: int = 0

    decides = True
    apart = True

    def claims(self, layer: int) -> frozenset[str]:
        return frozenset({"the choice"})

    def check(self, model: MoEModel) -> None:
        super().check(model)
        check_seed(self.seed)

    def decide(self, call: Call, request: Request) -> None:
        ranks = uniform(call, self.seed, np.arange(call.layer.num_experts))
        request.rank(torch.from_numpy(ranks.astype(np.float32)), call.rows_of(self))
