"""Statistics of all weights of an expert."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from moe_probe.model import MoEModel


def of_experts(model: MoEModel, layer: int, statistic: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """A statistic of all weights of each expert, (E,), float64; nan for experts without matrices."""
    of_layer = model.layer(layer)
    values = np.full(of_layer.num_experts, np.nan)
    for label in of_layer.weighted_experts:
        matrices = [model.expert_weight(layer, label, projection) for projection in of_layer.projections]
        values[int(label)] = float(statistic(torch.cat([each.flatten().double() for each in matrices])))
    return values
