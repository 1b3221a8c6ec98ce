"""The norm of an expert's row in the router."""

from __future__ import annotations

import numpy as np

from moe_probe.model import MoEModel
from moe_probe.pruning.score import OfWeights


class GateNorm(OfWeights):
    """The norm of an expert's row in the router."""

    formula = "|g_e|, g_e the expert's row of the router's weight"
    source = "MC-Suite, arXiv 2504.05586"

    def of_layer(self, model: MoEModel, layer: int, base: MoEModel | None = None) -> np.ndarray:
        return model.router_weight(layer).double().norm(dim=1).numpy()
