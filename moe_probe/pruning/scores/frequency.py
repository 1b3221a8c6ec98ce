"""How often an expert is chosen."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.score import OnePass, Seen


class Frequency(OnePass):
    """How often an expert is chosen."""

    formula = "|S_e| / T"
    source = "Muennighoff et al., arXiv 2409.02060"

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.by_expert(torch.ones_like(seen.batch.top_k_index))

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return total / rows
