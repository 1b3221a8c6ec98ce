"""Soft counting: the affinities of an expert, summed over the rows that chose it."""

from __future__ import annotations

import torch

from moe_probe.pruning.score import OnePass, Seen
from moe_probe.routing import Need


class SoftCount(OnePass):
    """Soft counting: the affinities of an expert, summed over the rows that chose it."""

    formula = "sum over S_e of p_e"
    source = "SEER-MoE, arXiv 2404.05089"
    needs = frozenset({Need.SCORES})

    def add(self, seen: Seen) -> torch.Tensor | None:
        return seen.by_expert(seen.affinities)
