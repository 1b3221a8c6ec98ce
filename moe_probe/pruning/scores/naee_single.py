"""NAEE for one expert: how far the layer's routed output moves when the expert is deleted."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.moved import moved_squares
from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class NaeeSingle(OnePass):
    """NAEE for one expert: the change of the layer's routed output when the expert is deleted.

    The model's own router chooses again without the expert, by all its rules: correction bias, groups, scaling.
    """

    formula = "Frobenius norm over all rows of z - z with e deleted"
    source = "Lu et al., arXiv 2402.14800, section 3.2; over all rows at once"
    units = "residual stream"
    needs = frozenset({Need.WEIGHTS, Need.OUTPUTS, Need.WITHOUT})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return moved_squares(seen.batch) if seen.batch.holds("without_index") else None

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return np.sqrt(total)
