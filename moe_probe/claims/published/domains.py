"""Experts specialize in domains (OLMoE, MoE++)."""

from __future__ import annotations

from collections.abc import Sequence

from moe_probe.claims.claim import Claim, Evidence, Finding, by_layer
from moe_probe.dynamic.analyses.task_load import TaskLoad


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Distance of the labels' loads, compared with labels permuted among documents."""
    ds = evidence.results["task_load"]
    effect, low, high, p = (ds[f"task_distance{end}"].values for end in ("", "_low", "_high", "_p"))
    return by_layer(ds.layer.values, effect, low, high, p, "a label has too few documents")


CLAIM = Claim(
    hypothesis="Documents of different labels use different experts.",
    source="OLMoE, arXiv 2409.02060, section 5.3 (domain specialization); MoE++, arXiv 2410.07348, figure 4",
    effect="mean total variation distance of the labels' expert shares, corrected for the choice of documents",
    findings=findings,
    needs=(TaskLoad(),),
)
