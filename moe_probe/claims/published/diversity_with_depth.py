"""Experts grow more diverse with depth, except in the last layer (Lo et al.)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_probe.claims.claim import Claim, Evidence, Finding
from moe_probe.dynamic.analyses.task_load import exact_spearman
from moe_probe.static.analyses.similarity import similarity

LEAST = 5  # layers: the smallest two-sided p-value of fewer is above 0.05


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Layers are the units: if depth does not matter, all their orders are equally likely."""
    last = evidence.model.moe_layers[-1]
    layers = [layer for layer in evidence.layers if layer != last]
    if len(layers) < LEAST:
        why = f"{len(layers)} layers before the last one have too few orders; the test needs {LEAST}"
        return [Finding(np.nan, why=why)]
    cosine = similarity(evidence.model, layers=layers).cosine
    one, other = np.triu_indices(cosine.sizes["expert"], 1)
    diversity = 1 - cosine.values[..., one, other].mean((1, 2))
    effect, p = exact_spearman(diversity, layers)
    return [Finding(effect, p=p, why="all layers are equally diverse, or an expert is zero")]


CLAIM = Claim(
    hypothesis="Experts are less similar in deeper layers, except in the last one.",
    source="Lo et al., arXiv 2406.18219, section 4.1",
    effect="Spearman's correlation over layers of depth and 1 - mean cosine of pairs of experts",
    findings=findings,
    units="layers",
)
