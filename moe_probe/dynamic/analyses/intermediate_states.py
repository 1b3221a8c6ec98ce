"""What the neurons of all experts do: act(gate projection) (arXiv 2406.18219, section 4.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from moe_probe.dynamic.analysis import Rows, Sums
from moe_probe.families import DENSE
from moe_probe.routing import ACTIVATIONS, BASELINE, LayerBatch


class IntermediateStates(Rows):
    """act(gate projection of x) of every expert with weights, before the product with the up projection.

    Args:
        baseline: add the FFN of the dense model, in its own forward pass over the same ids, as `"F"`; it must have as
            many neurons as an expert.

    The result has `activation` (layer, token[, subtoken], expert, neuron), float32; for very short texts.
    `ActiveNeurons` is for a corpus.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.intermediate_states("ckpt/tiny-mixtral", ["Short."], layers=[0]).activation.sizes["neuron"]
        96
    """

    name = "intermediate_states"

    def __init__(self, baseline: bool = False):
        super().__init__()
        self.baseline = baseline
        self.needs = frozenset({ACTIVATIONS, BASELINE} if baseline else {ACTIVATIONS})

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        activation = batch.activations.transpose(0, 1)
        if self.baseline:
            activation = torch.cat([activation, batch.baseline_activation[:, None]], dim=1)
        return {"activation": activation}

    def dims(self, model: Any, layers: list[int]) -> tuple[dict[str, tuple[str, ...]], dict]:
        labels = [*model.layer(layers[0]).weighted_experts, *([DENSE] if self.baseline else [])]
        return {"activation": ("expert", "neuron")}, {"expert": labels}


class ActiveNeurons(Sums):
    """The share of tokens for which a neuron of an expert is active: act(gate projection) above a threshold.

    Args:
        threshold: above which a neuron counts as active.

    The result has `active_share` (layer, expert, neuron), float64, and `expert_share` (layer, expert), its mean over
    neurons. All experts are looked at on all tokens, chosen or not.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.active_neurons("ckpt/tiny-mixtral", ["Short."]).active_share.dims
        ('layer', 'expert', 'neuron')
    """

    name = "active_neurons"
    needs = frozenset({ACTIVATIONS})

    def __init__(self, threshold: float = 0.001):
        super().__init__()
        self.threshold = threshold

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        active = (batch.activations > self.threshold).sum(dim=1)
        return {"active": active, "rows": torch.tensor(batch.activations.shape[1])}

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        share = sums["active"] / sums["rows"][:, None, None]
        variables = {
            "active_share": (("layer", "expert", "neuron"), share),
            "expert_share": (("layer", "expert"), share.mean(-1)),
        }
        return variables, {"expert": [str(e) for e in range(share.shape[1])]}
