"""The norm of an expert's mean output where it is chosen."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class EanCa(OnePass):
    """The norm of an expert's mean output where it is chosen."""

    formula = "|mean over S_e of f_e(x)|"
    source = "Lasby et al., arXiv 2510.13999"
    units = "residual stream"
    needs = frozenset({Need.SELECTED})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.by_expert(seen.chosen_outputs)

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return np.linalg.norm(total / chosen[:, None], axis=1)
