"""Which experts each token goes to, and how much each counts (arXiv 2406.18219, section 4.3)."""

from __future__ import annotations

from typing import Any

import torch

from moe_probe.dynamic.analysis import Rows, expert_labels
from moe_probe.routing import LayerBatch


class GateChoices(Rows):
    """The applied weight of every expert, 0 where it was not chosen, token by token.

    The result has `weight` (layer, token[, subtoken], expert), float32, with the tokens' strings as coordinate.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.gate_choices("ckpt/tiny-mixtral", ["A short text."]).weight.dims
        ('layer', 'token', 'expert')
    """

    name = "gate_choices"

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        return {"weight": batch.weights}

    def dims(self, model: Any, layers: list[int]) -> tuple[dict[str, tuple[str, ...]], dict]:
        return {"weight": ("expert",)}, {"expert": expert_labels(model, layers[0])}
