"""Weighted expert activation norm: what an expert adds to the residual stream, summed."""

from __future__ import annotations

import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class WeightedEan(OnePass):
    """Weighted expert activation norm: norms of an expert's contributions to the residual stream, summed."""

    formula = "sum over S_e of w_e |f_e(x)|"
    source = "Lasby et al., arXiv 2510.13999"
    units = "residual stream"
    needs = frozenset({Need.WEIGHTS, Need.SELECTED})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.by_expert(seen.weights * seen.norms)
