"""Simple tokens use fewer FFN experts (MoE++)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from moe_probe.claims.claim import Claim, Evidence, Finding
from moe_probe.claims.fitting import require_free_experts
from moe_probe.claims.words import WordTypes, word_types
from moe_probe.dynamic.analyses.ffn_experts_per_token import FFNExpertsPerToken

LEAST = 20  # word types


def rarity(types: WordTypes) -> Finding:
    """Correlation of the rarity of word types with their number of FFN experts."""
    few = len(types.count) < LEAST or np.ptp(types.count) == 0 or np.ptp(types.density) == 0
    if few:
        return Finding(
            np.nan, why=f"fewer than {LEAST} word types, or all have the same frequency or number of FFN experts"
        )
    statistic, p = np.asarray(spearmanr(-types.count, types.density), float).tolist()
    return Finding(statistic, p=p)


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Word types are the units; there is no interval, because they are not resampled."""
    return [rarity(word_types(evidence))]


CLAIM = Claim(
    hypothesis="The more frequent a word is in these texts, the fewer FFN experts its tokens use.",
    source="MoE++, arXiv 2410.07348, section 4.3 and figure 5 (simple tokens; frequency stands for simplicity here)",
    effect="Spearman's correlation over word types of rarity and FFN experts per token",
    findings=findings,
    needs=(FFNExpertsPerToken(),),
    applies=require_free_experts,
    units="word types",
)
