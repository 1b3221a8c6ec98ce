"""The largest absolute value in an expert's outputs where it is chosen: super experts."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class MaxActivation(OnePass):
    """The largest absolute value in an expert's outputs where it is chosen: super experts."""

    formula = "max over S_e and channels of |f_e(x)_c|"
    source = "arXiv 2507.23279"
    units = "residual stream"
    needs = frozenset({Need.SELECTED})
    maximum = True

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.largest(seen.chosen_outputs.abs().amax(-1))

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return np.where(total == -np.inf, np.nan, total)
