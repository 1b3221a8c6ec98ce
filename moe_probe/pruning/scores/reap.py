"""Router-weighted expert activation pruning: the mean of what an expert adds where it is chosen."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class Reap(OnePass):
    """Router-weighted expert activation pruning: the mean norm of an expert's weighted output on rows that chose it."""

    formula = "sum over S_e of w_e |f_e(x)| / |S_e|"
    source = "Lasby et al., arXiv 2510.13999"
    units = "residual stream"
    needs = frozenset({Need.WEIGHTS, Need.SELECTED})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.by_expert(seen.weights * seen.norms)

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return total / chosen
