"""REAP as its code computes it for every family: softmax and top-k of the raw logits."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class ReapAsPublished(OnePass):
    """REAP as its code before March 2026 computes it for every family: softmax and top-k of the raw logits.

    Routers with sigmoid, correction bias or groups choose and weight differently; `reap` uses their own choices. P are
    the rows in which the raw logit of e is among the k largest.
    """

    formula = "sum over P of softmax(logits)_e |f_e(x)| / |P|"
    source = "Lasby et al., arXiv 2510.13999; its code, observer"
    units = "residual stream"
    needs = frozenset({Need.SCORES, Need.SELECTED})

    def add(self, seen: Seen) -> torch.Tensor | None:
        batch = seen.batch
        weights, index = batch.router_logits.softmax(-1).topk(batch.top_k_index.shape[1], dim=-1)
        sums = seen.by_expert(weights * seen.norms_of(index), index)
        return torch.stack([sums, seen.by_expert(torch.ones_like(weights), index)], 1)

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        return total[:, 0] / np.where(total[:, 1] > 0, total[:, 1], np.nan)
