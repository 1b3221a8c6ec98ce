"""Routing follows token identity (OpenMoE, OLMoE)."""

from __future__ import annotations

from collections.abc import Sequence

from moe_probe.claims.claim import Claim, Evidence, Finding, by_layer
from moe_probe.dynamic.analyses.token_specialization import TokenSpecialization


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Excess over the documents' own choices, so that effects of a topic do not count as effects of a token."""
    ds = evidence.results["token_specialization"]
    chance = ds.context_chance.values
    low, high = ds.context_independence_low.values - chance, ds.context_independence_high.values - chance
    return by_layer(
        ds.layer.values,
        ds.context_independence.values - chance,
        low,
        high,
        ds.context_p.values,
        "no token id occurs often enough, or all tokens make one choice",
    )


CLAIM = Claim(
    hypothesis="Two occurrences of a token have the same first choice more often than other tokens of their documents.",
    source="OpenMoE, arXiv 2402.01739, section 4; OLMoE, arXiv 2409.02060, section 5.4 (vocabulary specialization)",
    effect="share of pairs of occurrences with one first choice, minus that with choices permuted within documents",
    findings=findings,
    units="token ids",
    needs=(TokenSpecialization(min_count=2),),
)
