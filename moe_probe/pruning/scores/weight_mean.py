"""The mean weight of an expert where it is chosen."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class WeightMean(OnePass):
    """The mean weight of an expert where it is chosen."""

    formula = "sum over S_e of w_e / |S_e|"
    source = "arXiv 2606.10703"
    needs = frozenset({Need.WEIGHTS})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.by_expert(seen.weights)

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return total / chosen
