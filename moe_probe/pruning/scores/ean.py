"""Expert activation norm: the norms of an expert's outputs, summed."""

from __future__ import annotations

import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class Ean(OnePass):
    """Expert activation norm: the norms of an expert's outputs, summed."""

    formula = "sum over S_e of |f_e(x)|"
    source = "Lasby et al., arXiv 2510.13999"
    units = "residual stream"
    needs = frozenset({Need.SELECTED})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.by_expert(seen.norms)
