"""AIMER: how evenly large an expert's weights are; the largest is pruned first."""

from __future__ import annotations

import numpy as np

from moe_probe.model import MoEModel
from moe_probe.pruning.score import OfWeights
from moe_probe.pruning.weights import of_experts


class Aimer(OfWeights):
    """AIMER: uniformity of the magnitudes of an expert's weights; the largest value is pruned first."""

    keep_high = False
    formula = "mean |W_e| / rms(W_e), W_e all projections of the expert"
    source = "arXiv 2603.18492"

    def of_layer(self, model: MoEModel, layer: int, base: MoEModel | None = None) -> np.ndarray:
        return of_experts(model, layer, lambda weights: weights.abs().mean() / weights.square().mean().sqrt())
