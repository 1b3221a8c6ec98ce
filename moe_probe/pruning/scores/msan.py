"""Mean squared activation norm of an expert where it is chosen."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class Msan(OnePass):
    """Mean squared activation norm of an expert where it is chosen."""

    formula = "sum over S_e of |f_e(x)|^2 / |S_e|"
    source = "arXiv 2606.15716"
    units = "residual stream^2"
    needs = frozenset({Need.SELECTED})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.by_expert(seen.norms.square())

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return total / chosen
