"""The Frobenius norm of an expert's weights."""

from __future__ import annotations

import numpy as np

from moe_probe.model import MoEModel
from moe_probe.pruning.score import OfWeights
from moe_probe.pruning.weights import of_experts


class WeightNorm(OfWeights):
    """The Frobenius norm of an expert's weights, all projections together."""

    formula = "|W_e|, W_e all projections of the expert"
    source = "MC-Suite, arXiv 2504.05586"

    def of_layer(self, model: MoEModel, layer: int, base: MoEModel | None = None) -> np.ndarray:
        return of_experts(model, layer, lambda weights: weights.norm())
