"""The weights that are applied to an expert, summed."""

from __future__ import annotations

import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class WeightSum(OnePass):
    """The weights that are applied to an expert, summed."""

    formula = "sum over S_e of w_e"
    source = "Shazeer et al., arXiv 1701.06538, equation 6"
    needs = frozenset({Need.WEIGHTS})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.by_expert(seen.weights)
