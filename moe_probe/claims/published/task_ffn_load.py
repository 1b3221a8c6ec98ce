"""Tasks differ in the number of FFN experts that their tokens use (MoE++)."""

from __future__ import annotations

from collections.abc import Sequence

from moe_probe.claims.claim import Claim, Evidence, Finding, by_layer
from moe_probe.claims.fitting import require_free_experts
from moe_probe.dynamic.analyses.task_load import TaskLoad


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Spread over labels, compared with labels permuted among documents."""
    ds = evidence.results["task_load"]
    effect, low, high, p = (ds[f"ffn_spread{end}"].values for end in ("", "_low", "_high", "_p"))
    return by_layer(ds.layer.values, effect, low, high, p, "a label has too few documents")


CLAIM = Claim(
    hypothesis="Tokens of different labels use different numbers of FFN experts.",
    source="MoE++, arXiv 2410.07348, figures 4 and A to E",
    effect="standard deviation over labels of FFN experts per token, corrected for the choice of documents",
    findings=findings,
    needs=(TaskLoad(),),
    applies=require_free_experts,
)
