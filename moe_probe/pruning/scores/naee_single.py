"""NAEE for one expert: how far the layer's routed output moves when the expert is deleted."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need

ROUNDING = 1e-6  # of a row's largest weight: what a second decision of the same may differ by


class NaeeSingle(OnePass):
    """NAEE for one expert: how far the layer's routed output moves when the expert is deleted.

    The model's own router chooses again without the expert, by all its rules: correction bias, groups, scaling.
    """

    formula = "Frobenius norm over all rows of z - z with e deleted"
    source = "Lu et al., arXiv 2402.14800, section 3.2; over all rows at once"
    units = "residual stream"
    needs = frozenset({Need.WEIGHTS, Need.OUTPUTS, Need.WITHOUT})

    def add(self, seen: Seen) -> torch.Tensor | None:
        batch = seen.batch
        if not batch.holds("without_index"):
            return None
        moved = [
            self._moved(seen, index, weights)
            for index, weights in zip(batch.without_index, batch.without_weights, strict=True)
        ]
        return torch.stack(moved)

    @staticmethod
    def _moved(seen: Seen, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Squared distance of the routed outputs, over the rows that other experts or weights reach."""
        batch = seen.batch
        change = -batch.weights.double()
        change.scatter_add_(1, index, weights.double())
        rows = (change.abs() > ROUNDING * batch.top_k_weights.abs().amax(1, keepdim=True)).any(1)
        outputs = batch.outputs[:, rows].double()
        return torch.einsum("ne,enw->nw", change[rows], outputs).square().sum()

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return np.sqrt(total)
