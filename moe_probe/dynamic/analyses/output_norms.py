"""How large the experts' outputs are, beside the router's scores (arXiv 2406.18219, section 4.2)."""

from __future__ import annotations

from typing import Any

import torch

from moe_probe.dynamic.analysis import Rows, expert_labels
from moe_probe.routing import OUTPUTS, LayerBatch


class OutputNorms(Rows):
    """L2 norm of every expert's unweighted output, and the router's score of every expert, token by token.

    The result has `norm` and `score` (layer, token[, subtoken], expert), float32, and `chosen`, 1 where the expert is
    among the top-k. For short texts; `NormScoreRanks` is for a corpus.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.output_norms("ckpt/tiny-mixtral", ["A short text."]).norm.dims
        ('layer', 'token', 'expert')
    """

    name = "output_norms"
    needs = frozenset({OUTPUTS})

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        norm = batch.outputs.float().norm(dim=-1).T
        return {"norm": norm, "score": batch.scores, "chosen": batch.selected}

    def dims(self, model: Any, layers: list[int]) -> tuple[dict[str, tuple[str, ...]], dict]:
        return {name: ("expert",) for name in ("norm", "score", "chosen")}, {"expert": expert_labels(model, layers[0])}
