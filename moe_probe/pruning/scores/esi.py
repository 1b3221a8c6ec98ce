"""How specialized the routing is that follows an expert: the entropy of the next MoE layer's choices after it."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class Esi(OnePass):
    """Specialization of the routing after an expert: the entropy of the next MoE layer's choices.

    The value is 1 if rows that chose the expert spread evenly over the next layer's experts; experts with small values
    are specialized and kept. The source's abstract describes it as the entropy of an expert's influence on the routing
    downstream, without a formula; the formula here is moe_probe's. It is not defined for the last MoE layer, and if the
    next layer has fewer experts or other rows.
    """

    keep_high = False
    formula = "entropy of P(j | e) / log E', j the E' experts of the next MoE layer, P its share of the choices after e"
    source = "expert specialization index, openreview 9lOqGhCjtL, abstract"
    needs = frozenset({Need.BEFORE})
    before = True

    def add(self, seen: Seen) -> torch.Tensor | None:
        batch, chosen = seen.batch, seen.batch.selected.double()
        if not batch.holds("before") or len(batch.before) != len(chosen) or int(batch.before.max()) >= chosen.shape[1]:
            return None
        return torch.zeros_like(chosen).scatter_(1, batch.before, 1.0).T @ chosen

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        counts = total.sum(1, keepdims=True)
        shares = total / np.where(counts > 0, counts, np.nan)
        terms = np.where(shares == 0, 0, -shares * np.log(np.where(shares > 0, shares, 1)))
        return terms.sum(1) / np.log(total.shape[1])
