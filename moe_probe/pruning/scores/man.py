"""Mean activation norm of an expert where it is chosen."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class Man(OnePass):
    """Mean activation norm of an expert where it is chosen."""

    formula = "sum over S_e of |f_e(x)| / |S_e|"
    source = "arXiv 2606.15716"
    units = "residual stream"
    needs = frozenset({Need.SELECTED})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.by_expert(seen.norms)

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return total / chosen
