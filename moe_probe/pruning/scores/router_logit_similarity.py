"""How alike an expert's router logits are to those of the others; the most alike is pruned first."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.pairs import logit_products, mean_of_others, similarity_of_products
from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class RouterLogitSimilarity(OnePass):
    """Similarity of an expert's router logits to those of the others; the most similar is pruned first.

    z_e is the vector of the raw logits of expert e over all rows.
    """

    keep_high = False
    formula = "mean over the other experts j of (cos(z_e, z_j) + 1) / 2"
    source = "Li et al., arXiv 2310.01334 (MC-SMoE), section 3.1, similarity of router logits"
    needs = frozenset({Need.SCORES})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return logit_products(seen.batch)

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return mean_of_others((similarity_of_products(total) + 1) / 2)
