"""How much longer an expert's row in the router has grown since a base checkpoint."""

from __future__ import annotations

import numpy as np

from moe_probe.model import MoEModel
from moe_probe.pruning.score import OfWeights


class GateChange(OfWeights):
    """Growth of the norm of an expert's row in the router since a base checkpoint."""

    formula = "|g_e| - |g_e of the base|"
    source = "Chowdhury et al., arXiv 2405.16646"
    needs_base = True

    def of_layer(self, model: MoEModel, layer: int, base: MoEModel | None = None) -> np.ndarray:
        assert base is not None, "pruning.scores asks for it"
        now, before = (each.router_weight(layer).double().norm(dim=1) for each in (model, base))
        return (now - before).numpy()
