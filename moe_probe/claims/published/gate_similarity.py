"""Similar experts have similar gate embeddings (Lo et al.)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_probe.claims.claim import Claim, Evidence, Finding, by_layer
from moe_probe.errors import NotFitting
from moe_probe.static.analyses.gate_similarity import gate_similarity
from moe_probe.static.analyses.similarity import similarity
from moe_probe.statistics.bootstrap import DRAWS, jackknife_interval
from moe_probe.statistics.rates import mantel

LEAST = 5  # experts: fewer have fewer than 120 orders


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Mantel's test of the mean similarity of the projections; experts are the units of the interval."""
    experts = similarity(evidence.model, "neuron_mean", layers=list(evidence.layers)).cosine.mean("projection")
    labels = experts.expert.values.tolist()
    if len(labels) < LEAST:
        raise NotFitting(f"{evidence.model.name} has {len(labels)} experts with matrices; the test needs {LEAST}.")
    gates = gate_similarity(evidence.model, layers=list(evidence.layers)).cosine.sel(expert=labels, other=labels)
    pairs = list(zip(experts.values, gates.values, strict=True))
    r = np.array([correlation(one, other) for one, other in pairs])
    without = np.array(
        [[correlation(_less(one, at), _less(other, at)) for one, other in pairs] for at in range(len(labels))]
    )
    low, high = jackknife_interval(r, without, np.ones(len(labels)), limits=(-1, 1))
    p = np.array(
        [
            mantel(one, other, DRAWS) if np.isfinite(value) else np.nan
            for (one, other), value in zip(pairs, r, strict=True)
        ]
    )
    return by_layer(experts.layer.values, r, low, high, p, "all pairs of experts are equally similar")


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation over the pairs of two symmetric matrices (E, E)."""
    at = np.tril_indices(len(one), -1)
    x, y = one[at], other[at]
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return np.nan
    return float(np.corrcoef(x[known], y[known])[0, 1])


def _less(matrix: np.ndarray, at: int) -> np.ndarray:
    return np.delete(np.delete(matrix, at, 0), at, 1)


CLAIM = Claim(
    hypothesis="Experts with similar weights have similar gate embeddings.",
    source="Lo et al., arXiv 2406.18219, section 4.2, table 1",
    effect="Pearson's correlation over pairs of experts of the cosines of gate embeddings and of mean neurons",
    findings=findings,
    units="experts",
)
