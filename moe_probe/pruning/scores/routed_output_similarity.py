"""How alike an expert's outputs are to those of the others, where either is chosen; the most alike goes first."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.pairs import mean_of_others, ratio, routed_cosines
from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class RoutedOutputSimilarity(OnePass):
    """Similarity of an expert's outputs to those of others on rows that chose either; the most similar go first."""

    keep_high = False
    formula = "mean over the other experts j of the mean over S_e and S_j together of cos(f_e(x), f_j(x))"
    source = "Lasby et al., arXiv 2510.13999, outputs over routed tokens, by their cosine"
    needs = frozenset({Need.OUTPUTS})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return routed_cosines(seen.batch)

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return mean_of_others(ratio(total[..., 0], total[..., 1]))
