"""EASY-EP: what an expert adds, where the routed experts turn the residual stream."""

from __future__ import annotations

import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class EasyEP(OnePass):
    """EASY-EP: norms of an expert's weighted outputs, weighted by how much routed experts rotate the residual stream.

    x is the residual stream before the norm in front of the MoE block. The score is not defined for blocks whose input
    no module of its own gives, nor for routed sub-tokens.
    """

    formula = "sum over S_e of w_e |f_e(x)| max(0, 1 - cos(x, x + z))"
    source = "Dong et al., arXiv 2504.06792"
    units = "residual stream"
    needs = frozenset({Need.WEIGHTS, Need.SELECTED, Need.RESIDUAL, Need.ROUTED})

    def add(self, seen: Seen) -> torch.Tensor | None:
        batch = seen.batch
        if not batch.holds("residual") or batch.residual.shape != batch.routed_output.shape:
            return None
        return seen.by_expert(seen.weights * seen.norms * seen.turned[:, None])
