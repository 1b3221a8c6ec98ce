"""FFN experts per token differ by part of speech (MoE++)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_probe.claims.claim import Claim, Evidence, Finding
from moe_probe.claims.fitting import require_free_experts
from moe_probe.claims.words import WordTypes, word_types
from moe_probe.dynamic.analyses.ffn_experts_per_token import FFNExpertsPerToken
from moe_probe.model import MoEModel
from moe_probe.statistics.bootstrap import DRAWS, LEAST_UNITS
from moe_probe.statistics.rates import p_of_draws
from moe_probe.texts.tagging import make_tagger


def spread(types: WordTypes) -> Finding:
    """Standard deviation of the classes' means over word types, compared with classes permuted among types."""
    names, inverse, count = np.unique(types.tag, return_inverse=True, return_counts=True)
    frequent = ((count >= LEAST_UNITS) & (names != ""))[inverse]
    density, tag = types.density[frequent], types.tag[frequent]
    names, tag = np.unique(tag, return_inverse=True)
    if len(names) < 2 or np.ptp(density) == 0:
        return Finding(
            np.nan, why=f"fewer than two parts of speech have {LEAST_UNITS} word types, or all use the same number"
        )
    member = (tag[:, None] == np.arange(len(names))).astype(float)
    share = member.mean(0)
    generator = np.random.default_rng(0)
    orders = np.stack([density, *(generator.permutation(density) for _ in range(DRAWS))])
    apart = np.sqrt(((orders @ member / member.sum(0) - density.mean()) ** 2) @ share)
    return Finding(float(apart[0] - apart[1:].mean()), p=float(p_of_draws(apart[0], apart[1:])))


def applies(model: MoEModel) -> None:
    """Raises `NotFitting` if all experts are FFN experts, or `MissingPackage` if there is no tagger."""
    require_free_experts(model)
    make_tagger("textblob")


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Word types are the units; there is no interval, because they are not resampled."""
    return [spread(word_types(evidence, make_tagger("textblob")))]


CLAIM = Claim(
    hypothesis="Words of different parts of speech use different numbers of FFN experts.",
    source="MoE++, arXiv 2410.07348, section 4.3 and figure 5",
    effect="standard deviation over classes of FFN experts per token, minus its mean with permuted classes",
    findings=findings,
    needs=(FFNExpertsPerToken(),),
    applies=applies,
    units="word types",
)
