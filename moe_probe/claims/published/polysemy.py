"""Sub-tokens of polysemous words diverge more (MH-MoE)."""

from __future__ import annotations

from collections.abc import Sequence

from moe_probe.claims.claim import Claim, Evidence, Finding
from moe_probe.dynamic.analyses.subtoken_divergence import SubtokenDivergence
from moe_probe.errors import NotFitting
from moe_probe.model import MoEModel


def applies(model: MoEModel) -> None:
    """Raises `NotFitting` if the model does not split tokens."""
    if all(model.layer(index).subtokens == 1 for index in model.moe_layers):
        raise NotFitting(f"{model.name} has no sub-tokens; the claim is about MH-MoE.")


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Word types are the units of the p-value."""
    ds = evidence.results["subtoken_divergence"]
    effect, low, high, p = (float(ds[name]) for name in ("difference", "difference_low", "difference_high", "p_value"))
    return [Finding(effect, low, high, p, why="too few of the words are polysemous, or all of them are")]


CLAIM = Claim(
    hypothesis="Sub-tokens of polysemous words and false cognates choose more distinct experts than those of others.",
    source="MH-MoE, arXiv 2404.15045, section 4.4, figure 7",
    effect="distinct experts of a token's sub-tokens, listed words minus others",
    findings=findings,
    units="word types",
    needs=(SubtokenDivergence(),),
    applies=applies,
)
